import io

import numpy as np
import pytest
import torch
from torch import nn

from dcls import Dcls1d, Dcls2d
from dcls.analysis import positions
from dcls.analysis.positions import History
from dcls.errors import CheckpointError


def two_stages() -> nn.Sequential:
    """Two layers that share their positions, then one of another size with its own."""
    first, second = (Dcls2d(4, 4, 3, groups=4, dilated_kernel_size=(5, 9)) for _ in range(2))
    second.P = first.P
    return nn.Sequential(first, second, Dcls1d(4, 4, 2, groups=4, dilated_kernel_size=7))


def test_a_snapshot_has_every_distinct_position_once_as_a_copy():
    model = two_stages()
    before = positions.snapshot(model)
    assert list(before) == list(positions.limits(model)) == ["0", "2"]
    assert positions.limits(model) == {"0": (2, 4), "2": (3,)}
    kept = before["0"].clone()
    with torch.no_grad():
        model[0].P.add_(1)
    assert torch.equal(before["0"], kept)
    assert positions.snapshot(nn.Conv2d(1, 1, 3)) == {}


def test_statistics_are_distances_in_pixels_and_a_fraction_of_taps():
    start = torch.zeros(2, 1, 1, 4)
    now = torch.tensor([[3.0, 0, 0, -3], [4.0, 0, 4, 0]]).view(2, 1, 1, 4)  # limits (4, 4): two taps touch
    row = positions.statistics({"s": start}, {"s": now}, {"s": (4, 4)})["s"]
    assert row["movement"] == (5 + 0 + 4 + 3) / 4
    assert row["spread"] == pytest.approx(((9 + 9 + 16 + 16) / 8) ** 0.5)
    assert row["border"] == 0.5
    narrow = positions.statistics({"s": start}, {"s": now}, {"s": (3, 5)})["s"]
    assert narrow["border"] == 0.5  # the two with a row of +-3; each axis has its own limit


def test_history_keeps_an_even_sample_of_a_dense_group_and_all_of_a_small_one():
    dense = torch.arange(10_000.0).view(1, 100, 100, 1)
    kept = positions.sample(dense)
    assert kept.shape == (1, 4096, 1)
    steps = kept.flatten().diff()
    assert kept[0, 0] == 0
    assert set(steps.tolist()) == {2.0, 3.0}
    assert kept.max() >= 9_997
    assert positions.sample(torch.zeros(3, 8, 1, 2, 5)).shape == (3, 16, 5)


def test_movement_is_measured_from_the_unrounded_start():
    start = {"s": torch.full((2, 8, 1, 4), 0.30001)}
    history = History({"s": (8, 8)})
    assert history.add(0, start)["s"]["movement"] == 0.0
    assert history.add(1, start)["s"]["movement"] == 0.0


def test_history_survives_a_checkpoint_and_an_epoch_run_again_stands_once():
    model = two_stages()
    history = History(positions.limits(model))
    for epoch in (0, 1, 2, 2):
        history.add(epoch, positions.snapshot(model))
        with torch.no_grad():
            model[0].P.add_(0.1)
    stored = io.BytesIO()
    torch.save(history.state_dict(), stored)
    stored.seek(0)
    restored = History(positions.limits(model))
    restored.load_state_dict(torch.load(stored, weights_only=True))
    assert restored.epochs == [0, 1, 2]
    assert restored.add(3, positions.snapshot(model)) == history.add(3, positions.snapshot(model))
    for epoch in history.epochs:
        assert all(torch.equal(restored.at(epoch)[name], at) for name, at in history.at(epoch).items())


def test_a_history_of_another_surgery_is_refused():
    stored = History({"stages.0": (3, 3)})
    stored.add(0, {"stages.0": torch.zeros(2, 1, 1, 1)})
    with pytest.raises(CheckpointError, match=r"stages\.0.*surgery"):
        History({}).load_state_dict(stored.state_dict())


def test_the_npz_file_holds_every_epoch_in_float16(tmp_path):
    model = two_stages()
    history = History(positions.limits(model))
    start = positions.snapshot(model)
    history.add(0, start)
    history.add(12, start)
    history.save(tmp_path / "positions.npz")
    with np.load(tmp_path / "positions.npz") as stored:
        assert sorted(stored) == ["0/epoch-0000", "0/epoch-0012", "2/epoch-0000", "2/epoch-0012"]
        array = stored["0/epoch-0000"]
    assert array.dtype == np.float16
    assert array.shape == (2, 4, 3)
    np.testing.assert_allclose(array, start["0"].flatten(1, 2).numpy(), atol=1 / 256)
    assert [path.name for path in tmp_path.iterdir()] == ["positions.npz"]
