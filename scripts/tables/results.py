"""What has been measured of a row: finished runs, one a seed, and evaluations of released weights."""

import json
import shlex
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml
from scipy import stats

from dcls.config import composition
from dcls.config.schema import Config
from dcls.errors import ConfigError
from tables.arms import Arm

VALIDATION_IMAGES = 50_000

LEVEL, POWER = 0.05, 0.8  # of a two-sided paired t-test
MOST_SEEDS = 1_000_000
TO_SEE = 0.3  # points of top-1


@dataclass(frozen=True)
class Wanted:
    """A run of a row: the arguments of train.py that make it, its folder, and its configuration."""

    arguments: tuple[str, ...]
    folder: Path
    config: Config

    @property
    def command(self) -> str:
        return shlex.join(["python", "train.py", *self.arguments])


def wanted(arm: Arm, seed: int, scale: str, root: Path, data: Sequence[str]) -> Wanted:
    """Where the run is, finished or not. data: more arguments, which say where the images are."""
    own = f"seed={seed}"
    cfg, overrides = composition.compose("train", [*arm.options, own, *data, "dry_run=true"])
    config = composition.typed(cfg, overrides)
    if scale == "mini":
        folder = root / "mini" / f"{arm.name}-s{seed}"
    else:
        folder = root / composition.run_name(config, [each.lstrip("+") for each in (*arm.options, own)])
    return Wanted((*arm.options, own, *data, f"run.dir={folder}"), folder, config)


def finished(run: Wanted) -> dict[str, Any] | None:
    """The run's summary.json. None where there is none.

    Raises ConfigError where the folder holds another run, or a torn file.
    """
    summary, config = (run.folder / name for name in ("summary.json", "config.yaml"))
    if not summary.is_file() or not config.is_file():
        return None
    theirs, told = _mapping(config, yaml.safe_load), _mapping(summary, json.loads)
    own = asdict(run.config)
    # What `auto` stood for where it ran.
    own["runtime"] |= {name: (theirs.get("runtime") or {}).get(name) for name in ("device", "amp")}
    own["debug"] = False
    if others := composition.differing(theirs, own):
        raise ConfigError(
            f"root: {run.folder} holds another run than the table asks for ({', '.join(others)} differ); "
            "move it, or choose another root"
        )
    return told


def _mapping(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """What train.py wrote there. Raises ConfigError for anything but a mapping."""
    try:
        found = parse(path.read_text())
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"root: {path} is torn: move its folder") from error
    if not isinstance(found, dict):
        raise ConfigError(f"root: {path} holds {type(found).__name__}, expected what train.py writes: move its folder")
    return found


def evaluated(path: Path, checkpoint: str) -> Mapping[str, Any] | None:
    """The row that eval.py has written to path about a checkpoint; None where there is no file.

    Raises ConfigError where the file is torn, or about another checkpoint (by its file, and the run's folder, if any).
    """
    if not path.is_file():
        return None
    try:
        rows = {Path(row["checkpoint"]).parts[-3:]: row for row in json.loads(path.read_text())}
    except (ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"root: {path} is not what eval.py writes: evaluate again") from error
    row = rows.get(Path(checkpoint).parts[-3:])
    if row is None:
        found = ", ".join("/".join(each) for each in rows) or "nothing"
        raise ConfigError(f"root: {path} is about {found}, expected {checkpoint}: move it, or evaluate again")
    return row


def of_images(value: float, row: Mapping[str, Any], images: int) -> str:
    """The value, and of how many images it is where they are not all that there are."""
    found = row.get("images")
    return f"{value:.2f}" + ("" if found == images else f" ({found:,} images)" if found else " (images unknown)")


def released(arm: Arm, root: Path) -> str | None:
    """Top-1 of the released weights, evaluated here into <root>/<shortcut>."""
    row = evaluated(root / arm.released / "eval.json", arm.released) if arm.released else None
    return None if row is None else of_images(row["top1"], row, VALIDATION_IMAGES)


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation; a dash for none."""
    if not values:
        return "-"
    return f"{fmean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


@dataclass(frozen=True)
class Difference:
    """Of an arm to the first one, paired by seed: mean, half the 95 % interval, standard deviation, pairs."""

    mean: float
    half: float
    sd: float
    pairs: int

    @property
    def seeds_for(self) -> int:
        """Seeds with which a paired t-test would show a difference of 0.3 points (80 % power, 5 % level)."""
        return 2 + bisect_left(range(2, MOST_SEEDS), POWER, key=lambda n: power(TO_SEE, self.sd, n))

    def __str__(self) -> str:
        return f"{self.mean:+.2f} ± {self.half:.2f}"


def difference(mine: Mapping[int, float], first: Mapping[int, float]) -> Difference | None:
    """None for fewer than two common seeds."""
    gains = [mine[seed] - first[seed] for seed in sorted(mine.keys() & first.keys())]
    if len(gains) < 2:
        return None
    sd = stdev(gains)
    return Difference(fmean(gains), quantile(len(gains)) * sd / len(gains) ** 0.5, sd, len(gains))


def quantile(pairs: int) -> float:
    """Student's t that a difference of so many pairs exceeds, up or down, with probability LEVEL if there is none."""
    return float(stats.t.ppf(1 - LEVEL / 2, pairs - 1))


def power(gain: float, sd: float, pairs: int) -> float:
    """Probability that a paired t-test shows a difference, for one of `gain` with standard deviation `sd`."""
    return float(stats.nct.sf(quantile(pairs), pairs - 1, gain / sd * pairs**0.5)) if sd else 1.0
