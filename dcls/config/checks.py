"""Whether the values of a configuration can run: ranges, combinations, and options that would have no effect.

Every complaint names the option, its value and the remedy. What needs the world (processes, devices, the images) is
checked where it is known.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from dcls.config.schema import (
    Config,
    DataConfig,
    DclsSurgery,
    EvalConfig,
    LargeKernelSurgery,
    Option,
    RecipeConfig,
    options,
)
from dcls.data import settled_crop
from dcls.data.robustness import KINDS as ROBUSTNESS_SETS
from dcls.errors import ConfigError
from dcls.layers.interpolation import INTERPOLATIONS, resolve

TO_CROP = "set data.crop_mode=center"
WITH_SIGMA = tuple(version for version, row in INTERPOLATIONS.items() if row.has_sigma)


def check_values(config: Any, section: str = "") -> None:
    """Choices and ranges of every option that is set. `section` names a configuration that is only a part ("data")."""
    schema: type = Config if section else type(config)
    for name, option in options(schema).items():
        if section and not name.startswith(f"{section}."):
            continue
        value = value_of(config, name.removeprefix(f"{section}.") if section else name)
        if value is not None:
            _check(option, value)


def value_of(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = config.get(part) if isinstance(config, dict) else getattr(config, part, None)
    return config


def _check(option: Option, value: Any) -> None:
    if option.choices and value not in option.choices:
        raise ConfigError(f"{option.name}={value}: choose one of {', '.join(option.choices)} ({option.doc})")
    if option.within and not all(_inside(number, option.within) for number in _numbers(value)):
        raise ConfigError(f"{option.name}={value}: must lie in {option.within} ({option.doc})")


def _numbers(value: Any) -> Sequence[float]:
    return value if isinstance(value, list | tuple) else [value]


def _inside(number: float, interval: str) -> bool:
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = number >= low if interval[0] == "[" else number > low
    return above and (number <= high if interval[-1] == "]" else number < high)


def check_run(config: Config, named: set[str]) -> None:
    """Combinations of a training run; `named` are the options that were given by name. Raises ConfigError."""
    for complaints in (_batches, _epochs, _augmentation, _surgery, _weights, _data_of_run):
        _raise_first(complaints(config))
    check_data(config.data)
    for option, idle, remedy in IDLE:
        value = value_of(config, option)
        if option in named and value not in (None, False, "") and idle(config):
            raise ConfigError(f"{option}={value} has no effect: {remedy}")


def check_data(data: DataConfig) -> None:
    """Combinations within the data group. Raises ConfigError."""
    _raise_first(_data(data))


def check_evaluation(config: EvalConfig, named: set[str]) -> None:
    """Combinations of an evaluation; `named` are the options that were given by name. Raises ConfigError."""
    _raise_first(_evaluation(config))
    for option, remedy in OF_TRAINING.items():
        if option in named:
            value = config.data.get(option.partition(".")[2])
            raise ConfigError(f"{option}={value} has no effect: {remedy}")


def _raise_first(complaints: Iterator[str]) -> None:
    for complaint in complaints:
        raise ConfigError(complaint)


def crops_nothing(data: DataConfig) -> bool:
    """Would any crop_pct be the same?"""
    return settled_crop(data.eval_size, data.crop_mode, 0.5)[1] == 1


def mixes(recipe: RecipeConfig) -> bool:
    return recipe.mixup > 0 or recipe.cutmix > 0


def _batches(config: Config) -> Iterator[str]:
    recipe = config.recipe
    if recipe.global_batch % recipe.slot:
        lower = recipe.global_batch - recipe.global_batch % recipe.slot
        fitting = f"{lower} or {lower + recipe.slot}" if lower else str(recipe.slot)
        yield (
            f"recipe.global_batch={recipe.global_batch} is not a multiple of recipe.slot={recipe.slot}: "
            f"use {fitting}, or another slot"
        )
    if recipe.slot % 2 and mixes(recipe):
        yield (
            f"recipe.slot={recipe.slot} is odd, and mixing pairs the images of a slot: use an even slot, or switch "
            "mixing off with recipe.mixup=0 recipe.cutmix=0"
        )


def _epochs(config: Config) -> Iterator[str]:
    recipe = config.recipe
    if recipe.warmup_epochs >= recipe.epochs:
        yield (
            f"recipe.warmup_epochs={recipe.warmup_epochs:g} must be less than recipe.epochs={recipe.epochs}: "
            "set recipe.warmup_epochs=0, or train longer"
        )
    peak = recipe.lr * recipe.global_batch / recipe.lr_batch
    for name in ("lr_min", "warmup_lr"):
        if getattr(recipe, name) > peak:
            yield (
                f"recipe.{name}={getattr(recipe, name):g} is above the peak rate {peak:g} "
                "(recipe.lr x recipe.global_batch / recipe.lr_batch): lower it, or raise recipe.lr"
            )


def _augmentation(config: Config) -> Iterator[str]:
    recipe = config.recipe
    for name in ("scale", "ratio"):
        ends = getattr(recipe, name)
        if ends is not None and (len(ends) != 2 or ends[0] > ends[1]):
            yield f"recipe.{name}={ends}: must be two numbers, the smaller first: [a, b]"
    if recipe.scale is None and recipe.train_interpolation == "random":
        yield (
            "recipe.train_interpolation=random needs the random crop: set recipe.scale, or "
            "recipe.train_interpolation=bicubic"
        )


def _surgery(config: Config) -> Iterator[str]:
    surgery = config.surgery
    if isinstance(surgery, DclsSurgery | LargeKernelSurgery):
        size = surgery.dilated_kernel_size
        if size != "auto" and not _is_size(size):
            yield f"surgery.dilated_kernel_size={size}: must be auto, a number of pixels, or two of them [17, 17]"
    if isinstance(surgery, DclsSurgery):
        count = surgery.kernel_count
        if count != "auto" and not _is_count(count):
            yield f"surgery.kernel_count={count}: must be auto, or a number of taps from 1 on"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_size(value: Any) -> bool:
    return _is_count(value) or (isinstance(value, list) and len(value) == 2 and all(_is_count(side) for side in value))


def _weights(config: Config) -> Iterator[str]:
    model = config.model
    if model.pretrained and model.init_from:
        yield f"model.init_from={model.init_from} contradicts model.pretrained=true: start from one of them"
    if config.recipe.needs_weights and not (model.pretrained or model.init_from or config.dry_run):
        yield (
            "model.init_from is not set, and this recipe starts from trained weights: give "
            "model.init_from=/path/to/weights or model.pretrained=true, or train from scratch with "
            "recipe.needs_weights=false"
        )


def _data_of_run(config: Config) -> Iterator[str]:
    data = config.data
    if data.kind in ROBUSTNESS_SETS:
        yield f"data.kind={data.kind} is for eval.py alone: nothing is trained on a robustness set; use data=imagenet"
    if config.dry_run:
        for name in ("classes", "train_images"):
            if getattr(data, name) is None:
                yield f"data.{name} is not set, and a dry run never opens the data to count: give data.{name}=<number>"
    elif data.kind == "folder" and not data.root:
        splits = f"{data.train_split}/ and {data.val_split}/"
        yield f"data.root is not set: data.root=/path/to/imagenet (a folder with {splits})"


def _data(data: DataConfig) -> Iterator[str]:
    if data.channels == 2:
        yield "data.channels=2: must be 3 (colour) or 1 (grey)"
    for name in ("mean", "std"):
        values = getattr(data, name)
        if len(values) != data.channels:
            yield f"data.{name}={values}: needs one number for each of data.channels={data.channels}"


def _evaluation(config: EvalConfig) -> Iterator[str]:
    files = config.checkpoint if isinstance(config.checkpoint, list) else [config.checkpoint]
    if not all(isinstance(file, str) for file in files) or (isinstance(config.checkpoint, list) and not all(files)):
        yield f"checkpoint={config.checkpoint}: must be a file, or a list of files [A, B]"
    if not any(files) and not config.model.name:
        yield "checkpoint is not set: give checkpoint=/path/to/last.pt, or model.name=<timm name> model.pretrained=true"
    if any(files) and config.model.pretrained:
        yield f"model.pretrained=true contradicts checkpoint={config.checkpoint}: evaluate one of them"
    if config.weights != "auto" and not any(files):
        yield f"weights={config.weights} has no effect without a checkpoint: leave it out"
    for name, value in asdict(config.surgery).items():
        if value != "auto" and not any(files):
            yield f"surgery.{name}={value} has no effect without a checkpoint: leave it out"


def _no_sigma(config: Config) -> bool:
    return isinstance(config.surgery, DclsSurgery) and not INTERPOLATIONS[resolve(config.surgery.version)].has_sigma


def _repulsion_never(config: Config) -> bool:
    return isinstance(config.surgery, DclsSurgery) and config.recipe.epochs - 1 <= config.surgery.repulsive_after_epoch


def _repulsion_off(config: Config) -> bool:
    return isinstance(config.surgery, DclsSurgery) and not config.surgery.repulsive_loss


def _no_mixing(config: Config) -> bool:
    return not mixes(config.recipe)


def _no_wandb(config: Config) -> bool:
    return config.logger.wandb == "disabled"


# Options of the data group that an evaluation has no use for.
OF_TRAINING = {
    "data.image_size": "evaluation has data.eval_size",
    "data.train_split": "evaluation has data.val_split",
    "data.train_images": "evaluation has data.val_images",
    "data.classes": "the classes are the checkpoint's, or those of the folder",
}

# An option that was given by name, when it does nothing, and what to do about it.
IDLE: tuple[tuple[str, Callable[[Config], bool], str], ...] = (
    ("surgery.sigma_init", _no_sigma, f"only surgery.version={' and '.join(WITH_SIGMA)} have sigmas"),
    ("surgery.sigma_lr_scale", _no_sigma, f"only surgery.version={' and '.join(WITH_SIGMA)} have sigmas"),
    ("surgery.repulsive_after_epoch", _repulsion_off, "set surgery.repulsive_loss=true"),
    ("surgery.repulsive_loss", _repulsion_never, "the run ends before; lower surgery.repulsive_after_epoch"),
    ("recipe.warmup_lr", lambda c: c.recipe.warmup_epochs == 0, "there is no warm-up, recipe.warmup_epochs=0"),
    ("recipe.bce_threshold", lambda c: c.recipe.loss != "bce", "set recipe.loss=bce"),
    ("recipe.mixup_prob", _no_mixing, "set recipe.mixup or recipe.cutmix"),
    ("recipe.mixup_mode", _no_mixing, "set recipe.mixup or recipe.cutmix"),
    ("recipe.mixup_off_epoch", _no_mixing, "set recipe.mixup or recipe.cutmix"),
    ("recipe.mixup_off_epoch", lambda c: c.recipe.epochs <= (c.recipe.mixup_off_epoch or 0), "the run ends before"),
    (
        "recipe.mixup_switch_prob",
        lambda c: min(c.recipe.mixup, c.recipe.cutmix) == 0,
        "it chooses between mixup and cutmix; set both",
    ),
    ("recipe.ratio", lambda c: c.recipe.scale is None, "there is no random crop; set recipe.scale"),
    ("recipe.color_jitter", lambda c: c.recipe.auto_augment != "", "timm ignores it beside recipe.auto_augment"),
    ("recipe.erasing_mode", lambda c: c.recipe.erasing == 0, "set recipe.erasing"),
    ("ema.shared", lambda c: c.ema.decay == 0, "there is no average; set ema.decay"),
    ("ema.shared", lambda c: not isinstance(c.surgery, DclsSurgery), "only surgery=dcls shares positions"),
    ("data.crop_pct", lambda c: crops_nothing(c.data), TO_CROP),
    ("run.root", lambda c: c.run.dir != "", "run.dir is the whole path"),
    ("logger.project", _no_wandb, "set logger.wandb=online or offline"),
    ("logger.entity", _no_wandb, "set logger.wandb=online"),
)
