"""How checkpoints of each family name their tensors: in timm, and in the repository the family was published in.

The published DCLS networks keep those names. In a layer that became DCLS the last axis of `weight` counts taps, and
`P` (and `SIG`) stand beside it in every block, repeated where blocks share them.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from timm.models import convnext, fastvit, metaformer
from torch import Tensor, nn

from dcls.errors import CheckpointError
from models.families import CAFORMER, CONVFORMER, CONVNEXT, FASTVIT, RESNET, Family

Weights = dict[str, Tensor]

# A tensor of a block, as any of these families names it: its first groups are the numbers of stage and block.
BLOCK = re.compile(r"(?:stages\.|network\.|layer)(\d+)\.(?:blocks\.)?(\d+)\.")


@dataclass(frozen=True)
class Naming:
    """Three names that a checkpoint has: the stem's weight (for width and channels), a block's, the classifier's."""

    stem: str
    block: str
    classifier: str

    @property
    def names(self) -> tuple[str, ...]:
        return (self.stem, self.block, self.classifier)


@dataclass(frozen=True)
class Layout:
    """The checkpoints of one family.

    namings: timm's and, where it differs, the original repository's. to_timm: timm's own conversion of original names
    and shapes, which leaves its own as they are and may look at the model to be loaded. to_original: its inverse.
    architectures: timm names by blocks in each stage and channels of the stem; where several would fit, the published.
    """

    family: Family
    namings: tuple[Naming, ...]
    to_timm: Callable[[Weights, nn.Module], Weights]
    to_original: Callable[[Weights], Weights]
    architectures: Mapping[tuple[tuple[int, ...], int], str]

    def architecture(self, weights: Mapping[str, Tensor], naming: Naming) -> str:
        """The timm name of the network these are the weights of. CheckpointError where none has its shape."""
        shape = depths(weights), len(weights[naming.stem])
        if shape not in self.architectures:
            raise CheckpointError(
                f"the weights look like a {self.family.name}'s with {shape[0]} blocks and {shape[1]} channels in the "
                f"stem, but {', '.join(self.architectures.values())} have others: give the network, "
                "model.name=<timm name>"
            )
        return self.architectures[shape]


def depths(names: Iterable[str]) -> tuple[int, ...]:
    """The number of blocks in each stage."""
    blocks = {tuple(map(int, found.groups())) for name in names if (found := BLOCK.match(name))}
    stages = sorted({stage for stage, _ in blocks})
    return tuple(sum(1 for stage, _ in blocks if stage == each) for each in stages)


# Names as timm has them -> as the repositories have them. In this order, all that match.
Renaming = Sequence[tuple[str, str]]

# github facebookresearch/ConvNeXt
CONVNEXT_NAMES: Renaming = (
    (r"^stem\.", "downsample_layers.0."),
    (r"^stages\.(\d+)\.downsample\.", r"downsample_layers.\1."),
    (r"\.blocks\.", "."),
    (r"\.conv_dw\.", ".dwconv."),
    (r"\.mlp\.fc", ".pwconv"),
    (r"^head\.norm\.", "norm."),
    (r"^head\.fc\.", "head."),
)
# github sail-sg/metaformer
METAFORMER_NAMES: Renaming = (
    (r"^stem\.norm\.", "downsample_layers.0.post_norm."),
    (r"^stem\.", "downsample_layers.0."),
    (r"^stages\.(\d+)\.downsample\.norm\.", r"downsample_layers.\1.pre_norm."),
    (r"^stages\.(\d+)\.downsample\.", r"downsample_layers.\1."),
    (r"\.blocks\.", "."),
    (r"^head\.norm\.", "norm."),
    (r"^head\.fc\.", "head."),
)
# github apple/ml-fastvit
FASTVIT_NAMES: Renaming = (
    (r"^stem\.", "patch_embed."),
    (r"\.conv_kxk\.", ".rbr_conv."),
    (r"\.conv_scale\.", ".rbr_scale."),
    (r"\.identity\.", ".rbr_skip."),
    (r"\.large_conv\.", ".lkb_origin."),
    (r"\.mlp\.", ".convffn."),
    (r"\.se\.fc1\.", ".se.reduce."),
    (r"\.se\.fc2\.", ".se.expand."),
    (r"(\.layer_scale(?:_\d)?)\.gamma$", r"\1"),
    (r"^final_conv\.", "conv_exp."),
    (r"^head\.fc\.", "head."),
)
# What a stage of timm's FastViT begins with, where it has it: each is one entry of the original's flat list.
FASTVIT_ENTRIES = (("downsample.proj", ".proj"), ("pos_emb.pos_enc", ".pe"), ("blocks", ""))


def _renamed(weights: Weights, renaming: Renaming) -> Weights:
    return {_rename(name, renaming): value for name, value in weights.items()}


def _rename(name: str, renaming: Renaming) -> str:
    for pattern, replacement in renaming:
        name = re.sub(pattern, replacement, name)
    return name


def _metaformer(weights: Weights) -> Weights:
    """There products are Linear on channels_last maps, where timm has 1 x 1 convolutions in some stages."""
    original = _renamed(weights, METAFORMER_NAMES)
    return {
        name: value.flatten(1) if name.endswith(".weight") and value.shape[2:] == (1, 1) else value
        for name, value in original.items()
    }


def _fastvit(weights: Weights) -> Weights:
    stages = range(len(depths(weights)))
    entries = [(f"stages.{stage}.{part}.", suffix) for stage in stages for part, suffix in FASTVIT_ENTRIES]
    present = [(prefix, suffix) for prefix, suffix in entries if any(name.startswith(prefix) for name in weights)]
    numbered = [
        (f"^{re.escape(prefix)}", f"network.{index}{suffix}.") for index, (prefix, suffix) in enumerate(present)
    ]
    return _renamed(weights, (*numbered, *FASTVIT_NAMES))


def _metaformer_layout(family: Family, name: str, block: str) -> Layout:
    """ConvFormer and CAFormer differ in the mixers of their last two stages alone."""
    sizes = {"s18": ((3, 3, 9, 3), 64), "s36": ((3, 12, 18, 3), 64)}
    sizes |= {"m36": ((3, 12, 18, 3), 96), "b36": ((3, 12, 18, 3), 128)}
    return Layout(
        family,
        (
            Naming("stem.conv.weight", f"stages.3.blocks.0.{block}", "head.fc.fc2.weight"),
            Naming("downsample_layers.0.conv.weight", f"stages.3.0.{block}", "head.fc2.weight"),
        ),
        metaformer.checkpoint_filter_fn,
        _metaformer,
        {shape: f"{name}_{size}" for size, shape in sizes.items()},
    )


LAYOUTS = (
    Layout(
        CONVNEXT,
        (
            Naming("stem.0.weight", "stages.0.blocks.0.conv_dw.weight", "head.fc.weight"),
            Naming("downsample_layers.0.0.weight", "stages.0.0.dwconv.weight", "head.weight"),
        ),
        convnext.checkpoint_filter_fn,
        lambda weights: _renamed(weights, CONVNEXT_NAMES),
        {
            ((3, 3, 9, 3), 96): "convnext_tiny",
            ((3, 3, 27, 3), 96): "convnext_small",
            ((3, 3, 27, 3), 128): "convnext_base",
            ((3, 3, 27, 3), 192): "convnext_large",
            ((3, 3, 27, 3), 256): "convnext_xlarge",
        },
    ),
    # The fork of timm in which ResNet-50-dcls was trained names everything as timm does.
    Layout(
        RESNET,
        (Naming("conv1.weight", "layer1.0.conv2.weight", "fc.weight"),),
        lambda weights, model: weights,
        lambda weights: weights,
        {
            ((3, 4, 6, 3), 64): "resnet50",
            ((3, 4, 23, 3), 64): "resnet101",
            ((3, 8, 36, 3), 64): "resnet152",
        },
    ),
    _metaformer_layout(CONVFORMER, "convformer", "token_mixer.dwconv.weight"),
    _metaformer_layout(CAFORMER, "caformer", "token_mixer.qkv.weight"),
    Layout(
        FASTVIT,
        (
            Naming("stem.0.conv_kxk.0.conv.weight", "stages.0.blocks.0.mlp.conv.conv.weight", "head.fc.weight"),
            Naming("patch_embed.0.rbr_conv.0.conv.weight", "network.0.0.convffn.conv.conv.weight", "head.weight"),
        ),
        fastvit.checkpoint_filter_fn,
        _fastvit,
        {
            ((4, 4, 12, 4), 64): "fastvit_sa24",
            ((6, 6, 18, 6), 64): "fastvit_sa36",
            ((6, 6, 18, 6), 76): "fastvit_ma36",
        },
    ),
)


def recognised(names: Iterable[str]) -> tuple[Layout, Naming] | None:
    """The layout whose names are all there, and in which naming."""
    there = set(names)
    return next(
        ((layout, naming) for layout in LAYOUTS for naming in layout.namings if there.issuperset(naming.names)), None
    )


def unknown(names: Iterable[str]) -> str:
    """What was found and, for each family, what is missing in the naming that comes closest."""
    there = list(names)
    missing = []
    for layout in LAYOUTS:
        lacking = [[name for name in naming.names if name not in there] for naming in layout.namings]
        fewest = min(len(names) for names in lacking)
        nearest = next(names for names in lacking if len(names) == fewest)
        missing.append(f"{layout.family.name} {' and '.join(nearest)}")
    return f"found {len(there)} names such as {', '.join(there[:4])}; missing: {'; '.join(missing)}"
