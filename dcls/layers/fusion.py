"""From a trained DCLS layer to a plain convolution."""

import torch
from torch import nn

from dcls.layers.convolution import DclsNd
from dcls.layers.drop_in import CONVOLUTIONS


def fuse(model: nn.Module) -> nn.Module:
    """Replace every DCLS layer, in place, by the torch convolution with its constructed kernel. Returns the model.

    A layer that is itself the root is returned as a convolution. A layer used in several places stays one module.
    Positions can no longer be learned afterwards, and hooks on the replaced layers are gone: evaluation and export
    work on `fuse(copy.deepcopy(model))`. Kernels are contiguous until the model is given a memory format again.
    """
    fused: dict[nn.Module, nn.Module] = {}
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if isinstance(child, DclsNd):
                fused[child] = fused[child] if child in fused else convolution(child)
                parent._modules[name] = fused[child]
    return convolution(model) if isinstance(model, DclsNd) else model


@torch.no_grad()
def convolution(layer: DclsNd) -> nn.Conv1d | nn.Conv2d | nn.Conv3d:
    """The nn.Conv1d, 2d or 3d that computes what the layer computes now."""
    kernel = layer.construct_kernel().to(layer.weight.dtype)
    conv = CONVOLUTIONS[layer.dimensions](
        layer.in_channels,
        layer.out_channels,
        layer.dilated_kernel_size,  # type: ignore[arg-type]  # as long as this class has axes
        layer.stride,  # type: ignore[arg-type]  # the same
        layer.padding,  # type: ignore[arg-type]  # the same
        groups=layer.groups,
        bias=False,
        padding_mode=layer.padding_mode,
        device="meta",
    )
    conv.weight = nn.Parameter(kernel, layer.weight.requires_grad)
    if layer.bias is not None:
        conv.bias = nn.Parameter(layer.bias.detach().clone(), layer.bias.requires_grad)
    return conv.train(layer.training)
