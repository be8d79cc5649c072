"""What is known about timm's families: which convolutions DCLS replaces, by what, and the counts that were released."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import timm
from torch import nn

from dcls import surgery
from dcls.errors import ConfigError
from dcls.layers import INTERPOLATIONS

# A registered model's name is the plain one's with this behind it.
SUFFIX = re.compile(rf"_dcls(?:_({'|'.join(INTERPOLATIONS)}))?$")


@dataclass(frozen=True)
class Family:
    """One rule for several timm models.

    names: regular expression of the plain timm names. select: the convolutions that are replaced.
    size: cells of the new kernels along each axis; sizes: those of versions that were published with others.
    default_version: that of the released models. released: their taps, by (plain timm name, version).
    weight_std: standard deviation of new weights; None: the layer's own initialisation.
    dilation: of the dilated control. stages: expression whose first group is the number of a stage, `first_stage` that
    of the first. crop_pct: of the published evaluation, where timm's own weights take another. last_features: the
    module whose output [N, C, h, w] the published heat maps (arXiv 2408.03164) are of, before the last norm.
    """

    name: str
    names: str
    select: surgery.Predicate
    size: int
    default_version: str
    sizes: Mapping[str, int] = field(default_factory=dict)
    released: Mapping[tuple[str, str], int] = field(default_factory=dict)
    weight_std: float | None = 0.02
    dilation: int = 2
    stages: str = r"(?:^|\.)stages[._](\d+)"
    first_stage: int = 0
    crop_pct: float | None = None
    last_features: str = "stages"

    def covers(self, plain: str) -> bool:
        return re.fullmatch(self.names, plain) is not None

    def size_of(self, version: str) -> int:
        return self.sizes.get(version, self.size)

    def stage_of(self, name: str) -> int | None:
        """The zero-based stage of a layer or parameter by its qualified name, None outside the stages."""
        found = re.search(self.stages, name)
        return int(found.group(1)) - self.first_stage if found else None


# Gaussian kernels were published with 23 cells. `max` has v1's size: it starts as v1, and no other size is known.
CONVNEXT = Family(
    name="ConvNeXt",
    names=r"(test_)?convnext(v2)?\d?(_\w+)?",
    select=surgery.depthwise(kernel_above=3),
    size=17,
    sizes={"gauss": 23},
    default_version="v0",
    released={
        ("convnext_tiny", "v0"): 34,
        ("convnext_small", "v0"): 40,
        ("convnext_base", "v0"): 40,
        ("convnext_tiny", "gauss"): 26,
    },
    crop_pct=0.875,
)
QUICKSTART = Family(
    name="ConvNeXt for small images",
    names="convnext_quickstart",
    select=CONVNEXT.select,
    size=13,
    default_version="v0",
    last_features="stages.2",  # the last stage's maps have one pixel
)
RESNET = Family(
    name="ResNet",
    names=r"resnet(18|26|34|50|101|152)",
    select=surgery.dense(kernel=3),
    size=7,
    default_version="v0",
    released={("resnet50", "v0"): 5},
    weight_std=None,
    stages=r"(?:^|\.)layer(\d+)",
    first_stage=1,
    last_features="layer4",
)
CONVFORMER = Family(
    name="ConvFormer",
    names=r"convformer_\w+",
    select=surgery.depthwise(kernel_above=3),
    size=17,
    sizes={"gauss": 23},
    default_version="v1",
    released={("convformer_s18", "v1"): 40},
)
CAFORMER = replace(CONVFORMER, name="CAFormer", names=r"caformer_\w+", released={("caformer_s18", "v1"): 34})
# Its 7x7 patch embeddings are depthwise too, with twice as many output channels: they stay.
FASTVIT = replace(
    CONVFORMER,
    name="FastViT",
    names=r"fastvit_\w+",
    released={("fastvit_sa24", "v1"): 34, ("fastvit_sa36", "v1"): 34},
    last_features="final_conv",
)

# The first that covers a name decides.
FAMILIES = (QUICKSTART, CONVNEXT, RESNET, CONVFORMER, CAFORMER, FASTVIT)


def family(model: nn.Module | str) -> Family:
    """The rule for a timm name (with a tag, or one of ours, too) or for a model that timm has built.

    ConfigError, which lists the families, where there is none.
    """
    name = model if isinstance(model, str) else architecture(model)
    rule = _covering(plain_name(name))
    if rule is None or not timm.is_model(name):
        known = ", ".join(f"{each.name} ({each.names})" for each in FAMILIES)
        raise ConfigError(
            f"model.name={name!r} has no rule for surgery: take surgery=none, or a model of {known}, or add a Family "
            "to models/families.py"
        )
    return rule


def target_layer(model: nn.Module) -> nn.Module:
    """The module of a timm model whose output heat maps are made of. ConfigError for a model without a rule."""
    name = architecture(model)
    rule = _covering(plain_name(name))
    if rule is None:
        raise ConfigError(
            f"model.name={name!r}: no rule says of which layer heat maps are made; take a model of "
            f"{', '.join(each.name for each in FAMILIES)}, or add a Family to models/families.py"
        )
    return model.get_submodule(rule.last_features)


def plain_name(name: str) -> str:
    """The timm name behind a name of the same architecture: without tag and without our suffix."""
    return SUFFIX.sub("", name.partition(".")[0])


def plain_names() -> dict[str, Family]:
    """Every timm name that has a rule, with it."""
    plain = (name for name in timm.list_models() if not SUFFIX.search(name))
    return {name: rule for name in plain if (rule := _covering(name)) is not None}


def architecture(model: nn.Module) -> str:
    """The name that timm built a model by, '' for a model that is not timm's."""
    return (getattr(model, "pretrained_cfg", None) or {}).get("architecture", "")


def _covering(plain: str) -> Family | None:
    return next((rule for rule in FAMILIES if rule.covers(plain)), None)
