"""What the papers and their repositories report, for comparison with what is computed here.

Sources: [README] the ConvNeXt-dcls repository at aad45f3; [tutorial] the DCLS-PyTorch repository's tutorial at 83de562;
[ICLR 2023, from memory] arXiv:2112.03740, whose table could not be read: recalled, and confirmed nowhere.
"""

from dataclasses import asdict, dataclass
from typing import Any

from dcls.layers.interpolation import resolve
from models.families import SUFFIX, family, plain_name

README = "ConvNeXt-dcls README"
TUTORIAL = "DCLS-PyTorch tutorial"
MEMORY = "arXiv:2112.03740 (memory)"


@dataclass(frozen=True)
class Figures:
    """Parameters, multiply-adds at 224 px and top-1 in percent, as rounded there; None where nothing is reported."""

    params: float | None
    flops: float | None
    top1: float | None
    source: str


# By plain timm name and kind: the surgery mode or, in mode dcls, the version.
FIGURES = {
    ("convnext_tiny", "none"): Figures(28e6, 4.5e9, 82.1, README),
    ("convnext_tiny", "v0"): Figures(28e6, 5.0e9, 82.5, README),
    ("convnext_tiny", "gauss"): Figures(28.59e6, None, None, TUTORIAL),
    ("convnext_tiny", "dilated"): Figures(None, None, 80.8, MEMORY),
    ("convnext_small", "none"): Figures(50e6, 8.7e9, 83.1, README),
    ("convnext_small", "v0"): Figures(50e6, 9.5e9, 83.7, README),
    ("convnext_base", "none"): Figures(89e6, 15.4e9, 83.8, README),
    ("convnext_base", "v0"): Figures(89e6, 16.5e9, 84.1, README),
    ("resnet50", "none"): Figures(25.6e6, 4.1e9, 75.8, MEMORY),
    ("resnet50", "v0"): Figures(24.0e6, 12.3e9, 76.5, MEMORY),
    ("resnet50", "dilated"): Figures(None, None, 71.9, MEMORY),
}


def paper_figures(name: str, mode: str, version: str | None = None) -> dict[str, Any] | None:
    """{"params", "flops", "top1", "source"} of a model as published, None where no figure is known.

    name: a timm name, with a tag or without, or one of ours, which is mode dcls by itself. version: of mode dcls, v0
    where it is None. A figure is that of the published size and count, whatever yours are.
    """
    ours = SUFFIX.search(name.partition(".")[0])
    kind = resolve(version or "v0") if mode == "dcls" else mode
    if ours and mode == "none":
        kind = ours.group(1) or family(name).default_version
    figures = FIGURES.get((plain_name(name), kind))
    return asdict(figures) if figures else None
