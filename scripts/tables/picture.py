"""Tables as pictures: accuracy against latency, as figure 1 of arXiv 2112.03740; the seeds' top-1 at mini scale; the
ClickMe scores.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from statistics import fmean
from textwrap import fill
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dcls.analysis.plots import COLOURS, GRID, INK, PALE
from dcls.files.atomic import replacing
from tables import gradcam, robustness

# Read off that figure; milliseconds an image, one figure of an unnamed device. (top-1 %, ms), T, S, B in order.
FIGURE_1 = {
    "ConvNeXt (paper)": ((82.1, 1.290), (83.1, 2.237), (83.8, 3.424)),
    "ConvNeXt-dcls (paper)": ((82.5, 1.378), (83.7, 2.307), (84.1, 3.504)),
    "SLaK": ((82.5, 1.714), (83.8, 2.718), (84.0, 4.075)),
    "RepLKNet-31B": ((83.5, 3.384),),
}

# Letters that fit beside one another in a picture of 7.5 inches.
TITLE_WIDTH = 90


def accuracy_against_latency(path: Path, ours: Sequence[tuple[str, float, float]], where: str) -> None:
    """ours: (label, top-1 %, ms an image) of what was trained and timed here; where: the device it was timed on."""
    figure, axis = _axes((7.5, 4.8))
    for colour, (name, points) in zip(COLOURS, FIGURE_1.items(), strict=False):
        accuracies, latencies = zip(*points, strict=True)
        axis.plot(latencies, accuracies, "o-", color=colour, label=name, markersize=5, linewidth=1.2)
    for label, accuracy, latency in ours:
        axis.plot(latency, accuracy, "*", color=INK, markersize=11)
        axis.annotate(label, (latency, accuracy), xytext=(5, 4), textcoords="offset points", fontsize=8)
    axis.set_xlabel("latency, ms an image" + (f" (stars: {where})" if ours else ""), color=INK)
    axis.set_ylabel("ImageNet-1k top-1, %", color=INK)
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    _save(figure, axis, path, "Circles: read off figure 1 of arXiv 2112.03740, whose device is not named")


def accuracies(path: Path, arms: Mapping[str, Sequence[float]], published: Mapping[str, float], title: str) -> bool:
    """A row an arm: every seed a point, the mean a line, the published figure a circle; the first mean through all.

    False where there is nothing to show.
    """
    shown = {label: values for label, values in arms.items() if values or label in published}
    if not shown:
        return False
    figure, axis = _axes((7.5, 1.3 + 0.38 * len(shown)))
    for row, (label, values) in enumerate(shown.items()):
        axis.plot(values, [row] * len(values), "o", color=COLOURS[0], alpha=0.55, markersize=5)
        if values:
            axis.plot([fmean(values)] * 2, [row - 0.3, row + 0.3], color=INK, linewidth=2)
        if label in published:
            axis.plot(published[label], row, "o", color=COLOURS[1], markerfacecolor="none", markersize=7)
    notes = ["points are seeds, bars their mean"] * any(shown.values()) + ["circles: the paper"] * bool(published)
    if first := next(iter(arms.values())):
        axis.axvline(fmean(first), color=COLOURS[1], linewidth=1, linestyle="--")
        notes.append("dashed: the first row's mean")
    _rows(axis, list(shown))
    axis.set_xlabel("top-1 of the averaged weights, %" if any(shown.values()) else "top-1, %")
    _save(figure, axis, path, "; ".join(notes), title)
    return True


def robustness_scores(path: Path, table: Sequence[robustness.Line], title: str) -> bool:
    """A row a network, a point a set, the mean of its seeds. False where nothing was evaluated."""
    if not any(rows for line in table for rows in line.found.values()):
        return False
    figure, axis = _axes((7.5, 1.6 + 0.3 * len(table)))
    for colour, (kind, column) in zip(cycle(COLOURS), robustness.COLUMNS.items(), strict=False):
        points = [(row, fmean(scores)) for row, line in enumerate(table) if (scores := line.scores(kind))]
        if points:
            rows, means = zip(*points, strict=True)
            axis.plot(means, rows, "s" if kind == "imagenet_c" else "o", color=colour, label=column, markersize=5)
    _rows(axis, [line.label for line in table])
    axis.set_xlabel("top-1, %; squares: mCE, %, of which less is better")
    axis.legend(frameon=False, fontsize=8)
    _save(figure, axis, path, "", title)
    return True


def alignments(path: Path, scores: Mapping[gradcam.Subject, gradcam.Scores], title: str) -> None:
    """A row a network, a point a method with its standard error; networks that were not evaluated keep an empty row."""
    figure, axis = _axes((7.5, 1.6 + 0.3 * len(scores)))
    for colour, (method, label) in zip(COLOURS, gradcam.METHODS.items(), strict=False):
        found = [(row, each[method]) for row, each in enumerate(scores.values()) if method in each]
        means, errors = ([each[name] or 0 for _, each in found] for name in ("score", "standard_error"))
        axis.errorbar(means, [row for row, _ in found], xerr=errors, fmt="o", color=colour, label=label, markersize=5)
    _rows(axis, [subject.label for subject in scores])
    axis.set_xlabel("score: mean rank correlation over the human ceiling")
    axis.legend(frameon=False, fontsize=8)
    _save(figure, axis, path, "1 is what people reach among themselves", title)


def _axes(size: tuple[float, float]) -> tuple[Figure, Any]:
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _rows(axis: Any, labels: Sequence[str]) -> None:
    """A line of the picture for each, the first on top."""
    axis.set_yticks(range(len(labels)), labels, fontsize=9)
    axis.set_ylim(len(labels) - 0.5, -0.5)


def _save(figure: Figure, axis: Any, path: Path, note: str, title: str = "") -> None:
    """note and title: below and above everything, as wide as the figure."""
    axis.grid(color=GRID)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(note, fontsize=7, color=PALE)
    if title:
        figure.suptitle(fill(title, TITLE_WIDTH), x=0.01, ha="left", fontsize=11, color=INK)
    with replacing(path) as stream:
        figure.savefig(stream, format="png", dpi=130)
