"""What a training run says while it runs: a live bar on a terminal, plain lines anywhere else. For rank 0 alone."""

import time
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from dcls.errors import ConfigError

BAR_SECONDS = 0.5
LINE_SECONDS = (5.0, 60.0)
"""Seconds between two lines: the first at the start, growing to the second over ten minutes."""

KINDS = ("auto", "bar", "plain", "off")


class Bar:
    """Progress over all steps of a run.

    `due()` says when the next `update` is wanted; between two of them nothing has to leave the device.
    `kind`: `bar`, `plain` (lines), `off`, or `auto` (a bar on a terminal, else lines). Messages are printed by all.
    """

    def __init__(
        self, kind: str, epochs: int, steps_per_epoch: int, start_step: int = 0, console: Console | None = None
    ) -> None:
        if kind not in KINDS:
            raise ConfigError(f"logger.progress={kind} is unknown: choose one of {', '.join(KINDS)}")
        self.console = console or Console(force_terminal=True if kind == "bar" else None)
        self.kind = ("bar" if self.console.is_terminal else "plain") if kind == "auto" else kind
        self.epochs = epochs
        self.steps = epochs * steps_per_epoch
        self.start_step = start_step
        self.started = self.updated = time.monotonic()
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if self.kind == "bar":
            self._open()

    def _open(self) -> None:
        columns = (
            TextColumn("{task.fields[epoch]}"),
            BarColumn(bar_width=32),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[left]}"),
        )
        self._bar = _TwoLines(*columns, console=self.console, auto_refresh=False)
        total = max(self.steps, 1)
        self._task = self._bar.add_task("", total=total, completed=self.start_step, epoch="starting", left="")
        self._bar.start()

    def due(self) -> bool:
        """Whether it is time for an update: every half second for a bar, every 5 to 60 seconds for lines."""
        return self.kind != "off" and time.monotonic() - self.updated >= self._interval()

    def _interval(self) -> float:
        if self.kind == "bar":
            return BAR_SECONDS
        first, last = LINE_SECONDS
        return min(max((time.monotonic() - self.started) / 10, first), last)

    def update(
        self,
        step: int,
        epoch: int,
        loss: float,
        lr: float,
        position_lr: float | None = None,
        img_per_s: float | None = None,
        data_wait: float | None = None,
    ) -> None:
        """Show the state after `step` steps of the run, in the zero-based `epoch`.

        `loss`: mean since the last update or epoch start. `img_per_s`: images a second over all processes.
        `data_wait`: fraction of the time spent waiting for data, 0..1. None is left out.
        """
        self.updated = time.monotonic()
        parts = [f"loss {loss:.3f}", f"lr {lr:.2e}"]
        if position_lr is not None:
            parts.append(f"position lr {position_lr:.2e}")
        if img_per_s is not None:
            parts.append(f"{img_per_s:,.0f} img/s")
        if data_wait is not None:
            parts.append(f"data wait {data_wait:.0%}")
        self._show(
            step, f"epoch {epoch + 1}/{self.epochs}", "  ".join(parts), f"left {clock(self._seconds_left(step))}"
        )

    def advance(self, step: int) -> None:
        """Move the bar, where there is one, without new figures."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, refresh=True)

    def _seconds_left(self, step: int) -> float | None:
        done = step - self.start_step
        return (self.updated - self.started) / done * (self.steps - step) if done > 0 else None

    def _show(self, step: int, epoch: str, metrics: str, left: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=metrics, epoch=epoch, left=left, refresh=True)
        elif self.kind == "plain":
            self.message(f"{epoch}  step {step}/{self.steps}  {metrics}  {left}")

    def message(self, text: str) -> None:
        """Print a line, above the bar where there is one."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _TwoLines(Progress):
    """The bar, and below it the metrics, which would not fit beside it on 80 columns."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield from (Text(task.description, no_wrap=True, overflow="ellipsis") for task in self.tasks)


def clock(seconds: float | None) -> str:
    """Seconds as `0:42`, `1:02:03` or `2d 03:04`; `-:--` where they are unknown."""
    if seconds is None:
        return "-:--"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02d}:{minute:02d}"
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
