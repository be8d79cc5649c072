"""How timm's factory builds a network of plain convolutions: name, arguments, and what these cannot say."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm
from timm.models._input import get_model_args
from timm.models.convnext import ConvNeXt
from torch import nn

from models.families import architecture, plain_name
from models.quickstart import SHAPE

GEOMETRY = ("kernel_size", "padding", "dilation")


@dataclass(frozen=True)
class Blueprint:
    """timm.create_model(architecture, **arguments) is the network, but for some convolutions.

    convolutions: of each of these its name and its `GEOMETRY`, pixels along (height, width). It is empty where timm's
    constructor takes the size of the kernels, as ConvNeXt's does.
    """

    architecture: str
    arguments: Mapping[str, Any]
    convolutions: Mapping[str, Mapping[str, list[int]]]


def blueprint(model: nn.Module) -> Blueprint:
    """model: built by timm, its DCLS layers fused."""
    name, arguments = _call(model)
    if isinstance(model, ConvNeXt):
        arguments |= {"kernel_sizes": [_kernel_size(stage) for stage in model.stages]}
    return Blueprint(name, arguments, _odd_convolutions(model, timm.create_model(name, **arguments)))


def _call(model: nn.Module) -> tuple[str, dict[str, Any]]:
    """timm's own name for the plain network, and the arguments it was made with."""
    name, arguments = plain_name(architecture(model)), get_model_args(model)
    return ("convnext_tiny", SHAPE | arguments) if name == "convnext_quickstart" else (name, arguments)


def _kernel_size(stage: nn.Module) -> int:
    """timm's default for a stage without blocks."""
    return next((block.conv_dw.kernel_size[0] for block in stage.blocks), 7)  # type: ignore[union-attr]  # a stage of blocks


def _odd_convolutions(model: nn.Module, built: nn.Module) -> dict[str, dict[str, list[int]]]:
    pairs = zip(model.named_modules(), built.modules(), strict=True)
    return {
        name: {key: list(getattr(conv, key)) for key in GEOMETRY}
        for (name, conv), theirs in pairs
        if isinstance(conv, nn.Conv2d) and any(getattr(conv, key) != getattr(theirs, key) for key in GEOMETRY)
    }
