"""Start a converted model from weights of the plain one."""

from collections.abc import Mapping

from torch import Tensor, nn

from dcls.errors import CheckpointError
from dcls.layers import layers


def load_plain(model: nn.Module, state_dict: Mapping[str, Tensor]) -> list[str]:
    """Load the weights of the same network with plain convolutions; return the names that stay freshly initialised.

    Those are weight, P and SIG of every DCLS layer, and the classifier where it has another number of classes. A layer
    whose positions are in `state_dict` comes from a DCLS model and is loaded whole.

    Raises CheckpointError, before anything is loaded, where another name is missing, unexpected or of another shape.
    """
    own = model.state_dict()
    fresh = _fresh(model, own, state_dict)
    given = {name: value for name, value in state_dict.items() if name not in fresh}
    missing = [name for name in own if name not in given and name not in fresh]
    unexpected = [name for name in given if name not in own]
    misshapen = [
        f"{name} {list(given[name].shape)} for {list(own[name].shape)}"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    if any(problems.values()):
        text = "; ".join(f"{len(names)} {what}, as {names[0]}" for what, names in problems.items() if names)
        raise CheckpointError(f"model.init_from does not hold this model's weights: {text}; take model.name's own")
    model.load_state_dict(given, strict=False)
    return [name for name in own if name in fresh]


def _fresh(model: nn.Module, own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> set[str]:
    names = {
        f"{layer}.{parameter}"
        for layer, _ in layers(model)
        if f"{layer}.P" not in given
        for parameter in ("weight", "P", "SIG")
    }
    head = _classifier(model)
    names |= {name for name in own if name.startswith(head) and name in given and given[name].shape != own[name].shape}
    return names


def _classifier(model: nn.Module) -> str:
    """The prefix of the classifier's names."""
    classifier = model.get_classifier()  # type: ignore[operator]
    return next(f"{name}." for name, module in model.named_modules() if module is classifier)
