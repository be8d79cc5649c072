"""What a run is called, and whether two configurations are the same run."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dcls.config.schema import Config, Option, options

LONGEST = 100


def run_name(config: Config, overrides: Sequence[str]) -> str:
    """`<experiment>[-<overrides that change the result>]-s<seed>`, for example quickstart-surgery-none+epochs-3-s0.

    Equal for equal overrides in any order. Characters are letters, digits and . _ + -, so that a path with the name in
    it needs no quotes; a long name is cut and ends in a hash of the whole.
    """
    known = options(Config)
    lasts = [name.rpartition(".")[2] for name in known]
    asked = dict(override.split("=", 1) for override in overrides)
    parts = []
    for key in sorted(asked.keys() - {"experiment", "seed", "logger"}):
        option = _option_of(key, known)
        if option is None or option.changes_result:
            last = key.rpartition(".")[2]
            parts.append(f"{last if lasts.count(last) == 1 else key}-{asked[key]}")
    middle = _safe("+".join(parts))
    if len(middle) > LONGEST:
        middle = f"{middle[: LONGEST - 9]}-{hashlib.sha256('+'.join(parts).encode()).hexdigest()[:8]}"
    return "-".join([config.experiment, *([middle] if middle else []), f"s{config.seed}"])


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", text).replace("'", "").strip("_")


def _option_of(key: str, known: Mapping[str, Option]) -> Option | None:
    """The option that `key` sets: itself, or the mapping it is an entry of; None for a choice of a group."""
    return known.get(key) or next((o for name, o in known.items() if o.is_mapping and key.startswith(f"{name}.")), None)


def differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The options that change the result and differ between two configurations (nested dicts of a Config).

    A different mode of surgery counts as one difference. `recipe.epochs` counts, too: whether a run may be extended is
    what `run.extend` decides.
    """
    names = [
        name for name, option in options(Config).items() if option.changes_result and _at(old, name) != _at(new, name)
    ]
    if "surgery.mode" in names:
        return [name for name in names if not name.startswith("surgery.") or name == "surgery.mode"]
    return names


def _at(config: Mapping[str, Any], name: str) -> Any:
    value: Any = config
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
