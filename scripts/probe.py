"""What a network's features are worth: k nearest neighbours and a linear probe of one split, tested on another.

    python scripts/probe.py checkpoint=runs/quickstart-s0/checkpoints/best.pt
    python scripts/probe.py checkpoint=[A.pt,B.pt] data.train_split=fit data.val_split=held_out
    python scripts/probe.py checkpoint=convnext_dcls_tiny.paper data=folder data.root=/my/images k=1,10,20,200

Options: k (numbers of neighbours: 1,5,20), temperature (of the neighbours' votes: 0.07), data.train_split, and those of
eval.py. Features are what timm's networks show their classifier, of the fused network, of every image once, without
augmentation. Nothing is chosen on the test split: the linear probe's penalty is chosen on training images held out.
Prints a table and writes probe.json and probe.csv to `run.dir`, by default the run's own folder.
"""

import checkout

import csv
import io
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from dcls import data
from dcls.analysis import probes
from dcls.config import composition
from dcls.config.schema import DataConfig, EvalConfig
from dcls.errors import ConfigError, reported
from dcls.evaluation import scoring
from dcls.files.atomic import writable, write_text
from dcls.runtime import processes
from dcls.runtime.prepare import precision
from eval import Subject, folder_of, subjects
from train import build_eval_loader, choose_backend

# What eval.py does otherwise.
FIXED = {
    "fuse": "the network is fused always",
    "runtime.fast_depthwise": "the fused network's convolutions run so always",
    "runtime.compile": "features do not pass through what is compiled",
}
COLUMNS = (
    *("checkpoint", "method", "k", "temperature", "penalty", "held_out_top1", "top1"),
    *("images", "train_images", "features"),
)


@dataclass(frozen=True)
class Asked:
    """Neighbours, the temperature of their votes, and the split they are taken from ("": the checkpoint's)."""

    k: tuple[int, ...]
    temperature: float
    train_split: str


@dataclass(frozen=True)
class Split:
    """features [N, D] and labels [N] of a split of images with so many classes."""

    features: Tensor
    labels: Tensor
    classes: int


def main(arguments: Sequence[str]) -> int:
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    asked, rest = parsed(arguments)
    config = configured(rest, asked)
    with processes.join(config.runtime.device, config.runtime.threads) as world:
        if world.size > 1:
            raise ConfigError("--nproc_per_node: features are computed by one process; start it with python")
        folder = writable(folder_of(config), "run.dir")
        choose_backend(config.runtime, world)
        # All of them first: a fault of the last one must not cost the features of the others.
        work = [opened(subject, config, asked) for subject in subjects(config)]
        tables = [list(probed(*each, config, asked, world)) for each in work]
    for rows in tables:
        show(rows)
    write([row for rows in tables for row in rows], folder)
    return 0


# What is asked


def parsed(arguments: Sequence[str]) -> tuple[Asked, list[str]]:
    """The options that eval.py does not have, and the others. Raises ConfigError."""
    own = {"k": "1,5,20", "temperature": "0.07", "data.train_split": ""}
    pairs = [argument.partition("=") for argument in arguments]
    given = own | {name: value for name, _, value in pairs if name in own}
    try:
        k, temperature = tuple(map(int, given["k"].split(","))), float(given["temperature"])
    except ValueError as error:
        raise ConfigError(
            f"k={given['k']} temperature={given['temperature']}: must be numbers, such as k=1,20"
        ) from error
    if min(k) < 1 or len(set(k)) < len(k):
        raise ConfigError(f"k={given['k']}: must be different numbers of neighbours from 1 on, such as 1,20")
    if not 0 < temperature < math.inf:
        raise ConfigError(f"temperature={temperature:g}: must be a number above 0; the published one is 0.07")
    rest = ["".join(pair) for pair in pairs if pair[0] not in own]
    return Asked(k, temperature, given["data.train_split"]), rest


def configured(arguments: Sequence[str], asked: Asked) -> EvalConfig:
    cfg, overrides = composition.compose("eval", arguments)
    config = composition.typed_eval(cfg, overrides)
    for override in overrides:
        name = override.partition("=")[0]
        if name in FIXED:
            raise ConfigError(f"{override} has no effect: {FIXED[name]}")
    if asked.train_split:
        config.data["train_split"] = asked.train_split
    return config


# Features


Sources = tuple[data.Source, data.Source]


def opened(subject: Subject, config: EvalConfig, asked: Asked) -> tuple[Subject, DataConfig, Sources]:
    """A checkpoint, how images are shown to it, and the training and test images. Raises ConfigError."""
    shown = composition.complete_data(config.data, subject.shown)
    if shown.train_split == shown.val_split:
        raise ConfigError(f"data.val_split={shown.val_split} is data.train_split too: test on other images")
    splits = shown.kind, shown.root, shown.train_split, shown.val_split
    sources = data.open_splits(*splits, val_images=config.data.get("val_images"))
    if max(asked.k) > len(sources[0]):
        raise ConfigError(f"k={max(asked.k)}: data.train_split={shown.train_split} has {len(sources[0])} images")
    if (most := int(np.bincount(sources[0].labels).max())) < probes.HELD_OUT:
        raise ConfigError(
            f"data.train_split={shown.train_split}: found at most {most} images of a class, expected "
            f"{probes.HELD_OUT}, of which one chooses the linear probe's penalty"
        )
    return subject, shown, sources


def probed(
    subject: Subject, shown: DataConfig, sources: Sources, config: EvalConfig, asked: Asked, world: processes.World
) -> Iterator[dict[str, Any]]:
    """The rows of a checkpoint."""
    model = scoring.fused(subject.model, channels_last=config.runtime.channels_last).to(world.device)
    train, test = (features(model, shown, source, config, world) for source in sources)
    common = {"checkpoint": subject.name, "images": len(test.labels), "train_images": len(train.labels)}
    common |= {"features": train.features.shape[1]}
    for row in [*by_neighbours(train, test, asked), by_linear_probe(train, test)]:
        yield {name: (common | row).get(name) for name in COLUMNS}


def features(
    model: nn.Module, shown: DataConfig, source: data.Source, config: EvalConfig, world: processes.World
) -> Split:
    numeric = precision(world.device, amp=config.runtime.amp, channels_last=config.runtime.channels_last)
    loader = build_eval_loader(shown, source, world, batch=config.batch)
    batches = tracked(loader, f"features of {len(source):,} images", len(loader))
    found = scoring.features(model, batches, precision=numeric)
    loader.close()
    return Split(*found, len(source.class_names))


def tracked(work: Any, description: str, total: int | None = None) -> Any:
    return track(work, f"{description:28}", total, console=Console(stderr=True))


# Probes


def by_neighbours(train: Split, test: Split, asked: Asked) -> Iterator[dict[str, Any]]:
    """A vote each for every k and, where there are several neighbours, votes that fall with the distance."""
    similarities, indices = probes.neighbours(train.features, test.features, max(asked.k))
    labels = train.labels[indices]
    for k in asked.k:
        for temperature in (None, asked.temperature) if k > 1 else (None,):
            votes = probes.votes(similarities[:, :k], labels[:, :k], train.classes, temperature)
            yield {"method": "k-NN", "k": k, "temperature": temperature, "top1": probes.top1(votes, test.labels)}


def by_linear_probe(train: Split, test: Split) -> dict[str, Any]:
    shown = partial(tracked, description="linear probe, penalties")
    probe = probes.linear_probe(train.features, train.labels, train.classes, tracked=shown)
    score = probes.top1(probe.logits(test.features), test.labels)
    return {"method": "linear", "penalty": probe.penalty, "held_out_top1": probe.held_out_top1, "top1": score}


# Results


def show(rows: Sequence[dict[str, Any]]) -> None:
    """A table; its title says what all rows of a checkpoint have in common."""
    first = rows[0]
    name = "/".join(Path(first["checkpoint"]).parts[-3:])
    counts = f"{first['train_images']:,} training and {first['images']:,} test images"
    table = Table(title=f"{name}: {first['features']} features, {counts}", title_justify="left")
    table.add_column("probe")
    table.add_column("held-out training images, top-1 %", justify="right")
    table.add_column("top-1 %", justify="right")
    for row in rows:
        chosen = "" if row["held_out_top1"] is None else f"{row['held_out_top1']:.2f}"
        table.add_row(named(row), chosen, f"{row['top1']:.2f}")
    Console().print(table)


def named(row: dict[str, Any]) -> str:
    if row["method"] == "linear":
        return f"linear, penalty {row['penalty']:g}"
    return f"k-NN, k={row['k']}" + (f", temperature {row['temperature']:g}" if row["temperature"] else "")


def write(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "probe.json", json.dumps(rows, indent=2) + "\n")
    write_text(folder / "probe.csv", text.getvalue())
    print(f"wrote {folder / 'probe.json'} and probe.csv")


if __name__ == "__main__":
    sys.exit(reported(lambda: main(sys.argv[1:])))
