"""Depthwise convolution on CUDA as products of matrices, for bfloat16 and float16 at stride 1: the tensor cores' form.

A row of taps acts on a row of pixels as a banded matrix, T[k, n] = tap[k - n]. Four output rows of sixteen columns, all
images' such groups one below the other, are the rows of one product for each of the R + 3 rows of input they read:

    output[(b, group), (j, n)] = sum_i  rows_i[(b, group), k] @ T_i[k, (j, n)]
    T_i[k, (j, n)] = tap[i - j, k - n + shift]

About half of T's numbers are zeros, but tensor cores are more than ten times as fast as fused multiply-adds. The
gradient of T_i is rows_i^T @ grad, one program for each, so that nothing is added up between programs; the gradient of
the input is the convolution of grad with the kernel turned over. Images are copied beforehand, channel by channel,
between zeros that let every row of a product begin at a multiple of 32 bytes.

Letters: B batch, C channels, H W the image, R S the kernel, Y X the output, I = R + 3, K columns read for 16 of output,
a multiple of 16; M pairs of an image and a group of rows.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dcls.ops import triton_backend
from dcls.ops.case import Case, output_size

NAME = "triton_bands"

DTYPES = (torch.bfloat16, torch.float16)
# Output rows and columns of a tile, as in triton_band_kernels.py.
J, N = 4, 16
# Rows of a product that a program computes, and that it sums at a time for the gradient.
FORWARD_BLOCK, GRADIENT_BLOCK = 128, 64


def supports(case: Case) -> str | None:
    """None, or the reason why the kernels cannot run the case."""
    if case.dtype not in DTYPES and case.device == "cuda":
        return f"{case.dtype}: only bfloat16 and float16"
    if max(case.stride) > 1:
        return f"stride {case.stride[0]}x{case.stride[1]}: only 1"
    if any(pad >= size for pad, size in zip(case.padding, case.size, strict=True)):
        return "padding of the kernel's size or more"
    return triton_backend.supports(case)


class Plan(NamedTuple):
    """How one axis of columns is cut. shift: the tap that the first column of a tile applies to its first output."""

    wide: int
    shift: int
    before: int
    k: int


def columns(pixels: int, outputs: int, taps: int, padding: int) -> Plan:
    """wide: pixels with zeros, `before` of them on the left; k: columns that a tile reads."""
    tiles = math.ceil(outputs / N)
    sliding, whole = (math.ceil(each / 16) * 16 for each in (N - 1 + taps, pixels))
    if tiles == 1 and whole <= sliding:
        return Plan(whole, padding, 0, whole)
    return Plan(N * (tiles - 1) + sliding, 0, padding, sliding)


def forward(x: Tensor, kernel: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """The convolution [B, C, Y, X] of x [B, C, H, W] with kernel [C, 1, R, S]."""
    return _convolve(x, kernel, bias, padding, turned=False)


def input_gradient(grad: Tensor, x: Tensor, kernel: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """d / dx [B, C, H, W]: the convolution of grad [B, C, Y, X] with the kernel turned."""
    turned = [size - 1 - pad for size, pad in zip(kernel.shape[2:], padding, strict=True)]
    return _convolve(grad, kernel, None, turned, turned=True)


def kernel_gradient(
    grad: Tensor, x: Tensor, kernel: Tensor, stride: Sequence[int], padding: Sequence[int], with_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """d / dkernel [C, 1, R, S] and, when asked for, d / dbias [C]."""
    from dcls.ops import triton_band_kernels

    (batch, channels, high, wide), (rows, taps) = x.shape, kernel.shape[2:]
    groups, tiles = math.ceil(grad.shape[2] / J), math.ceil(grad.shape[3] / N)
    plan, reads = columns(wide, grad.shape[3], taps, padding[1]), rows + J - 1
    block_k = _block_k(plan.k)
    of_bands = x.new_empty((channels, reads, plan.k, J * N), dtype=torch.float32)
    of_kernel = x.new_empty((channels, 1, rows, taps))
    with torch.cuda.device_of(x):
        triton_band_kernels.band_gradients[(channels * reads * (plan.k // block_k),)](
            of_bands, _between_zeros(grad, J * groups, N * tiles, 0), _between_zeros(x, high, plan.wide, plan.before),
            batch * groups, channels, high, plan.wide, groups, tiles, padding[0], reads,
            K=plan.k, BLOCK_M=GRADIENT_BLOCK, BLOCK_K=block_k,
        )  # fmt: skip
        triton_band_kernels.gather_taps[(channels, rows)](
            of_kernel, of_bands, rows, taps, plan.shift, K=plan.k, BLOCK_S=triton_backend.power_of_two(taps)
        )
    return of_kernel, grad.sum((0, 2, 3)) if with_bias else None


def _convolve(x: Tensor, kernel: Tensor, bias: Tensor | None, padding: Sequence[int], *, turned: bool) -> Tensor:
    from dcls.ops import triton_band_kernels

    (batch, channels, high, wide), (rows, taps) = x.shape, kernel.shape[2:]
    out_high, out_wide = output_size(high, rows, 1, padding[0]), output_size(wide, taps, 1, padding[1])
    groups, tiles = math.ceil(out_high / J), math.ceil(out_wide / N)
    plan, reads = columns(wide, out_wide, taps, padding[1]), rows + J - 1
    block_m = max(16, min(FORWARD_BLOCK, triton_backend.power_of_two(batch * groups)))
    bands = x.new_empty((channels, reads, plan.k, J * N))
    output = x.new_empty((batch, channels, J * groups, N * tiles))
    # The first and the last row that any group of output rows reads inside the image.
    first, last = max(0, padding[0] - J * (groups - 1)), min(reads, high + padding[0])
    with torch.cuda.device_of(x):
        triton_band_kernels.spread_taps[(channels, reads)](
            bands, kernel, rows, taps, plan.shift, kernel.stride(0), *kernel.stride()[2:],
            TURNED=turned, K=plan.k, BLOCK_K=triton_backend.power_of_two(plan.k),
        )  # fmt: skip
        triton_band_kernels.products[(channels * tiles * math.ceil(batch * groups / block_m),)](
            output, _between_zeros(x, high, plan.wide, plan.before), bands, None if bias is None else bias.contiguous(),
            batch * groups, channels, high, plan.wide, groups, tiles, padding[0], first, last, reads,
            K=plan.k, BLOCK_M=block_m, BLOCK_K=_block_k(plan.k),
        )  # fmt: skip
    return output[:, :, :out_high, :out_wide]


def _between_zeros(x: Tensor, high: int, wide: int, before: int) -> Tensor:
    """A contiguous copy [B, C, high, wide] with `before` columns of zeros on the left, and as many as it takes else."""
    copy = x.new_zeros((*x.shape[:2], high, wide))
    copy[:, :, : x.shape[2], before : before + x.shape[3]] = x
    return copy


def _block_k(k: int) -> int:
    """What a product sums at a time divides K."""
    return 32 if k % 32 == 0 else 16
