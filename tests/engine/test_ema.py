import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn

from dcls import Dcls2d, clamp_positions
from dcls.engine.ema import Ema
from dcls.errors import ConfigError


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [Dcls2d(4, 4, 3, dilated_kernel_size=5, padding=2, groups=4) for _ in range(3)]
    for layer in layers[1:]:
        layer.P = layers[0].P
    return nn.Sequential(*layers, nn.BatchNorm2d(4))


@torch.no_grad()
def move(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter))
    clamp_positions(model)
    model[-1].num_batches_tracked.add_(1)
    model[-1].running_mean.add_(0.5)


def test_a_shared_position_is_averaged_once():
    model = network()
    ema = Ema(model, 0.9)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    move(model)
    ema.update()
    for name, now in model.state_dict().items():
        expected = now if name.endswith("tracked") else 0.9 * start[name] + 0.1 * now
        torch.testing.assert_close(ema.state_dict()[name], expected)


def test_per_block_is_what_timm_does_to_shared_positions():
    model, theirs = network(), None
    ema, theirs = Ema(model, 0.9, shared="per_block"), ModelEmaV3(model, decay=0.9, foreach=False)
    for _ in range(5):
        move(model)
        ema.update()
        for average, tensor in zip(theirs.module.state_dict().values(), model.state_dict().values()):
            average.lerp_(tensor, 0.1) if average.is_floating_point() else average.copy_(tensor)
    for name, average in theirs.module.state_dict().items():
        torch.testing.assert_close(ema.state_dict()[name], average, rtol=1e-5, atol=1e-6)


def test_the_averaged_copy_shares_positions_and_state_returns():
    model = network()
    ema = Ema(model, 0.5)
    move(model)
    ema.update()
    copy = ema.averaged(model)
    assert copy[0].P is copy[2].P
    assert copy[0].P is not model[0].P
    again = Ema(model, 0.5)
    again.load_state_dict(ema.state_dict())
    torch.testing.assert_close(again.state_dict(), ema.state_dict(), rtol=0, atol=0)


def test_bad_options_are_refused():
    with pytest.raises(ConfigError, match="ema.decay=1"):
        Ema(network(), 1.0)
    with pytest.raises(ConfigError, match="ema.shared=both"):
        Ema(network(), 0.9, shared="both")
