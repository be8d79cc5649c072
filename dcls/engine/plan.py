"""The arithmetic of a run, before it starts: batches, steps, learning rates. Shared by training and `dry_run`."""

from dataclasses import asdict, dataclass
from typing import Any

from dcls.engine.slots import Slots, assign
from dcls.errors import ConfigError


@dataclass(frozen=True)
class Plan:
    """lr is the peak for this global batch; images_an_epoch counts augmented draws (a last partial batch is
    dropped).
    """

    slots: Slots
    world_size: int
    epochs: int
    steps_per_epoch: int
    warmup_steps: int
    lr: float
    lr_min: float

    @property
    def total_steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    @property
    def images_an_epoch(self) -> int:
        return self.steps_per_epoch * self.slots.global_batch

    def as_dict(self) -> dict[str, Any]:
        values = asdict(self)
        values.pop("slots")
        slots = {
            "global_batch": self.slots.global_batch,
            "slot": self.slots.size,
            "slots": self.slots.count,
            "slots_per_process": len(self.slots.mine),
        }
        return slots | values | {"total_steps": self.total_steps, "images_an_epoch": self.images_an_epoch}


def plan(
    *,
    train_images: int,
    global_batch: int,
    slot: int,
    epochs: int,
    warmup_epochs: float,
    lr: float,
    lr_batch: int,
    lr_min: float,
    rank: int = 0,
    world_size: int = 1,
    steps_limit: int | None = None,
) -> Plan:
    """Peak rate = lr x global_batch / lr_batch (linear scaling). Raises ConfigError where a batch or an epoch does
    not fit.
    """
    slots = assign(global_batch, slot, rank, world_size)
    steps = train_images // global_batch
    if steps == 0:
        raise ConfigError(
            f"recipe.global_batch={global_batch} exceeds the {train_images} training images: make it smaller"
        )
    steps = min(steps, steps_limit or steps)
    warmup = round(warmup_epochs * steps)
    if warmup >= epochs * steps:
        raise ConfigError(f"recipe.warmup_epochs={warmup_epochs} must be less than recipe.epochs={epochs}")
    return Plan(slots, world_size, epochs, steps, warmup, lr * global_batch / lr_batch, lr_min)
