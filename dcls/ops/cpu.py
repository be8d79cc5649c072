"""Depthwise convolution in float32 by generated machine code (vector_code.py), on torch's own threads.

Every tensor is checked (native.py) before its address is handed over. Results do not depend on the number of threads.

Letters: B batch, C channels, H W the image, R S the kernel, Y X the output, L lanes: channels in a vector. Kernels are
[C, 1, R, S], or [C / L, L, R, S] in channels_last, which is what the code reads: no copy is made of them.
"""

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dcls.ops.case import Case
from dcls.ops.native import SHORTEST_VECTOR, address, machine_for, run, unavailable

if TYPE_CHECKING:
    from dcls.ops.llvm import Compiled, Machine
    from dcls.ops.vector_code import Axis

NAME = "cpu"

Sizes = tuple[int, ...]

# Threads should be at work so much of the time, if tasks take equally long. Each part of a task copies what it reads.
AT_WORK = 0.9
# A thread takes as many tasks of a convolution at once as have so many products a lane, some 20 us, at most an eighth
# of its share: threads wait for each other there, and images that follow each other share their kernel.
AT_ONCE, SHARES = 40_000, 8
# Pixels. Code is written for each output along an axis: for 16,000 that takes over a second, each new length again.
LONGEST_AXIS = 4096


def supports(case: Case) -> str | None:
    """None, or the reason why the code cannot be written for the case."""
    if case.device != "cpu" or case.dtype != torch.float32:
        return f"{case.dtype} on {case.device}: only float32 on the CPU"
    if case.channels % SHORTEST_VECTOR:
        return f"{case.channels} channels do not divide by {SHORTEST_VECTOR}"
    if max(case.image) > LONGEST_AXIS:
        return f"{max(case.image):,} pixels along an axis: only up to {LONGEST_AXIS:,}"
    return unavailable()


def forward(x: Tensor, kernel: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """The convolution [B, C, Y, X] of x [B, C, H, W]."""
    rows, columns = _axes(x.shape[2:], kernel.shape[2:], tuple(stride), tuple(padding))
    machine = machine_for(x.shape[1])
    output = x.new_empty((x.shape[0], rows.outputs, columns.outputs, x.shape[1]))
    bias = x.new_zeros(x.shape[1]) if bias is None else bias.contiguous()
    convolve_into(output, _last(x), _packed(kernel, machine.lanes), bias, machine, rows, columns)
    return output.permute(0, 3, 1, 2)


def input_gradient(grad: Tensor, x: Tensor, kernel: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """d / dx [B, C, H, W]: the convolution of grad [B, C, Y, X], its pixels `stride` apart, with the kernel turned."""
    axes = _axes(x.shape[2:], kernel.shape[2:], tuple(stride), tuple(padding))
    rows, columns = (_turned(axis) for axis in axes)
    machine = machine_for(x.shape[1])
    output = x.new_empty((x.shape[0], rows.outputs, columns.outputs, x.shape[1]))
    bias, packed = x.new_zeros(x.shape[1]), _packed(kernel, machine.lanes)
    convolve_into(output, _last(grad), packed, bias, machine, rows, columns, turned=True)
    return output.permute(0, 3, 1, 2)


def kernel_gradient(
    grad: Tensor, x: Tensor, kernel: Tensor, stride: Sequence[int], padding: Sequence[int], with_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """d / dkernel and d / dbias [C]."""
    rows, columns = _axes(x.shape[2:], kernel.shape[2:], tuple(stride), tuple(padding))
    machine = machine_for(x.shape[1])
    of_kernel = x.new_empty((x.shape[1] // machine.lanes, rows.taps, columns.taps, machine.lanes))
    of_bias = x.new_empty(x.shape[1])
    gradients_into(of_kernel, of_bias, _last(grad), _last(x), machine, rows, columns)
    return of_kernel.movedim(-1, 1).reshape(kernel.shape), of_bias if with_bias else None


# Small images are convolved in less time than Python takes to work out the same again.
@functools.lru_cache(maxsize=1024)
def _axes(image: Sizes, size: Sizes, stride: Sizes, padding: Sizes) -> tuple["Axis", "Axis"]:
    from dcls.ops.vector_code import Axis

    rows, columns = (
        Axis(pixels, (pixels + 2 * pad - taps) // step + 1, taps, step, pad)
        for pixels, taps, step, pad in zip(image, size, stride, padding, strict=True)
    )
    return rows, columns


def _turned(axis: "Axis") -> "Axis":
    """From output to input. The padding may be negative: there the border of the output is not read."""
    return axis._replace(
        inputs=axis.outputs,
        outputs=axis.inputs,
        stride=1,
        padding=axis.taps - 1 - axis.padding,
        spread=axis.stride,
    )


def _last(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H, W, C], contiguous."""
    return x.permute(0, 2, 3, 1).contiguous()


def _packed(kernel: Tensor, lanes: int) -> Tensor:
    """[C, 1, R, S] -> [C / L, R, S, L]: what one task reads lies together."""
    return kernel.reshape(-1, lanes, *kernel.shape[2:]).movedim(1, -1).contiguous()


def side_by_side(channels: int) -> int:
    """L, where the code can be written for so many channels, else 1."""
    return 1 if channels % SHORTEST_VECTOR or unavailable() else machine_for(channels).lanes


def convolve_into(
    output: Tensor,
    x: Tensor,
    kernel: Tensor,
    bias: Tensor,
    machine: "Machine",
    rows: "Axis",
    columns: "Axis",
    turned: bool = False,
) -> None:
    """Fill output [B, Y, X, C] from x [B, H, W, C], kernel [C / L, R, S, L], by 180 degrees if turned, and bias [C]."""
    batch, channels = x.shape[0], x.shape[-1]
    blocks = channels // machine.lanes
    addresses = (
        address(x, batch, rows.inputs, columns.inputs, channels),
        address(kernel, blocks, rows.taps, columns.taps, machine.lanes),
        address(bias, blocks * machine.lanes),
        address(output, batch, rows.outputs, columns.outputs, channels),
    )
    code = _code("convolution", machine, channels, rows, columns, turned)
    products = math.prod(axis.outputs * min(axis.inputs, axis.taps) for axis in (rows, columns))
    _run(code, batch, batch * _tasks(machine, channels), rows.outputs, products, addresses)


def gradients_into(
    of_kernel: Tensor, of_bias: Tensor, grad: Tensor, x: Tensor, machine: "Machine", rows: "Axis", columns: "Axis"
) -> None:
    """Fill of_kernel [C / L, R, S, L] and of_bias [C] from grad [B, Y, X, C] and x [B, H, W, C]."""
    batch, channels = x.shape[0], x.shape[-1]
    blocks = channels // machine.lanes
    addresses = (
        address(x, batch, rows.inputs, columns.inputs, channels),
        address(grad, batch, rows.outputs, columns.outputs, channels),
        address(of_bias, blocks * machine.lanes),
        address(of_kernel, blocks, rows.taps, columns.taps, machine.lanes),
    )
    code = _code("kernel_gradient", machine, channels, rows, columns)
    # As if they were large: to take several of these at once gained nothing.
    _run(code, batch, _tasks(machine, channels), rows.taps, AT_ONCE, addresses)


@functools.cache
def _tasks(machine: "Machine", channels: int) -> int:
    """Tasks that the channels are divided into."""
    from dcls.ops.vector_code import blocks_of_task

    return channels // machine.lanes // blocks_of_task(machine, channels)


@functools.lru_cache(maxsize=1024)
def _code(kind: str, machine: "Machine", channels: int, *geometry: Any) -> "Compiled":
    from dcls.ops import llvm, vector_code

    return llvm.compiled(machine, getattr(vector_code, kind)(machine, channels, *geometry))


def _run(
    code: "Compiled", batch: int, tasks: int, rows: int, products: int, addresses: tuple[int, int, int, int]
) -> None:
    """Run the code in torch's threads: tasks of so many products a lane, cut into parts of their rows where few."""
    threads = torch.get_num_threads()
    parts = _parts(tasks, rows, threads)
    at_once = max(1, min(AT_ONCE // products, tasks * parts // (SHARES * threads)))
    # The order of vector_code's NUMBERS and POINTERS.
    run(code, tasks * parts, batch, parts, at_once, 1 if at_once > 1 else threads, *addresses)


@functools.lru_cache(maxsize=1024)
def _parts(tasks: int, rows: int, threads: int) -> int:
    rounds = ((parts, parts * tasks / threads) for parts in range(1, rows))
    return next((parts for parts, each in rounds if each >= AT_WORK * math.ceil(each)), rows)
