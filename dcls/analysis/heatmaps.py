"""Heat maps: which places of an image the score of its class rests on. Grad-CAM and Threshold-Grad-CAM of
arXiv 2408.03164, in torch alone.

N images, C channels and h x w places of the layer that is looked at, H x W pixels of a heat map.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

THRESHOLD = 0.3


def heat_maps(
    model: nn.Module,
    images: Tensor,
    classes: Tensor,
    layer: nn.Module,
    *,
    threshold: bool = False,
    size: int | tuple[int, int],
) -> Tensor:
    """Heat maps [N, H, W] of images [N, .., .., ..] for classes [N], at the output [N, C, h, w] of a layer.

    The model is in eval mode, or the images of a batch would depend on each other. threshold: Threshold-Grad-CAM
    instead of Grad-CAM. size: H = W, or (H, W). `models.target_layer` has the paper's layers.
    """
    weighted = weighted_activations(model, images, classes, layer)
    return (threshold_grad_cam if threshold else grad_cam)(weighted, size)


def weighted_activations(model: nn.Module, images: Tensor, classes: Tensor, layer: nn.Module) -> Tensor:
    """The layer's output [N, C, h, w], each channel times its weight: the mean over places of the gradient of the
    class's logit.
    """
    kept: list[Tensor] = []

    def keep(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        torch.set_grad_enabled(True)  # from here on: what lies before needs neither gradients nor their memory
        return kept[0]

    handle = layer.register_forward_hook(keep)
    try:
        with torch.no_grad():
            logits = model(images)
    finally:
        handle.remove()
    (gradients,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), kept)
    return gradients.mean((2, 3), keepdim=True) * kept[0].detach()


def grad_cam(weighted: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Heat maps [N, H, W] of weighted activations [N, C, h, w]: what is positive of their mean over channels."""
    return _resized(weighted.mean(1).relu(), size)


def threshold_grad_cam(weighted: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Heat maps [N, H, W] of weighted activations [N, C, h, w]: the mean over channels of what is positive of each,
    from 0 to 1 in every image, and 0.3 where it is less.
    """
    maps = weighted.relu().mean(1)
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    scaled = (maps - low) / (high - low).clamp_min(torch.finfo(maps.dtype).tiny)
    # Resized as what exceeds the threshold: the plateau stays exactly flat, and its pixels share one rank.
    return THRESHOLD + _resized((scaled - THRESHOLD).relu(), size)


def _resized(maps: Tensor, size: int | tuple[int, int]) -> Tensor:
    return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
