"""Pictures of a run: where its taps sit, the kernels they make, its curves, and runs side by side.

Figures are drawn on their own Agg canvas: no pyplot, no global style, no display. Files are written atomically.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from dcls import layers
from dcls.analysis.positions import sample, statistics
from dcls.files.atomic import replacing

Path = str | os.PathLike[str]
Item = TypeVar("Item")

DPI = 130
GROUPS_SHOWN = 6
KERNELS_SHOWN = 10
TAPS_SHOWN, TAPS_TRACED = 500, 90
BINS_PER_PIXEL = 4
LEAST_TOP1_SPAN = 3.0
MOVEMENT = "movement from the start (px)"
INK, PALE, GRID = "#22303c", "#8a97a3", "#e4e8ec"
DENSITY = LinearSegmentedColormap.from_list("density", ["#ffffff00", "#9ecae1", "#2a7fb8", "#123f6b", "#0a1d37"])
COLOURS = ("#0b6e99", "#d1495b", "#3a8f5c", "#b07b1e", "#7b5ea7", "#5b6770")
# Of curves of one run and of another: a single epoch is a point without a line.
RUN_STYLES = (
    {"linestyle": "-", "markersize": 2.5},
    {"linestyle": "--", "markersize": 5.0, "markerfacecolor": "none"},
)


# --- positions -------------------------------------------------------------------------------------------------------


def positions_png(
    start: Mapping[str, Tensor],
    end: Mapping[str, Tensor],
    limits: Mapping[str, tuple[int, ...]],
    path: Path,
    *,
    title: str = "Positions of the taps, start and end",
) -> None:
    """Per group: the density of the taps over the kernel at the start, at the end, and a sample of their paths.

    start, end: [n, O, C, .., K] in pixels, by group (`positions.snapshot` or `History.at`). With one learned axis both
    densities are curves in one panel; with three, taps are projected on the last two. At most 6 groups, evenly chosen.
    Without any group nothing is written.
    """
    if not end:
        return
    labels = short_labels(evenly(list(end), GROUPS_SHOWN))
    flat = all(len(limits[name]) == 1 for name in labels)
    rows = 1 if flat else 3
    height = 2.4 if flat else 2.3 * max(_aspect(limits[name]) for name in labels)
    figure = _figure(2.9 * len(labels) + 0.9, (height + 0.3) * rows + 0.9, title)
    axes = figure.subplots(rows, len(labels), squeeze=False)
    for column, (name, label) in zip(axes.T, labels.items(), strict=True):
        a, b = (sample(positions[name].float()) for positions in (start, end))
        facts = statistics({name: a}, {name: b}, limits)[name]
        (_draw_only_axis if len(limits[name]) == 1 else _draw_plane)(column, a.numpy(), b.numpy(), limits[name])
        caption = f"moved {facts['movement']:.2f} px on average, {facts['border']:.1%} on the border"
        column[0].set_title(label, fontsize=10, color=INK, loc="left", pad=18)
        column[0].text(0, 1.02, caption, fontsize=7.5, color=PALE, transform=column[0].transAxes)
    if not flat:
        for axis, label in zip(axes[:, 0], ("start", "end", "paths of a sample"), strict=True):
            axis.set_ylabel(f"{label}\nrow offset (px)", fontsize=9, color=INK)
    _save(figure, path)


def _aspect(limit: tuple[int, ...]) -> float:
    """Height by width of a kernel's plane, so that panels of a wide one leave no gaps."""
    rows, columns = limit[-2:] if len(limit) > 1 else (1, 1)
    return (2 * rows + 1) / (2 * columns + 1)


def _draw_plane(column: Sequence[Axes], start: np.ndarray, end: np.ndarray, limit: tuple[int, ...]) -> None:
    """Density and a sample of taps at the start, at the end (one colour scale), and the paths of some."""
    draw_densities(column[:2], (start, end), limit)
    for axis, points in zip(column, (start, end), strict=False):
        draw_sample(axis, points, size=1.6)
    draw_paths(column[2], start, end, limit)
    column[2].set_xlabel("column offset (px)")


def draw_densities(axes: Sequence[Axes], positions: Sequence[np.ndarray], limit: tuple[int, ...]) -> None:
    """The density of the taps of each of `positions`, [n, .., K] in pixels, on one colour scale."""
    densities = [_density(points[-2:], *limit[-2:]) for points in positions]
    norm = PowerNorm(0.6, vmin=0, vmax=max(density.max() for density in densities))
    for axis, density in zip(axes, densities, strict=True):
        axis.imshow(density, extent=_box(limit), norm=norm, cmap=DENSITY, interpolation="bilinear", aspect="equal")
        frame(axis, limit)


def draw_sample(axis: Axes, points: np.ndarray, size: float) -> None:
    """A sample of the taps of [n, .., K]; `size` of a dot in square points."""
    y, x = _some(points[-2:], TAPS_SHOWN)
    axis.scatter(x, y, s=size, color=INK, alpha=0.45, linewidths=0)


def frame(axis: Axes, limit: tuple[int, ...]) -> None:
    """The kernel's plane in pixels from its centre, rows downwards."""
    left, right, bottom, top = _box(limit)
    axis.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
    _grid(axis, *limit[-2:])


def _box(limit: tuple[int, ...]) -> tuple[float, float, float, float]:
    """Left, right, bottom and top of the kernel, rows downwards."""
    rows, columns = limit[-2:]
    return -columns - 0.5, columns + 0.5, rows + 0.5, -rows - 0.5


def _density(points: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Taps [2, ..] by place, each spread as a Gaussian of 0.35 pixels; a row is a row of the kernel."""
    edges = [_edges(half) for half in (rows, columns)]
    counts = np.histogram2d(points[0].ravel(), points[1].ravel(), bins=edges)[0]
    down, across = (_spreading(len(each) - 1) for each in edges)
    return down @ counts @ across.T


def _spreading(bins: int) -> np.ndarray:
    """[bins, bins]: column j is where a tap of bin j is drawn; it sums to 1."""
    distance = np.subtract.outer(np.arange(bins), np.arange(bins)) / BINS_PER_PIXEL
    weights = np.exp(-0.5 * (distance / 0.35) ** 2)
    return weights / weights.sum(0)


def _some(points: np.ndarray, count: int) -> np.ndarray:
    """At most `count` evenly chosen taps of [2, ..], as [2, count]."""
    flat = points.reshape(2, -1)
    return flat[:, np.linspace(0, flat.shape[1] - 1, min(count, flat.shape[1])).astype(int)]


def draw_paths(axis: Axes, start: np.ndarray, end: np.ndarray, limit: tuple[int, ...]) -> None:
    """From where to where a sample of the taps of [n, .., K] moved."""
    (y0, x0), (y1, x1) = _some(start[-2:], TAPS_TRACED), _some(end[-2:], TAPS_TRACED)
    axis.plot([x0, x1], [y0, y1], color=COLOURS[0], linewidth=0.7, alpha=0.5)
    axis.scatter(x0, y0, s=4, color=PALE, linewidths=0, label="start", zorder=3)
    axis.scatter(x1, y1, s=8, color=COLOURS[1], linewidths=0, label="end", zorder=3)
    axis.legend(frameon=False, fontsize=7, loc="upper right", handletextpad=0, labelcolor=INK)
    frame(axis, limit)


def _grid(axis: Axes, rows: int, columns: int) -> None:
    """The cells of the kernel, ticks in pixels, and the outline of a 7 x 7 kernel where that is smaller."""
    axis.set_xticks(np.arange(-columns + 0.5, columns), minor=True)
    axis.set_yticks(np.arange(-rows + 0.5, rows), minor=True)
    axis.grid(which="minor", color=GRID, linewidth=0.4)
    axis.set_xticks([-columns, 0, columns])
    axis.set_yticks([-rows, 0, rows])
    axis.set_axisbelow(True)
    _quiet(axis)
    axis.tick_params(which="minor", length=0)
    axis.spines[:].set(visible=True, color=PALE, linewidth=0.8)
    if rows > 3 and columns > 3:
        axis.add_patch(Rectangle((-3.5, -3.5), 7, 7, fill=False, edgecolor=INK, linewidth=0.8, linestyle=(0, (4, 3))))
        axis.text(-3.4, -3.7, "7 x 7", color=INK, fontsize=6.5, va="bottom")


def _draw_only_axis(column: Sequence[Axes], start: np.ndarray, end: np.ndarray, limit: tuple[int, ...]) -> None:
    draw_axis(column[0], start, end, limit)
    for unused in column[1:]:
        unused.set_visible(False)


def draw_axis(axis: Axes, start: np.ndarray, end: np.ndarray, limit: tuple[int, ...]) -> None:
    """Both densities of the taps over the one axis that learns."""
    edges = _edges(limit[0])
    for points, colour, label in ((start, PALE, "start"), (end, COLOURS[1], "end")):
        axis.hist(points.ravel(), edges, density=True, histtype="stepfilled", alpha=0.25, color=colour)
        axis.hist(points.ravel(), edges, density=True, histtype="step", color=colour, label=label, linewidth=1.2)
    axis.set(xlim=(edges[0], edges[-1]), yticks=[], xlabel="offset (px)", ylabel="density")
    axis.yaxis.label.set_fontsize(8)
    axis.legend(frameon=False, fontsize=8, labelcolor=INK)
    _quiet(axis)


def _edges(half: int) -> list[float]:
    return np.linspace(-half - 0.5, half + 0.5, (2 * half + 1) * BINS_PER_PIXEL + 1).tolist()


# --- kernels ---------------------------------------------------------------------------------------------------------


def kernels_png(model: nn.Module, path: Path, *, title: str = "A sample of the kernels") -> None:
    """A sample of the kernels that the model convolves with, one row a group, each group on one symmetric scale.

    DCLS layers: the constructed kernels of the middle layer of each group that shares positions. Without any, the
    model's depthwise convolutions (or, if none, its dense ones), one layer for each width, a dilated one with its gaps.
    A kernel with three axes is cut in the middle of the first. Nothing is written for a model without such layers.
    """
    chosen = kernels_shown(model)
    labels = short_labels(evenly(list(chosen), GROUPS_SHOWN))
    if not labels:
        return
    figure = _figure(1.05 * KERNELS_SHOWN + 2.2, 1.12 * len(labels) + 0.9, title)
    grid = figure.add_gridspec(len(labels), KERNELS_SHOWN + 1, width_ratios=[1] * KERNELS_SHOWN + [0.09])
    for row, (name, label) in enumerate(labels.items()):
        size = " x ".join(str(side) for side in chosen[name].shape[2:])
        _draw_kernels(
            figure, [grid[row, column] for column in range(KERNELS_SHOWN + 1)], chosen[name], f"{label}\n{size}"
        )
    _save(figure, path)


def _draw_kernels(figure: Figure, places: Sequence[SubplotSpec], kernels: Tensor, label: str) -> None:
    """One row: kernels on a scale symmetric about 0, and its colour bar in the last place."""
    pictures = as_pictures(kernels)
    scale = max(float(np.abs(pictures).max()), 1e-12)
    for place, picture in zip(places[:-1], pictures, strict=False):
        axis = figure.add_subplot(place)
        image = axis.imshow(picture, cmap="RdBu_r", vmin=-scale, vmax=scale, interpolation="nearest", aspect="auto")
        axis.set_box_aspect(1)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set(color=GRID)
        if place is places[0]:
            axis.set_ylabel(label, fontsize=8.5, color=INK, rotation=0, ha="right", va="center", labelpad=8)
    bar = figure.colorbar(image, cax=figure.add_subplot(places[-1]), ticks=[-scale, 0, scale], format="%.2g")
    bar.ax.tick_params(labelsize=7, length=0, labelcolor=INK)
    bar.outline.set_visible(False)


def kernels_shown(model: nn.Module) -> dict[str, Tensor]:
    """Kernels [O, C, S..] by the name of their layer: those of which `kernels_png` draws a sample."""
    return _dcls_kernels(model) or _plain_kernels(model)


@torch.no_grad()
def _dcls_kernels(model: nn.Module) -> dict[str, Tensor]:
    """The kernels [O, C, S..] of the middle layer of each group, by that layer's name."""
    groups: dict[int, list[tuple[str, layers.DclsNd]]] = {}
    for name, layer in layers.layers(model):
        groups.setdefault(id(layer.P), []).append((name, layer))
    middle = [members[len(members) // 2] for members in groups.values()]
    return {name: layer.construct_kernel().detach().cpu() for name, layer in evenly(middle, GROUPS_SHOWN)}


def _plain_kernels(model: nn.Module) -> dict[str, Tensor]:
    """The kernels of the first spatial convolution of each width; depthwise ones where there are any."""
    spatial = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and max(module.kernel_size) > 1
    ]
    depthwise = [(name, module) for name, module in spatial if module.groups == module.in_channels > 1]
    by_width: dict[int, tuple[str, nn.Module]] = {}
    for name, module in depthwise or spatial:
        by_width.setdefault(module.in_channels, (name, module))
    return {name: _with_gaps(module) for name, module in by_width.values()}


def _with_gaps(convolution: Any) -> Tensor:
    """The kernel with zeros where dilation skips cells."""
    weight = convolution.weight.detach().float().cpu()
    sizes = [(size - 1) * step + 1 for size, step in zip(weight.shape[2:], convolution.dilation, strict=True)]
    spread = weight.new_zeros(*weight.shape[:2], *sizes)
    spread[(..., *(slice(None, None, step) for step in convolution.dilation))] = weight
    return spread


def as_pictures(kernels: Tensor) -> np.ndarray:
    """Evenly chosen kernels of [O, C, S..] as pictures [.., H, W]."""
    flat = kernels.flatten(0, 1)
    flat = flat[torch.arange(min(KERNELS_SHOWN, len(flat))) * len(flat) // min(KERNELS_SHOWN, len(flat))]
    while flat.dim() > 3:
        flat = flat[:, flat.shape[1] // 2]
    return (flat if flat.dim() == 3 else flat.unsqueeze(1)).float().numpy()


# --- curves ----------------------------------------------------------------------------------------------------------


def curves_png(history: Sequence[Mapping[str, Any]], path: Path, *, title: str = "Training") -> None:
    """Loss, top-1, learning rates and the movement of positions over the epochs, from the rows of metrics.jsonl.

    What a row lacks, or has as None, is left out. Without rows nothing is written.
    """
    if not history:
        return
    panels = curve_panels({"": history})
    figure = _figure(3.6 * len(panels), 3.3, title)
    for axis, draw in zip(figure.subplots(1, len(panels)), panels.values(), strict=True):
        draw(axis)
    _save(figure, path)


def curve_panels(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Callable[[Axes], None]]:
    """By title what draws each panel of `curves_png`; the first run in full lines, one that it is compared to dashed.

    runs: rows of metrics.jsonl by the run's name, which the legend says where there are several. Movement is the
    first run's alone.
    """
    history = next(iter(runs.values()))
    groups = list(history[-1].get("positions") or {})
    keys = {
        "loss": {"train_loss": "train", "eval_loss": "validation"},
        "top-1 (%)": {"top1": "weights", "top1_ema": "average (EMA)"},
        "learning rate": {"lr": "weights", "position_lr": "positions"},
    }
    panels: dict[str, Callable[[Axes], None]] = {
        title: partial(_draw_lines, title=title, runs=runs, labels=labels) for title, labels in keys.items()
    }
    if groups:
        panels[MOVEMENT] = partial(_draw_movement, rows=history, groups=groups)
    return panels


def _draw_lines(
    axis: Axes, title: str, runs: Mapping[str, Sequence[Mapping[str, Any]]], labels: Mapping[str, str]
) -> None:
    for (run, rows), style in zip(runs.items(), RUN_STYLES, strict=False):
        for colour, (key, label) in zip(COLOURS, labels.items(), strict=False):
            points = [(row["epoch"], row.get(key)) for row in rows]
            _line(axis, points, colour, f"{run}: {label}" if len(runs) > 1 else label, style)
    _finish_curves(axis, title)


def _draw_movement(axis: Axes, rows: Sequence[Mapping[str, Any]], groups: Sequence[str]) -> None:
    for colour, (name, label) in zip(COLOURS, short_labels(evenly(groups, GROUPS_SHOWN)).items(), strict=False):
        points = [(row["epoch"], ((row.get("positions") or {}).get(name) or {}).get("movement")) for row in rows]
        _line(axis, points, colour, label)
    axis.set_ylim(bottom=0)
    _finish_curves(axis, MOVEMENT)


def _line(
    axis: Axes,
    points: Iterable[tuple[int, float | None]],
    colour: str,
    label: str,
    style: Mapping[str, Any] = RUN_STYLES[0],
) -> None:
    known = [(epoch, value) for epoch, value in points if value is not None]
    label = label if not label.startswith("_") else f" {label}"  # which matplotlib would leave out
    if known:
        axis.plot(*zip(*known, strict=True), color=colour, label=label, linewidth=1.6, marker="o", **style)


def _finish_curves(axis: Axes, label: str) -> None:
    axis.set_title(label, fontsize=10, color=INK, loc="left")
    axis.set_xlabel("epoch", fontsize=8, color=INK)
    axis.grid(color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if axis.lines:
        legend = axis.legend(frameon=False, fontsize=8, labelcolor=INK)
        for text in legend.get_texts():  # names of runs, in which a dollar is a dollar
            text.set_parse_math(False)
    _quiet(axis)


# --- comparison ------------------------------------------------------------------------------------------------------


def comparison_png(
    runs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], path: Path, *, title: str = "Runs side by side"
) -> None:
    """Training loss and top-1 over the epochs, and the last top-1 of every seed on a scale of its own.

    runs: for each label the histories of its seeds (rows of metrics.jsonl, the same epochs). Lines are means over the
    seeds, shaded from the lowest to the highest.
    """
    figure = _figure(11.5, 3.6, title)
    loss, accuracy, last = figure.subplots(1, 3, width_ratios=[4, 4, 3])
    for colour, (arm, histories) in zip(COLOURS, runs.items(), strict=False):
        _draw_arm(loss, histories, "train_loss", colour, arm)
        _draw_arm(accuracy, histories, "top1", colour, arm)
    _finish_curves(loss, "training loss")
    _finish_curves(accuracy, "test top-1 (%)")
    _draw_last(last, {arm: [rows[-1]["top1"] for rows in histories] for arm, histories in runs.items()})
    _save(figure, path)


def _draw_arm(axis: Axes, histories: Sequence[Sequence[Mapping[str, Any]]], key: str, colour: str, label: str) -> None:
    values = np.array([[row[key] for row in rows] for rows in histories], dtype=float)
    epochs = [row["epoch"] for row in histories[0]]
    axis.fill_between(epochs, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)
    axis.plot(epochs, values.mean(0), color=colour, label=label, linewidth=1.6, marker="o", markersize=2.5)


def _draw_last(axis: Axes, values: Mapping[str, Sequence[float]]) -> None:
    for place, (colour, last) in enumerate(zip(COLOURS, values.values(), strict=False)):
        axis.scatter([place] * len(last), last, s=22, color=colour, alpha=0.8, linewidths=0, zorder=3)
        axis.hlines(np.mean(last), place - 0.25, place + 0.25, color=colour, linewidth=1.6)
    axis.set_title("last epoch: seeds and mean (%)", fontsize=10, color=INK, loc="left")
    axis.set_xticks(range(len(values)), list(values))
    axis.set_xlim(-0.6, len(values) - 0.4)
    axis.grid(axis="y", color=GRID, linewidth=0.8)
    # Never so close that the difference of two single runs fills the panel.
    low, high = (pick(map(pick, values.values())) for pick in (min, max))
    half = max(0.6 * (high - low), LEAST_TOP1_SPAN / 2)
    axis.set_ylim((low + high) / 2 - half, (low + high) / 2 + half)
    _quiet(axis)


# --- heat maps -------------------------------------------------------------------------------------------------------


def heat_maps_png(images: np.ndarray, maps: Mapping[str, Tensor], path: Path, *, title: str = "Heat maps") -> None:
    """A row an image, uint8 [N, H, W, 3]: by itself, then under each of its heat maps [N, H, W], from least to most."""
    figure = _figure(1.9 * (1 + len(maps)) + 0.3, 1.9 * len(images) + 0.8, title)
    for row, axes in enumerate(figure.subplots(len(images), 1 + len(maps), squeeze=False)):
        for axis, (label, heat) in zip(axes, [("image", None), *((name, each[row]) for name, each in maps.items())]):
            axis.imshow(images[row])
            if heat is not None:
                axis.imshow(heat.cpu().numpy(), cmap="inferno", alpha=0.6)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if row == 0:
                axis.set_title(label, fontsize=9, color=INK)
    _save(figure, path)


# --- common to all ---------------------------------------------------------------------------------------------------


def _figure(width: float, height: float, title: str) -> Figure:
    figure = Figure(figsize=(max(width, 5.0), height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12, color=INK, x=0.01, ha="left", parse_math=False)
    return figure


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as stream:
        figure.savefig(stream, format="png", dpi=DPI)


def _quiet(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(PALE)
    axis.tick_params(colors=INK, labelsize=7.5, length=2, width=0.6)
    axis.xaxis.label.set_fontsize(8)


def evenly(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of the items, evenly chosen, the first and the last among them."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def short_labels(names: Sequence[str], length: int = 24) -> dict[str, str]:
    """The names without the last parts that all of them share: stages.0, stages.1 for stages.{0,1}.blocks.0.conv_dw."""
    parts = [name.split(".") for name in names]
    cut = 0
    while len(parts) > 1 and min(map(len, parts)) > cut + 1 and len({part[-cut - 1] for part in parts}) == 1:
        cut += 1
    labels = [".".join(part[: len(part) - cut]) for part in parts]
    return {
        name: label if len(label) <= length else "…" + label[-length + 1 :]
        for name, label in zip(names, labels, strict=True)
    }
