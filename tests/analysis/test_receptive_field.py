import math

import pytest
import timm
import torch
from torch import nn

from dcls.analysis.receptive_field import centre, effective_receptive_field, last_stage, radius


def test_of_one_convolution_it_is_its_kernel_about_the_centre():
    conv = nn.Conv2d(2, 3, 5, padding=2)
    model = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1))
    field = effective_receptive_field(model, torch.randn(3, 2, 9, 11), conv)
    expected = torch.zeros(9, 11, dtype=torch.float64)
    expected[2:7, 3:8] = conv.weight.detach().double().sum(0).abs().sum(0)  # over outputs, then inputs
    torch.testing.assert_close(field, expected)
    assert conv.weight.grad is None


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


def test_the_last_stage_is_one_whose_map_has_places():
    model = timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 8, 8)).eval()
    assert last_stage(model, torch.zeros(1, 3, 64, 64)) is model.stages[3]  # 2 x 2
    assert last_stage(model, torch.zeros(1, 3, 32, 32)) is model.stages[2]  # the last is 1 x 1
    assert not model.stages[2]._forward_hooks
    tokens = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=8, depth=1, num_heads=1).eval()
    assert last_stage(tokens, torch.zeros(1, 3, 32, 32)) is None
