"""The effective receptive field: how much each pixel of the input matters to the centre of a feature map.

Shapes: B images, C channels, H x W pixels; h x w positions of the feature map.
"""

import torch
from torch import Tensor, nn


def last_stage(model: nn.Module, images: Tensor) -> nn.Module | None:
    """The last stage of a timm network whose map of `images` [B, C, H, W] has more than one position on each axis.

    A map of one position, as small images leave it, says nothing of places. None where no stage has a map [B, C, h, w].
    """
    stages = [model.get_submodule(each["module"]) for each in getattr(model, "feature_info", ())]
    shapes: dict[nn.Module, torch.Size] = {}
    handles = [stage.register_forward_hook(lambda *of: shapes.update({of[0]: of[2].shape})) for stage in stages]
    with torch.no_grad():
        model(images[:1])
    for handle in handles:
        handle.remove()
    wide = [stage for stage in stages if len(shapes[stage]) == 4 and min(shapes[stage][2:]) > 1]
    return wide[-1] if wide else None


def effective_receptive_field(model: nn.Module, images: Tensor, layer: nn.Module) -> Tensor:
    """|d(centre of the layer's output, summed over its channels) / d(input)|, as float64 [H, W] on the CPU.

    Summed over the input's channels, averaged over `images` [B, C, H, W]. The centre of the output [B, c, h, w] is
    (h // 2, w // 2). `model` is in eval mode, or the images would depend on each other.
    """
    maps: list[Tensor] = []
    shown = images.detach().clone().requires_grad_()
    handle = layer.register_forward_hook(lambda *of: maps.append(of[2]))
    try:
        with torch.enable_grad():
            model(shown)
    finally:
        handle.remove()
    rows, columns = maps[0].shape[2:]
    (gradient,) = torch.autograd.grad(maps[0][:, :, rows // 2, columns // 2].sum(), shown)
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
