"""Slots: the global batch cut into pieces that do not depend on how many processes there are.

A slot is one micro-batch. The recipe fixes its size, randomness is addressed by (step, slot), batch statistics are
averaged over slots; the number of processes only decides who computes which. So a run is the same run at any world
size, up to the order of floating-point sums.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dcls.errors import ConfigError
from dcls.runtime.processes import World


@dataclass(frozen=True)
class Slots:
    """`count` slots of `size` images make a global batch; this process computes `mine`, in order."""

    size: int
    count: int
    mine: range

    @property
    def global_batch(self) -> int:
        return self.size * self.count


def assign(global_batch: int, slot: int, rank: int = 0, world_size: int = 1) -> Slots:
    """Cut `global_batch` images into slots and give `rank` its share. Raises ConfigError when something does not
    divide.
    """
    if slot < 1 or global_batch < 1 or global_batch % slot:
        raise ConfigError(f"recipe.global_batch={global_batch} is not a multiple of recipe.slot={slot}")
    count = global_batch // slot
    if count % world_size:
        fitting = [n for n in range(1, count + 1) if count % n == 0]
        raise ConfigError(
            f"recipe.global_batch={global_batch} in slots of recipe.slot={slot} gives {count} slots, which "
            f"{world_size} processes cannot share equally; use {_listing(fitting)} processes or another recipe.slot"
        )
    share = count // world_size
    return Slots(slot, count, range(rank * share, (rank + 1) * share))


def _listing(numbers: list[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else ", ".join(map(str, numbers[:-1])) + f" or {numbers[-1]}"


class BatchNormStatistics:
    """Move the running statistics of batch normalisation once a step, by the mean of the slots' batch statistics.

    Every slot starts from the buffers of before the step. After its forward they are (1 - m) old + m batch, so their
    mean over all slots is what one update by the mean statistics gives. Left alone, momentum would act once per
    forward and the result depend on the number of processes. Models without batch normalisation cost nothing.
    """

    def __init__(self, model: nn.Module, slots: Slots, world: World) -> None:
        layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        self._floats = [b for m in layers for b in (m.running_mean, m.running_var) if b is not None]
        self._counters = [m.num_batches_tracked for m in layers if m.num_batches_tracked is not None]
        self._slots, self._world = slots, world
        self._before: list[torch.Tensor] = []
        self._sums: list[torch.Tensor] = []

    @torch.no_grad()
    def begin_step(self) -> None:
        self._before = [b.clone() for b in self._floats + self._counters]
        self._sums = [torch.zeros_like(b) for b in self._floats]

    @torch.no_grad()
    def begin_slot(self) -> None:
        """Go back to the buffers of before the step. Not right after a forward: autograd still holds them then."""
        for buffer, before in zip(self._floats + self._counters, self._before):
            buffer.copy_(before)

    @torch.no_grad()
    def after_forward(self) -> None:
        """Collect what this slot's forward left, before a backward that may run the forward again (checkpointing)."""
        for total, buffer in zip(self._sums, self._floats):
            total.add_(buffer)

    @torch.no_grad()
    def end_step(self) -> None:
        if not self._floats:
            return
        self.begin_slot()
        mean = self._world.sum(torch.cat([s.flatten() for s in self._sums])) / self._slots.count
        for buffer, piece in zip(self._floats, mean.split([b.numel() for b in self._floats])):
            buffer.copy_(piece.view_as(buffer))
        for counter in self._counters:
            counter.add_(1)
