import copy

import pytest
import torch
from torch import nn

from dcls import Dcls1d, Dcls2d, Dcls3d, fuse


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (Dcls1d(2, 4, 3, stride=2, padding=2, dilated_kernel_size=5, version="v1"), nn.Conv1d),
        (Dcls2d(4, 4, 3, padding="same", dilated_kernel_size=(5, 7), groups=4, bias=False), nn.Conv2d),
        (Dcls2d(2, 2, 3, padding=1, dilated_kernel_size=3, padding_mode="reflect", dtype=torch.float64), nn.Conv2d),
        (Dcls3d(2, 2, 3, dilated_kernel_size=(2, 1, 5), learned_axes=(2,), version="max"), nn.Conv3d),
    ],
)
def test_a_fused_layer_is_a_plain_convolution_that_computes_the_same(layer, kind):
    x = torch.randn(2, layer.in_channels, *[8] * layer.dimensions, dtype=layer.weight.dtype)
    conv = fuse(layer.eval())
    assert type(conv) is kind
    assert not conv.training
    assert {name for name, _ in conv.named_parameters()} == {"weight", "bias"} - (
        {"bias"} if layer.bias is None else set()
    )
    assert torch.equal(conv(x), layer(x))


def test_fusing_replaces_every_layer_in_place():
    layer = Dcls2d(4, 4, 3, padding=1, dilated_kernel_size=3, version="gauss")
    layer.weight.requires_grad_(False)
    model = nn.Sequential(layer, nn.Sequential(nn.ReLU(), layer), nn.Conv2d(4, 2, 1))
    untouched, x = copy.deepcopy(model), torch.randn(1, 4, 6, 6)
    assert fuse(model) is model
    assert model[0] is model[1][1], "one module in two places stays one"
    assert all(type(model.get_submodule(name)) is nn.Conv2d for name in ("0", "1.1", "2"))
    assert not model[0].weight.requires_grad
    assert model[0].bias.requires_grad
    assert model[0].bias.data_ptr() != layer.bias.data_ptr()
    assert torch.equal(model(x), untouched(x))
