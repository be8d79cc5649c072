"""The pictures of a run folder: curves.png, kernels.png and, where positions are learned, positions.png."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from dcls.analysis import plots
from dcls.analysis.positions import History


def draw(folder: Path, name: str, model: nn.Module, rows: Sequence[Mapping[str, Any]], history: History) -> list[Path]:
    """Draw what there is to draw after the epochs of `rows`; returns the files."""
    drawn = [folder / "curves.png", folder / "kernels.png"]
    plots.curves_png(rows, drawn[0], title=name)
    plots.kernels_png(model, drawn[1], title=f"{name}: kernels after {_epochs(len(rows))}")
    if history.epochs and history.limits:
        drawn.append(folder / "positions.png")
        start, end = history.at(history.epochs[0]), history.at(history.epochs[-1])
        title = f"{name}: positions after {_epochs(len(rows))}"
        plots.positions_png(start, end, history.limits, drawn[-1], title=title)
    return drawn


def _epochs(count: int) -> str:
    return f"{count} epoch" if count == 1 else f"{count} epochs"
