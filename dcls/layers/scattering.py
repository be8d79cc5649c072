"""v0 by scattering: a tap has two cells an axis, so it adds to 2^N cells of the kernel and to no others.

Along an axis a tap at q = p + S // 2 gives 1 - r to the cell floor(q) and r to the next one, r = q - floor(q): these
are its two ends. A corner is one end of every axis; corners are listed with the last axis changing fastest.

Letters: O out channels, M in channels / groups and dense axes together, K taps, S cells of a learned axis, N axes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dcls.layers.interpolation import INTERPOLATIONS
from dcls.layers.separable import twice_differentiable


class End(NamedTuple):
    """One of the two cells of each tap along one axis, [O, M, K]: its index, the tap's share of it, is it inside."""

    cell: Tensor
    share: Tensor
    inside: Tensor


class Scattered(torch.autograd.Function):
    """The kernel [O, C, D.., S..] of weights [O, C, D.., K] at positions [N, O, C, D.., K], on a CPU."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, positions: Tensor, sizes: Sequence[int], memory_format: torch.memory_format
    ) -> Tensor:
        taps, places = weight.flatten(1, -2), positions.flatten(2, -2)
        axes = [ends(place, size) for place, size in zip(places, sizes, strict=True)]
        where = corner_cells(axes, sizes)
        shape = (*weight.shape[:-1], *sizes)
        kernel = torch.empty(shape, dtype=weight.dtype, device=weight.device, memory_format=memory_format)
        _rows(kernel, taps).zero_().scatter_add_(-1, where, corner_values(taps, axes))
        ctx.save_for_backward(weight, positions, where, *(each for pair in axes for end in pair for each in end[1:]))
        ctx.sizes = sizes
        return kernel

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, positions, where, *saved = ctx.saved_tensors
        if torch.is_grad_enabled():
            pair = twice_differentiable(gradient, weight, positions, None, ctx.sizes, INTERPOLATIONS["v0"])[:2]
            return *pair, None, None
        taps = weight.flatten(1, -2)
        corners = _rows(gradient, taps).gather(-1, where).chunk(2 ** len(ctx.sizes), -1)
        all_ends = [End(where, *saved[i : i + 2]) for i in range(0, len(saved), 2)]
        axes = list(zip(all_ends[::2], all_ends[1::2], strict=True))
        along_weight, along_positions = pulled_back(taps, corners, axes)
        return along_weight.view(weight.shape), along_positions.view(positions.shape), None, None


def ends(place: Tensor, size: int) -> tuple[End, End]:
    """The two ends of taps at positions [O, M, K] along an axis. Outside the kernel the share is 0 and the cell any.

    Shares are multiplied by `inside` rather than selected: a NaN position must not become an empty kernel.
    """
    # The order of `separable.axis_factor`: the centre first, then floor.
    centred = place + size // 2
    floor = centred.floor()
    rest = centred - floor
    first = floor.long()
    second = first + 1
    cells = first.clamp(0, size - 1), second.clamp(0, size - 1)
    inside = cells[0] == first, cells[1] == second
    return End(cells[0], (1 - rest).mul_(inside[0]), inside[0]), End(cells[1], rest.mul_(inside[1]), inside[1])


def corner_cells(axes: Sequence[tuple[End, End]], sizes: Sequence[int]) -> Tensor:
    """The flat cell of each corner of each tap, [O, M, 2^N K]."""
    cells = [end.cell for end in axes[0]]
    for pair, size in zip(axes[1:], sizes[1:], strict=True):
        cells = [torch.add(end.cell, outer, alpha=size) for outer in cells for end in pair]
    return torch.cat(cells, -1)


def corner_values(taps: Tensor, axes: Sequence[tuple[End, End]]) -> Tensor:
    """What each corner of each tap [O, M, K] adds to its cell, [O, M, 2^N K]."""
    values = [taps]
    for pair in axes:
        values = [value * end.share for value in values for end in pair]
    return torch.cat(values, -1)


def pulled_back(taps: Tensor, corners: Sequence[Tensor], axes: Sequence[tuple[End, End]]) -> tuple[Tensor, Tensor]:
    """The gradients of weights [O, M, K] and positions [N, O, M, K], from that of every corner's cell."""
    along_positions = taps.new_empty((len(axes), *taps.shape))
    for axis, (first, second) in enumerate(axes):
        others = [*axes[:axis], *axes[axis + 1 :]]
        bit = len(axes) - 1 - axis
        halves = [[corner for i, corner in enumerate(corners) if i >> bit & 1 == side] for side in (0, 1)]
        low, high = (weighed(half, others) for half in halves)
        # The shares' slopes are -1 and +1, also at an integer: those of the interval on its right.
        torch.mul(taps, high * second.inside - low * first.inside, out=along_positions[axis])
    return torch.addcmul(low * first.share, high, second.share), along_positions


def weighed(corners: Sequence[Tensor], axes: Sequence[tuple[End, End]]) -> Tensor:
    """The sum over the corners of these axes of the corner's gradient times its shares."""
    for first, second in reversed(axes):
        pairs = zip(corners[::2], corners[1::2], strict=True)
        corners = [torch.addcmul(low * first.share, high, second.share) for low, high in pairs]
    (result,) = corners
    return result


def _rows(kernel: Tensor, taps: Tensor) -> Tensor:
    """A kernel [O, C, D.., S..] as [O, M, all cells], a view where its strides allow one, as channels_last do."""
    return kernel.reshape(*taps.shape[:2], -1)
