import torch
from torch import nn

from dcls import Dcls1d, Dcls2d, repulsive_loss
from dcls.layers.repulsion import repulsion


def test_by_hand():
    """Three taps on a line at 0, 0.25 and 5: one of three pairs is closer than a cell, by 0.75."""
    position = torch.tensor([0.0, 0.25, 5.0]).reshape(1, 1, 1, 3)
    torch.testing.assert_close(repulsion(position), torch.tensor(0.25))
    # In the plane, distance 0.5 as 0.3 and 0.4; the second kernel's taps coincide.
    position = torch.tensor([[[0.0, 0.3], [1.0, 1.0]], [[0.0, 0.4], [1.0, 1.0]]]).unsqueeze(2)
    torch.testing.assert_close(repulsion(position), torch.tensor((0.5 + 1.0) / 2))


def test_gradients_exist_where_taps_coincide_and_second_order():
    position = torch.zeros(2, 1, 1, 3, requires_grad=True)
    assert torch.autograd.grad(repulsion(position), position)[0].eq(0).all()
    torch.manual_seed(0)
    position = (torch.rand(2, 2, 1, 3, dtype=torch.float64) * 0.8).requires_grad_()
    assert torch.autograd.gradcheck(repulsion, position)
    assert torch.autograd.gradgradcheck(repulsion, position)


def test_a_nan_position_is_seen_in_the_loss():
    assert repulsion(torch.full((2, 1, 1, 2), torch.nan)).isnan()


def test_the_mean_over_distinct_positions():
    near, far, shared = (Dcls2d(1, 1, 2, dilated_kernel_size=9) for _ in range(3))
    single = Dcls1d(1, 1, 1, dilated_kernel_size=9)
    with torch.no_grad():
        near.P.zero_()
        far.P.copy_(torch.tensor([-3.0, 3.0]))
    shared.P = near.P
    loss = repulsive_loss(nn.Sequential(near, far, shared, single))
    torch.testing.assert_close(loss, torch.tensor(1 / 3))


def test_a_model_without_positions_has_none():
    assert repulsive_loss(nn.Conv2d(1, 1, 1)) == 0
