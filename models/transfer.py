"""Fine-tuning: the weights of any checkpoint that can be evaluated, in a model that fits it."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from dcls.errors import CheckpointError
from dcls.layers import layers
from models.families import architecture, plain_name
from models.layouts import depths, recognised
from models.released import check_reach, equal_where_shared, restore
from models.weights import load_plain


def donor(weights: Mapping[str, Tensor], model: nn.Module, asked: Mapping[str, Any], **options: Any) -> nn.Module:
    """The network of weights in a foreign layout, published or timm's, as `restore` reads it for `model`'s name.

    asked: version and dilated_kernel_size of DCLS layers, for files that have some. options: of timm's constructor.
    Raises CheckpointError as `restore` does, and where the weights are another network's than `model`.
    """
    _check_architecture(weights, model)
    name, learned = architecture(model), any(key.endswith(".P") for key in weights)
    source = restore(weights, name=name if learned else plain_name(name), **(asked if learned else {}), **options)
    check_reach(source, source.state_dict())
    return source


def transfer(model: nn.Module, source: nn.Module, *, same_classes: bool = True) -> list[str]:
    """Load what `source` has into `model`, positions as they are; say in a line each what starts fresh instead.

    That is the classifier where the number of classes differs, or not `same_classes`, and the DCLS layers where the
    source is plain. Raises CheckpointError, which names what was found and what was expected, for another network,
    other channels, and DCLS layers of another version, size, number of taps or sharing.
    """
    _check_architecture(source.state_dict(), model)
    found, expected = (plain_name(architecture(each)) for each in (source, model))
    if found != expected:
        raise CheckpointError(f"found {found}, expected model.name={expected}")
    _check_channels(source, model)
    _check_layers(source, model)
    fresh = load_plain(model, source.state_dict(), fresh_head=not same_classes)
    lines = []
    if source.num_classes != model.num_classes:
        lines.append(f"the head starts fresh: {source.num_classes} classes there, {model.num_classes} here")
    elif not same_classes:
        lines.append("the head starts fresh: its classes have other names, or another order")
    if began := sum(f"{name}.P" in fresh for name, _ in layers(model)):
        lines.append(f"{began} DCLS layers start fresh: there they are plain")
    return lines


def _check_architecture(weights: Mapping[str, Tensor], model: nn.Module) -> None:
    found, expected = _network(weights), _network(model.state_dict())
    if found != expected:
        name = architecture(model)
        found = found or f"{len(weights)} names such as {', '.join(list(weights)[:3])}"
        raise CheckpointError(f"found {found}, expected {expected or name} (model.name={name}, model.args)")


def _network(weights: Mapping[str, Tensor]) -> str | None:
    """What the layout's names and its blocks say, None where the layout is none of the families'."""
    recognised_as = recognised(weights)
    if recognised_as is None:
        return None
    layout, naming = recognised_as
    blocks, channels = depths(weights), len(weights[naming.stem])
    return f"a {layout.family.name} of {'-'.join(map(str, blocks))} blocks and {channels} channels in the stem"


def _check_channels(source: nn.Module, model: nn.Module) -> None:
    found, expected = (colours(each) for each in (source, model))
    if found != expected:
        raise CheckpointError(f"found {found} colour channels, expected data.channels={expected}")


def colours(model: nn.Module) -> int:
    """The channels of the images that the network takes, 0 where it has no convolution."""
    return next((module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), 0)


def _check_layers(source: nn.Module, model: nn.Module) -> None:
    theirs, ours = dict(layers(source)), dict(layers(model))
    for name, layer in theirs.items():
        if name not in ours:
            raise CheckpointError(f"found a DCLS layer {name}, expected a plain one: set surgery=dcls")
        for option in ("version", "dilated_kernel_size", "kernel_count"):
            found, expected = (getattr(each, option) for each in (layer, ours[name]))
            if found != expected:
                raise CheckpointError(f"found {option} {found} in {name}, expected surgery.{option}={expected}")
    if theirs and not equal_where_shared(model, source.state_dict()):
        raise CheckpointError("found blocks with positions of their own, expected surgery.share=true: set it to false")
