"""What a torch convolution and its DCLS drop-in have in common."""

from collections.abc import Callable
from typing import Any

from torch import nn

from dcls.errors import ConfigError
from dcls.layers.geometry import same_output_padding

CONVOLUTIONS: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {
    1: nn.Conv1d,
    2: nn.Conv2d,
    3: nn.Conv3d,
}


def options_of(conv: nn.Module, dimensions: int, size: tuple[int, ...]) -> dict[str, Any]:
    """Constructor arguments of a layer with `size` cells that does what conv does. ConfigError where none can."""
    kind = CONVOLUTIONS[dimensions]
    # A subclass does something of its own (a normed weight, another padding), which replacing it would drop.
    if type(conv) is not kind:
        raise ConfigError(f"conv is a {type(conv).__name__}: only a plain nn.{kind.__name__} can be replaced")
    assert isinstance(conv, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    if conv._forward_hooks or conv._forward_pre_hooks or "weight" not in conv._parameters:
        raise ConfigError(
            "conv has hooks, or a weight that is no parameter of its own (normed, pruned): replacing it would drop "
            "them, so remove them first"
        )
    return {
        "in_channels": conv.in_channels,
        "out_channels": conv.out_channels,
        "stride": conv.stride,
        "padding": fitting_padding(conv, size),
        "groups": conv.groups,
        "bias": conv.bias is not None,
        "padding_mode": conv.padding_mode,
        "device": conv.weight.device,
        "dtype": conv.weight.dtype,
    }


def fitting_padding(conv: nn.Conv1d | nn.Conv2d | nn.Conv3d, size: tuple[int, ...]) -> tuple[int, ...]:
    """The padding that keeps conv's output size with a kernel of `size` cells, for every input."""
    if isinstance(conv.padding, str):
        raise ConfigError(f"conv has padding={conv.padding!r}: only padding given as numbers can be replaced")
    finders = [
        _finder(kernel, dilation, padding)
        for kernel, dilation, padding in zip(conv.kernel_size, conv.dilation, conv.padding, strict=True)
    ]
    found = [find(cells) for find, cells in zip(finders, size, strict=True)]
    if None in found:
        nearest = [_nearest(find, cells) for find, cells in zip(finders, size, strict=True)]
        sizes = sorted({tuple(near[0] for near in nearest), tuple(near[-1] for near in nearest)})
        raise ConfigError(
            f"dilated_kernel_size={size} cannot give the output size of {conv} with any integer padding: "
            f"the nearest that can is {' or '.join(map(str, sizes))}"
        )
    return tuple(each for each in found if each is not None)


def _finder(kernel: int, dilation: int, padding: int) -> Callable[[int], int | None]:
    return lambda size: same_output_padding(size, kernel=kernel, dilation=dilation, padding=padding)


def _nearest(find: Callable[[int], int | None], size: int) -> list[int]:
    """The size or two sizes, at equal distance, closest to `size` for which a padding is found."""
    distance = 0
    while True:
        near = sorted({cells for cells in (size - distance, size + distance) if cells >= 1 and find(cells) is not None})
        if near:
            return near
        distance += 1
