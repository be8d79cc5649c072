"""Every option once: its type, its default where nobody publishes one, a sentence of documentation, its range.

A value stands in exactly one place. What a recipe *is* (the published numbers) stands complete in configs/*.yaml and is
MISSING here; everything else has its default here. The option map of the README and `--help` are made from this file,
and `dcls.composition` checks every value against the ranges below.
"""

# ruff: noqa: RUF009  # `option` returns a dataclass field

from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from functools import cache
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import MISSING

from dcls.data.robustness import KINDS as ROBUSTNESS_SETS
from dcls.layers.interpolation import INTERPOLATIONS
from dcls.ops.dispatch import NAMES as CONV_BACKENDS

RESIZING = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
VERSIONS = (*INTERPOLATIONS, *(row.alias for row in INTERPOLATIONS.values() if row.alias))


def option(
    doc: str,
    default: Any = MISSING,
    *,
    choices: tuple[str, ...] = (),
    within: str = "",
    changes_result: bool = True,
) -> Any:
    """A dataclass field that documents and restricts itself.

    `choices` are the strings it may be; `within` is the interval of a number (or of each in a list), as in "[0, 1)".
    `changes_result` says whether a run may be continued after the option has changed.
    """
    metadata = {"doc": doc, "choices": choices, "within": within, "changes_result": changes_result}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class EvalModelConfig:
    """The network."""

    name: str = option("timm's name of the network, such as convnext_tiny or resnet50")
    pretrained: bool = option("load timm's pretrained weights (needs a reachable hub)", False)
    args: dict[str, Any] = option("more arguments of timm's constructor, such as {ls_init_value: 1e-6}", {})


@dataclass
class ModelConfig(EvalModelConfig):
    """The network and the weights it starts from."""

    init_from: str = option("weights to start from: a file or a published name, whatever eval.py takes", "")


@dataclass
class SurgeryConfig:
    """What replaces the network's spatial convolutions. One class for each mode, so each has its own options only."""

    mode: str = option("none, dcls, dilated or large_kernel; as an option it chooses surgery=<mode>", "none")


@dataclass
class NoSurgery(SurgeryConfig):
    """The network as timm makes it."""


@dataclass
class DclsSurgery(SurgeryConfig):
    """Dilated convolutions with learnable spacings, and the rules their positions are trained by."""

    mode: str = "dcls"
    version: str = option("interpolation of the taps", choices=VERSIONS)
    dilated_kernel_size: Any = option("size of the kernel, pixels: auto (the paper's), 17 or [17, 17]")
    kernel_count: Any = option("taps of a kernel: a number, or auto (as many as keep the parameters equal)")
    share: bool = option("one set of positions for all blocks of a stage")
    position_init_std: float = option("spread of the initial positions, pixels", within="[0, inf)")
    sigma_init: float | None = option(
        "initial SIG of max and gauss, pixels; null: the version's own", within="[0, inf)"
    )
    position_lr_scale: float = option("learning rate of positions, times the network's", within="[0, inf)")
    sigma_lr_scale: float = option("learning rate of sigmas, times the network's", within="[0, inf)")
    clamp: bool = option("clamp positions into the kernel after every step")
    repulsive_loss: bool = option("add the squared repulsive loss, which keeps taps a pixel apart")
    repulsive_after_epoch: int = option("the loss is added where the zero-based epoch is greater", within="[-1, inf)")


@dataclass
class DilatedSurgery(SurgeryConfig):
    """Ordinary dilation on a fixed grid: the paper's negative control."""

    mode: str = "dilated"
    dilation: int | None = option("step of the grid, pixels; null: the paper's, 2", within="[1, inf)")


@dataclass
class LargeKernelSurgery(SurgeryConfig):
    """Dense kernels of the DCLS size: an upper control with more parameters."""

    mode: str = "large_kernel"
    dilated_kernel_size: Any = option("size of the kernel, pixels: auto (the paper's), 17 or [17, 17]")


@dataclass
class EvalSurgeryConfig:
    """The DCLS layers in a checkpoint of other people's, which holds their tensors alone."""

    version: str = option("interpolation of the taps; auto: the published one", "auto", choices=("auto", *VERSIONS))
    dilated_kernel_size: Any = option("size of the kernel, pixels: auto (the published one), 17 or [17, 17]", "auto")


@dataclass
class DataConfig:
    """The images, how large they are shown to the network, and how they are normalised."""

    name: str = option("name of the data in reports", changes_result=False)
    kind: str = option(
        "source of the images; imagenet_*: eval.py",
        choices=("folder", "bundled", *ROBUSTNESS_SETS),
    )
    root: str = option("folder that holds the splits, such as /path/to/imagenet", "", changes_result=False)
    train_split: str = option("name of the training split, a folder below the root")
    val_split: str = option("name of the validation split, a folder below the root")
    classes: int | None = option("number of classes; null: counted in the data", within="[1, inf)")
    train_images: int | None = option("number of training images; null: counted in the data", within="[1, inf)")
    val_images: int | None = option("number of validation images; null: counted in the data", within="[1, inf)")
    channels: int = option("colour channels: 3, or 1 for grey", within="[1, 3]")
    mean: list[float] = option("mean of each channel, of pixels in [0, 1]")
    std: list[float] = option("standard deviation of each channel, of pixels in [0, 1]", within="(0, inf)")
    image_size: int = option("side of a training image, pixels", within="[1, inf)")
    eval_size: int = option("side of an evaluation image, pixels", within="[1, inf)")
    crop_pct: float = option("share of the resized image's side that evaluation crops", within="(0, 1]")
    crop_mode: str = option(
        "how evaluation crops; auto: center, from 384 pixels on squash",
        choices=("auto", "center", "squash", "border"),
    )
    interpolation: str = option("how evaluation resizes", choices=RESIZING)
    workers: int = option(
        "processes that decode images, a training process; -1: as its cores, at most 8 (none for bundled data)",
        -1,
        within="[-1, inf)",
        changes_result=False,
    )


@dataclass
class RecipeConfig:
    """How the network is trained: published numbers, so every one of them stands in configs/recipe/."""

    needs_weights: bool = option("the recipe makes sense only from trained weights", changes_result=False)
    epochs: int = option("passes over the training images", within="[1, inf)")
    warmup_epochs: float = option("epochs of linear warm-up; may be a fraction", within="[0, inf)")
    global_batch: int = option("images in one optimizer step, over all processes", within="[1, inf)")
    slot: int = option("images in one forward pass; the global batch is cut into slots", within="[1, inf)")
    lr: float = option("peak learning rate for a global batch of recipe.lr_batch images", within="(0, inf)")
    lr_batch: int = option("the rate used is recipe.lr x recipe.global_batch / this, images", within="[1, inf)")
    lr_min: float = option("learning rate at the last step", within="[0, inf)")
    warmup_lr: float = option("learning rate at the first step of the warm-up", within="[0, inf)")
    optimizer: str = option("timm's name of the optimizer")
    opt_args: dict[str, Any] = option("more arguments of the optimizer, such as {eps: 1e-8}")
    weight_decay: float = option("of weights; norms, biases, positions and sigmas have none", within="[0, inf)")
    layer_decay: float | None = option("factor of the rate from each layer to the one below; null: 1", within="(0, 1]")
    clip_grad: float | None = option("largest norm of the gradient; null: no clipping", within="(0, inf)")
    drop_path: float = option("stochastic depth at the last block, linear over depth", within="[0, 1)")
    loss: str = option("cross-entropy with soft targets, or binary cross-entropy", choices=("soft_ce", "bce"))
    bce_threshold: float | None = option("targets above it become 1 under bce; null: as they are", within="[0, 1)")
    smoothing: float = option("label smoothing", within="[0, 1)")
    mixup: float = option("alpha of mixup; 0: none", within="[0, inf)")
    cutmix: float = option("alpha of cutmix; 0: none", within="[0, inf)")
    mixup_prob: float = option("probability that a batch is mixed", within="[0, 1]")
    mixup_switch_prob: float = option("probability of cutmix where both are on", within="[0, 1]")
    mixup_mode: str = option("what shares one mixing ratio", choices=("batch", "pair", "elem"))
    mixup_off_epoch: int | None = option("mixing stops at this zero-based epoch; null: never", within="[0, inf)")
    scale: list[float] | None = option("range of the random crop's area; null: no random crop", within="(0, 1]")
    ratio: list[float] = option("range of the random crop's aspect ratio", within="(0, inf)")
    train_interpolation: str = option("how training images are resized", choices=(*RESIZING, "random"))
    hflip: float = option("probability of a horizontal flip", within="[0, 1]")
    auto_augment: str = option("timm's policy, such as rand-m9-mstd0.5-inc1; empty: none")
    color_jitter: float = option("strength of colour jitter; without effect beside auto_augment", within="[0, inf)")
    erasing: float = option("probability of random erasing", within="[0, 1]")
    erasing_mode: str = option("what an erased box is filled with", choices=("pixel", "const", "rand"))
    repeats: int = option("copies of an image in a row, each augmented by itself; 1: none", within="[1, inf)")


@dataclass
class EmaConfig:
    """The exponential moving average of the weights."""

    decay: float = option("decay a step; 0: no average", within="[0, 1)")
    shared: str = option(
        "a shared position is averaged once a step, or once for each block that shares it, as the paper did",
        "unique",
        choices=("unique", "per_block"),
    )


@dataclass
class EvalRuntimeConfig:
    """What computes."""

    device: str = option("where to compute; auto: cuda where there is one", "auto", choices=("auto", "cpu", "cuda"))
    amp: str = option("autocast; auto: bf16 on cuda, off on cpu", "auto", choices=("auto", "off", "bf16", "fp16"))
    compile: bool = option("torch.compile the network", False)
    conv_backend: str = option(
        "what builds and convolves kernels; auto: the fastest for each shape; reference: autograd",
        "auto",
        choices=CONV_BACKENDS,
    )
    fast_depthwise: bool = option("the network's plain depthwise convolutions run the same way", False)
    channels_last: bool = option("memory format of images and convolutions", True)
    threads: int | None = option(
        "CPU threads a process; null: torch's choice", None, within="[1, 1024]", changes_result=False
    )


@dataclass
class RuntimeConfig(EvalRuntimeConfig):
    """What computes, in training."""

    activation_checkpointing: bool = option("compute activations again in the backward pass, to save memory", False)


@dataclass
class EvalRunConfig:
    """Where results are written."""

    dir: str = option("the run's folder; empty: a name made from what was asked for", "", changes_result=False)


@dataclass
class RunConfig(EvalRunConfig):
    """Where the run is written, how often it is saved, and whether it may grow."""

    root: str = option("folder of the runs that are named by themselves", "runs", changes_result=False)
    save_minutes: float = option("minutes between two checkpoints", 10.0, within="(0, inf)", changes_result=False)
    extend: bool = option("continue a run with another recipe.epochs, on purpose", False, changes_result=False)


@dataclass
class LoggerConfig:
    """Mirrors of the run's record, and what is shown while it runs."""

    wandb: str = option("Weights & Biases", choices=("disabled", "offline", "online"), changes_result=False)
    tensorboard: bool = option("write TensorBoard event files", changes_result=False)
    project: str = option("project at Weights & Biases", "dcls-imagenet", changes_result=False)
    entity: str = option("user or team at Weights & Biases; empty: the account's own", "", changes_result=False)
    progress: str = option(
        "live bar, plain lines or nothing; auto: a bar on a terminal, else lines",
        "auto",
        choices=("auto", "bar", "plain", "off"),
        changes_result=False,
    )


@dataclass
class Config:
    """A training run."""

    experiment: str = option("the experiment's name, set by +experiment=<name>", "custom", changes_result=False)
    seed: int = option("seed of everything random", 0, within="[0, inf)")
    dry_run: bool = option("show the resolved run without opening data or training", False, changes_result=False)
    debug: bool = option("run a few batches of everything", False)
    profile: bool = option("record a window of torch's profiler", False, changes_result=False)
    model: ModelConfig = field(default_factory=ModelConfig)
    surgery: SurgeryConfig = field(default_factory=SurgeryConfig)
    data: DataConfig = field(default_factory=DataConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    run: RunConfig = field(default_factory=RunConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)


@dataclass
class EvalConfig:
    """An evaluation."""

    checkpoint: Any = option("file of weights, name of a published one, or a list of them: [A, B]", "")
    weights: str = option(
        "which weights; auto: the average where there is one", "auto", choices=("auto", "model", "ema")
    )
    fuse: bool = option("evaluate DCLS layers as plain convolutions", False)
    batch: int = option("images in one forward pass", 128, within="[1, inf)")
    model: EvalModelConfig = field(default_factory=EvalModelConfig)
    surgery: EvalSurgeryConfig = field(default_factory=EvalSurgeryConfig)
    # A DataConfig of which nothing need be set while it is composed; then the options that override the checkpoint's.
    data: Any = field(default_factory=DataConfig)
    runtime: EvalRuntimeConfig = field(default_factory=EvalRuntimeConfig)
    run: EvalRunConfig = field(default_factory=EvalRunConfig)


CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SCHEMAS: dict[str, type] = {"train": Config, "eval": EvalConfig}
SURGERIES: dict[str, type[SurgeryConfig]] = {
    "none": NoSurgery,
    "dcls": DclsSurgery,
    "dilated": DilatedSurgery,
    "large_kernel": LargeKernelSurgery,
}


GROUPS: dict[str, tuple[str, ...]] = {
    "train": ("experiment", "model", "surgery", "data", "recipe", "logger"),
    "eval": ("data",),
}


def choices_of(group: str) -> list[str]:
    """The choices of a group: the files of configs/<group>/."""
    return sorted(file.stem for file in (CONFIGS / group).glob("*.yaml"))


@dataclass(frozen=True)
class Option:
    """One option as the schema declares it. `default` is MISSING where YAML files hold the value."""

    name: str
    type: Any
    default: Any
    doc: str
    choices: tuple[str, ...]
    within: str
    changes_result: bool

    @property
    def is_mapping(self) -> bool:
        return get_origin(self.type) is dict

    @property
    def type_words(self) -> str:
        """The type as an error message says it: "a whole number or null"."""
        kinds = get_args(self.type) if isinstance(self.type, UnionType) else (self.type,)
        return " or ".join(TYPE_WORDS[get_origin(kind) or kind] for kind in kinds)


TYPE_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list of numbers [a, b]",
    dict: "a mapping {name: value}",
    type(None): "null",
    Any: "text, a number or a list",
}


@cache
def options(schema: type) -> Mapping[str, Option]:
    """Every option of Config or EvalConfig by its dotted name, in the order of this file; surgery's of all modes."""
    found: dict[str, Option] = {}
    for name, cls in _sections(schema):
        for declared in _own_fields(cls):
            dotted = f"{name}.{declared.name}" if name else declared.name
            found.setdefault(dotted, _option(dotted, cls, declared))
    return MappingProxyType(found)


def _sections(schema: type) -> Iterator[tuple[str, type]]:
    yield "", schema
    for section in fields(schema):
        if not section.metadata:
            yield section.name, section.default_factory  # type: ignore[misc]  # a section's factory is its class
        if section.default_factory is SurgeryConfig:
            yield from (("surgery", cls) for cls in SURGERIES.values())


def _own_fields(cls: type) -> Iterator[Field[Any]]:
    return (declared for declared in fields(cls) if declared.metadata)


def _option(dotted: str, cls: type, declared: Field[Any]) -> Option:
    default = declared.default_factory() if callable(declared.default_factory) else declared.default
    return Option(name=dotted, type=get_type_hints(cls)[declared.name], default=default, **declared.metadata)
