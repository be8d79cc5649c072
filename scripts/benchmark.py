"""Time the layers against their peers, side by side in one run; every candidate's result is checked first.

python scripts/benchmark.py construct                        building kernels: the reference package, autograd
python scripts/benchmark.py conv                             depthwise convolutions: F.conv2d, a matrix product's rate
python scripts/benchmark.py model                            networks: the plain one, the reference layer in its place
python scripts/benchmark.py loop                             the training loop: the same work in a bare one
python scripts/benchmark.py layer --out runs/benchmarks      whole layers: the reference layer, the plain 7x7
python scripts/benchmark.py construct --only "v0, dense"     the cases whose name holds the text

Candidates take turns in one process; reported are medians, and the ratio peer / ours of each round with its quartiles.
Where a result is wrong nothing is reported and the exit code is 1. Two other programs on the same cores can make any
threaded number meaningless: measure on an idle machine.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

SCRIPTS = Path(__file__).resolve().parent
sys.path[:0] = [str(SCRIPTS), str(SCRIPTS.parent)]

import torch  # noqa: E402  # the checkout need not be installed
from benchmarks import construct, conv, layer, loop, machine, memory, model, report  # noqa: E402
from benchmarks.contest import Mismatch, Row, against_peers, hold, summed  # noqa: E402
from benchmarks.setting import Setting  # noqa: E402

BENCHES: dict[str, ModuleType] = {module.BENCH: module for module in (construct, conv, layer, model, loop)}


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parsed(arguments)
    if asked.threads:
        torch.set_num_threads(asked.threads)
    setting = Setting(asked.device, asked.batch, asked.only, asked.tiny)
    if asked.peak:
        contests = BENCHES[asked.bench].contests
        print(memory.peak(contests(setting), contests(replace(setting, tiny=True, only="")), *asked.peak))
        return 0
    try:
        measured = measure(BENCHES[asked.bench], setting, asked)
    except Mismatch as mismatch:
        print(f"nothing is reported: {mismatch}", file=sys.stderr)
        return 1
    if not measured:
        print(f"no case of {asked.bench} holds --only {asked.only!r}", file=sys.stderr)
        return 2
    notes = machine.describe(asked.device)
    report.show(asked.bench, measured, notes)
    if asked.out:
        print(*report.write(asked.out, asked.bench, measured, notes), sep="\n")
    return 0


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", choices=BENCHES)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, help="of torch on the CPU (default: torch's own choice)")
    parser.add_argument("--batch", type=int, default=8, help="images (default: 8)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each case (default: 5)")
    parser.add_argument("--only", default="", metavar="TEXT", help="the cases whose name holds the text")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write a Markdown table, a JSON list and a picture")
    parser.add_argument("--tiny", action="store_true", help="shapes of no interest, for a test of the script itself")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def measure(bench: ModuleType, setting: Setting, asked: argparse.Namespace) -> list[Row]:
    """The rows of every contest, of their groups, and of their memory. Raises Mismatch."""
    measured: list[Row] = []
    peaks: list[Row] = []
    groups: dict[str, list[dict[str, list[float]]]] = {}
    options = [bench.BENCH, "--device", setting.device, "--threads", str(torch.get_num_threads())]
    options += ["--batch", str(setting.batch), *["--tiny"] * setting.tiny]
    for contest in bench.contests(setting):
        print(contest.case, file=sys.stderr, flush=True)
        times = hold(contest, seconds=asked.seconds)
        measured += against_peers(contest.bench, contest.case, times)
        if contest.group:
            groups.setdefault(contest.group, []).append(times)
        if contest.memory:
            peaks += memory.compared(contest, options)
    for group, parts in groups.items():
        measured += against_peers(bench.BENCH, group, summed(parts))
    return measured + peaks


if __name__ == "__main__":
    sys.exit(main())
