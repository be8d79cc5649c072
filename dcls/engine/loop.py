"""The loop: train an epoch, evaluate, record, save; until every epoch has its row."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn.utils import get_total_norm

from dcls.analysis import positions
from dcls.data import EvalLoader, TrainLoader
from dcls.engine.optim import learning_rates
from dcls.engine.state import TrainState
from dcls.engine.step import Step
from dcls.evaluation import scoring
from dcls.files.checkpoints import Checkpoints
from dcls.record.bar import Bar
from dcls.runtime.processes import StopRequest


class Stopped(Exception):
    """The run was asked to stop and has saved; starting it again in the same folder continues it."""


class Autosave:
    """Saves every `minutes` and when asked to stop. Every process calls it once a step; only rank 0 writes."""

    def __init__(
        self, checkpoints: Checkpoints, state: TrainState, stop: StopRequest, *, main: bool, minutes: float
    ) -> None:
        self.checkpoints, self.state, self.stop, self.main, self.seconds = checkpoints, state, stop, main, 60 * minutes
        self._last = time.monotonic()

    def save(self, *, best: bool = False) -> None:
        if self.main:
            require_finite(float(self.state.loss_sum), self.state.step)
            # An update can spoil the network after a loss that was finite.
            parameters = [parameter.detach() for parameter in self.state.model.parameters()]
            require_finite(float(get_total_norm(parameters, math.inf)), self.state.step, "largest parameter")
            self.checkpoints.save(self.state.state_dict(), self.state.step, best=best)
        self._last = time.monotonic()

    def after_step(self) -> None:
        """Save when it is time. Raises Stopped, having saved, when the processes agree to stop here."""
        stopping = self.stop.agreed()
        if stopping or (self.main and time.monotonic() - self._last > self.seconds):
            self.save()
        if stopping:
            raise Stopped(f"stopped after step {self.state.step}")


def fit(
    step: Step,
    state: TrainState,
    train: TrainLoader,
    val: EvalLoader,
    autosave: Autosave,
    bar: Bar,
    on_epoch: Callable[[dict[str, Any]], None],
    profiler: torch.profiler.profile | None = None,
    eval_limit: int | None = None,
) -> None:
    """Train every epoch that `state` has no row of. `on_epoch` gets each row, in every process, before it is saved."""
    for epoch in state.epochs_left():
        train_epoch(step, train, state, autosave, bar, epoch=epoch, profiler=profiler)
        autosave.save()  # an evaluation may take longer than a scheduler waits
        row = epoch_row(step, state, val, epoch=epoch, eval_limit=eval_limit)
        improved = state.finish_epoch(row)
        on_epoch(row)
        autosave.save(best=improved)


def train_epoch(
    step: Step,
    loader: TrainLoader,
    state: TrainState,
    autosave: Autosave,
    bar: Bar,
    *,
    epoch: int,
    profiler: torch.profiler.profile | None = None,
) -> None:
    """Train from where `state` stands to the end of `epoch`. Raises Stopped at a stop request, FloatingPointError at
    NaN.
    """
    first = state.step - epoch * state.steps_per_epoch
    step.objective.set_epoch(epoch)
    step.model.train()
    clock = EpochClock(state, loader.epoch(epoch, first))
    for _ in range(first, state.steps_per_epoch):
        loss = step(state.step, epoch, clock)
        state.step += 1
        state.loss_sum += loss
        state.running = clock.totals()
        if profiler is not None:
            profiler.step()
        if bar.due():
            bar.update(**_now(step, clock, epoch, state.step, loss))
        autosave.after_step()
    bar.advance(state.step)
    require_finite(float(state.loss_sum), state.step)


def epoch_row(
    step: Step, state: TrainState, val: EvalLoader, *, epoch: int, eval_limit: int | None = None
) -> dict[str, Any]:
    """What metrics.jsonl says of an epoch; `epoch` counts from 1 there, as the epochs that are done."""
    scored = [step.model] if step.ema is None else [step.model, step.ema.averaged(step.model)]
    fused = [scoring.fused(model, channels_last=step.precision.channels_last) for model in scored]
    scores, *rest = scoring.evaluate(fused, val, step.world, precision=step.precision, limit=eval_limit)
    averaged = rest[0] if rest else None
    val.close()  # its workers would hold memory while the next epoch trains
    images = state.steps_per_epoch * step.slots.global_batch
    seconds = state.running["seconds"]
    rates = learning_rates(step.optimizer)
    return {
        "epoch": epoch + 1,
        "step": state.step,
        "train_loss": float(state.loss_sum) / state.steps_per_epoch,
        "eval_loss": scores.loss,
        "top1": scores.top1,
        "top5": scores.top5,
        "eval_loss_ema": averaged.loss if averaged else None,
        "top1_ema": averaged.top1 if averaged else None,
        "top5_ema": averaged.top5 if averaged else None,
        "lr": _network_rate(rates),
        "position_lr": rates.get("position"),
        "images": images,
        "eval_images": scores.images,
        "train_img_per_s": images / seconds,
        "eval_img_per_s": scores.img_per_s,
        "data_wait": state.running["waited"] / seconds,
        "seconds": seconds,
        "positions": state.positions.add(epoch + 1, positions.snapshot(step.model)),
    }


def _network_rate(rates: dict[str, float]) -> float:
    return max(rates.get("decay", 0.0), rates.get("no_decay", 0.0))


def _now(step: Step, clock: "EpochClock", epoch: int, number: int, loss: torch.Tensor) -> dict[str, Any]:
    """What the bar shows. Reading the loss waits for the device, so only when the bar is drawn."""
    value = float(loss)
    require_finite(value, number)
    rates = learning_rates(step.optimizer)
    return {
        "step": number,
        "epoch": epoch,
        "loss": value,
        "lr": _network_rate(rates),
        "position_lr": rates.get("position"),
        "img_per_s": clock.images_per_second(step.slots.global_batch),
        "data_wait": clock.data_wait(),
    }


def require_finite(value: float, step: int, what: str = "training loss") -> None:
    if not math.isfinite(value):
        raise FloatingPointError(
            f"the {what} is {value} at step {step}: lower recipe.lr or set recipe.clip_grad; "
            "the checkpoints are from before"
        )


class EpochClock(Iterator[tuple[torch.Tensor, torch.Tensor]]):
    """Hands out batches and keeps the time of the epoch, over interruptions: seconds in all and seconds spent
    waiting.
    """

    def __init__(self, state: TrainState, batches: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self._batches, self._state, self._first = batches, state, state.step
        self._earlier = dict(state.running)
        self._start, self._waited = time.perf_counter(), 0.0

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        asked = time.perf_counter()
        batch = next(self._batches)
        self._waited += time.perf_counter() - asked
        return batch

    def totals(self) -> dict[str, float]:
        """Seconds and waiting of the whole epoch so far, those of an interrupted start included."""
        seconds = time.perf_counter() - self._start
        return {
            "seconds": self._earlier.get("seconds", 0.0) + seconds,
            "waited": self._earlier.get("waited", 0.0) + self._waited,
        }

    def images_per_second(self, global_batch: int) -> float:
        return (self._state.step - self._first) * global_batch / max(time.perf_counter() - self._start, 1e-9)

    def data_wait(self) -> float:
        """Fraction of the time spent waiting for batches."""
        return self._waited / max(time.perf_counter() - self._start, 1e-9)
