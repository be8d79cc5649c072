"""Checkpoints in the layouts of the papers' repositories: to this framework's models, and back.

A file of weights says neither which interpolation its layers have nor how large their kernels are: v0 and v1 have the
same tensors, as have gauss and max, and positions tell a size only by how far they happen to reach. So both are what
the family was published with (SIG means gauss), unless they are given. Everything else is read off the tensors.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dcls.errors import CheckpointError, ConfigError
from dcls.layers import INTERPOLATIONS, from_reference, layers, to_reference
from dcls.layers.interpolation import resolve
from models.conversion import convert
from models.factory import create
from models.families import SUFFIX, Family, architecture, family, plain_name
from models.layouts import LAYOUTS, Layout, recognised, unknown
from models.registered import without_weights
from models.weights import create_from, misfit

AUTO = "auto"
# Cells. An average that is taken before the clamp, as the papers' were, lies a little outside the kernel.
SLACK = 1.0


def restore(
    weights: Mapping[str, Tensor],
    *,
    name: str = "",
    version: str = AUTO,
    dilated_kernel_size: str | int | Sequence[int] = AUTO,
    **options: Any,
) -> nn.Module:
    """The network these weights belong to, with them: a published DCLS network, or a plain one of timm's.

    weights: names and tensors as `weights_of` finds them, in timm's naming or the family's original one. Positions are
    taken to be in the reference package's order of axes, and are never clamped.
    name: timm's name, "" to recognise it. By a name of ours (`convnext_tiny_dcls`) the positions are in our order.
    version, dilated_kernel_size: of the DCLS layers, where they are not the family's. options: of timm's constructor.

    Raises CheckpointError for an unknown layout, weights that do not fit, and a version or size that contradicts them;
    ConfigError for names and options that timm does not know.
    """
    found, ours, learned = recognised(weights), SUFFIX.search(name), any(key.endswith(".P") for key in weights)
    asked: dict[str, Any] = {"version": version, "dilated_kernel_size": dilated_kernel_size}
    if name and (found is None or not found[0].family.covers(plain_name(name)) or (ours and not learned)):
        _refuse(asked, f"model.name={name} is loaded as timm names it")
        return create_from(name, weights, **options)
    if found is None:
        raise CheckpointError(f"the layout is unknown: {unknown(weights)}; or give the network, model.name=<timm name>")
    layout, naming = found
    name = (plain_name(name) if ours else name) or layout.architecture(weights, naming)
    if weights[naming.stem].dim() != 4:
        raise CheckpointError(f"{naming.stem} has the shape {list(weights[naming.stem].shape)}, expected four axes")
    read_off = {"num_classes": len(weights[naming.classifier]), "in_chans": weights[naming.stem].shape[1]}
    build = partial(_network, name, learned or naming is not layout.namings[0], **(read_off | options))
    if not learned:
        _refuse(asked, "the file holds no DCLS layers")
        model = build()
        model.load_state_dict(_fitting(weights, model, layout))
        return model
    if version == AUTO and ours:
        asked["version"] = ours[1] or AUTO
    return _restored(build, weights, layout, ours is not None, **asked)


def _restored(
    build: Callable[[], nn.Module],
    weights: Mapping[str, Tensor],
    layout: Layout,
    ours: bool,
    version: str,
    dilated_kernel_size: str | int | Sequence[int],
) -> nn.Module:
    """A DCLS network. `build` makes the plain one; ours: the positions are in our order of axes."""
    taps = max(value.shape[-1] for key, value in weights.items() if f"{key.removesuffix('weight')}P" in weights)
    # The blocks of a stage share positions where the file's are equal, as in all that were published.
    for share in (True, False):
        model = build()
        chosen = _version(weights, version, family(model))
        convert(
            model,
            mode="dcls",
            version=chosen,
            dilated_kernel_size=dilated_kernel_size,
            kernel_count=taps,
            share=share,
        )
        fitting = _fitting(weights, model, layout)
        if not share or equal_where_shared(model, fitting):
            break
    if not ours:
        fitting = _placed(model, fitting, from_reference)
    check_reach(model, fitting)
    model.load_state_dict(fitting)
    return model


def publish(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a model of timm's, plain or DCLS, as the family's repository names and shapes them.

    Positions are in the reference package's order of axes, and repeated in each block that shares them. The inverse of
    `restore`. Raises ConfigError for a model without a published layout.
    """
    name = plain_name(architecture(model))
    for layout in LAYOUTS:
        if name in layout.architectures.values():
            return layout.to_original(_placed(model, model.state_dict(), to_reference))
    known = ", ".join(name for layout in LAYOUTS for name in layout.architectures.values())
    raise ConfigError(f"{name or type(model).__name__} has no published layout: {known} have")


def _network(name: str, published: bool, **options: Any) -> nn.Module:
    """timm's network; `published`: images are shown to it as in the paper, and not as to timm's own weights."""
    model = create(name, **options)
    if published:
        model.pretrained_cfg = without_weights(name, family(name)).to_dict()
    return model


def _refuse(asked: Mapping[str, Any], why: str) -> None:
    for option, value in asked.items():
        if value != AUTO:
            raise ConfigError(f"surgery.{option}={value} has no effect: {why}")


def _version(weights: Mapping[str, Tensor], asked: str, rule: Family) -> str:
    has_sigma = any(name.endswith(".SIG") for name in weights)
    if asked == AUTO:
        return "gauss" if has_sigma else rule.default_version
    if INTERPOLATIONS[resolve(asked)].has_sigma != has_sigma:
        raise CheckpointError(
            f"surgery.version={asked} contradicts the file, which has {'a' if has_sigma else 'no'} SIG beside each P"
        )
    return asked


def _fitting(weights: Mapping[str, Tensor], model: nn.Module, layout: Layout) -> dict[str, Tensor]:
    """The weights by timm's names, every one that the model has and no other. CheckpointError where they differ."""
    try:
        renamed = layout.to_timm(dict(weights), model)
    except KeyError as error:
        problems = f"unexpected {error.args[0]}"
    else:
        problems = misfit(model.state_dict(), renamed)
    if problems:
        name = architecture(model)
        raise CheckpointError(
            f"the weights look like {name}'s but do not fit it: {problems}; see model.name, model.args"
        )
    return renamed


def _placed(model: nn.Module, weights: Mapping[str, Tensor], convert_positions: Any) -> dict[str, Tensor]:
    """The weights with every layer's positions and sigmas converted by from_reference or to_reference."""
    placed = dict(weights)
    for name, layer in layers(model):
        keys = [f"{name}.{parameter}" for parameter in layer.parameter_roles]
        values = convert_positions(
            *(weights[key] for key in keys), version=layer.version, dilated_kernel_size=layer.dilated_kernel_size
        )
        placed.update(zip(keys, values))
    return placed


def equal_where_shared(model: nn.Module, weights: Mapping[str, Tensor]) -> bool:
    """Whether layers that share a parameter in `model` have equal ones in `weights`, so that sharing loses nothing."""
    first: dict[nn.Parameter, str] = {}
    for name, layer in layers(model):
        for parameter in layer.parameter_roles:
            key = f"{name}.{parameter}"
            leader = first.setdefault(getattr(layer, parameter), key)
            if not torch.equal(weights[key], weights[leader]):
                return False
    return True


def check_reach(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Positions far outside the kernel show that it was larger. Raises CheckpointError."""
    for name, layer in layers(model):
        reach = float(weights[f"{name}.P"].abs().max())
        if not reach <= max(layer.position_limits) + SLACK:  # NaN too
            size = " x ".join(map(str, layer.dilated_kernel_size))
            raise CheckpointError(
                f"{name}.P reaches {reach:.1f} cells from the centre, outside a {layer.version} kernel of {size}: "
                "give the size these weights were trained with, surgery.dilated_kernel_size=<size>"
            )
