"""Depthwise convolutions alone: torch's own under autograd, and the rate of a matrix product on the same machine."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.contest import OURS, Contest
from benchmarks.setting import Setting
from dcls import ops

BENCH = "conv"
# Channels, pixels, kernel sizes and, where it is not the setting's, images: ConvNeXt-T's stages, then the quickstart's.
SHAPES = [(96, 56, (7, 17, 31), 0), (192, 28, (7, 17), 0), (384, 14, (7, 17), 0), (768, 7, (7, 17), 0)]
SHAPES += [(*shape, (13,), images) for images in (64, 128) for shape in ((16, 14), (32, 7), (64, 3))]
TINY = [(8, 6, (5,), 0)]
MATRIX, TINY_MATRIX = 3072, 64


def contests(setting: Setting) -> Iterator[Contest]:
    for channels, pixels, sizes, images in TINY if setting.tiny else SHAPES:
        for size in sizes:
            shape = (images or setting.batch, channels, pixels, pixels)
            for backward in (False, True):
                what = "forward and gradients" if backward else "forward"
                case = f"{what}, {channels}x{pixels}x{pixels}, {size}x{size}, N={shape[0]}"
                if setting.wants(case):
                    yield contest(case, shape, size, backward, setting)


def contest(case: str, shape: tuple[int, int, int, int], size: int, backward: bool, setting: Setting) -> Contest:
    torch.manual_seed(0)
    x, cotangent = (setting.randn(*shape).to(memory_format=torch.channels_last) for _ in range(2))
    kernel = setting.randn(shape[1], 1, size, size) / size
    operator = partial(ops.convolve, padding=(size // 2,), groups=shape[1])
    setting.prove(Convolution(operator), x, kernel)
    built = as_a_layer_builds(kernel, x)
    torchs = partial(F.conv2d, padding=size // 2, groups=shape[1])
    side = TINY_MATRIX if setting.tiny else MATRIX
    matrix = setting.randn(side, side)

    def product() -> Sequence[Tensor]:
        matrix @ matrix
        return []

    flops = useful_flops(shape, size) * (3 if backward else 1)
    return Contest(
        BENCH,
        case,
        {
            OURS: step(operator, x, built, cotangent, backward),
            "F.conv2d, autograd": step(torchs, x, kernel, cotangent, backward),
            "rate of a matrix product": product,
        },
        step(torchs, x.double(), kernel.double(), cotangent.double(), backward),
        tolerance=setting.tolerance(1e-5, 1e-2),
        scale={"rate of a matrix product": flops / (2 * side**3)},
    )


def as_a_layer_builds(kernel: Tensor, x: Tensor) -> Tensor:
    together = ops.side_by_side(x, kernel.shape, x.shape[1])
    if together == 1:
        return kernel
    return kernel.reshape(-1, together, *kernel.shape[2:]).contiguous(memory_format=torch.channels_last)


class Convolution(nn.Module):
    def __init__(self, operator: Callable[..., Tensor]) -> None:
        super().__init__()
        self.operator = operator

    def forward(self, x: Tensor, kernel: Tensor) -> Tensor:
        return self.operator(x, kernel)


def step(
    convolve: Callable[..., Tensor], x: Tensor, kernel: Tensor, cotangent: Tensor, backward: bool
) -> Callable[[], Sequence[Tensor]]:
    """The output, and the gradients of input and kernel where backward."""
    leaves = [x.detach().requires_grad_(backward), kernel.detach().requires_grad_(backward)]

    def run() -> Sequence[Tensor]:
        output = convolve(*leaves)
        return [output.detach(), *(torch.autograd.grad(output, leaves, cotangent) if backward else ())]

    return run


def useful_flops(shape: tuple[int, int, int, int], size: int) -> int:
    """Of one pass: a multiplication and an addition for each tap that falls inside the image."""
    images, channels, height, width = shape
    return 2 * images * channels * _taps_inside(height, size) * _taps_inside(width, size)


def _taps_inside(pixels: int, size: int) -> int:
    """Pairs of an output pixel and a tap of its kernel that is inside, along one axis."""
    half = size // 2
    return sum(min(at + half, pixels - 1) - max(at - half, 0) + 1 for at in range(pixels))
