"""From the words of a command line to a checked, typed configuration.

Hydra composes configs/ (the published numbers) over the schema of dcls/config.py. The overrides are read here before
Hydra sees them, so that a wrong name is answered with the right one; whatever remains wrong becomes one line.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dcls.config import checks, help
from dcls.config.explanation import explain, unknown_choice, unknown_option
from dcls.config.run_names import differing, run_name
from dcls.config.schema import CONFIGS, GROUPS, SCHEMAS, SURGERIES, Config, DataConfig, EvalConfig, choices_of, options
from dcls.errors import ConfigError

__all__ = [
    "answer",
    "complete_data",
    "compose",
    "differing",
    "explain",
    "read",
    "run_name",
    "typed",
    "typed_eval",
]

COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError)

# Options of the data group that a checkpoint knows better than the folder it is evaluated on.
TRANSFORM = ("channels", "mean", "std", "image_size", "eval_size", "crop_pct", "crop_mode", "interpolation")


@dataclass(frozen=True)
class Override:
    """`key=value` as it was typed. `kind` is group, text, mapping or plain, and decides how Hydra is told."""

    key: str
    value: str
    kind: str = "plain"

    def __str__(self) -> str:
        return f"{self.key}={self.value}"

    def for_hydra(self) -> str:
        if self.key == "experiment":
            return f"+{self}"  # nothing in the defaults list to override
        if self.kind == "mapping":
            return f"++{self}"  # its keys stand in no schema
        return f"{self.key}={_quoted(self.value)}" if self.kind == "text" else str(self)


def compose(config_name: str, arguments: Sequence[str]) -> tuple[DictConfig, list[str]]:
    """Compose "train" or "eval" with overrides such as `+experiment=quickstart` and `recipe.epochs=3`.

    Returns the configuration and the overrides that made it, with `surgery.mode` replaced by a choice of surgery.
    Raises ConfigError, one line, for what cannot be composed. Ranges and combinations are for `typed` to check.
    """
    overrides = _choose_surgery(config_name, [read(config_name, argument) for argument in arguments])
    return _composed(config_name, overrides), [str(override) for override in overrides]


def typed(cfg: DictConfig, overrides: Sequence[str] = ()) -> Config:
    """The training configuration as dataclasses, every value checked.

    `overrides` (as `compose` returns them) are what was asked for by name: there, an option without effect is an error.
    Raises ConfigError, one line that names the option, its value and the remedy.
    """
    with _one_line():
        config = cast(Config, OmegaConf.to_object(cfg))
    config.data.workers = _workers(config.data.workers, config.data.kind)
    checks.check_values(config)
    checks.check_run(config, _keys(overrides))
    return config


def typed_eval(cfg: DictConfig, overrides: Sequence[str] = ()) -> EvalConfig:
    """The evaluation's configuration as dataclasses; `.data` is a dict of the options that override the checkpoint's.

    A `data=<choice>` says where the images are. How they are transformed stays the checkpoint's, unless an option says
    otherwise by name (`data.crop_pct=1`). `complete_data` joins the two. Raises ConfigError.
    """
    named = _keys(overrides)
    rest = cfg.copy()
    rest.data = {}  # of the data nothing need be set, which no dataclass of ints could say
    with _one_line():
        config = cast(EvalConfig, OmegaConf.to_object(rest))
        chosen = {str(name): cfg.data[name] for name in cfg.data if not OmegaConf.is_missing(cfg.data, str(name))}
    config.data = {
        name: list(value) if isinstance(value, ListConfig) else value
        for name, value in chosen.items()
        if value != "" and (name not in TRANSFORM or f"data.{name}" in named)
    }
    checks.check_values(config)
    checks.check_evaluation(config, named)
    return config


def complete_data(given: Mapping[str, Any], stored: Mapping[str, Any]) -> DataConfig:
    """The data to evaluate on: what the checkpoint stored, and over it what was given. Raises ConfigError for a gap."""
    unsaid = {"train_split": "train", "crop_mode": "auto", "classes": None, "train_images": None, "val_images": None}
    values: dict[str, Any] = {**unsaid, **stored, "workers": -1, **given}
    values.setdefault("name", Path(values.get("root", "")).name)
    values.setdefault("image_size", values.get("eval_size"))
    known = [name.partition(".")[2] for name in options(Config) if name.startswith("data.")]
    for name in known:
        if name not in values and name != "root":
            choices = ", ".join(f"data={choice}" for choice in choices_of("data"))
            raise ConfigError(f"data.{name} is not set, and the checkpoint does not say: choose the data ({choices})")
    data = DataConfig(**{name: values[name] for name in known if name in values})
    data.workers = _workers(data.workers, data.kind)
    checks.check_values(data, "data")
    checks.check_data(data)
    if "crop_pct" in given and checks.crops_nothing(data):
        raise ConfigError(f"data.crop_pct={data.crop_pct} has no effect: {checks.TO_CROP}")
    return data


def read(config_name: str, argument: str) -> Override:
    """One argument as an override. Raises ConfigError for a flag, an unknown name, or a value nobody can read."""
    if argument.startswith("-"):
        raise ConfigError(f"{argument}: no such flag; options are written name=value, and --help lists them")
    if argument.startswith("~"):
        raise ConfigError(f"{argument}: nothing can be deleted; give the option the value you want")
    key, equals, value = argument.partition("=")
    key = key.lstrip("+")
    if not equals:
        raise ConfigError(f"{argument}: options are written name=value, such as recipe.epochs=100")
    override = Override(key, value, _kind(config_name, key, value))
    _readable(override)
    return override


def _kind(config_name: str, key: str, value: str) -> str:
    if key in GROUPS[config_name]:
        if value not in choices_of(key):
            raise ConfigError(unknown_choice(key, value))
        return "group"
    known = options(SCHEMAS[config_name])
    for name, option in known.items():
        mapping = option.is_mapping and (key == name or key.startswith(f"{name}."))
        if mapping:
            return "mapping"
        if key == name:
            return "text" if option.type is str or (name == "checkpoint" and not value.startswith("[")) else "plain"
    raise ConfigError(unknown_option(key, value, config_name))


def _readable(override: Override) -> None:
    try:
        parsed = OverridesParser.create().parse_override(override.for_hydra())
    except HydraException as error:
        raise ConfigError(f"{override}: the value cannot be read; quote it: {override.key}='\"...\"'") from error
    if parsed.is_sweep_override():
        raise ConfigError(f"{override}: one value, please; a list is written [1,2], several runs are several commands")


def _quoted(text: str) -> str:
    """Text for Hydra's grammar, in which a bare path may have no `=`, `(`, `,` or `~`."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text
    text = os.path.expanduser(text)
    return "'" + text.replace("'", "\\'") + "'"


def _choose_surgery(config_name: str, overrides: list[Override]) -> list[Override]:
    """Replace `surgery.mode=X` by `surgery=X`, or by nothing where the choice at hand has that mode already."""
    modes = [override.value for override in overrides if override.key == "surgery.mode"]
    if not modes:
        return overrides
    mode = modes[-1]
    if mode not in SURGERIES:
        raise ConfigError(f"surgery.mode={mode}: choose one of {', '.join(SURGERIES)}")
    rest = [override for override in overrides if override.key != "surgery.mode"]
    groups = [override for override in rest if override.kind == "group"]
    if _composed(config_name, groups).surgery.mode == mode:
        return rest
    chosen = [override for override in groups if override.key == "surgery"]
    if chosen:
        raise ConfigError(f"surgery.mode={mode} contradicts {chosen[-1]}: give one of them")
    return [*rest, Override("surgery", mode, "group")]


def _composed(config_name: str, overrides: Sequence[Override]) -> DictConfig:
    _register_schemas()
    experiments = [override for override in overrides if override.key == "experiment"]
    if len(experiments) > 1:
        raise ConfigError(f"{' '.join(map(str, experiments))}: give one experiment")
    with _one_line(), hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = hydra.compose(config_name, [override.for_hydra() for override in overrides])
    if experiments:
        cfg.experiment = experiments[0].value
    return cfg


@cache
def _register_schemas() -> None:
    """Schemas have names with an underscore: they stand first in defaults lists and are nobody's choice."""
    store = ConfigStore.instance()
    for name, schema in SCHEMAS.items():
        store.store(f"_{name}", schema)
    for mode, schema in SURGERIES.items():
        store.store(f"_{mode}", schema, group="surgery")


@contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except COMPOSITION_ERRORS as error:
        raise ConfigError(explain(error)) from error


def _workers(asked: int, kind: str) -> int:
    if asked >= 0:
        return asked
    if kind == "bundled":
        return 0  # a small image in memory takes 0.1 ms; on a laptop a worker would take a core from the training
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def _keys(overrides: Sequence[str]) -> set[str]:
    return {override.partition("=")[0] for override in overrides}


def answer(config_name: str, arguments: Sequence[str]) -> str | None:
    """The text of `--help` or `--cfg job`; None where the arguments ask for a run. Raises ConfigError."""
    if "--help" in arguments or "-h" in arguments:
        return help.page(config_name)
    for flag in (("--cfg", "job"), ("-c", "job"), ("--cfg=job",)):
        rest = _without(arguments, flag)
        if rest is not None:
            return OmegaConf.to_yaml(compose(config_name, rest)[0])
    return None


def _without(arguments: Sequence[str], flag: tuple[str, ...]) -> list[str] | None:
    for start in range(len(arguments) - len(flag) + 1):
        if tuple(arguments[start : start + len(flag)]) == flag:
            return [*arguments[:start], *arguments[start + len(flag) :]]
    return None
