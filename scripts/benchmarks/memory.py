"""Peak memory of one candidate: each in a process of its own, where nothing is reused.

On Linux the process's high-water mark of resident memory is reset before the measured call. On CUDA the allocator
counts to the byte, so one call in this process tells what it adds; a model's parameters are not in it.
"""

import mmap
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from benchmarks.contest import OURS, Contest, Row, row

SCRIPT = Path(__file__).resolve().parents[1] / "benchmark.py"
CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
REPEATS = 3
PAGE = 4 / 1024  # MiB: less cannot be told from nothing


def compared(contest: Contest, command: Iterable[str], device: str) -> list[Row]:
    """A row a peer. command: the options of this run, for the processes that measure. Empty where none can measure."""
    names = list(contest.candidates)
    if device == "cuda":
        peaks = {name: [_added(run)] for name, run in contest.candidates.items()}
    elif CLEAR.exists():
        peaks = {name: [_process(contest.case, name, command) for _ in range(REPEATS)] for name in names}
    else:
        return []
    return [row(contest.bench, contest.case, name, peaks[OURS], peaks[name], "mib") for name in names if name != OURS]


def peak(contests: Iterable[Contest], tiny: Iterable[Contest], case: str, candidate: str) -> float:
    """MiB that one call of the candidate adds in this process, or all that the process then has.

    tiny: contests to call first, which load the candidate's code.
    """
    for contest in tiny:
        if candidate in contest.candidates:
            contest.candidates[candidate]()
    chosen = next(contest for contest in contests if contest.case == case)
    run, whole = chosen.candidates[candidate], chosen.memory == "process"
    CLEAR.write_text("5")
    before = _status("VmRSS")
    run()
    # A page at least, for the ratio's sake.
    return max(_status("VmHWM") - (0 if whole else before), mmap.PAGESIZE / 2**20)


def _added(run: Callable[[], object]) -> float:
    """MiB of the CUDA allocator that one call adds at its peak."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return max(PAGE, (torch.cuda.max_memory_allocated() - before) / 2**20)


def _status(name: str) -> float:
    """A figure of /proc/self/status, in MiB."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def _process(case: str, candidate: str, command: Iterable[str]) -> float:
    arguments = [sys.executable, str(SCRIPT), *command, "--peak", case, candidate]
    return max(PAGE, float(subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=True).stdout))
