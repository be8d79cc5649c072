"""Weights from files: found in what other trainers save, and put into a plain or a converted model."""

from collections.abc import Collection, Mapping
from typing import Any

from timm.models import clean_state_dict, get_pretrained_cfg_value
from torch import Tensor, nn

from dcls.errors import CheckpointError
from dcls.layers import layers
from models.factory import create

# Where trainers put them: ours, timm's and ConvNeXt's.
CONTAINERS = {"ema": ("ema", "state_dict_ema", "model_ema"), "model": ("model", "state_dict")}


def weights_of(saved: Mapping[str, Any], which: str = "auto") -> dict[str, Tensor]:
    """The weights in a loaded file, without the prefixes that DDP and torch.compile leave.

    which: ema (the average), model, or auto (the average where there is one). CheckpointError where there are none.
    """
    for kind in ("ema", "model") if which == "auto" else (which,):
        for name in CONTAINERS[kind]:
            if isinstance(saved.get(name), Mapping) and saved[name]:
                return _tensors(saved[name])
    if which != "ema" and saved and all(isinstance(value, Tensor) for value in saved.values()):
        return _tensors(saved)
    known = ", ".join(name for kind in CONTAINERS for name in CONTAINERS[kind] if which in ("auto", kind))
    raise CheckpointError(
        f"weights={which}: the file holds none of {known}, but {', '.join(map(str, list(saved)[:8]))}"
    )


def _tensors(named: Mapping[Any, Any]) -> dict[str, Tensor]:
    """CheckpointError for what cannot be weights of a network."""
    for name, value in named.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"found {name!r}, a {type(value).__name__}, among the weights; expected tensors by name"
            )
        if value.dim() == 0 and name.endswith((".weight", ".P", ".SIG")):
            raise CheckpointError(f"found a single number as {name}; expected a tensor with axes")
    return clean_state_dict(dict(named))


def create_from(name: str, weights: Mapping[str, Tensor], **options: Any) -> nn.Module:
    """The timm network `name` with these weights, their classes and colours. CheckpointError where they do not fit."""
    if ":" in name:
        raise CheckpointError(f"model.name={name} has weights of its own: leave the file out, or give timm's name")
    classifier = weights.get(f"{get_pretrained_cfg_value(name, 'classifier')}.weight")
    if classifier is not None:
        options["num_classes"] = len(classifier)
    first = weights.get(f"{get_pretrained_cfg_value(name, 'first_conv')}.weight")
    if first is not None:
        options["in_chans"] = first.shape[1]
    model = create(name, **options)
    problems = misfit(model.state_dict(), weights)
    if problems:
        raise CheckpointError(f"model.name={name} does not fit the weights: {problems}")
    model.load_state_dict(dict(weights))
    return model


def misfit(own: Mapping[str, Tensor], given: Mapping[str, Tensor], optional: Collection[str] = ()) -> str:
    """What keeps `given` from being loaded as `own`, "" where nothing does. Names in `optional` may be missing."""
    missing = [name for name in own if name not in given and name not in optional]
    unexpected = [name for name in given if name not in own]
    misshapen = [
        f"{name} {list(given[name].shape)} for {list(own[name].shape)}"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    return "; ".join(f"{len(names)} {what}, as {names[0]}" for what, names in problems.items() if names)


def load_plain(model: nn.Module, state_dict: Mapping[str, Tensor], *, fresh_head: bool = False) -> list[str]:
    """Load the weights of the same network with plain convolutions; return the names that stay freshly initialised.

    Those are weight, P and SIG of every DCLS layer, and the classifier with `fresh_head` or another number of classes.
    A layer whose positions are in `state_dict` comes from a DCLS model and is loaded whole.

    Raises CheckpointError, before anything is loaded, where another name is missing, unexpected or of another shape.
    """
    own = model.state_dict()
    fresh = _fresh(model, own, state_dict, fresh_head)
    given = {name: value for name, value in state_dict.items() if name not in fresh}
    problems = misfit(own, given, optional=fresh)
    if problems:
        raise CheckpointError(f"the weights are not this model's: {problems}; take model.name's own")
    model.load_state_dict(given, strict=False)
    return [name for name in own if name in fresh]


def _fresh(model: nn.Module, own: Mapping[str, Tensor], given: Mapping[str, Tensor], fresh_head: bool) -> set[str]:
    names = {
        f"{layer}.{parameter}"
        for layer, _ in layers(model)
        if f"{layer}.P" not in given
        for parameter in ("weight", "P", "SIG")
    }
    heads = _classifiers(model)
    for name in own:
        if name.startswith(heads) and name in given and (fresh_head or given[name].shape != own[name].shape):
            names.add(name)
    return names


def _classifiers(model: nn.Module) -> tuple[str, ...]:
    """The prefixes of the classifier's names; distilled networks have two."""
    found = model.get_classifier()  # type: ignore[operator]  # a method of all timm models
    heads = found if isinstance(found, tuple | list) else (found,)
    return tuple(f"{name}." for name, module in model.named_modules() if any(module is head for head in heads))
