"""Which DCLS layers a model has, and what their parameters are. A shared parameter is met once."""

from collections.abc import Iterator

import torch
from torch import nn

from dcls.layers.convolution import DclsNd


def layers(model: nn.Module) -> Iterator[tuple[str, DclsNd]]:
    """(qualified name, layer) of every DCLS layer, each once, in the order of modules()."""
    for name, module in model.named_modules():
        if isinstance(module, DclsNd):
            yield name, module


def roles(model: nn.Module) -> dict[nn.Parameter, str]:
    """Every distinct parameter that some layer declares, by identity, with its role: 'position' or 'sigma'."""
    return {getattr(layer, name): role for _, layer in layers(model) for name, role in layer.parameter_roles.items()}


def positions(model: nn.Module) -> dict[str, nn.Parameter]:
    """The distinct position parameters, each by the qualified name of the first layer that holds it."""
    first: dict[nn.Parameter, str] = {}
    for name, layer in layers(model):
        first.setdefault(layer.P, name)
    return {name: position for position, name in first.items()}


@torch.no_grad()
def clamp_positions(model: nn.Module) -> None:
    """Clamp the positions of every layer to +-(size // 2), in place: once after each optimizer step, before the EMA."""
    clamped = set()
    for _, layer in layers(model):
        if (layer.P, layer.position_limits) not in clamped:
            layer.clamp_()
            clamped.add((layer.P, layer.position_limits))
