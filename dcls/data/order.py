"""The order of an epoch and how a global batch falls into slots: functions of where one stands, no state.

A *slot* is one micro-batch of the global batch. The number of processes decides who computes which slots, never what
is in them, and resuming is an index slice.
"""

import numpy as np

from dcls.runtime.randomness import key


def epoch_order(seed: int, epoch: int, length: int, repeats: int = 1) -> np.ndarray:
    """The draws of an epoch: int64 [length, 2], each row (sample index, copy).

    `repeats` > 1 is repeated augmentation (Berman et al., arXiv 1902.05509) as DeiT and timm do it: every image stands
    `repeats` times in a row, copies 0 .. repeats - 1, and the epoch still has `length` draws, so it shows
    ceil(length / repeats) different images.
    """
    address = key(seed, "order", epoch)
    # RandomState, not Generator: numpy promises that its stream never changes, and a resumed run relies on it.
    stream = np.random.RandomState([address & 0xFFFFFFFF, address >> 32])
    draw = np.arange(length, dtype=np.int64)
    return np.stack([stream.permutation(length)[draw // repeats], draw % repeats], axis=1)


def slot_batches(order: np.ndarray, global_batch: int, slot: int, step: int) -> list[np.ndarray]:
    """The global batch of a step, cut into global_batch / slot slots of `slot` rows (index, copy).

    Slot j takes every (global_batch / slot)-th row from row j on, so that the copies of an image come into different
    slots, as they come onto different GPUs in timm.
    """
    batch = order[step * global_batch : (step + 1) * global_batch]
    slots = global_batch // slot
    return [batch[j::slots] for j in range(slots)]
