"""Any timm model by name, with errors that say what to do."""

import difflib
from typing import Any

import timm
from timm.models import get_arch_pretrained_cfgs, is_model_pretrained, parse_model_name, split_model_name_tag
from torch import nn

from dcls.errors import ConfigError


def create(
    name: str,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    drop_path_rate: float = 0.0,
    pretrained: bool = False,
    **options: Any,
) -> nn.Module:
    """`timm.create_model`: any timm name, with a tag or without, ours, or `hf-hub:` and `local-dir:` sources.

    num_classes 0 leaves the classifier out; where it or in_chans is not given, it is what the pretrained weights or the
    source have, else ImageNet's. options: further arguments of the timm model, for example drop_rate.

    Raises ConfigError for an unknown name (with close ones), tag or option, and for pretrained weights that do not
    exist, cannot be fetched or do not fit.
    """
    _check(name, pretrained)
    if not pretrained and ":" not in name:
        num_classes = 1000 if num_classes is None else num_classes
        in_chans = 3 if in_chans is None else in_chans
    arguments: dict[str, Any] = {
        "num_classes": num_classes,
        "in_chans": in_chans,
        "drop_path_rate": drop_path_rate or None,
    }
    try:
        return timm.create_model(name, pretrained=pretrained, **arguments, **options)
    except (TypeError, ValueError, LookupError, AssertionError) as error:
        if not options and drop_path_rate:
            raise ConfigError(
                f"recipe.drop_path={drop_path_rate} does not fit {name}: {error}; give recipe.drop_path=0"
            ) from error
        if not options:
            raise
        given = {key: value for key, value in arguments.items() if value is not None}
        raise ConfigError(f"model.args={options} (with {given}) does not fit {name}: {error}") from error
    except RuntimeError as error:
        first, *details = str(error).splitlines()
        if not pretrained or "state_dict" not in first:
            raise
        raise ConfigError(
            f"model.name={name}: its weights do not fit the network that timm builds from it: {details[0].strip()}"
        ) from error
    except OSError as error:
        if not pretrained:
            raise
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"model.pretrained=true: the weights of {name} cannot be fetched ({reason}); give a file with "
            "model.init_from instead"
        ) from error


def _check(name: str, pretrained: bool) -> None:
    try:
        source, name = parse_model_name(name)
    except ValueError as error:
        raise ConfigError(f"model.name={name!r} is no timm name: {error}") from None
    if source is not None:
        return
    plain, tag = split_model_name_tag(name)
    if not timm.is_model(plain):
        raise ConfigError(f"model.name={name!r} is unknown to timm{_suggestion(plain, timm.list_models())}")
    tagged = list(get_arch_pretrained_cfgs(plain))
    if tag and name not in tagged:
        raise ConfigError(f"model.name={name!r} has an unknown tag{_suggestion(name, tagged)}")
    if pretrained and not is_model_pretrained(name):
        raise ConfigError(f"model.pretrained=true: there are no pretrained weights of {name}; leave it out")


def _suggestion(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    return f": did you mean {', '.join(close)}?" if close else ": timm.list_models() has the names"
