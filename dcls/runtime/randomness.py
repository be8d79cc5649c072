"""Randomness is addressed, not carried: every draw is seeded by where it stands, so no generator state is ever saved.

A key is a function of its parts alone (for example the run's seed, the word "augment", epoch, sample, copy) and is
equal on every machine, process and Python version.
"""

import hashlib
import random

import numpy as np
import torch


def key(*parts: int | str) -> int:
    """A 63-bit integer for an address. Parts of different type or grouping never give the same text."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def seed_all(seed: int, device: torch.device | None = None) -> None:
    """Seed the three generators that timm's transforms, mixup and drop path draw from (and CUDA's, on a CUDA
    device).
    """
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    # torch.manual_seed walks every backend and takes 90 us; a sample is seeded a thousand times a second.
    torch.default_generator.manual_seed(seed)
    if device is not None and device.type == "cuda":
        torch.cuda.manual_seed(seed)
