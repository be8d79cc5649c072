import math

import pytest
import torch
from torch import nn

from dcls.analysis.receptive_field import centre, effective_receptive_field, radius
from dcls.errors import ConfigError


class Maps(nn.Module):
    """Two stages: a convolution, then one position of it."""

    def __init__(self, padding: int = 2) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 5, padding=padding)

    def forward_intermediates(self, images, intermediates_only):
        assert intermediates_only
        return [maps := self.conv(images), maps.mean((2, 3), keepdim=True)]


def test_of_one_convolution_it_is_its_kernel_about_the_centre():
    model = Maps()
    field = effective_receptive_field(model, torch.randn(3, 2, 9, 11))
    expected = torch.zeros(9, 11, dtype=torch.float64)
    expected[2:7, 3:8] = model.conv.weight.detach().double().sum(0).abs().sum(0)  # over outputs, then inputs
    torch.testing.assert_close(field, expected)
    assert model.conv.weight.grad is None


def test_circles_hold_their_share_of_the_mass():
    field = torch.zeros(21, 21, dtype=torch.float64)
    field[10, 8] = 1.0
    for row, column in ((10, 11), (10, 5), (13, 8), (7, 8)):
        field[row, column] = 0.5
    assert centre(field) == pytest.approx((10.0, 8.0))
    assert radius(field, 0.3) == pytest.approx(0.0, abs=1e-9)
    assert radius(field, 0.9) == pytest.approx(3.0)
    disc = (torch.hypot(*torch.meshgrid(*[torch.arange(-100.0, 101)] * 2, indexing="ij")) <= 90).double()
    assert radius(disc, 0.5) == pytest.approx(90 * math.sqrt(0.5), rel=0.01)


def test_networks_without_maps_are_refused():
    with pytest.raises(ConfigError, match="Sequential gives no feature maps"):
        effective_receptive_field(nn.Sequential(), torch.zeros(1, 2, 8, 8))
    with pytest.raises(ConfigError, match=r"every feature map of images \[1, 2, 5, 5\] is 1 x 1"):
        effective_receptive_field(Maps(padding=0), torch.zeros(1, 2, 5, 5))
