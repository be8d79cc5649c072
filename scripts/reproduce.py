"""The papers' tables again: the published row beside what was measured here.

    python scripts/reproduce.py table=imagenet                                what is here; commands for what is missing
    python scripts/reproduce.py table=imagenet data.root=/data/imagenet run=missing     trains it, one run after another
    python scripts/reproduce.py table=imagenet scale=mini run=missing         the small twin, on the bundled images
    python scripts/reproduce.py table=imagenet scale=mini root=docs/tables    the small twin as it was committed
    python scripts/reproduce.py table=gradcam clickme=/data/click-me          scores that scripts/gradcam.py has left
    python scripts/reproduce.py table=robustness data.root=/data              what eval.py left of ImageNet-C, -A ...

Options: table (imagenet, resnet50, interpolations, ablations, gradcam, robustness; reach, mini alone), scale (full,
mini), run (missing), seeds (0,1,2), root (folder of the runs: runs), out (folder of the tables: runs/tables), seconds
(timing of the networks, 0: none), batch, device (cpu, cuda), jobs (runs side by side); data.root and any other option
of train.py are handed on. Parameters, multiply-adds and speed are computed here every time; accuracies are those of
finished runs. Started again, runs that were interrupted continue. Nothing is trained for robustness and gradcam: there
run=missing starts evaluations. For robustness data.root holds the sets, as imagenet-c, imagenet-a ..., and imagenet;
gradcam takes root, out, run and clickme.
"""

import checkout

import csv
import io
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from benchmarks import machine
from quickstart import call
from rich.console import Console
from rich.progress import track
from rich.table import Table as RichTable
from tables import cost, gradcam, picture, results, robustness
from tables.arms import SCALES, TABLES, Arm, Table

import models
from dcls.errors import ConfigError, reported
from dcls.files.atomic import writable, write_text
from dcls.record import resolved

HEADER = (
    "model",
    "parameters",
    "paper: parameters",
    "FLOPs",
    "paper: FLOPs",
    "train speed",
    "inference speed",
    "top-1 % (EMA)",
    "paper: top-1 %",
    "released, here",
    "minus first, paired",
    "seeds",
)
ALWAYS = ("top-1 % (EMA)", "seeds")  # columns that stay where nothing was run
NOT_RUN = "-"
KINDS = ("train", "inference")
GRADCAM = "gradcam"  # a table of evaluations: there is nothing to train
ROBUSTNESS = "robustness"
TAKEN = {GRADCAM: ("table", "root", "out", "run", "rest"), ROBUSTNESS: ("table", "root", "out", "run", "seeds", "rest")}
SHOWN = 10  # commands on the console


@dataclass(frozen=True)
class Asked:
    """The options. `rest` goes to train.py."""

    table: str = ""
    scale: str = "full"
    run: str = ""
    seeds: str = ""
    root: str = "runs"
    out: str = "runs/tables"
    seconds: float = 5.0
    batch: int = 0
    device: str = ""
    jobs: int = 1
    rest: tuple[str, ...] = ()

    @property
    def seed_numbers(self) -> list[int]:
        return [int(each) for each in (self.seeds or ("0" if self.scale == "full" else "0,1,2,3,4")).split(",")]

    @property
    def where(self) -> str:
        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def images(self) -> int:
        """In a batch that is timed."""
        return self.batch or (128 if self.where == "cuda" else 32 if self.scale == "mini" else 2)


@dataclass(frozen=True)
class Row:
    """A line of the table: costs, speeds (images a second over the first row's) and accuracies by seed."""

    arm: Arm
    params: int
    flops: int
    paper: Mapping[str, Any]
    speeds: Mapping[str, cost.Speed]
    top1: Mapping[int, float]
    released: str | None


def main(arguments: Sequence[str]) -> int:
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    asked = parsed(arguments)
    root, out = Path(asked.root), writable(asked.out, "out")
    if asked.table == GRADCAM:
        show_gradcam(asked, root, out / GRADCAM)
        return 0
    if asked.table == ROBUSTNESS:
        show_robustness(root, out / ROBUSTNESS, asked)
        return 0
    table = TABLES[asked.table]
    arms = table.arms[asked.scale]
    runs = {
        (arm.name, seed): results.wanted(arm, seed, asked.scale, root, asked.rest)
        for arm in arms
        for seed in asked.seed_numbers
    }
    missing = [run for run in runs.values() if results.finished(run) is None]
    if asked.run and missing:
        train_all(missing, asked)
        missing = []
    rows = [measured(arm, runs, asked) for arm in arms]
    rows = with_speeds(rows, runs, asked)
    show(table, rows, missing, out / (asked.table if asked.scale == "full" else f"{asked.table}-mini"), asked)
    return 0


def parsed(arguments: Sequence[str]) -> Asked:
    """Raises ConfigError, one line, for an unknown choice or an ill-typed value."""
    own = {field.name: field.type for field in fields(Asked) if field.name != "rest"}
    values: dict[str, Any] = {}
    rest = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals:
            raise ConfigError(f"{argument}: options are written name=value, such as table=imagenet")
        if name not in own:
            rest.append(argument)
            continue
        kind: Any = own[name]
        try:
            values[name] = kind(value)
        except ValueError as error:
            raise ConfigError(f"{argument}: must be a number") from error
    asked = Asked(**values, rest=tuple(rest))
    for name, value, known in (
        ("table", asked.table, (*TABLES, GRADCAM, ROBUSTNESS)),
        ("scale", asked.scale, SCALES),
        ("run", asked.run, ("", "missing")),
        ("device", asked.device, ("", "cpu", "cuda")),
    ):
        if value not in known:
            raise ConfigError(f"{name}={value}: choose one of {', '.join(each for each in known if each)}")
    if asked.table in TAKEN:
        refuse_idle(asked)
    elif asked.scale not in TABLES[asked.table].arms:
        raise ConfigError(f"scale={asked.scale}: table={asked.table} has {', '.join(TABLES[asked.table].arms)} alone")
    try:
        valid = min(asked.seed_numbers) >= 0 and len(set(asked.seed_numbers)) == len(asked.seed_numbers)
    except ValueError:
        valid = False
    if not valid:
        raise ConfigError(f"seeds={asked.seeds}: must be different numbers from 0 on, such as 0,1,2")
    for name, number, least in (("jobs", asked.jobs, 1), ("batch", asked.batch, 0), ("seconds", asked.seconds, 0)):
        if not least <= number < math.inf:
            raise ConfigError(f"{name}={number}: must be a number from {least} on")
    return asked


def refuse_idle(asked: Asked) -> None:
    """What a table of evaluations has no use for, and images it evaluates on that are not there. Raises ConfigError."""
    for field in fields(Asked):
        value = getattr(asked, field.name)
        if field.name not in TAKEN[asked.table] and value != field.default:
            raise ConfigError(f"{field.name}={value} has no effect: table={asked.table} neither trains nor times")
    if asked.table == ROBUSTNESS:
        sets = sets_of(asked) or "?"
        if asked.run and not Path(sets).is_dir():
            raise ConfigError(f"run={asked.run}: data.root={sets} is no folder, expected the one that holds the sets")
        return
    for each in asked.rest:
        if not each.startswith("clickme="):
            raise ConfigError(f"{each} has no effect: table={asked.table} takes root, out, run and clickme")
    if asked.run and not asked.rest:
        raise ConfigError(
            f"run={asked.run}: table={asked.table} needs clickme=<folder of ClickMe's TFRecord files> then"
        )


def sets_of(asked: Asked) -> str:
    """The folder of all robustness sets, or nothing."""
    return next((each.removeprefix("data.root=") for each in asked.rest if each.startswith("data.root=")), "")


def train_all(missing: Sequence[results.Wanted], asked: Asked) -> None:
    """One after another, or `jobs` side by side, each with its own thread then. Leaves with a failing run's code, or at
    Ctrl-C, once those beside it are done; no further one is begun.
    """
    threads = ("runtime.threads=1",) if asked.scale == "mini" else ()
    with ThreadPoolExecutor(asked.jobs) as pool:
        train = partial(call, "train.py", folder=Path.cwd())
        begun = [pool.submit(train, *run.arguments, *threads, label=f"{run.folder.name:24} | ") for run in missing]
        try:
            for done in as_completed(begun):
                done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def evaluate_all(commands: Sequence[str]) -> None:
    """One after another, as the table prints them. Leaves with the code of one that fails."""
    for command in commands:
        _, script, *arguments = shlex.split(command)
        call(script, *arguments, folder=Path.cwd())


def measured(arm: Arm, runs: Mapping[tuple[str, int], results.Wanted], asked: Asked) -> Row:
    seeds = asked.seed_numbers
    summaries = {seed: results.finished(runs[arm.name, seed]) for seed in seeds}
    config = runs[arm.name, seeds[0]].config
    costs = cost.count(cost.network(config), config)
    version = getattr(config.surgery, "version", None)
    paper = models.paper_figures(config.model.name, config.surgery.mode, version) if published(arm, asked) else None
    if arm.paper is not None:
        paper = vars(arm.paper)
    top1 = {seed: _accuracy(summary) for seed, summary in summaries.items() if summary is not None}
    return Row(arm, costs.params, costs.flops, paper or {}, {}, top1, results.released(arm, Path(asked.root)))


def published(arm: Arm, asked: Asked) -> bool:
    """Only the experiments themselves are rows of a paper; an option more is our question."""
    return asked.scale == "full" and len(arm.options) == 1


def _accuracy(summary: Mapping[str, Any]) -> float:
    return summary["top1"] if summary["top1_ema"] is None else summary["top1_ema"]


def with_speeds(rows: list[Row], runs: Mapping[tuple[str, int], results.Wanted], asked: Asked) -> list[Row]:
    if asked.seconds <= 0:
        return rows
    configs = {row.arm.name: runs[row.arm.name, asked.seed_numbers[0]].config for row in rows}
    networks = {name: (cost.network(config), config) for name, config in configs.items()}
    seconds = asked.seconds * len(rows)
    speeds = {
        kind: cost.relative_speeds(
            networks, training=kind == "train", device=asked.where, batch=asked.images, seconds=seconds
        )
        for kind in KINDS
    }
    return [
        Row(**{**vars(row), "speeds": {kind: found[row.arm.name] for kind, found in speeds.items()}}) for row in rows
    ]


def show(table: Table, rows: Sequence[Row], missing: Sequence[results.Wanted], path: Path, asked: Asked) -> None:
    mini = asked.scale == "mini"
    title = table.title + (": a small twin, on 12,000 images of Fashion-MNIST" if mini else "")
    header, *lines = without_gaps([HEADER, *(cells(row, rows[0]) for row in rows)])
    notes = [*(() if mini else table.notes), *seed_notes(rows), *pair_notes(rows, table), *measurement_notes(asked)]
    where = "" if mini or any(each.startswith("data.root=") for each in asked.rest) else " data.root=/path/to/imagenet"
    commands = [run.command + where for run in missing]
    if commands:
        notes.append(f"not run here: {len(commands)} runs; add run=missing, or start them yourself:")
    commands += [evaluation(row.arm, asked) for row in rows if row.arm.released and row.released is None]
    write_text(path.with_suffix(".csv"), as_csv(rows))
    drawn = draw(path.with_suffix(".png"), title, rows, asked)
    display(title, [header, *lines], notes, commands, path, drawn=drawn)


def show_gradcam(asked: Asked, root: Path, path: Path) -> None:
    scores = gradcam.measured(root)
    if asked.run:
        evaluate_all(gradcam.commands(scores, asked.rest, root))
        scores = gradcam.measured(root)
    shown = track(scores, "parameters and FLOPs", console=Console(stderr=True), transient=True)
    costs = {subject: gradcam.cost(subject) for subject in shown}
    commands, notes = gradcam.commands(scores, asked.rest, root), list(gradcam.NOTES)
    if commands:
        notes.append(f"not run here: {len(commands)} evaluations:")
    write_text(path.with_suffix(".csv"), gradcam.as_csv(scores, costs))
    picture.alignments(path.with_suffix(".png"), scores, gradcam.TITLE)
    lines = [gradcam.HEADER, *(gradcam.cells(*each, costs[each[0]]) for each in scores.items())]
    display(gradcam.TITLE, lines, notes, commands, path)


def show_robustness(root: Path, path: Path, asked: Asked) -> None:
    sets = sets_of(asked)
    lines = list(robustness.lines(asked.seed_numbers, root, asked.rest))
    if asked.run:
        evaluate_all(robustness.commands(lines, sets, ready=True))
        lines = list(robustness.lines(asked.seed_numbers, root, asked.rest))
    commands, notes = robustness.commands(lines, sets), [*robustness.NOTES]
    if commands:
        notes.append(f"not run here: {len(commands)} evaluations:")
    table = [("model", "parameters", "FLOPs", *robustness.COLUMNS.values(), "paper")]
    for line in lines:
        costs = f"{line.params:,}", resolved.flops_text(line.flops)
        table.append((line.label, *costs, *map(line.cell, robustness.COLUMNS), NOT_RUN))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(table)
    write_text(path.with_suffix(".csv"), text.getvalue())
    drawn = picture.robustness_scores(path.with_suffix(".png"), lines, robustness.TITLE)
    display(robustness.TITLE, table, notes, commands, path, drawn=drawn)


def display(
    title: str,
    table: Sequence[Sequence[str]],
    notes: Sequence[str],
    commands: Sequence[str],
    path: Path,
    drawn: bool = True,
) -> None:
    """Write it as Markdown and print it. The first line of the table is its header. drawn: is there a picture too?"""
    write_text(path.with_suffix(".md"), markdown(title, table, notes, commands))
    header, *lines = table
    console = Console()
    if not console.is_terminal:
        console.width = 190
    printed = RichTable(*header, title=title, title_justify="left")
    for column in printed.columns[1:]:
        column.justify = "right"
    for line in lines:
        printed.add_row(*line)
    console.print("", printed, *(f"- {note}" for note in notes), sep="\n", markup=False, highlight=False)
    for command in commands[:SHOWN]:
        console.print(f"    {command}", markup=False, highlight=False, soft_wrap=True)
    if len(commands) > SHOWN:
        console.print(f"    ... all {len(commands)} stand in {path}.md", markup=False, highlight=False)
    files = ".md, .csv and .png" if drawn else ".md and .csv"
    console.print(f"wrote {path}{files}", markup=False, highlight=False)


def cells(row: Row, first: Row) -> list[str]:
    gain = None if row is first else results.difference(row.top1, first.top1)
    return [
        row.arm.label,
        f"{row.params:,}",
        _or_dash(row.paper.get("params"), lambda value: f"{value / 1e6:g} M"),
        resolved.flops_text(row.flops),
        _or_dash(row.paper.get("flops"), lambda value: f"{value / 1e9:g} G"),
        *(_or_dash(row.speeds.get(kind), lambda value: f"{value.ratio:.2f}x") for kind in KINDS),
        results.spread(list(row.top1.values())),
        _or_dash(row.paper.get("top1"), lambda value: f"{value}{_mark(row)}"),
        _or_dash(row.released, str),
        _or_dash(gain, str),
        str(len(row.top1) or NOT_RUN),
    ]


def evaluation(arm: Arm, asked: Asked) -> str:
    """The command that fills "released, here"."""
    where = asked.rest or ("data.root=/path/to/imagenet",)
    folder = f"run.dir={Path(asked.root) / arm.released}"
    return shlex.join(["python", "eval.py", f"checkpoint={arm.released}", "data=imagenet", *where, folder])


def without_gaps(lines: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Without the columns in which no line has anything to say, but for those that every table has."""
    columns = [column for column in zip(*lines, strict=True) if column[0] in ALWAYS or set(column[1:]) != {NOT_RUN}]
    return list(zip(*columns, strict=True))


def _or_dash(value: Any, text: Any) -> str:
    return NOT_RUN if value is None else text(value)


def _mark(row: Row) -> str:
    return " (memory)" if "memory" in row.paper.get("source", "") else ""


def seed_notes(rows: Sequence[Row]) -> list[str]:
    gains = [gain for row in rows[1:] if (gain := results.difference(row.top1, rows[0].top1))]
    if not gains:
        return []
    needs = sorted({min(gain.seeds_for for gain in gains), max(gain.seeds_for for gain in gains)})
    return [
        "differences are paired by seed, with their 95 % interval, not corrected for the number of rows; one of 0.3 "
        f"points would need {' to '.join(map(str, needs))} seeds here (80 % power)"
    ]


def pair_notes(rows: Sequence[Row], table: Table) -> list[str]:
    """Differences that are a question of their own."""
    by_name = {row.arm.name: row for row in rows}
    return [
        f"{by_name[one].arm.label}, minus {by_name[other].arm.label}: {gain}"
        for one, other in table.pairs
        if {one, other} <= by_name.keys() and (gain := results.difference(by_name[one].top1, by_name[other].top1))
    ]


def measurement_notes(asked: Asked) -> list[str]:
    if asked.seconds <= 0:
        return []
    return [
        "speed: images a second over the first row's in one run, forward and backward or fused inference, "
        f"batches of {asked.images}, {'; '.join(machine.describe(asked.where))}"
    ]


def markdown(title: str, lines: Sequence[Sequence[str]], notes: Sequence[str], commands: Sequence[str]) -> str:
    """The first line is the header."""
    table = [lines[0], ("---", *["---:"] * (len(lines[0]) - 1)), *lines[1:]]
    text = [f"# {title}", "", *("| " + " | ".join(line) + " |" for line in table), "", *(f"- {n}" for n in notes)]
    return "\n".join([*text, "", *(f"    {command}" for command in commands)]).rstrip() + "\n"


def as_csv(rows: Sequence[Row]) -> str:
    """A line a row and seed; a row without runs has one line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ("model", "params", "flops", "paper_params", "paper_flops", "paper_top1", "train_speed", "inference_speed",
         "released_top1", "seed", "top1_ema")
    )  # fmt: skip
    for row in rows:
        costs = [row.arm.label, row.params, row.flops, *(row.paper.get(name) for name in ("params", "flops", "top1"))]
        costs += [*(row.speeds[kind].ratio if kind in row.speeds else None for kind in KINDS), row.released]
        for seed, top1 in row.top1.items() or [("", "")]:
            writer.writerow([*costs, seed, top1])
    return text.getvalue()


def draw(path: Path, title: str, rows: Sequence[Row], asked: Asked) -> bool:
    """Is there anything to draw? The authors' figure 1 is about the networks of the imagenet table."""
    if asked.scale == "full" and asked.table == "imagenet":
        ours = [
            (row.arm.label, fmean(row.top1.values()), row.speeds["inference"].latency)
            for row in rows
            if row.top1 and row.speeds
        ]
        picture.accuracy_against_latency(path, ours, machine.describe(asked.where)[0])
        return True
    shown = [(f"{row.arm.label}{_mark(row)}", row) for row in rows]
    published = {label: row.paper["top1"] for label, row in shown if row.paper.get("top1") is not None}
    return picture.accuracies(path, {label: list(row.top1.values()) for label, row in shown}, published, title)


if __name__ == "__main__":
    sys.exit(reported(lambda: main(sys.argv[1:])))
