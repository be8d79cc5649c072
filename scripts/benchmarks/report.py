"""Rows as a table on the terminal, and as Markdown, JSON and a picture in a folder.

The terminal's table and the picture need rich and matplotlib; without them there is a plain table and no picture.
"""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.contest import Row

HEADER = ("case", "peer", "ours", "peer's", "ratio", "quartiles")
NOTE = "ratio above 1: ours takes less"


def cells(row: Row) -> tuple[str, ...]:
    unit = {"ms": "ms", "mib": "MiB"}[row.unit]
    return (
        row.case,
        row.peer,
        f"{row.ours:.3g} {unit}",
        f"{row.theirs:.3g} {unit}",
        f"{row.ratio:.3g}",
        f"{row.q1:.3g} - {row.q3:.3g}",
    )


def show(title: str, rows: Sequence[Row], notes: Sequence[str]) -> None:
    """Print the table; Markdown where rich is missing."""
    if importlib.util.find_spec("rich") is None:
        print(markdown(title, rows, notes))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*HEADER, title=title, title_justify="left")
    for column in table.columns[2:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*cells(row), style="" if row.ratio >= 1 else "yellow")
    console = Console()
    if not console.is_terminal:
        console.width = 130
    console.print("", table, NOTE, *notes, sep="\n", markup=False, highlight=False)


def markdown(title: str, rows: Sequence[Row], notes: Sequence[str]) -> str:
    lines = [HEADER, ("---", "---", *["---:"] * (len(HEADER) - 2)), *map(cells, rows)]
    table = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([f"# {title}", "", *table, "", f"{NOTE}.", "", *(f"- {note}" for note in notes)]) + "\n"


def write(folder: Path, title: str, rows: Sequence[Row], notes: Sequence[str]) -> list[Path]:
    """<bench>.md, <bench>.json and <bench>.png in the folder."""
    from dcls.files.atomic import write_text

    path = folder / f"{rows[0].bench}.md"
    write_text(path, markdown(title, rows, notes))
    write_text(path.with_suffix(".json"), json.dumps([row.as_dict() for row in rows], indent=1) + "\n")
    if importlib.util.find_spec("matplotlib") is None:
        return [path, path.with_suffix(".json")]
    draw(path.with_suffix(".png"), title, rows, notes)
    return [path, path.with_suffix(".json"), path.with_suffix(".png")]


def draw(path: Path, title: str, rows: Sequence[Row], notes: Sequence[str]) -> None:
    """A bar a row: its ratio on a logarithmic axis, with the quartiles."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from dcls.analysis.plots import COLOURS, GRID, INK, PALE
    from dcls.files.atomic import replacing

    figure = Figure(figsize=(9, 1.4 + 0.27 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    peers = list(dict.fromkeys(row.peer for row in rows))
    colours = [COLOURS[peers.index(row.peer) % len(COLOURS)] for row in rows]
    spread = [[row.ratio - row.q1 for row in rows], [row.q3 - row.ratio for row in rows]]
    ratios, places = [row.ratio for row in rows], range(len(rows))
    axis.barh(places, [ratio - 1 for ratio in ratios], left=1, color=colours, height=0.7)
    axis.errorbar(ratios, places, xerr=spread, fmt="none", ecolor=INK, elinewidth=0.8, capsize=2)
    for place, row in zip(places, rows, strict=True):
        right = row.ratio >= 1
        axis.annotate(f"{row.ratio:.3g}", (max(row.q3, 1) if right else min(row.q1, 1), place), fontsize=8, color=INK,
                      xytext=(4 if right else -4, 0), textcoords="offset points", va="center",
                      ha="left" if right else "right")  # fmt: skip
    axis.set_xscale("log")
    axis.margins(x=0.12, y=0.02)
    axis.axvline(1, color=INK, linewidth=1)
    axis.set_yticks(places, [f"{row.case}, {_what(row)} {row.peer}" for row in rows], fontsize=8)
    axis.invert_yaxis()
    axis.grid(axis="x", color=GRID)
    axis.set_axisbelow(True)
    axis.spines[["top", "right", "left"]].set_visible(False)
    legend = f"peer's over ours ({NOTE}); bars: median of the rounds, lines: quartiles"
    axis.set_xlabel("\n".join([legend, *notes]), fontsize=7, color=PALE)
    axis.set_title(title, loc="left", fontsize=11, color=INK)
    with replacing(path) as stream:
        figure.savefig(stream, format="png", dpi=130)


def _what(row: Row) -> str:
    return "memory of" if row.unit == "mib" else "time of"
