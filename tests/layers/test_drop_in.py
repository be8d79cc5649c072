import re

import pytest
import torch
from torch import nn

from dcls import Dcls1d, Dcls2d, Dcls3d
from dcls.errors import ConfigError


@pytest.mark.parametrize(
    ("kind", "conv", "size"),
    [
        (Dcls1d, nn.Conv1d(4, 6, 5, stride=2, padding=4, dilation=2, groups=2), 11),
        (Dcls2d, nn.Conv2d(4, 4, 7, padding=3, groups=4, bias=False), 17),
        (Dcls2d, nn.Conv2d(4, 8, (3, 4), stride=(2, 1), padding=(1, 0), padding_mode="reflect"), (5, 6)),
        (Dcls2d, nn.Conv2d(2, 2, 3, dtype=torch.float64), 3),
        (Dcls3d, nn.Conv3d(2, 2, 3, padding=1), (5, 3, 1)),
    ],
)
def test_the_drop_in_has_the_convolutions_output(kind, conv, size):
    layer = kind.like(conv.eval(), kernel_count=3, dilated_kernel_size=size, version="gauss")
    x = torch.randn(2, conv.in_channels, *[14] * layer.dimensions, dtype=conv.weight.dtype)
    assert layer(x).shape == conv(x).shape
    assert layer(x).dtype == conv.weight.dtype
    assert not layer.training
    assert layer.version == "gauss"
    for name in ("groups", "stride", "padding_mode", "in_channels", "out_channels"):
        assert getattr(layer, name) == getattr(conv, name)
    assert (layer.bias is None) == (conv.bias is None)


def test_the_drop_in_is_made_where_the_convolution_is():
    layer = Dcls2d.like(
        nn.Conv2d(2, 2, 3, device="meta"), kernel_count=2, dilated_kernel_size=(5, 3), learned_axes=(0,)
    )
    assert layer.weight.shape == (2, 2, 3, 2)
    assert layer.P.device.type == "meta"


@pytest.mark.parametrize(
    ("conv", "size", "nearest"),
    [
        (nn.Conv2d(1, 1, 7, padding=3), 16, "(15, 15) or (17, 17)"),
        (nn.Conv2d(1, 1, 7, padding=(3, 2)), (17, 2), "(17, 3)"),
        (nn.Conv2d(1, 1, (4, 3), padding=1), (5, 5), "(4, 5) or (6, 5)"),
        (nn.Conv2d(1, 1, 7), 3, "(7, 7)"),
        (nn.Conv2d(1, 1, 3, dilation=2), (5, 4), "(5, 5)"),
    ],
)
def test_a_size_that_cannot_fit_is_refused_with_the_nearest_that_can(conv, size, nearest):
    with pytest.raises(ConfigError, match=f"dilated_kernel_size=.*nearest that can is {re.escape(nearest)}$"):
        Dcls2d.like(conv, kernel_count=2, dilated_kernel_size=size)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_by_a_word_is_refused_by_name(padding):
    with pytest.raises(ConfigError, match=f"padding='{padding}'"):
        Dcls2d.like(nn.Conv2d(1, 1, 3, padding=padding), kernel_count=2, dilated_kernel_size=5)


class StandardisedConv2d(nn.Conv2d):
    pass


@pytest.mark.parametrize(
    "module",
    [
        StandardisedConv2d(1, 1, 3),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 1, 3)),
        nn.Conv1d(1, 1, 3),
        nn.ConvTranspose2d(1, 1, 3),
        nn.Linear(1, 1),
        Dcls2d(1, 1, 1),
    ],
)
def test_anything_but_the_plain_convolution_is_refused_by_name(module):
    with pytest.raises(ConfigError, match=f"conv is a {type(module).__name__}: only a plain nn.Conv2d"):
        Dcls2d.like(module, kernel_count=2, dilated_kernel_size=5)


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_a_normed_weight_is_refused(norm):
    """torch's older norms are hooks of an ordinary convolution."""
    with pytest.raises(ConfigError, match="conv has hooks, or a weight that is no parameter of its own"):
        Dcls2d.like(norm(nn.Conv2d(1, 1, 3)), kernel_count=2, dilated_kernel_size=5)
