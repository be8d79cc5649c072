import numpy as np
import pytest
import torch

from dcls.analysis.classes import changes


def test_the_largest_change_stands_first_with_its_paired_error():
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 2, 3]).repeat(40)
    before, after = (torch.rand(120, generator=generator) < 0.7 for _ in range(2))
    before[labels == 3], after[labels == 3] = True, False
    found = changes(before, after, labels, ["cat", "none of these", "dog", "bird"])
    assert sorted(each.name for each in found) == ["bird", "cat", "dog"]
    assert (found[0].name, found[0].change, found[0].error, found[0].lost) == ("bird", -100, 0, 40)
    for each in found:
        chosen = labels == ["cat", "", "dog", "bird"].index(each.name)
        difference = after[chosen].double() - before[chosen].double()
        assert each.images == 40
        assert each.after - each.before == each.change == pytest.approx(100 * difference.mean().item())
        assert each.error == pytest.approx(100 * np.std(difference.numpy()) / 40**0.5)
        assert (each.gained, each.lost) == (int((difference > 0).sum()), int((difference < 0).sum()))
    sizes = [abs(each.change) for each in found]
    assert sizes == sorted(sizes, reverse=True)
