"""The pictures of a report as PNG bytes: small panels that a page sets side by side, or one below the other on a phone.

Widths are such that the letters can be read on a phone. Titles and explanations are the page's; a panel has its axes.
"""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from torch import Tensor, nn

from dcls.analysis import plots, receptive_field
from dcls.analysis.plots import COLOURS, DENSITY, GRID, INK
from dcls.analysis.positions import History

DPI = 160
EPOCHS_SHOWN = 5
KERNELS_IN_A_ROW = 5
SHARES = (0.5, 0.9)
Heat = tuple[np.ndarray, Mapping[str, np.ndarray]]


def curves(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, bytes]:
    """The panels of `plots.curve_panels`, by their titles."""
    drawn = {}
    for name, draw in plots.curve_panels(runs).items():
        figure, (axis,) = _figure(3.7, 2.9)
        draw(axis)
        axis.set_title("", loc="left")
        drawn[name] = _png(figure)
    return drawn


def positions(history: History, group: str) -> dict[str, bytes]:
    """The taps of a group at the start, at the end and evenly between, and how a sample of them went.

    Of two or three axes density (on one scale) above a sample of the taps; of one both densities, start and epoch.
    """
    limit, epochs = history.limits[group], plots.evenly(history.epochs, EPOCHS_SHOWN)
    taps = {f"epoch {epoch}": history.at(epoch)[group].numpy() for epoch in epochs}
    shown = list(taps.values())
    if len(limit) == 1:
        return {name: _axis(shown[0], now, limit) for name, now in taps.items()}
    figures = {name: _figure(2.1, 4.1, rows=2) for name in taps}
    plots.draw_densities([axes[0] for _, axes in figures.values()], shown, limit)
    for (_, axes), now in zip(figures.values(), shown, strict=True):
        plots.draw_sample(axes[1], now, size=3)
        plots.frame(axes[1], limit)
    drawn = {name: _png(figure) for name, (figure, _) in figures.items()}
    return drawn | {"paths of a sample": _paths(shown[0], shown[-1], limit)}


def _axis(start: np.ndarray, now: np.ndarray, limit: tuple[int, ...]) -> bytes:
    figure, (axis,) = _figure(2.1, 2.1)
    plots.draw_axis(axis, start, now, limit)
    return _png(figure)


def _paths(start: np.ndarray, end: np.ndarray, limit: tuple[int, ...]) -> bytes:
    figure, (axis,) = _figure(2.1, 2.1)
    plots.draw_paths(axis, start, end, limit)
    return _png(figure)


def kernels(model: nn.Module) -> dict[str, bytes]:
    """A sample of the kernels of each group, by a label that says their size; a group has one symmetric scale."""
    shown = plots.kernels_shown(model)
    labels = plots.short_labels(plots.evenly(list(shown), plots.GROUPS_SHOWN))
    return {f"{label}, {_size(shown[name])}": _kernels(shown[name]) for name, label in labels.items()}


def _size(kernels: Tensor) -> str:
    return " x ".join(map(str, kernels.shape[2:]))


def _kernels(kernels: Tensor) -> bytes:
    pictures = plots.as_pictures(kernels)
    scale = max(float(np.abs(pictures).max()), 1e-12)
    sheet = _sheet(pictures, min(KERNELS_IN_A_ROW, len(pictures)))
    figure, (axis,) = _figure(3.9, 0.15 + 3.4 * sheet.shape[0] / sheet.shape[1])
    image = axis.imshow(sheet, cmap="RdBu_r", vmin=-scale, vmax=scale, interpolation="nearest")
    axis.set_axis_off()
    bar = figure.colorbar(image, ax=axis, ticks=[-scale, 0, scale], format="%.2g", pad=0.02)
    bar.ax.tick_params(labelsize=7.5, length=0, labelcolor=INK)
    bar.outline.set_visible(False)
    return _png(figure)


def _sheet(pictures: np.ndarray, columns: int) -> np.ndarray:
    """Pictures [N, H, W] as one, `columns` in a row, with a cell of NaN between them."""
    padded = np.pad(pictures, ((0, -len(pictures) % columns), (0, 1), (0, 1)), constant_values=np.nan)
    padded[len(pictures) :] = np.nan
    rows, (_, height, width) = len(padded) // columns, padded.shape
    return padded.reshape(rows, columns, height, width).swapaxes(1, 2).reshape(rows * height, columns * width)[:-1, :-1]


def effective_receptive_field(field: Tensor) -> bytes:
    """A map [H, W] over its largest value, with the circles that hold the SHARES of its mass."""
    figure, (axis,) = _figure(3.2, 2.8)
    rows, columns = field.shape
    norm, box = PowerNorm(0.4, vmin=0, vmax=1), (-0.5, columns - 0.5, rows - 0.5, -0.5)
    image = axis.imshow((field / field.max()).numpy(), norm=norm, cmap=DENSITY, interpolation="nearest", extent=box)
    row, column = receptive_field.centre(field)
    for share, colour in zip(SHARES, COLOURS[1:], strict=False):
        around = Circle(
            (column, row), receptive_field.radius(field, share), fill=False, edgecolor=colour, linewidth=1.4
        )
        around.set_label(f"{share:.0%}")
        axis.add_patch(around)
    axis.set(xlim=box[:2], ylim=box[2:], xlabel="column (px)", ylabel="row (px)")
    axis.tick_params(colors=INK, labelsize=7.5)
    for label in (axis.xaxis.label, axis.yaxis.label):
        label.set(fontsize=8, color=INK)
    axis.legend(fontsize=7.5, loc="upper right", labelcolor=INK, edgecolor=GRID)
    bar = figure.colorbar(image, ax=axis, ticks=[0, 0.01, 0.1, 0.5, 1], format="%g", pad=0.02)
    bar.ax.tick_params(labelsize=7, length=0, labelcolor=INK)
    return _png(figure)


def heat_maps(rows: Mapping[str, Heat]) -> bytes:
    """A row a run, by its name: the image [H, W, channels] in [0, 1], then under its maps [H, W] by their kind.

    The colours of each map go from its least to its largest value.
    """
    kinds = list(next(iter(rows.values()))[1])
    width = len(kinds) + 1
    figure, axes = _figure(3.9, 1.25 * len(rows) + 0.2, len(rows), width)
    for row, (run, (image, maps)) in enumerate(rows.items()):
        places = axes[row * width : (row + 1) * width]
        places[0].set_ylabel(run, fontsize=7.5, color=INK, parse_math=False)
        for axis in places:
            axis.imshow(image, cmap="gray", vmin=0, vmax=1)
        for axis, kind in zip(places[1:], kinds, strict=True):
            axis.imshow(maps[kind], cmap="inferno", alpha=0.6)
    for axis in axes:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set(color=GRID)
    for axis, kind in zip(axes[1:], kinds, strict=False):
        axis.set_title(kind, fontsize=7.5, color=INK)
    return _png(figure)


def _figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _png(figure: Figure) -> bytes:
    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=DPI)
    return stream.getvalue()
