"""The rows of every table: the options of train.py that make each of them, and the weights released for it.

A table has one scale or two. `full` is the paper's own, on ImageNet. `mini` asks the same question of a small network
and the bundled images: what two cores can honestly say in an hour or two.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from models.published import MEMORY, Figures

SCALES = ("full", "mini")


@dataclass(frozen=True)
class Arm:
    """A row. name: of its run folders at mini scale. options: of train.py, without the seed. released: a shortcut of
    eval.py's `checkpoint`. paper: figures of a row that is no experiment of its own. The first arm of a table is what
    the others are compared with.
    """

    name: str
    label: str
    options: tuple[str, ...]
    released: str = ""
    paper: Figures | None = None


@dataclass(frozen=True)
class Table:
    """title: what it is. arms: by scale. notes: what a reader must know beside the figures.

    pairs: names of arms whose difference is told beside those to the first one.
    """

    title: str
    arms: Mapping[str, tuple[Arm, ...]]
    notes: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()


EMA_NOTE = (
    "paper: its average of a shared position moves once a block that shares it (timm's EMA), ours once a step; "
    "ema.shared=per_block reproduces the paper's"
)
PADDED_NOTE = (
    "paper: its evaluation pads the last batches, at most 16 of 50,000 images count twice; ours counts each once"
)


def _experiment(name: str, label: str, *options: str, released: str = "") -> Arm:
    return Arm(name, label, (f"+experiment={name}", *options), released)


def _tiny(name: str, label: str, *surgery: str) -> Arm:
    return Arm(name, label, ("+experiment=convnext_dcls", *surgery))


def _small(name: str, label: str, *options: str) -> Arm:
    return Arm(name, label, ("+experiment=quickstart", *options))


def _small_resnet(name: str, label: str, *options: str) -> Arm:
    network = ("model.name=resnet18", "model.args={channels: [16, 16, 32, 64]}")
    return Arm(name, label, ("+experiment=quickstart", *network, *options))


PLAIN = _small("plain", "ConvNeXt, 7x7", "surgery=none")
V0 = _small("dcls_v0", "DCLS v0, 13x13", "surgery=dcls_quickstart")
GAUSS = _small("dcls_gauss", "DCLS gauss, 13x13", "surgery=dcls_quickstart", "surgery.version=gauss")
V1 = _small("dcls_v1", "DCLS v1, 13x13", "surgery=dcls_quickstart", "surgery.version=v1")
# With SIG = 0, where the authors' code starts it, the width has no gradient and `max` is v1.
MAX = _small(
    "dcls_max",
    "DCLS max, 13x13, SIG from 0.5",
    "surgery=dcls_quickstart",
    "surgery.version=max",
    "surgery.sigma_init=0.5",
)
FROZEN = _small(
    "frozen_v0", "v0, positions frozen at their start", "surgery=dcls_quickstart", "surgery.position_lr_scale=0"
)
STD05 = _small(
    "dcls_v0_std05",
    "v0, positions from std 0.5 (the paper's)",
    "surgery=dcls_quickstart",
    "surgery.position_init_std=0.5",
)
DILATED = _small("dilated", "ConvNeXt, 7x7 with dilation 2", "surgery=dilated")
LARGE = _small(
    "large_kernel", "ConvNeXt, dense 13x13 (more weights)", "surgery=large_kernel", "surgery.dilated_kernel_size=13"
)


def _ablation(name: str, label: str, *options: str) -> Arm:
    return _small(name, label, "surgery=dcls_quickstart", *options)


def _sizes(size: str) -> tuple[Arm, Arm]:
    """ConvNeXt of a size, and its DCLS variant."""
    ours = "convnext_dcls" if size == "tiny" else f"convnext_dcls_{size}"
    label = f"ConvNeXt-{size[0].upper()}"
    return (
        _experiment(f"convnext_{size}", label),
        _experiment(ours, f"{label}-dcls", released=f"convnext_dcls_{size}.paper"),
    )


IMAGENET = Table(
    "ImageNet-1k: ConvNeXt and its DCLS variant (arXiv 2112.03740)",
    {
        "full": (
            *_sizes("tiny"),
            _experiment("convnext_dilated", "ConvNeXt-T, 7x7 with dilation 2"),
            *_sizes("small"),
            *_sizes("base"),
        ),
        "mini": (PLAIN, DILATED, V0, V1, MAX, GAUSS, FROZEN, STD05, LARGE),
    },
    (EMA_NOTE, PADDED_NOTE),
    pairs=(("dcls_v0", "frozen_v0"),),
)

RESNET50 = Table(
    "ImageNet-1k: ResNet-50 (arXiv 2112.03740)",
    {
        "full": (
            _experiment("resnet50", "ResNet-50"),
            _experiment("resnet50_dilated", "ResNet-50, 3x3 with dilation 2"),
            _experiment("resnet50_dcls", "ResNet-50-dcls, 7x7, 5 taps", released="resnet_dcls50.paper"),
            Arm(
                "resnet50_dcls_6",
                "ResNet-50-dcls, 7x7, 6 taps",
                ("+experiment=resnet50_dcls", "surgery.kernel_count=6"),
                paper=Figures(26.0e6, None, 76.5, MEMORY),
            ),
        ),
        "mini": (
            _small_resnet("resnet_plain", "ResNet-18 (narrow), 3x3", "surgery=none"),
            _small_resnet("resnet_dilated", "the same, dilation 2", "surgery=dilated"),
            _small_resnet("resnet_dcls", "DCLS v0, 7x7, 4 taps", "surgery=dcls_resnet"),
            _small_resnet("resnet_dcls_5", "DCLS v0, 7x7, 5 taps", "surgery=dcls_resnet", "surgery.kernel_count=5"),
            _small_resnet("resnet_dcls_v1", "DCLS v1, 7x7, 4 taps", "surgery=dcls_resnet", "surgery.version=v1"),
            _small_resnet(
                "resnet_dcls_max",
                "DCLS max, 7x7, 4 taps, SIG from 0.5",
                "surgery=dcls_resnet",
                "surgery.version=max",
                "surgery.sigma_init=0.5",
            ),
            _small_resnet(
                "resnet_dcls_gauss", "DCLS gauss, 7x7, 4 taps", "surgery=dcls_resnet", "surgery.version=gauss"
            ),
            _small_resnet(
                "resnet_frozen",
                "v0, positions frozen at their start",
                "surgery=dcls_resnet",
                "surgery.position_lr_scale=0",
            ),
            _small_resnet(
                "resnet_dcls_std15",
                "v0, positions from std 1.5",
                "surgery=dcls_resnet",
                "surgery.position_init_std=1.5",
            ),
            _small_resnet(
                "resnet_frozen_std15",
                "v0, from std 1.5, frozen",
                "surgery=dcls_resnet",
                "surgery.position_init_std=1.5",
                "surgery.position_lr_scale=0",
            ),
            _small_resnet("resnet_large_kernel", "dense 7x7 (more weights)", "surgery=large_kernel"),
        ),
    },
    (EMA_NOTE, PADDED_NOTE, "the values of the paper's ResNet-50 recipe are published nowhere; ours is A3 (configs)"),
    pairs=(
        ("resnet_dcls", "resnet_frozen"),
        ("resnet_dcls_std15", "resnet_frozen_std15"),
        ("resnet_frozen_std15", "resnet_frozen"),
    ),
)

INTERPOLATIONS = Table(
    "Interpolations of ConvNeXt-T at equal parameters (arXiv 2306.00817)",
    {
        "full": (
            _experiment("convnext_tiny", "ConvNeXt-T"),
            _experiment("convnext_dcls", "v0, 17x17", released="convnext_dcls_tiny.paper"),
            _tiny("convnext_dcls_v1", "v1, 17x17", "surgery=dcls_v1"),
            _tiny("convnext_dcls_max", "max, 17x17, SIG from 0.5", "surgery=dcls_max", "surgery.sigma_init=0.5"),
            _experiment("convnext_dcls_gauss", "gauss, 23x23", released="convnext_dcls_gauss_tiny.paper"),
        ),
        "mini": (PLAIN, V0, V1, MAX, GAUSS),
    },
    (EMA_NOTE, PADDED_NOTE, "the paper's rows of ConvFormer-S18 are left out: there is no recipe of it here"),
)

ABLATIONS = Table(
    "Ablations of DCLS v0 (arXiv 2112.03740, section 4 and appendix)",
    {
        "full": (
            _experiment("convnext_dcls", "as published: 17x17, std 0.5, rate x5, shared"),
            _tiny("size_13", "size 13", "surgery.dilated_kernel_size=13"),
            _tiny("size_23", "size 23", "surgery.dilated_kernel_size=23"),
            _tiny("count_26", "26 taps", "surgery.kernel_count=26"),
            _tiny("unshared", "positions of its own for each block", "surgery.share=false"),
            _tiny("std_2", "positions from std 2", "surgery.position_init_std=2"),
            _tiny("rate_1", "position rate x1", "surgery.position_lr_scale=1"),
            _tiny("no_repulsion", "no repulsive loss", "surgery.repulsive_loss=false"),
            _tiny("no_clamp", "no clamping", "surgery.clamp=false"),
        ),
        "mini": (
            _small("dcls_v0", "v0: 13x13, 24 taps, std 2, rate x5, shared", "surgery=dcls_quickstart"),
            _ablation("size_9", "size 9", "surgery.dilated_kernel_size=9"),
            _ablation("size_17", "size 17", "surgery.dilated_kernel_size=17"),
            _ablation("count_12", "12 taps", "surgery.kernel_count=12"),
            _ablation("count_48", "48 taps", "surgery.kernel_count=48"),
            _ablation("unshared", "positions of its own for each block", "surgery.share=false"),
            STD05,
            _ablation("rate_1", "position rate x1", "surgery.position_lr_scale=1"),
            _ablation("rate_20", "position rate x20", "surgery.position_lr_scale=20"),
            FROZEN,
            _ablation(
                "repulsion", "repulsive loss from epoch 2 on", "surgery.repulsive_loss=true",
                "surgery.repulsive_after_epoch=0",
            ),
            _ablation("no_clamp", "no clamping", "surgery.clamp=false"),
        ),
    },
    (EMA_NOTE, PADDED_NOTE),
)  # fmt: skip


def _wide(name: str, label: str, *options: str) -> Arm:
    """One block on maps of 28 pixels and one on 14, where a larger kernel sees what no later block would."""
    return Arm(name, label, ("+experiment=quickstart", "model.args={depths: [1, 1, 0, 0], patch_size: 2}", *options))


def _wide_dcls(size: int, *options: str, name: str = "dcls", label: str = "") -> Arm:
    label = f"DCLS v0, 16 taps{label} in {size}x{size}"
    asked = ("surgery=dcls_quickstart", f"surgery.dilated_kernel_size={size}", "surgery.kernel_count=16")
    return _wide(f"reach_{name}_{size}", label, *asked, *options)


def _wide_dense(size: int) -> Arm:
    options = ("surgery=large_kernel", f"surgery.dilated_kernel_size={size}")
    return _wide(f"reach_dense_{size}", f"dense {size}x{size}: {size * size} weights", *options)


def _wide_dilated(dilation: int, size: int) -> Arm:
    label = f"7x7 with dilation {dilation}: 49 weights in {size}x{size}"
    return _wide(f"reach_dilated_{size}", label, "surgery=dilated", f"surgery.dilation={dilation}")


# 16 taps have 48 parameters, a weight and two coordinates each.
REACH = Table(
    "Parameters and reach apart: two blocks, on maps of 28 and 14 pixels",
    {
        "mini": (
            _wide("reach_plain", "ConvNeXt, dense 7x7: 49 weights", "surgery=none"),
            _wide_dcls(7),
            _wide_dilated(2, 13),
            _wide_dcls(13),
            _wide_dcls(13, "surgery.position_lr_scale=0", name="frozen", label=", frozen,"),
            _wide_dense(13),
            _wide_dilated(3, 19),
            _wide_dcls(19),
            _wide_dense(19),
        )
    },
    pairs=(
        ("reach_dcls_13", "reach_dcls_7"),
        ("reach_dcls_19", "reach_dcls_7"),
        ("reach_dcls_13", "reach_frozen_13"),
    ),
)

TABLES: Mapping[str, Table] = MappingProxyType(
    {
        "imagenet": IMAGENET,
        "resnet50": RESNET50,
        "interpolations": INTERPOLATIONS,
        "ablations": ABLATIONS,
        "reach": REACH,
    }
)
