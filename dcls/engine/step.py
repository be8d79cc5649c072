"""One optimizer step: every slot forward and backward, then clip, step, clamp, average. In that order."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dcls import layers
from dcls.engine.ema import Ema
from dcls.engine.slots import BatchNormStatistics, Slots
from dcls.runtime.prepare import Precision
from dcls.runtime.processes import World
from dcls.runtime.randomness import key, seed_all
from dcls.task.objective import Objective


@dataclass(frozen=True)
class PositionRules:
    """What the recipe asks of positions beside their learning rate (arXiv 2112.03740, section 4 and appendix)."""

    clamp: bool = True
    repulsive_loss: bool = False
    repulsive_after_epoch: int = 20  # added where the zero-based epoch is greater than this


class Step:
    """Computes this process's slots of one global batch and updates the model. The loss stays on the device."""

    def __init__(
        self,
        model: nn.Module,
        forward: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Scheduler,
        objective: Objective,
        world: World,
        slots: Slots,
        precision: Precision,
        *,
        seed: int,
        ema: Ema | None = None,
        scaler: torch.amp.GradScaler | None = None,
        clip_grad: float | None = None,
        positions: PositionRules | None = None,
    ) -> None:
        self.model, self.forward, self.optimizer, self.schedule = model, forward, optimizer, schedule
        self.objective, self.world, self.slots, self.precision = objective, world, slots, precision
        self.seed, self.ema, self.clip_grad, self.positions = seed, ema, clip_grad, positions
        self.scaler = scaler or torch.amp.GradScaler(world.device.type, enabled=False)
        self.statistics = BatchNormStatistics(model, slots, world)

    def __call__(self, step: int, epoch: int, batches: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        """Do step number `step`; takes this process's slots from `batches`. Returns the mean loss over the global
        batch.
        """
        self.schedule.step_update(step)
        self.statistics.begin_step()
        loss = torch.zeros((), device=self.world.device)
        for slot in self.slots.mine:
            images, labels = next(batches)
            with self._synchronised(last=slot == self.slots.mine[-1]):
                loss += self._slot(step, epoch, slot, images, labels)
        self.statistics.end_step()
        self._update()
        return self.world.sum(loss / self.slots.count)

    def _slot(self, step: int, epoch: int, slot: int, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        images = self.precision.place(images)
        labels = labels.to(self.world.device, non_blocking=True)
        # Fetching a batch may have drawn from these generators in this very process, so seed after it.
        seed_all(key(self.seed, "slot", step, slot), self.world.device)
        self.statistics.begin_slot()
        with self.precision.autocast():
            images, targets = self.objective.prepare(images, labels)
            logits = self.forward(images)
        self.statistics.after_forward()
        loss = self.objective.loss(logits.float(), targets)
        # DDP averages over processes, so this gives the mean over all slots.
        self.scaler.scale((loss + self._repulsion(epoch)) / len(self.slots.mine)).backward()
        return loss.detach()

    def _repulsion(self, epoch: int) -> torch.Tensor | float:
        rules = self.positions
        if rules is None or not rules.repulsive_loss or epoch <= rules.repulsive_after_epoch:
            return 0.0
        return layers.repulsive_loss(self.model) ** 2

    def _synchronised(self, last: bool) -> AbstractContextManager[object]:
        """Gradients travel between processes with the last slot only."""
        forward = getattr(self.forward, "_orig_mod", self.forward)  # torch.compile wraps the DDP module
        return forward.no_sync() if isinstance(forward, DistributedDataParallel) and not last else nullcontext()

    def _update(self) -> None:
        if self.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.positions is not None and self.positions.clamp:
            layers.clamp_positions(self.model)
        if self.ema is not None:
            self.ema.update()
