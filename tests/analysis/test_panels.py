from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dcls import Dcls1d, Dcls2d
from dcls.analysis import panels, positions


def trained(layer: nn.Module, epochs: int) -> positions.History:
    model = nn.Sequential(layer)
    history = positions.History(positions.limits(model))
    for epoch in range(epochs + 1):
        layer.P.data.fill_(min(epoch, 4) / 2)
        history.add(epoch, positions.snapshot(model))
    return history


def test_positions_are_shown_at_the_start_the_end_and_between_on_one_scale(drawn):
    history = trained(Dcls2d(3, 3, 2, groups=3, dilated_kernel_size=9), epochs=10)
    pictures = panels.positions(history, "0")
    assert list(pictures) == ["epoch 0", "epoch 2", "epoch 5", "epoch 8", "epoch 10", "paths of a sample"]
    densities = [figure.axes[0].images[0] for figure in drawn[:-1]]
    assert len({(image.norm.vmin, image.norm.vmax) for image in densities}) == 1
    assert [figure.axes[1].collections[0].get_offsets()[0].tolist() for figure in drawn[:3]] == [[0, 0], [1, 1], [2, 2]]
    assert all(Image.open(BytesIO(png)).width == pytest.approx(336, abs=1) for png in pictures.values())


def test_one_axis_and_one_epoch_have_pictures_too():
    assert list(panels.positions(trained(Dcls1d(3, 3, 2, groups=3, dilated_kernel_size=9), 0), "0")) == ["epoch 0"]


def test_a_sheet_of_kernels_has_gaps_between_them():
    pictures = np.arange(3 * 2 * 2, dtype=np.float32).reshape(3, 2, 2) + 1
    gap = np.nan
    expected = [
        [1, 2, gap, 5, 6],
        [3, 4, gap, 7, 8],
        [gap, gap, gap, gap, gap],
        [9, 10, gap, gap, gap],
        [11, 12, gap, gap, gap],
    ]
    np.testing.assert_array_equal(panels._sheet(pictures, 2), np.array(expected, dtype=np.float32))


def test_circles_of_a_field_are_those_of_its_mass(drawn):
    field = torch.zeros(9, 9, dtype=torch.float64)
    field[4, 2:7] = 1.0
    panels.effective_receptive_field(field)
    half, most = drawn[0].axes[0].patches
    assert half.center == most.center == (4, 4)
    assert (half.radius, most.radius) == (1, 2)


def test_heat_maps_lie_over_the_image_of_their_row(drawn):
    rng = np.random.default_rng(0)
    rows = {run: (rng.random((8, 8, 1)), {kind: rng.random((8, 8)) for kind in "ab"}) for run in ("one", "two")}
    panels.heat_maps(rows)
    axes = drawn[0].axes
    assert [axis.get_ylabel() for axis in axes] == ["one", "", "", "two", "", ""]
    assert [axis.get_title() for axis in axes] == ["", "a", "b", "", "", ""]
    for run, row in zip(rows.values(), (axes[:3], axes[3:]), strict=True):
        image, maps = run
        expected = [[image[..., 0]], *([image[..., 0], each] for each in maps.values())]
        for axis, arrays in zip(row, expected, strict=True):
            for shown, array in zip(axis.images, arrays, strict=True):
                np.testing.assert_array_equal(np.squeeze(shown.get_array()), array)
