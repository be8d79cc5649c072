"""The robustness table: what eval.py has left in run folders of ImageNet-C, -A, -R, -Sketch, -V2 and ReaL."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tables import results
from tables.arms import IMAGENET

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
    "mCE: errors over AlexNet's, lower is better; all others: top-1 %",
    "paper: arXiv 2112.03740's figures on these sets are not known here, so its column has dashes",
)


@dataclass(frozen=True)
class Subject:
    """A line of the table: a checkpoint, a run's last one or a released one, and where its evaluations are."""

    label: str
    checkpoint: str
    folder: Path

    def score(self, kind: str) -> float | None:
        path = self.folder / f"eval_{kind}.json"
        if not path.is_file():
            return None
        row = json.loads(path.read_text())[0]
        return row["mce" if kind == "imagenet_c" else "top1"]

    def command(self, kind: str) -> str:
        root = f"data.root=/path/to/{'imagenet' if kind == 'imagenet_real' else kind.replace('_', '-')}"
        return f"python eval.py checkpoint={self.checkpoint} data={kind} {root} run.dir={self.folder}"


def subjects(seeds: Sequence[int], root: Path, options: Sequence[str]) -> Iterator[Subject]:
    for arm in IMAGENET.arms["full"]:
        for seed in seeds:
            folder = results.wanted(arm, seed, "full", root, options).folder
            yield Subject(f"{arm.label}, seed {seed}", str(folder / "checkpoints" / "last.pt"), folder)
        if arm.released:
            yield Subject(f"{arm.label}, released", arm.released, root / arm.released)


def table(rows: Sequence[Subject]) -> tuple[list[tuple[str, ...]], list[str]]:
    """Lines, the first one the header, and the commands that would fill the dashes."""
    lines = [("model", *COLUMNS.values(), "paper")]
    commands = []
    for row in rows:
        scores = {kind: row.score(kind) for kind in COLUMNS}
        lines.append((row.label, *("-" if each is None else f"{each:.2f}" for each in scores.values()), "-"))
        commands += [row.command(kind) for kind, score in scores.items() if score is None]
    return lines, commands
