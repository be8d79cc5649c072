"""A contest: ours and its peers do the same work, interleaved in one process, after all have been checked.

Candidates take turns, in an order that rotates, so that whatever else the machine does hits all of them; a ratio is
taken within each round, and what is reported is its median and quartiles. Nothing is reported of a contest in which a
candidate's result is wrong.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor

OURS = "ours"
LEAST_VISIT = 0.02  # seconds: a candidate that is faster runs several times a visit
LEAST_ROUNDS = 5


class Mismatch(Exception):
    """A candidate's result is not what it should be: its times mean nothing."""


@dataclass(frozen=True)
class Contest:
    """One case of a benchmark.

    candidates: by name, what is timed; one of them is "ours". Each returns the tensors that `expected` gives, of those
        shapes once reshaped, or none.
    expected: the true tensors, in float64 where the machine allows, computed in the same run.
    tolerance: of the difference, over the largest true value.
    scale: by the name of a candidate, what its times are multiplied by (1 where absent), for a peer of other work.
    group: contests of the same group are also reported together, by the sum of their times.
    memory: report the peak memory of each candidate too: "call" of what one call adds, "process" of everything.
    """

    bench: str
    case: str
    candidates: Mapping[str, Callable[[], Sequence[Tensor]]]
    expected: Callable[[], Sequence[Tensor]]
    tolerance: float = 1e-5
    scale: Mapping[str, float] = field(default_factory=dict)
    group: str = ""
    memory: str = ""


@dataclass(frozen=True)
class Row:
    """Ours against one peer: medians, and the ratio peer / ours (above 1: ours is better) with its quartiles.

    unit: ms of time or mib of peak memory.
    """

    bench: str
    case: str
    peer: str
    ours: float
    theirs: float
    ratio: float
    q1: float
    q3: float
    unit: str = "ms"

    def as_dict(self) -> dict[str, Any]:
        values = {f"ours_{self.unit}": self.ours, f"peer_{self.unit}": self.theirs}
        ratios = {"ratio": self.ratio, "ratio_q1": self.q1, "ratio_q3": self.q3}
        rounded = {name: float(f"{value:.4g}") for name, value in (values | ratios).items()}
        return {"bench": self.bench, "case": self.case, "peer": self.peer} | rounded


def hold(contest: Contest, *, seconds: float) -> dict[str, list[float]]:
    """Check every candidate, then time them for about that long; milliseconds by candidate, one a round.

    Raises Mismatch.
    """
    check(contest)
    repeats = {name: _repeats(run) for name, run in contest.candidates.items()}
    times: dict[str, list[float]] = {name: [] for name in contest.candidates}
    names, end = list(contest.candidates), time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[OURS]) < LEAST_ROUNDS:
        for name in names:
            took = _timed(contest.candidates[name], repeats[name])
            times[name].append(1e3 * took * contest.scale.get(name, 1))
        names.append(names.pop(0))
    return times


def check(contest: Contest) -> None:
    """Raises Mismatch where a candidate's tensors differ from the expected ones, or are not numbers."""
    expected = contest.expected()
    for name, run in contest.candidates.items():
        found = run()
        if found and len(found) != len(expected):
            raise Mismatch(f"{contest.bench}, {contest.case}: {name} gives {len(found)} results of {len(expected)}")
        for i, (one, other) in enumerate(zip(found, expected, strict=False)):
            one, other = one.double().reshape(other.shape), other.double()
            error = ((one - other).abs().max() / other.abs().max()).item()
            if not error <= contest.tolerance:
                raise Mismatch(
                    f"{contest.bench}, {contest.case}: result {i} of {name} is off by {error:.1e} of the largest "
                    f"value, more than {contest.tolerance:.0e}"
                )


def unchecked(run: Callable[[], Sequence[Tensor]]) -> Callable[[], Sequence[Tensor]]:
    """The same work, without results to compare."""

    def only_run() -> Sequence[Tensor]:
        run()
        return []

    return only_run


def against_peers(bench: str, case: str, times: Mapping[str, Sequence[float]]) -> list[Row]:
    """One row a peer."""
    return [row(bench, case, name, times[OURS], times[name]) for name in times if name != OURS]


def row(bench: str, case: str, peer: str, ours: Sequence[float], theirs: Sequence[float], unit: str = "ms") -> Row:
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    q1, _, q3 = quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return Row(bench, case, peer, median(ours), median(theirs), median(ratios), q1, q3, unit)


def summed(parts: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, list[float]]:
    """The times of several contests together, round by round."""
    rounds = min(len(times[OURS]) for times in parts)
    return {name: [sum(times[name][i] for times in parts) for i in range(rounds)] for name in parts[0]}


def _repeats(run: Callable[[], Any]) -> int:
    return max(1, int(LEAST_VISIT / max(_timed(run, 1), 1e-6)))


def _timed(run: Callable[[], Any], repeats: int) -> float:
    """Seconds of one call, after one that brings back caches and memory from the candidate before."""
    run()
    _finish()
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    _finish()
    return (time.perf_counter() - start) / repeats


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
