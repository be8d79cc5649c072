"""What is wrong with a command line, in one line: the option, its value, the remedy."""

import difflib
import re

from omegaconf.errors import MissingMandatoryValue, ValidationError

from dcls.config.schema import GROUPS, SCHEMAS, SURGERIES, Config, EvalConfig, choices_of, options
from dcls.errors import ConfigError


def explain(error: BaseException) -> str:
    """One line for an exception of Hydra, OmegaConf or ours: the option, its value, the remedy.

    Hydra's own message often names only the override; the reason is in `__cause__`.
    """
    if isinstance(error, ConfigError):
        return _line(str(error))
    reason = error
    while reason.__cause__ is not None:
        reason = reason.__cause__
    key = _key_of(reason)
    typed_in = re.search(rf"{re.escape(key)}\S*?=(.*)", str(error)) if key else None
    value = typed_in[1] if typed_in else None
    where = re.search(r"In '(\w+/\w+)'", str(error))
    prefix = f"configs/{where[1]}.yaml: " if where else ""
    return _line(prefix + _reason(reason, key, value))


def _reason(reason: BaseException, key: str, value: str | None) -> str:
    given = key if value is None else f"{key}={value}"
    option = options(Config).get(key) or options(EvalConfig).get(key)
    first = str(reason).splitlines()[0] if str(reason) else type(reason).__name__
    absent = re.search(r"Could not find '(\w+)/([^']+)'", first)
    if absent and absent[1] in GROUPS["train"]:
        return unknown_choice(absent[1], absent[2])
    if not key:
        return first
    if "' not in '" in str(reason):
        return _misplaced(key, given) if option else unknown_option(key, value)
    if isinstance(reason, MissingMandatoryValue):
        return f"{key} is not set: give {key}=<value>" + (f" ({option.doc})" if option else "")
    if option and (isinstance(reason, ValidationError) or ": ValidationError raised" in first):
        return f"{given}: must be {option.type_words} ({option.doc})"
    return f"{given}: {first}"


def _key_of(reason: BaseException) -> str:
    """The option's dotted name, without the index into a list."""
    named = re.search(r"full_key: ([\w.]+)", str(reason))
    return named[1] if named else ""


def _misplaced(key: str, given: str) -> str:
    """A known option that the chosen mode of surgery has not."""
    field = key.partition(".")[2]
    modes = [f"surgery={mode}" for mode, cls in SURGERIES.items() if field in cls.__dataclass_fields__]
    return f"{given}: an option of {' and '.join(modes)} alone; choose that, or leave the option out"


def unknown_option(key: str, value: str | None, config_name: str = "train") -> str:
    """One line for an option that nobody has, with the names that look like it."""
    given = key if value is None else f"{key}={value}"
    names = list(dict.fromkeys([*GROUPS[config_name], *options(SCHEMAS[config_name])]))
    close = _alike(key, names)
    remedy = f"did you mean {' or '.join(close)}?" if close else "--help lists the options"
    return f"{given}: unknown option {key}; {remedy}"


def _alike(key: str, names: list[str]) -> list[str]:
    """Up to three names: the same word in another section, else what is near in this section, else anywhere."""
    section, _, word = key.rpartition(".")
    same = [name for name in names if name.rpartition(".")[2] == word]
    if same:
        return same[:3]
    for pool in ([name for name in names if name.rpartition(".")[0] == section], names):
        words = {name.rpartition(".")[2]: name for name in pool}
        close = difflib.get_close_matches(word, words, n=2)
        if close:
            return [words[match] for match in close]
    return []


def unknown_choice(group: str, value: str) -> str:
    choices = choices_of(group)
    close = difflib.get_close_matches(value, choices, n=1)
    guess = f"did you mean {group}={close[0]}? " if close else ""
    return f"{group}={value}: unknown {group}; {guess}choose one of {', '.join(choices)}"


def _line(text: str) -> str:
    return " ".join(text.split())
