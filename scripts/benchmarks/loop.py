"""The training loop around a network, against the same work in a bare loop: forward, loss, backward, optimizer.

Both get the same images from memory, start from the same weights, and do the same steps with the same optimizer; ours
also counts, seeds every slot, sets the learning rate, checks for signals and keeps the epoch's record.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn

import models
from benchmarks.contest import OURS, Contest
from benchmarks.setting import Setting
from dcls.analysis import positions
from dcls.engine import optim
from dcls.engine.loop import Autosave, train_epoch
from dcls.engine.slots import assign
from dcls.engine.state import TrainState
from dcls.engine.step import PositionRules, Step
from dcls.files.checkpoints import Checkpoints
from dcls.record.bar import Bar
from dcls.runtime import processes
from dcls.runtime.prepare import precision
from dcls.task import objective

BENCH = "loop"
# Name, classes, input channels, pixels, slots and steps a visit; images of a slot where they are not the setting's.
NETWORKS = [("convnext_quickstart", 10, 1, 56, 2, 8, 32), ("convnext_tiny", 1000, 3, 224, 1, 2, 0)]
TINY = [("convnext_quickstart", 10, 1, 32, 2, 2, 2)]
RATE = 1e-4

Batch = tuple[Tensor, Tensor]


def contests(setting: Setting) -> Iterator[Contest]:
    for name, classes, channels, pixels, slots, steps, images in TINY if setting.tiny else NETWORKS:
        size = images or setting.batch
        case = f"{name} v0, {pixels} px, {slots} slots of {size}"
        if setting.wants(case):
            torch.manual_seed(0)
            model = models.create(name, num_classes=classes, in_chans=channels)
            models.convert(model, mode="dcls", dilated_kernel_size=13 if "quickstart" in name else "auto")
            model = model.to(setting.device).to(memory_format=torch.channels_last)
            batches = [
                (torch.randn(size, channels, pixels, pixels), torch.randint(classes, (size,)))
                for _ in range(slots * steps)
            ]
            peer = deepcopy(model)
            candidates = {OURS: our_loop(model, batches, classes, slots), "bare loop": bare_loop(peer, batches, slots)}
            yield Contest(BENCH, case, candidates, bare_loop(deepcopy(model), batches, slots), tolerance=1e-4)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    groups = optim.parameter_groups(model, weight_decay=0.05, lr_scales={"position": 5.0})
    for group in groups:
        group["lr"] = RATE * group["lr_scale"]
    return optim.build_optimizer(groups, name="adamw", lr=RATE)


def our_loop(model: nn.Module, batches: Sequence[Batch], classes: int, slots: int) -> Callable[[], Sequence[Tensor]]:
    """The mean loss of an epoch of the real loop."""
    device = next(model.parameters()).device
    world, size = processes.World(0, 1, device), len(batches[0][0])
    optimizer, steps = adamw(model), len(batches) // slots
    step = Step(
        model,
        model,
        optimizer,
        optim.build_schedule(optimizer, total_steps=10**9, warmup_steps=0, lr_min=RATE, warmup_lr=RATE),
        objective.build(classes=classes),
        world,
        assign(size * slots, size),
        precision(device, amp="off"),
        seed=0,
        positions=PositionRules(clamp=False),
    )
    record = positions.History(positions.limits(model))
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    state = TrainState(
        model,
        optimizer,
        ema=None,
        scaler=scaler,
        positions=record,
        steps_per_epoch=steps,
        epochs=1,
        identity={},
    )
    folder = Checkpoints(Path(tempfile.gettempdir()))  # nothing is saved within so short an epoch
    autosave = Autosave(folder, state, processes.StopRequest(world), main=True, minutes=1e9)
    again = starting_anew(model, optimizer)

    def run() -> Sequence[Tensor]:
        again()
        state.step = 0
        state.loss_sum.zero_()
        with Bar("off", 1, steps) as bar:
            train_epoch(step, Kept(batches), state, autosave, bar, epoch=0)  # type: ignore[arg-type]  # what it uses
        return [state.loss_sum.clone() / steps]

    return run


class Kept:
    """A loader whose batches are in memory."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = batches

    def epoch(self, epoch: int, first: int) -> Iterator[Batch]:
        return iter(self.batches)


def bare_loop(model: nn.Module, batches: Sequence[Batch], slots: int) -> Callable[[], Sequence[Tensor]]:
    """The same in the fewest lines."""
    optimizer, device = adamw(model), next(model.parameters()).device
    again = starting_anew(model, optimizer)

    def run() -> Sequence[Tensor]:
        again()
        total = torch.zeros((), dtype=torch.float64, device=device)
        for number, (images, labels) in enumerate(batches, 1):
            images = images.to(device, non_blocking=True, memory_format=torch.channels_last)
            loss = nn.functional.cross_entropy(model(images), labels.to(device, non_blocking=True))
            (loss / slots).backward()
            total += loss.detach()
            if number % slots == 0:
                optimizer.step()
                optimizer.zero_grad()
        return [total / len(batches)]

    return run


def starting_anew(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """A function that puts back the weights of now and forgets the optimizer's moments."""
    weights = [parameter.detach().clone() for parameter in model.parameters()]

    def again() -> None:
        optimizer.state.clear()
        model.train()
        with torch.no_grad():
            for parameter, weight in zip(model.parameters(), weights, strict=True):
                parameter.copy_(weight)

    return again
