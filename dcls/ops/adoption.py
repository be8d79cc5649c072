"""Plain depthwise convolutions by the operator that DCLS layers use."""

from torch import Tensor, nn

from dcls.ops.convolution import convolve


def adopt(model: nn.Module) -> nn.Module:
    """Let every depthwise nn.Conv1d and nn.Conv2d of `model`, in place, call `convolve`. Returns the model.

    Parameters, names, hooks and the class's ancestors stay. Left alone are subclasses, dilated convolutions, and those
    with padding other than a number of zeros.
    """
    for module in model.modules():
        fast = FAST.get(type(module))
        if fast is not None and _fits(module):
            module.__class__ = fast
    return model


class Depthwise1d(nn.Conv1d):
    def forward(self, input: Tensor) -> Tensor:
        return _convolve(self, input)


class Depthwise2d(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return _convolve(self, input)


FAST: dict[type[nn.Module], type[nn.Module]] = {nn.Conv1d: Depthwise1d, nn.Conv2d: Depthwise2d}


def _convolve(module: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
    assert not isinstance(module.padding, str)
    return convolve(x, module.weight, module.bias, module.stride, module.padding, module.groups)


def _fits(conv: nn.Module) -> bool:
    assert isinstance(conv, nn.Conv1d | nn.Conv2d)
    depthwise = 1 < conv.groups == conv.in_channels == conv.out_channels
    zeros = conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    return depthwise and zeros and max(conv.dilation) == 1
