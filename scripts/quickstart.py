"""Train a plain network and its DCLS variant on the bundled images, evaluate both, show one table and one page.

python scripts/quickstart.py                                        2 to 6 minutes on two cores
python scripts/quickstart.py --seeds 0,1,2                          mean, spread and paired difference
python scripts/quickstart.py --surgery none,dcls_gauss,dilated      other variants (choices of configs/surgery)

Every run is `train.py +experiment=quickstart`, every figure is eval.py's or the run's own. Two runs go side by side,
one thread each: networks this small gain little from a second thread. Started again, finished runs are found finished
and interrupted ones continue.
"""

from checkout import ROOT

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from command_line import OneLine
from rich.console import Console
from rich.table import Table

from dcls.analysis import plots
from dcls.errors import ConfigError, reported
from dcls.files.atomic import write_text

LABELS = {"none": "plain", "dcls_quickstart": "DCLS"}
HEADER = ("model", "top-1 %", "EMA top-1 %", "parameters", "FLOPs", "eval img/s", "training s")
CHANCE = "Top-1 on 10,000 test images, chance level 10 %."
CLAIM = (
    "With three seeds no difference between plain and DCLS is visible at this scale (see the README); "
    "the paper's claim needs ImageNet."
)


@dataclass(frozen=True)
class Run:
    """A finished run: what eval.py measured of its averaged weights, what the run recorded itself."""

    folder: Path
    evaluated: dict[str, Any]
    rows: list[dict[str, Any]]

    @property
    def top1(self) -> float:
        return self.rows[-1]["top1"]

    @property
    def top1_ema(self) -> float:
        return self.evaluated["top1"]

    @property
    def seconds(self) -> float:
        return sum(row["seconds"] for row in self.rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = OneLine(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0", help="comma-separated, as 0,1,2")
    parser.add_argument(
        "--surgery", default="none,dcls_quickstart", help="choices of configs/surgery; the first is compared to"
    )
    parser.add_argument("--root", type=Path, default=Path("runs/quickstart"), help="folder of the runs and the table")
    parser.add_argument("overrides", nargs="*", help="more options of train.py, such as recipe.epochs=2")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="runs side by side")
    asked = parser.parse_args(arguments)
    if asked.jobs < 1:
        raise ConfigError(f"--jobs {asked.jobs}: must be a number from 1 on")
    surgeries, seeds = asked.surgery.split(","), asked.seeds.split(",")
    with ThreadPoolExecutor(asked.jobs) as pool:
        wanted = product(seeds, surgeries)
        folders = list(pool.map(lambda pair: train(asked.root, pair[0], pair[1], asked.overrides), wanted))
    runs = evaluated(folders, asked.root)
    count = len(surgeries)
    report({LABELS.get(each, each): runs[i::count] for i, each in enumerate(surgeries)}, asked.root)
    page(folders[:count], asked.root)
    return 0


def train(root: Path, seed: str, surgery: str, overrides: Sequence[str]) -> Path:
    name = f"{LABELS.get(surgery, surgery).lower()}-s{seed}"
    choices = ["+experiment=quickstart", f"surgery={surgery}", f"seed={seed}", f"run.dir={root / name}"]
    call("train.py", *choices, "runtime.threads=1", *overrides, label=f"{name:9} | ")
    return root / name


def evaluated(folders: Sequence[Path], results: Path) -> list[Run]:
    checkpoints = ",".join(str(folder / "checkpoints" / "last.pt") for folder in folders)
    call("eval.py", f"checkpoint=[{checkpoints}]", f"run.dir={results}")
    measured = json.loads((ROOT / results / "eval.json").read_text())
    return [Run(folder, row, rows(folder)) for folder, row in zip(folders, measured, strict=True)]


def page(folders: Sequence[Path], results: Path) -> None:
    """report.html: the last network beside the first, or alone."""
    others = [f"against={folder}" for folder in folders[:-1][:1]]
    call("scripts/report.py", f"run.dir={folders[-1]}", *others, f"out={results / 'report.html'}", "threads=1")


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ROOT / folder / "metrics.jsonl").read_text().splitlines()]


def call(script: str, *arguments: str, label: str = "", folder: Path = ROOT) -> None:
    """Run a script of the repository as a user in `folder` would, its lines behind `label`; leave with its code if it
    fails.
    """
    print(f"{label}$ python {script} {' '.join(arguments)}", flush=True)
    command = [sys.executable, "-u", str(ROOT / script), *arguments]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout or ():
            print(f"{label}{line}", end="", flush=True)
    if process.returncode:
        sys.exit(process.returncode)


def report(arms: dict[str, list[Run]], root: Path) -> None:
    """Print the table, write it to table.md, draw comparison.png, name the pictures."""
    lines = [cells(arm, runs) for arm, runs in arms.items()]
    notes = [CHANCE, *differences(arms), *([CLAIM] if set(arms) == set(LABELS.values()) else [])]
    histories = {arm: [run.rows for run in runs] for arm, runs in arms.items()}
    plots.comparison_png(histories, ROOT / root / "comparison.png", title="Quickstart: " + " and ".join(arms))
    write_text(ROOT / root / "table.md", markdown(lines, notes))
    console = Console()
    table = Table(*HEADER, title="quickstart", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for line in lines:
        table.add_row(*line)
    console.print("", table, *notes, sep="\n", markup=False, highlight=False)
    pictures = [root / "comparison.png"]
    pictures += [
        run.folder / f"{name}.png"
        for runs in arms.values()
        for run in runs[:1]
        for name in ("positions", "kernels", "curves")
    ]
    for path in [*(picture for picture in pictures if (ROOT / picture).exists()), root / "table.md"]:
        console.print(f"  {path}", markup=False, highlight=False, soft_wrap=True)


def cells(arm: str, runs: Sequence[Run]) -> list[str]:
    first = runs[0].evaluated
    return [
        arm,
        spread([run.top1 for run in runs]),
        spread([run.top1_ema for run in runs]),
        f"{first['params']:,}",
        f"{first['flops'] / 1e6:.1f} M",
        f"{fmean(run.evaluated['img_per_s'] for run in runs):,.0f}",
        f"{fmean(run.seconds for run in runs):.0f}",
    ]


def spread(values: Sequence[float]) -> str:
    """The mean, and the standard deviation over seeds where there are several."""
    return f"{fmean(values):.2f}" + (f" (sd {stdev(values):.2f})" if len(values) > 1 else "")


def differences(arms: dict[str, list[Run]]) -> list[str]:
    """For each arm but the first, the paired difference of EMA top-1 over the seeds, with its standard error."""
    (reference, plain), *others = arms.items()
    if len(plain) < 2:
        return []
    lines = []
    for arm, runs in others:
        gains = [mine.top1_ema - theirs.top1_ema for mine, theirs in zip(runs, plain, strict=True)]
        error = stdev(gains) / len(gains) ** 0.5
        lines.append(
            f"{arm} minus {reference}, EMA top-1, paired over {len(gains)} seeds: {fmean(gains):+.2f} (se {error:.2f})."
        )
    return lines


def markdown(lines: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    table = [HEADER, ["---", *["---:"] * (len(HEADER) - 1)], *lines]
    return "\n".join(["| " + " | ".join(line) + " |" for line in table] + ["", *notes]) + "\n"


if __name__ == "__main__":
    sys.exit(reported(main))
