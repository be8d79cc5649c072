"""Everything a run has become so far, as plain tensors and numbers: what checkpoints know."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from dcls.analysis.positions import History
from dcls.engine.ema import Ema
from dcls.errors import CheckpointError

FORMAT = 1


class TrainState:
    """The bare model, its optimizer and average, the number of steps done, and the record of the epochs behind it."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        ema: Ema | None,
        scaler: torch.amp.GradScaler,
        positions: History,
        steps_per_epoch: int,
        epochs: int,
        identity: dict[str, Any],
    ) -> None:
        """`identity` is what must be equal for two runs to be the same (configuration, data, model facts); stored as
        it is.
        """
        self.model, self.optimizer, self.ema, self.scaler = model, optimizer, ema, scaler
        self.positions, self.steps_per_epoch, self.epochs, self.identity = positions, steps_per_epoch, epochs, identity
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.best: float | None = None
        self.best_step: int | None = None
        self.running: dict[str, float] = {}
        # Where the run has been computed, in order.
        self.machines: list[dict[str, Any]] = []
        # Of backends, measured on a GPU when the run began (ops.set_choices): a continued run must not measure anew.
        self.choices: dict[str, str] = {}
        # Over the epoch so far, on the device: reading it each step would make the step wait.
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=next(model.parameters()).device)

    def epochs_left(self) -> Iterator[int]:
        """Zero-based epochs whose row is not in the history yet; the first may be trained in part or in full
        already.
        """
        while len(self.history) < self.epochs:
            yield len(self.history)

    def goes_on(self, machine: dict[str, Any]) -> list[str]:
        """Note where what is left will be computed; returns what is not as it was: ["threads 2 before, 1 now"]."""
        if self.machines and (self.machines[-1] == machine or len(self.history) == self.epochs):
            return []
        before = self.machines[-1] if self.machines else machine
        self.machines.append(machine)
        return [
            f"{name} {before.get(name)} before, {here} now"
            for name, here in machine.items()
            if before.get(name) != here
        ]

    def finish_epoch(self, row: dict[str, Any]) -> bool:
        """Append the epoch's row; True when it is the best so far (by the averaged model's top-1 where there is
        one).
        """
        self.history.append(row)
        self.running = {}
        self.loss_sum.zero_()
        score = row["top1_ema"] if row["top1_ema"] is not None else row["top1"]
        improved = self.best is None or score > self.best
        if improved:
            self.best, self.best_step = score, self.step
        return improved

    def state_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            **self.identity,
            "step": self.step,
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "history": self.history,
            "best": self.best,
            "best_step": self.best_step,
            "choices": self.choices,
            "machines": self.machines,
            "running": {**self.running, "loss_sum": float(self.loss_sum)},
            "positions": self.positions.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`. Raises CheckpointError for a file that is not one of this framework's runs."""
        if state.get("format") != FORMAT or not {"step", "model", "optimizer", "history"} <= state.keys():
            raise CheckpointError(
                f"the checkpoint is not one of this framework's training checkpoints (format {FORMAT})"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None and state["ema"] is not None:
            self.ema.load_state_dict(state["ema"])
        self.positions.load_state_dict(state["positions"])
        self.step, self.history = state["step"], state["history"]
        self.best, self.best_step = state["best"], state["best_step"]
        self.choices = dict(state["choices"])
        self.machines = list(state.get("machines", ()))
        self.running = dict(state["running"])
        self.loss_sum.fill_(self.running.pop("loss_sum"))
