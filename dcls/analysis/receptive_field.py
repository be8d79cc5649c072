"""The effective receptive field: how much each pixel of the input matters to the centre of the last feature map.

Shapes: B images, C channels, H x W pixels; h x w positions of the last feature map.
"""

from typing import Any

import torch
from torch import Tensor, nn

from dcls.errors import ConfigError


def effective_receptive_field(model: nn.Module, images: Tensor) -> Tensor:
    """|d(centre of the last feature map, summed over its channels) / d(input)|, as float64 [H, W] on the CPU.

    Summed over the input's channels, averaged over `images` [B, C, H, W]. The last feature map is that of the last
    stage with more than one position; its centre is (h // 2, w // 2). `model`, one of timm's networks, is put in eval
    mode. Raises ConfigError for a network without feature maps.
    """
    forward: Any = getattr(model.eval(), "forward_intermediates", None)
    if forward is None:
        raise ConfigError(f"{type(model).__name__} gives no feature maps; expected a network of timm that does")
    shown = images.detach().clone().requires_grad_()
    with torch.enable_grad():
        maps = forward(shown, intermediates_only=True)
        large = [each for each in maps if each.dim() == 4 and min(each.shape[2:]) > 1]
        if not large:
            raise ConfigError(f"{type(model).__name__}: every feature map of images {list(images.shape)} is 1 x 1")
        rows, columns = large[-1].shape[2:]
        (gradient,) = torch.autograd.grad(large[-1][:, :, rows // 2, columns // 2].sum(), shown)
    return gradient.double().abs().sum(1).mean(0).cpu()


def centre(field: Tensor) -> tuple[float, float]:
    """Row and column of the centre of mass of a map [H, W], in pixels."""
    rows, columns = (torch.arange(side, dtype=field.dtype) for side in field.shape)
    return float(field.sum(1) @ rows / field.sum()), float(field.sum(0) @ columns / field.sum())


def radius(field: Tensor, share: float) -> float:
    """The radius in pixels, about the centre of mass of a map [H, W], of the circle that holds `share` of the mass."""
    row, column = centre(field)
    rows, columns = (torch.arange(side, dtype=field.dtype) for side in field.shape)
    distances = torch.hypot(rows[:, None] - row, columns[None] - column).flatten()
    order = distances.argsort()
    held = field.flatten()[order].cumsum(0)
    first = int(torch.searchsorted(held, share * held[-1]))
    return float(distances[order[min(first, len(order) - 1)]])
