"""What a run tells people while it runs and at its end: record, bar and pictures. Rank 0 speaks; the others are
silent.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dcls import ops
from dcls.analysis import pictures
from dcls.engine.state import TrainState
from dcls.record.bar import Bar
from dcls.record.record import Record

_log = logging.getLogger(__name__)

PICTURE_SECONDS = 300.0


class RunReport:
    """Hands each epoch's row to the record and the bar; draws the pictures every five minutes and at the end."""

    def __init__(self, folder: Path, state: TrainState, bar: Bar, record: Record | None) -> None:
        """`record` is None in every process but rank 0, and so is everything that is written."""
        self.folder, self.state, self.bar, self.record = folder, state, bar, record
        self._drawn = time.monotonic()
        self._told = False

    def epoch(self, row: Mapping[str, Any]) -> None:
        if self.record is None:
            return
        self.record.epoch(row)
        if self.state.positions.limits:
            self.state.positions.save(self.folder / "positions.npz")
        self.bar.message(one_line(row, self.state.epochs))
        if not self._told:
            self.bar.message(backends_line(ops.picked().values()))
            self._told = True
        if time.monotonic() - self._drawn > PICTURE_SECONDS:
            self._draw()

    def finish(self, summary: Mapping[str, Any]) -> list[Path]:
        """Write summary.json and the pictures; returns the pictures."""
        if self.record is None:
            return []
        self.record.summary(summary)
        return self._draw()

    def _draw(self) -> list[Path]:
        """Never raises: a picture must not end a training run."""
        self._drawn, state = time.monotonic(), self.state
        try:
            return pictures.draw(self.folder, self.folder.name, state.model, state.history, state.positions)
        except Exception as error:
            _log.warning("the pictures of %s cannot be drawn: %r", self.folder, error)
            return []


def backends_line(picked: Iterable[str]) -> str:
    """What computed the depthwise convolutions, by the backend's name for each shape."""
    shapes = Counter(picked)
    parts = [f"{name} ({count} shapes)" for name, count in shapes.items()] or ["torch's own operators"]
    return f"depthwise convolutions by {', '.join(parts)}"


def one_line(row: Mapping[str, Any], epochs: int) -> str:
    """An epoch as a line of text."""
    averaged = "" if row["top1_ema"] is None else f"  top-1 ema {row['top1_ema']:.2f}"
    return (
        f"epoch {row['epoch']}/{epochs}  train loss {row['train_loss']:.3f}  eval loss {row['eval_loss']:.3f}  "
        f"top-1 {row['top1']:.2f}{averaged}  {row['train_img_per_s']:,.0f} img/s  data wait {row['data_wait']:.0%}"
    )
