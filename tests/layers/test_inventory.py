import copy

import torch
from torch import nn

from dcls import Dcls1d, Dcls2d, clamp_positions
from dcls.layers import layers, positions, roles


def shared_model():
    """Two layers share P and SIG, one module stands in two places, one layer is alone."""
    first, second, alone = (
        Dcls2d(2, 2, 3, dilated_kernel_size=5, groups=2, version="gauss"),
        Dcls2d(2, 2, 3, dilated_kernel_size=5, groups=2, version="gauss"),
        Dcls1d(2, 2, 3, dilated_kernel_size=(9,)),
    )
    second.P, second.SIG = first.P, first.SIG
    return nn.Sequential(first, nn.ReLU(), nn.Sequential(second, first), alone)


def test_layers_and_parameters_are_each_met_once():
    model = shared_model()
    first, alone = model[0], model[3]
    assert [name for name, _ in layers(model)] == ["0", "2.0", "3"]
    assert {name: id(position) for name, position in positions(model).items()} == {"0": id(first.P), "3": id(alone.P)}
    assert {id(parameter): role for parameter, role in roles(model).items()} == {
        id(first.P): "position",
        id(first.SIG): "sigma",
        id(alone.P): "position",
    }
    assert list(positions(alone)) == [""]


def test_a_copy_shares_within_itself_and_nothing_with_the_original():
    model = shared_model()
    copied = copy.deepcopy(model)
    assert copied[2][0].P is copied[0].P is not model[0].P
    assert len(roles(copied)) == 3


def test_the_clamp_reaches_every_position_and_nothing_else():
    model = shared_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    version = model[0].P._version
    clamp_positions(model)
    assert (model[0].P == 2).all()
    assert (model[3].P == 4).all()
    assert model[0].P._version == version + 2, "a shared position is clamped once, axis by axis"
    assert all((parameter == 7).all() for name, parameter in model.named_parameters() if not name.endswith("P"))


def test_a_position_shared_by_two_sizes_keeps_within_both():
    large, small = Dcls2d(1, 1, 2, dilated_kernel_size=9), Dcls2d(1, 1, 2, dilated_kernel_size=(5, 7))
    small.P = large.P
    with torch.no_grad():
        large.P.fill_(-9)
    clamp_positions(nn.Sequential(large, small))
    assert (large.P[0] == -2).all()
    assert (large.P[1] == -3).all()
