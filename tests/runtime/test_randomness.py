import random

import numpy as np
import torch

from dcls.runtime.randomness import key, seed_all


def test_keys_are_the_same_everywhere_and_tell_addresses_apart():
    assert key(0, "augment", 1, 2, 3) == 373156717029434330
    assert len({key(1, 23), key(12, 3), key("1", 23), key(1, "23"), key(123), key(23, 1)}) == 6
    assert all(0 <= key(seed, "slot", step) < 2**63 for seed in range(20) for step in range(20))


def test_one_seed_for_all_three_generators():
    def draws():
        return random.random(), np.random.rand(), torch.rand(1).item()

    seed_all(5)
    first = draws()
    draws()
    seed_all(5)
    assert draws() == first
