"""The robustness table: what eval.py has left in run folders of ImageNet-C, -A, -R, -Sketch, -V2 and ReaL."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from dcls.config.schema import CONFIGS
from dcls.data.robustness import ALEXNET, SEVERITIES
from models.shortcuts import RELEASED
from tables import cost, results
from tables.arms import EMA_NOTE, IMAGENET, PADDED_NOTE

COLUMNS = {
    "imagenet_c": "-C: mCE %",
    "imagenet_a": "-A",
    "imagenet_r": "-R",
    "imagenet_sketch": "-Sketch",
    "imagenet_v2": "-V2",
    "imagenet_real": "ReaL",
}
TITLE = "ImageNet's robustness sets: ConvNeXt and its DCLS variant"
NOTES = (
    "mCE: errors over AlexNet's, lower is better; all others: top-1 %; trained networks by their seeds",
    "paper: arXiv 2112.03740's figures on these sets are not known here, so its column has dashes",
    EMA_NOTE,
    PADDED_NOTE,
    "throughput of these networks: table=imagenet",
)


@dataclass(frozen=True)
class Subject:
    """A checkpoint, a run's last one or a released one, and where its evaluations are."""

    checkpoint: str
    folder: Path

    def row(self, kind: str) -> Mapping[str, Any] | None:
        return results.evaluated(self.folder / f"eval_{kind}.json", self.checkpoint)

    @property
    def there(self) -> bool:
        return self.checkpoint in RELEASED or Path(self.checkpoint).is_file()

    def command(self, kind: str, sets: str) -> str:
        where = f"data.root={Path(sets or '/path/to', folder_of(kind))}", f"run.dir={self.folder}"
        return shlex.join(["python", "eval.py", f"checkpoint={self.checkpoint}", f"data={kind}", *where])


@dataclass(frozen=True)
class Line:
    """A line of the table. subjects: one a seed, or the released one. found: by set, eval.py's rows of them."""

    label: str
    params: int
    flops: int
    subjects: tuple[Subject, ...]
    found: Mapping[str, Sequence[Mapping[str, Any]]]

    def scores(self, kind: str) -> list[float]:
        return [row["mce" if kind == "imagenet_c" else "top1"] for row in self.found[kind]]

    def cell(self, kind: str) -> str:
        rows, scores = self.found[kind], self.scores(kind)
        if not rows:
            return "-"
        # Of a part of the set, if any is.
        part = next((row for row in rows if row.get("images") != images_of(kind)), None)
        return results.spread(scores) if part is None else results.of_images(fmean(scores), part, images_of(kind))


def lines(seeds: Sequence[int], root: Path, options: Sequence[str]) -> Iterator[Line]:
    for arm in IMAGENET.arms["full"]:
        runs = [results.wanted(arm, seed, "full", root, options) for seed in seeds]
        costs = cost.count(cost.network(runs[0].config), runs[0].config)
        trained = tuple(Subject(str(run.folder / "checkpoints" / "last.pt"), run.folder) for run in runs)
        released = (Subject(arm.released, root / arm.released),) if arm.released else ()
        for label, subjects in ((arm.label, trained), (f"{arm.label}, released", released)):
            if subjects:
                found = {kind: [row for each in subjects if (row := each.row(kind))] for kind in COLUMNS}
                yield Line(label, costs.params, costs.flops, subjects, found)


def images_of(kind: str) -> int:
    """Of a whole set; of ImageNet-C all corruptions at all severities."""
    images = yaml.safe_load((CONFIGS / "data" / f"{kind}.yaml").read_text())["val_images"]
    return images * len(ALEXNET) * len(SEVERITIES) if kind == "imagenet_c" else images


def folder_of(kind: str) -> str:
    """Where a set is looked for, below the folder of all sets. ReaL has ImageNet's own images."""
    return "imagenet" if kind == "imagenet_real" else kind.replace("_", "-")


def commands(table: Sequence[Line], sets: str, *, ready: bool = False) -> list[str]:
    """What fills the dashes. sets: the folder of all sets. ready: of checkpoints and sets that are there alone."""
    return [
        subject.command(kind, sets)
        for line in table
        for kind in COLUMNS
        for subject in line.subjects
        if not subject.row(kind) and (not ready or (subject.there and Path(sets, folder_of(kind)).is_dir()))
    ]
