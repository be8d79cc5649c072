"""Other people's layers."""

import importlib.util
import logging
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from dcls import layers
from dcls.layers import to_reference


def has_reference() -> bool:
    return importlib.util.find_spec("DCLS") is not None


def reference_layer(ins: int, outs: int, taps: int, cells: int, version: str, **options: Any) -> Any:
    """PyPI `DCLS`'s Dcls2d, square, without the warning it logs at each construction where an extension is missing."""
    root = logging.getLogger()
    disabled, root.disabled = root.disabled, True
    try:
        from DCLS.construct.modules import Dcls2d

        return Dcls2d(ins, outs, taps, dilated_kernel_size=cells, version=version, **options)
    finally:
        root.disabled = disabled


def reference_like(ours: layers.DclsNd) -> Any:
    """The reference's layer that computes what a square, undilated Dcls2d of ours does."""
    theirs = reference_layer(
        ours.in_channels,
        ours.out_channels,
        ours.kernel_count,
        ours.dilated_kernel_size[0],
        ours.version,
        stride=ours.stride,
        padding=ours.padding,
        groups=ours.groups,
        bias=ours.bias is not None,
    )
    placed = to_reference(ours.P, ours.SIG, version=ours.version, dilated_kernel_size=ours.dilated_kernel_size)
    values = {"weight": ours.weight, "bias": ours.bias, "P": placed[0], "SIG": placed[1]}
    with torch.no_grad():
        for name, value in values.items():
            if value is not None:
                getattr(theirs, name).copy_(value)
    return theirs.to(ours.weight.device)


def reference_model(ours: nn.Module) -> nn.Module:
    """A copy of the network with the reference's layers in place of ours, each with positions of its own."""
    model = deepcopy(ours)
    for name, layer in list(layers.layers(model)):
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, reference_like(layer))
    return model
