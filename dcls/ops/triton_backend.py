"""Depthwise convolution on CUDA by fused multiply-adds: float32, bfloat16 and float16, sums in float32.

This file is the border of triton_kernels.py: what the kernels can run, in which tiles, and where the numbers lie.
Tensors may have any strides; channels_last is what the tiles are made for. Results are the same in every call: nothing
is added atomically, and the kernel's gradient is a sum of chunks whose number follows from the shapes alone.

Letters: B batch, C channels, H W the image, R S the kernel, Y X the output.
"""

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dcls.ops.case import Case, output_size

NAME = "triton"

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LARGEST_KERNEL = 51
OLDEST_CHIP = (8, 0)

LONGEST_BLOCK = 64
# Numbers of a tile: 8 to 16 in each of 128 threads, and as many for each row of outputs or each tap.
FORWARD_TILE, GRADIENT_TILE = 2048, 1024
NUMBERS_PER_WARP = {FORWARD_TILE: 512, GRADIENT_TILE: 256}
# Columns of taps that a program of the kernel's gradient sums at once, beside triton_kernels.ROWS rows.
BLOCK_S = 4
# Programs into which the kernel's gradient is cut where its taps and channels alone are fewer.
GRADIENT_PROGRAMS = 2048


def supports(case: Case) -> str | None:
    """None, or the reason why the kernels cannot run the case."""
    if case.device != "cuda":
        return f"device {case.device}: only CUDA"
    if case.dtype not in DTYPES:
        return f"{case.dtype}: only {', '.join(str(dtype) for dtype in DTYPES)}"
    if max(case.size) > LARGEST_KERNEL:
        return f"kernel {case.size[0]}x{case.size[1]}: only up to {LARGEST_KERNEL} a side"
    image = max(math.prod(case.image), math.prod(case.output), math.prod(case.size))
    if max(case.channels * image, case.batch * case.image[0]) >= 2**31:
        return "2^31 numbers in an image or a kernel, or rows in all images, or more"
    return unavailable()


@functools.cache
def unavailable() -> str | None:
    """Why this process cannot have the backend at all, if so."""
    try:
        from dcls.ops import triton_kernels  # noqa: F401  # to see whether it can be
    except ImportError:
        return "triton is not installed (pip install triton)"
    if torch.version.hip is not None or not torch.cuda.is_available():
        return "no NVIDIA GPU"
    found = torch.cuda.get_device_capability()
    return None if found >= OLDEST_CHIP else f"compute capability {found[0]}.{found[1]}: 8.0 or newer is needed"


def forward(x: Tensor, kernel: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """The convolution [B, C, Y, X] of x [B, C, H, W] with kernel [C, 1, R, S]."""
    sizes = (output_size(*each) for each in zip(x.shape[2:], kernel.shape[2:], stride, padding, strict=True))
    output = _empty_like(x, (*x.shape[:2], *sizes))
    _convolve(output, x, kernel, bias, padding, steps=stride, spreads=(1, 1), turned=False)
    return output


def input_gradient(grad: Tensor, x: Tensor, kernel: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """d / dx [B, C, H, W]: the convolution of grad [B, C, Y, X], its pixels `stride` apart, with the kernel turned."""
    output = _empty_like(x, x.shape)
    turned = [size - 1 - pad for size, pad in zip(kernel.shape[2:], padding, strict=True)]
    _convolve(output, grad, kernel, None, turned, steps=(1, 1), spreads=stride, turned=True)
    return output


def kernel_gradient(
    grad: Tensor, x: Tensor, kernel: Tensor, stride: Sequence[int], padding: Sequence[int], with_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """d / dkernel [C, 1, R, S] and, when asked for, d / dbias [C]."""
    from dcls.ops import triton_kernels

    grad, x = _near(grad), _near(x)
    (batch, channels, high, wide), (rows, columns) = x.shape, kernel.shape[2:]
    block_x, block_c, warps = _tile(x, grad.shape[3], GRADIENT_TILE)
    taps = math.ceil(rows / triton_kernels.ROWS.value) * math.ceil(columns / BLOCK_S) * math.ceil(channels / block_c)
    chunks = min(batch * high, math.ceil(GRADIENT_PROGRAMS / taps))
    partial = x.new_empty((chunks, rows, columns, channels), dtype=torch.float32)
    with torch.cuda.device_of(x):
        triton_kernels.kernel_gradient[(chunks * taps,)](
            partial, grad, x, batch, channels, high, wide, *grad.shape[2:], rows, columns, *padding, chunks,
            *grad.stride(), *x.stride(),
            STEP_H=stride[0], STEP_W=stride[1], BLOCK_S=BLOCK_S, BLOCK_X=block_x, BLOCK_C=block_c, num_warps=warps,
        )  # fmt: skip
    of_kernel = partial.sum(0).permute(2, 0, 1).unsqueeze(1).to(x.dtype)
    return of_kernel, grad.sum((0, 2, 3)) if with_bias else None


def _convolve(
    output: Tensor,
    x: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    padding: Sequence[int],
    *,
    steps: Sequence[int],
    spreads: Sequence[int],
    turned: bool,
) -> None:
    """Fill output [B, C, Y, X] as triton_kernels.convolution says."""
    from dcls.ops import triton_kernels

    x = _near(x)
    (batch, channels, high, wide), (rows, columns) = output.shape, kernel.shape[2:]
    block_x, block_c, warps = _tile(x, wide, FORWARD_TILE)
    blocks = math.ceil(high / triton_kernels.ROWS.value), math.ceil(wide / block_x), math.ceil(channels / block_c)
    taps = kernel.squeeze(1).permute(1, 2, 0).contiguous()
    bias = None if bias is None else bias.contiguous()
    with torch.cuda.device_of(x):
        triton_kernels.convolution[(batch * math.prod(blocks),)](
            output, x, taps, bias, channels, *x.shape[2:], high, wide, rows, columns, *padding,
            *x.stride(), *output.stride(),
            STEP_H=steps[0], STEP_W=steps[1], SPREAD_H=spreads[0], SPREAD_W=spreads[1], TURNED=turned,
            BLOCK_X=block_x, BLOCK_C=block_c, num_warps=warps,
        )  # fmt: skip


def _tile(x: Tensor, wide: int, numbers: int) -> tuple[int, int, int]:
    """Pixels and channels of a tile of at most so many numbers, longest along what is contiguous, and warps for it."""
    pixels, channels = (min(LONGEST_BLOCK, power_of_two(each)) for each in (wide, x.shape[1]))
    if x.stride(1) == 1:
        pixels = min(pixels, numbers // channels)
    else:
        channels = min(channels, numbers // pixels)
    # More threads than channels: otherwise the compiler passes rows of taps through shared memory.
    return pixels, channels, max(1, channels // 16, pixels * channels // NUMBERS_PER_WARP[numbers])


def power_of_two(number: int) -> int:
    """The next one: blocks have no other sizes."""
    return 1 << (number - 1).bit_length()


def _near(x: Tensor) -> Tensor:
    """x, or a copy of it where one image lies so scattered that the kernels' 32-bit offsets end."""
    span = sum((size - 1) * stride for size, stride in zip(x.shape[1:], x.stride()[1:], strict=True))
    return x if span < 2**31 else x.contiguous()


def _empty_like(x: Tensor, shape: Sequence[int]) -> Tensor:
    """A tensor [B, C, ..] of `shape`, its channels neighbours if those of x are."""
    layout = torch.channels_last if x.stride(1) == 1 else torch.contiguous_format
    return torch.empty(tuple(shape), dtype=x.dtype, device=x.device, memory_format=layout)
