"""Everything a GPU can tell in one command of at most nine minutes: the tests marked gpu, then every benchmark.

python scripts/gpu_check.py                                  writes a log and the tables below runs/gpu_check
python scripts/gpu_check.py --steps tests conv               some of it

torch, triton, timm, numpy and pytest suffice; what needs more is left out with a line. Each step is a process with a
time of its own, so that one that fails or hangs leaves the others their turn. The exit code is 1 where a step failed.
"""

from checkout import ROOT

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from command_line import OneLine

from dcls.errors import ConfigError, reported

SECONDS = 530.0
# Of a benchmark's time, after which it begins no further case: the last one and the report need the rest.
BEGIN = 0.7
GPU_TESTS = ("tests/ops/test_triton.py", "tests/ops/test_trial.py")
CONSTRUCTION_TESTS = ("tests/layers/test_construction.py",)


@dataclass(frozen=True)
class Step:
    """seconds: at most; less where less is left. arguments: of python. needs: packages without which it is left out."""

    name: str
    seconds: float
    arguments: Sequence[str]
    needs: Sequence[str] = ()


@dataclass(frozen=True)
class Outcome:
    step: str
    result: str
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        return self.result.startswith(("exit", "timed out"))


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parsed(arguments)
    planned = steps(asked.device, asked.tiny, asked.out)
    names = [step.name for step in planned]
    if unknown := [name for name in asked.steps or () if name not in names]:
        raise ConfigError(f"--steps {' '.join(unknown)}: choose among {', '.join(names)}")
    if asked.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no GPU here; --device cpu runs what needs none")
    asked.out.mkdir(parents=True, exist_ok=True)
    end, outcomes = time.monotonic() + asked.seconds, []
    for step in planned:
        if not asked.steps or step.name in asked.steps:
            outcomes.append(run(step, end - time.monotonic(), asked.out / f"{step.name}.log"))
            print(line(outcomes[-1]), flush=True)
    table = ["| step | result | seconds |", "| --- | --- | ---: |", *map(line, outcomes)]
    (asked.out / "README.md").write_text("\n".join(table) + "\n")
    print("", *table, f"written to {asked.out}", sep="\n")
    return int(any(outcome.failed for outcome in outcomes))


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLine(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu_check", metavar="DIR")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"for everything (default: {SECONDS:g})")
    parser.add_argument("--steps", nargs="+", metavar="STEP", help="these alone: tests, construction, conv, ...")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--tiny", action="store_true", help="shapes of no interest, for a test of the script itself")
    return parser.parse_args(arguments)


def steps(device: str, tiny: bool, out: Path) -> list[Step]:
    """In the order of what would be missed most. On a CPU the tests are those that need no GPU."""
    pytest = ("-m", "pytest", "-v", "-p", "no:cacheprovider", "-W", "default", "--durations=10", "-m")
    marked = (*pytest, "gpu and not soak" if device == "cuda" else "not gpu and not soak")
    files = GPU_TESTS[1:] if tiny else GPU_TESTS

    def bench(name: str, seconds: float, *options: str, needs: Sequence[str] = ()) -> Step:
        what = ["scripts/benchmark.py", name.partition("-")[0], "--device", device, "--out", str(out / name)]
        what += ["--seconds", "0.01" if tiny else "0.5", "--within", f"{BEGIN * seconds:g}", *["--tiny"] * tiny]
        return Step(name, seconds, (*what, *options), needs)

    bf16 = ("--dtype", "bf16")
    return [
        Step("tests", 190, (*marked, *files)),
        bench("conv", 110, *bf16),
        bench("model", 100, *bf16),
        bench("layer", 60, *bf16),
        bench("construct", 40),
        Step("construction", 40, (*marked, *CONSTRUCTION_TESTS), ("hypothesis",)),
        bench("loop", 60, "--batch", "32", needs=("rich",)),
        bench("model-compiled", 180, *bf16, "--compile", "--only", "training, convnext_tiny v0" if not tiny else "v0"),
    ]


def run(step: Step, left: float, log: Path) -> Outcome:
    """One step, its output in the log; its processes end with its time."""
    missing = [package for package in step.needs if importlib.util.find_spec(package) is None]
    if missing:
        return Outcome(step.name, f"left out: needs {', '.join(missing)}")
    if left < 1:
        return Outcome(step.name, "left out: no time left")
    start = time.monotonic()
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, *step.arguments], cwd=ROOT, stdout=stream, stderr=stream, start_new_session=True
        )
        try:
            code = process.wait(min(step.seconds, left))
            result = "ok" if code == 0 else f"exit {code}, see {log.name}"
        except subprocess.TimeoutExpired:
            result = f"timed out, see {log.name}"
        finally:
            end_group(process)
    return Outcome(step.name, result, time.monotonic() - start)


def end_group(process: "subprocess.Popen[bytes]") -> None:
    """The process and what it has started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def line(outcome: Outcome) -> str:
    return f"| {outcome.step} | {outcome.result} | {outcome.seconds:.0f} |"


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that a step's processes end, too
    sys.exit(reported(main))
