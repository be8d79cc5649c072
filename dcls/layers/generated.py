"""Kernels in float32 by generated machine code (vector_taps.py), on torch's own threads, with a gradient of our own.

Nothing is kept for the backward but what was given: factors cost less to compute than to fetch. Every tensor is checked
(ops/native.py) before its address is handed over. Results do not depend on the number of threads.

Letters: O out channels, C in channels / groups, D dense axes, K taps, S cells of a learned axis, N learned axes,
L lanes: kernels in a vector.
"""

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from dcls.layers.interpolation import Interpolation
from dcls.layers.separable import twice_differentiable
from dcls.ops import dispatch
from dcls.ops.native import SHORTEST_VECTOR, address, in_large_pages, machine_for, run, unavailable

if TYPE_CHECKING:
    from dcls.ops.llvm import Compiled, Machine

# Cells of an axis, at most: those of L kernels are on the stack of a thread.
LARGEST = 51

# A task has several vectors of neighbours as long as these are no more kernels, with no more cells in all. Of 16, 32,
# 64 and 128 kernels 64 were the fastest, 1.7 times as fast as 8 where a dense layer has 512 x 512.
MOST_NEIGHBOURS = 64
MOST_CELLS = 4096


def supports(weight: Tensor, sizes: Sequence[int], interpolation: Interpolation) -> str | None:
    """None, or the reason why the code cannot be written for kernels of weights [O, C, D.., K]."""
    if dispatch.get_backend() not in ("auto", "cpu"):
        return f"backend {dispatch.get_backend()} has been chosen"
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return f"{weight.dtype} on {weight.device}: only float32 on the CPU"
    if len(sizes) > 2 or max(sizes) > LARGEST:
        return f"kernels of {tuple(sizes)} cells: at most two axes of {LARGEST}"
    if weight[..., 0].numel() % SHORTEST_VECTOR:
        return f"{weight[..., 0].numel()} kernels do not divide by {SHORTEST_VECTOR}"
    if unavailable() is not None:
        return unavailable()
    from dcls.layers.vector_taps import WRITTEN

    return None if interpolation.phi in WRITTEN else f"{interpolation.phi.__name__} has no vector code"


class Shape(NamedTuple):
    """What code is written for: cells along one or two axes, taps, and how kernels lie.

    neighbours: how many kernels have their numbers of a cell side by side, C in channels_last; 0: each lies alone.
    """

    sizes: tuple[int, ...]
    taps: int
    neighbours: int

    def vectors(self, lanes: int) -> int:
        """How many vectors of kernels a task has."""
        most = min(MOST_NEIGHBOURS, MOST_CELLS // math.prod(self.sizes), self.neighbours) // lanes
        return next((n for n in range(most, 1, -1) if self.neighbours % (n * lanes) == 0), 1)


class Generated(torch.autograd.Function):
    """The kernel [O, C, D.., S..] of weights [O, C, D.., K] at positions and sigmas [N, O, C, D.., K].

    In the memory format asked for, where vectors fit that, else contiguous.
    """

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        positions: Tensor,
        sigmas: Tensor | None,
        sizes: tuple[int, ...],
        interpolation: Interpolation,
        memory_format: torch.memory_format,
    ) -> Tensor:
        shape = _shape(weight, sizes, memory_format == torch.channels_last)
        form = memory_format if shape.neighbours else torch.contiguous_format
        cells = (*weight.shape[:-1], *sizes)
        kernel = in_large_pages(torch.empty(cells, dtype=weight.dtype, device=weight.device, memory_format=form))
        call("construction", interpolation, shape, kernel, *_contiguous(weight, positions, sigmas))
        ctx.save_for_backward(weight, positions, sigmas)
        ctx.sizes, ctx.interpolation = sizes, interpolation
        return kernel

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, positions, sigmas = ctx.saved_tensors
        if torch.is_grad_enabled():
            options = (ctx.sizes, ctx.interpolation)
            return *twice_differentiable(gradient, weight, positions, sigmas, *options), None, None, None
        # Read as it lies, where vectors fit that.
        last = not gradient.is_contiguous() and gradient.is_contiguous(memory_format=torch.channels_last)
        shape = _shape(weight, ctx.sizes, last)
        gradient = gradient if shape.neighbours else gradient.contiguous()
        inputs = _contiguous(weight, positions, sigmas)
        results = [None if each is None else torch.empty_like(each) for each in inputs]
        call("gradients", ctx.interpolation, shape, gradient, *inputs, *results)
        return *results, None, None, None


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _shape(weight: Tensor, sizes: tuple[int, ...], last: bool) -> Shape:
    """Of a kernel that lies contiguous or, with `last`, in channels_last where C fills vectors."""
    last = last and weight.dim() == 3 and len(sizes) == 2 and weight.shape[1] % SHORTEST_VECTOR == 0
    return Shape(sizes, weight.shape[-1], weight.shape[1] if last else 0)


def call(
    kind: str,
    interpolation: Interpolation,
    shape: Shape,
    kernel: Tensor,
    *arrays: Any,
    machine: "Machine | None" = None,
) -> None:
    """Run vector_taps.construction, or gradients, on kernel [O, C, D.., S..]; channels_last if it has neighbours.

    arrays: weight [O, C, D.., K], positions and sigmas [N, O, C, D.., K], then their gradients. None for no sigmas.
    """
    outer, taps = kernel.shape[: -len(shape.sizes)], shape.taps
    machine = machine or machine_for(shape.neighbours or math.prod(outer))
    if (shape.neighbours or math.prod(outer)) % machine.lanes:
        raise RuntimeError(f"{machine.lanes} lanes do not divide {tuple(outer)} kernels")
    lies = (*outer[:1], *shape.sizes, shape.neighbours) if shape.neighbours else (*outer, *shape.sizes)
    addresses = [address(kernel.movedim(1, -1) if shape.neighbours else kernel, *lies)]
    for i, array in enumerate(arrays):
        axes = (len(shape.sizes),) if i % 3 else ()
        addresses.append(address(array, *axes, *outer, taps) if i % 3 < 2 or interpolation.has_sigma else 0)
    tasks = math.prod(outer) // (machine.lanes * shape.vectors(machine.lanes))
    run(_code(kind, machine, interpolation, shape), tasks, *addresses)


@functools.lru_cache(maxsize=1024)
def _code(kind: str, machine: "Machine", interpolation: Interpolation, shape: Shape) -> "Compiled":
    from dcls.layers import vector_taps
    from dcls.ops import llvm

    return llvm.compiled(machine, getattr(vector_taps, kind)(machine, interpolation, shape))
