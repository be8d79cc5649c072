"""Time the layers against their peers, side by side in one run; every candidate's result is checked first.

python scripts/benchmark.py construct                        building kernels: the reference package, autograd
python scripts/benchmark.py conv                             depthwise convolutions: F.conv2d, a matrix product's rate
python scripts/benchmark.py model                            networks: the plain one, the reference layer in its place
python scripts/benchmark.py loop                             the training loop: the same work in a bare one
python scripts/benchmark.py layer --out runs/benchmarks      whole layers: the reference layer, the plain 7x7
python scripts/benchmark.py construct --only "v0, dense"     the cases whose name holds the text

Candidates take turns in one process; reported are medians, and the ratio peer / ours of each round with its quartiles.
On a CPU the process keeps the memory it frees, as in training.
Where a result is wrong nothing is reported and the exit code is 1. Two other programs on the same cores can make any
threaded number meaningless: measure on an idle machine.
"""

import checkout

import argparse
import importlib
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch
from benchmarks import machine, memory, report
from benchmarks.contest import Mismatch, Row, against_peers, hold, summed
from benchmarks.setting import Setting
from command_line import OneLine

from dcls import ops
from dcls.errors import ConfigError, reported
from dcls.ops import dispatch
from dcls.runtime.memory import keep_freed

# Modules of benchmarks/, imported when asked for: what one needs, another may do without.
BENCHES = ("construct", "conv", "layer", "model", "loop")
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BATCHES = {"cpu": 8, "cuda": 128}


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parsed(arguments)
    for name in ("threads", "batch"):
        if (number := getattr(asked, name)) is not None and number < 1:
            raise ConfigError(f"--{name} {number}: must be a number from 1 on")
    if asked.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no GPU here")
    if asked.threads:
        torch.set_num_threads(asked.threads)
    ops.set_backend(asked.backend)
    if asked.device == "cpu":
        keep_freed()
    if asked.device == "cuda":
        # What the trial of the backends found, slower candidates included.
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        torch.backends.cudnn.allow_tf32 = False
    bench = importlib.import_module(f"benchmarks.{asked.bench}")
    batch = asked.batch or BATCHES[asked.device]
    setting = Setting(asked.device, batch, asked.only, asked.tiny, DTYPES[asked.dtype], asked.compile)
    if asked.no_reference:
        setting = replace(setting, reference=False)
    if asked.peak:
        contests = bench.contests
        print(memory.peak(contests(setting), contests(replace(setting, tiny=True, only="")), *asked.peak))
        return 0
    try:
        measured, left = measure(bench, setting, asked)
    except Mismatch as mismatch:
        print(f"nothing is reported: {mismatch}", file=sys.stderr)
        return 1
    if not measured:
        print(f"no case of {asked.bench} holds --only {asked.only!r}", file=sys.stderr)
        return 2
    notes = [
        *machine.describe(asked.device),
        f"{asked.dtype}, backend {asked.backend}{', compiled' * asked.compile}",
        *left,
    ]
    report.show(asked.bench, measured, notes)
    if asked.out:
        print(*report.write(asked.out, asked.bench, measured, notes), sep="\n")
    return 0


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLine(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", choices=BENCHES)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, help="of torch on the CPU (default: torch's own choice)")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="of convolutions; the rest by autocast")
    parser.add_argument("--backend", default="auto", choices=dispatch.NAMES, help="of ours (default: auto)")
    parser.add_argument("--compile", action="store_true", help="networks run through torch.compile")
    parser.add_argument("--batch", type=int, help="images (default: 8, on cuda 128)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each case (default: 5)")
    parser.add_argument(
        "--within", type=float, default=float("inf"), help="seconds after which no further case is begun"
    )
    parser.add_argument("--no-reference", action="store_true", help="without the reference package, which is slow")
    parser.add_argument("--only", default="", metavar="TEXT", help="the cases whose name holds the text")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write a Markdown table, a JSON list and a picture")
    parser.add_argument("--tiny", action="store_true", help="shapes of no interest, for a test of the script itself")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def measure(bench: ModuleType, setting: Setting, asked: argparse.Namespace) -> tuple[list[Row], list[str]]:
    """The rows of every contest, of their groups, and of their memory; and what was left out. Raises Mismatch."""
    measured: list[Row] = []
    peaks: list[Row] = []
    left = [] if setting.reference else ["left out: the reference package DCLS"]
    end = time.monotonic() + asked.within
    groups: dict[str, list[dict[str, list[float]]]] = {}
    options = [bench.BENCH, "--device", setting.device, "--threads", str(torch.get_num_threads())]
    options += ["--batch", str(setting.batch), "--dtype", asked.dtype, "--backend", asked.backend]
    options += ["--tiny"] * setting.tiny
    for contest in bench.contests(setting):
        if measured and time.monotonic() > end:
            left.append(f"left out, by --within {asked.within:g}: {contest.case!r} and what comes after, and sums")
            groups.clear()
            break
        print(contest.case, file=sys.stderr, flush=True)
        times = hold(contest, seconds=asked.seconds)
        measured += against_peers(contest.bench, contest.case, times)
        if contest.group:
            groups.setdefault(contest.group, []).append(times)
        if contest.memory:
            peaks += memory.compared(contest, options, setting.device)
    for group, parts in groups.items():
        measured += against_peers(bench.BENCH, group, summed(parts))
    return measured + peaks, left


if __name__ == "__main__":
    sys.exit(reported(main))
