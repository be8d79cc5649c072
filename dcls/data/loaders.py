"""Batches for training and evaluation. What a sample is depends on its address alone, never on who computes it.

Shapes: B images of a batch, C channels, H W pixels. Batches are (float32 [B, C, H, W], int64 [B], or [B, k] where a
source has several labels an image).

The main process hands the addresses of whole batches to torch's DataLoader, whose workers keep no state: any number of
them, started at any step, gives the same bytes.
"""

import os
import signal
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from dcls.data.order import epoch_order, slot_batches
from dcls.data.sources import Source
from dcls.data.transforms import Transform
from dcls.errors import ConfigError, DataError, ImageError
from dcls.runtime.randomness import key, seed_all

Batch = tuple[torch.Tensor, torch.Tensor]
Address = tuple[int, np.ndarray]  # epoch, rows (sample index, copy): int64 [B, 2]


class TrainLoader:
    """The slots of an epoch that this process computes, augmented, from any step on.

    `my_slots` are the process's slots, 0 .. global_batch / slot - 1. Before every sample `random`, numpy and torch's
    CPU generator are seeded with (seed, "augment", epoch, index, copy); with `workers=0` that happens in the calling
    process, so whoever draws from them there must seed for itself. With workers they are left alone.

    A worker prepares whole slots, two ahead: 2 x workers x slot images (77 MB for 128 of 3 x 224 x 224) lie in shared
    memory.

    Raises ConfigError where the numbers do not fit; an unreadable image raises DataError when its batch is due.
    """

    def __init__(
        self,
        source: Source,
        transform: Transform,
        *,
        seed: int,
        global_batch: int,
        slot: int,
        my_slots: Sequence[int],
        repeats: int = 1,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        _check_batches(global_batch, slot, repeats, len(source))
        self.steps_per_epoch = len(source) // global_batch
        self._plan = _TrainPlan(len(source), seed, global_batch, slot, tuple(my_slots), repeats)
        batches = _Batches(source, transform, source.labels, seed)
        self._batches = _Workers(batches, self._plan, workers, pin_memory)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` (counted from 0) from `first_step` on: step by step, own slots in their order."""
        if not 0 <= first_step <= self.steps_per_epoch:
            raise ValueError(f"first_step={first_step}: an epoch has {self.steps_per_epoch} steps")
        self._plan.epoch, self._plan.first_step = epoch, first_step
        yield from self._batches

    def close(self) -> None:
        """End the workers now; they also end with the loader and with the process."""
        self._batches.close()


class EvalLoader:
    """The images rank, rank + world_size, ... of a split, each exactly once: nothing is padded or dropped.

    The last batch may be smaller and processes may have different numbers of batches (even none), so no collective call
    belongs between them. `label_map` (of `class_map`) turns the source's labels into a checkpoint's.
    """

    def __init__(
        self,
        source: Source,
        transform: Transform,
        *,
        batch: int,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        label_map: np.ndarray | None = None,
        pin_memory: bool = False,
    ) -> None:
        if batch < 1:
            raise ConfigError(f"batch={batch}: must be at least 1")
        # The last one is for the -1 that fills up rows of several labels.
        labels = source.labels if label_map is None else np.append(label_map, -1)[source.labels]
        self._plan = _EvalPlan(range(rank, len(source), world_size), batch)
        self._batches = _Workers(_Batches(source, transform, labels, seed=None), self._plan, workers, pin_memory)

    def __len__(self) -> int:
        """Batches of this process."""
        return len(self._plan)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches)

    def close(self) -> None:
        """End the workers now; they also end with the loader and with the process."""
        self._batches.close()


class _TrainPlan(Sampler[Address]):
    """Addresses of one epoch's slots; which epoch and from which step is set before each pass."""

    def __init__(
        self, length: int, seed: int, global_batch: int, slot: int, my_slots: tuple[int, ...], repeats: int
    ) -> None:
        self.length, self.seed, self.repeats = length, seed, repeats
        self.global_batch, self.slot, self.my_slots = global_batch, slot, my_slots
        self.epoch = self.first_step = 0

    def __iter__(self) -> Iterator[Address]:
        epoch, first_step = self.epoch, self.first_step
        order = epoch_order(self.seed, epoch, self.length, self.repeats)
        for step in range(first_step, self.length // self.global_batch):
            slots = slot_batches(order, self.global_batch, self.slot, step)
            for j in self.my_slots:
                yield epoch, slots[j]


class _EvalPlan(Sampler[Address]):
    def __init__(self, share: range, batch: int) -> None:
        self.share, self.batch = share, batch

    def __len__(self) -> int:
        return -(-len(self.share) // self.batch)

    def __iter__(self) -> Iterator[Address]:
        for start in range(0, len(self.share), self.batch):
            indices = np.array(self.share[start : start + self.batch], dtype=np.int64)
            yield 0, np.stack([indices, np.zeros_like(indices)], axis=1)


class _Batches(Dataset[Batch | str]):
    """Address -> batch. Seeds each sample where `seed` is given.

    A bad image comes back as its message: torch would rebuild an exception of a worker with the worker's traceback in
    its text.
    """

    def __init__(self, source: Source, transform: Transform, labels: np.ndarray, seed: int | None) -> None:
        self.source, self.transform, self.labels, self.seed = source, transform, labels, seed

    def __getitem__(self, address: Address) -> Batch | str:
        epoch, rows = address
        try:
            # In a worker, default_collate stacks right into shared memory.
            images = default_collate([self._sample(epoch, index, copy) for index, copy in rows.tolist()])
        except DataError as error:
            return str(error)
        return images, torch.from_numpy(self.labels[rows[:, 0]])

    def _sample(self, epoch: int, index: int, copy: int) -> torch.Tensor:
        image = self.source.load(index)
        if self.seed is not None:
            seed_all(key(self.seed, "augment", epoch, index, copy))
        try:
            return self.transform(image)
        except ValueError as error:
            where = self.source.describe(index)
            raise DataError(f"data.root: cannot use image {where!r} ({error}); repair or remove it") from error


class _Workers:
    """A DataLoader over a plan that can be passed through again and again, with the same workers."""

    def __init__(self, batches: _Batches, plan: Sampler[Address], workers: int, pin_memory: bool) -> None:
        if workers < 0:
            raise ConfigError(f"data.workers={workers}: must be 0 (load in the main process) or more")
        self._batches, self._plan, self._workers, self._pin_memory = batches, plan, workers, pin_memory
        self._loader: Iterable[Batch | str] | None = None

    def __iter__(self) -> Iterator[Batch]:
        if self._loader is None:
            self._loader = self._start()
        with _signals_held():
            batches = iter(self._loader)
        for batch in batches:
            if isinstance(batch, str):
                raise ImageError(batch)
            yield batch

    def close(self) -> None:
        self._loader = None

    def _start(self) -> Iterable[Batch | str]:
        return DataLoader(
            self._batches,
            sampler=self._plan,
            batch_size=None,  # an address is a batch already
            collate_fn=_as_it_is,
            num_workers=self._workers,
            persistent_workers=self._workers > 0,
            worker_init_fn=_start_worker,
            pin_memory=self._pin_memory,
            # By default each pass would draw a seed for the workers from torch's global generator.
            generator=torch.Generator(),
        )


@contextmanager
def _signals_held() -> Iterator[None]:
    """Workers forked in here are deaf from birth to a scheduler and to Ctrl-C; the caller hears them afterwards."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _as_it_is(batch: Any) -> Any:
    return batch


def _start_worker(worker: int) -> None:
    """Leave signals to the main process: a scheduler or Ctrl-C sends them to it too, and it ends its workers itself.

    A worker that died of SIGTERM would raise in the main process, amid the checkpoint that SIGTERM asks for.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        threading.Thread(target=_end_when_the_parent_says_so, daemon=True).start()
    elif hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    # Some of ImageNet's files have a broken EXIF block beside a good image.
    warnings.filterwarnings("ignore", message=".*EXIF data", category=UserWarning)


def _end_when_the_parent_says_so() -> None:
    """Python's exit sends SIGTERM to workers and waits for them, so it cannot be ignored whoever sends it."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _check_batches(global_batch: int, slot: int, repeats: int, length: int) -> None:
    if slot < 1 or global_batch < 1 or global_batch % slot:
        raise ConfigError(f"recipe.global_batch={global_batch}: must be a multiple of recipe.slot={slot}")
    if global_batch > length:
        raise ConfigError(f"recipe.global_batch={global_batch}: larger than the training split of {length} images")
    if repeats < 1:
        raise ConfigError(f"recipe.repeats={repeats}: must be at least 1")
