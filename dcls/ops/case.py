"""One depthwise convolution, described by what the choice of a backend depends on."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dcls.errors import ConfigError


class Case(NamedTuple):
    """Sizes in pixels, the vertical axis first; a 1-D convolution is one of height 1."""

    device: str
    dtype: torch.dtype
    batch: int
    channels: int
    image: tuple[int, int]
    size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    @property
    def output(self) -> tuple[int, int]:
        """Height and width of the result."""
        high, wide = (output_size(*each) for each in zip(self.image, self.size, self.stride, self.padding, strict=True))
        return high, wide

    @property
    def multiply_adds(self) -> int:
        """Products of the forward pass, those with the padding's zeros included."""
        return self.batch * self.channels * math.prod(self.output) * math.prod(self.size)

    def __str__(self) -> str:
        image, size, stride, padding = ("x".join(map(str, each)) for each in self[4:])
        sizes = f"kernel {size}, stride {stride}, padding {padding}"
        return f"{self.batch}x{self.channels}x{image} {str(self.dtype)[6:]} on {self.device}, {sizes}"


def case_of(
    device: str,
    dtype: torch.dtype,
    x: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Case:
    """The case of x and a kernel of these shapes: [B, C, H, W], or [B, C, W], and [C, 1, H, W], or [C, 1, W]."""
    flat = len(x) == 3
    high_wide = (
        ((start, each[0]) if flat else (each[0], each[1]))
        for start, each in ((1, x[2:]), (1, kernel[2:]), (1, stride), (0, padding))
    )
    return Case(device, dtype, x[0], x[1], *high_wide)


def reached(
    kernel: Tensor, image: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> tuple[Tensor, list[int]]:
    """The kernel [.., S..] without the cells that only meet zeros beyond the border, and the padding it then takes.

    image: pixels along each axis. Of 17x17 on 7x7 pixels 13x13 cells are left. Axes with a stride keep theirs.
    """
    kept = list(padding)
    if torch.compiler.is_exporting():
        return kernel, kept  # comparing would tie an exported program to large images or to small ones
    for axis, (pixels, step, pad) in enumerate(zip(image, stride, padding, strict=False), start=2):
        size = kernel.shape[axis]
        if step == 1 and pixels + pad < size <= pixels + 2 * pad:
            beyond = size - pixels - pad  # on either side
            kernel, kept[axis - 2] = kernel.narrow(axis, beyond, size - 2 * beyond), pad - beyond
    return kernel, kept


def output_size(pixels: int, size: int, stride: int, padding: int) -> int:
    """Pixels of a convolution's result along one axis. ConfigError where the kernel is larger than the padded input."""
    if size > pixels + 2 * padding:
        raise ConfigError(
            f"kernel size {size} is larger than the input of {pixels} pixels padded by {padding} on both sides: "
            "give a larger padding or image, or a smaller kernel"
        )
    return (pixels + 2 * padding - size) // stride + 1
