"""Kernels as products of one factor an axis, 1-D and 2-D, with a gradient of our own.

`separable` under autograd keeps a dozen tensors of the factors' size; here the factors alone are kept. The derivative
of the contraction over taps is two contractions, and that of phi is the interpolation's `pullback`.

The taps of L kernels are arranged in one of two ways, T below. Many taps stand last, [L, K], and kernels are batched
matrix products. Few taps stand first, [K, L], and kernels are a sum over taps of elementwise products, with the long
axis L in the vector lanes. Axes of equal size are a group, spread together: small layers are bound by the number of
operations.

Letters: O out channels, M in channels / groups and dense axes together, L = the O x M of one block, K taps,
T = [L, K] or [K, L], S cells of a learned axis, N learned axes, H W the cells of both (H = 1 where N = 1).
"""

from collections.abc import Sequence
from functools import reduce
from operator import mul
from typing import Any

import torch
from torch import Tensor

from dcls.layers.interpolation import Interpolation
from dcls.layers.separable import EPSILON, axis_factor, distance, twice_differentiable

# Up to this many taps, lanes beat batched products of such thin matrices.
FEW = 8
# Kernels of a block where taps are few: what so many need stays near the processor.
BLOCK = 8192


class Factored(torch.autograd.Function):
    """The kernel [O, C, D.., S..] of weights [O, C, D.., K] at positions and sigmas [N, O, C, D.., K]."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        positions: Tensor,
        sigmas: Tensor | None,
        sizes: Sequence[int],
        interpolation: Interpolation,
        memory_format: torch.memory_format,
    ) -> Tensor:
        shape = (*weight.shape[:-1], *sizes)
        kernel = torch.empty(shape, dtype=weight.dtype, device=weight.device, memory_format=memory_format)
        inputs, rows, kept = flattened(weight, positions, sigmas), in_rows(kernel, sizes), []
        for block in blocks(inputs[0]):
            (taps,), place, sigma = (arranged(each, block) for each in inputs)
            groups = [
                axis_factor(place[axes], None if sigma is None else sigma[axes], size, interpolation)
                for axes, size in grouped(sizes)
            ]
            sums = joined([group.sum(-2) for group in groups]) if interpolation.normalised else None
            share = taps if sums is None else taps / norm(sums)
            contract(share, by_axis(groups), rows[block], few(weight))
            kept += [sums, *groups]
        ctx.save_for_backward(weight, positions, sigmas, *kept)
        ctx.sizes, ctx.interpolation = sizes, interpolation
        return kernel

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, positions, sigmas, *kept = ctx.saved_tensors
        options = (ctx.sizes, ctx.interpolation)
        if torch.is_grad_enabled():
            return *twice_differentiable(gradient, weight, positions, sigmas, *options), None, None, None
        inputs, rows = flattened(weight, positions, sigmas), in_rows(gradient, ctx.sizes)
        each = 1 + len(grouped(ctx.sizes))
        found = [
            pulled_back(
                rows[block],
                [arranged(one, block) for one in inputs],
                kept[i * each : (i + 1) * each],
                *options,
                few(weight),
            )
            for i, block in enumerate(blocks(inputs[0]))
        ]
        columns = [joined([part.mT if few(weight) else part for part in parts], 1) for parts in zip(*found)]
        along = [column.reshape(one.shape) for column, one in zip(columns, (weight, positions, sigmas))]
        return *along, *[None] * (6 - len(along))


def flattened(weight: Tensor, positions: Tensor, sigmas: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """All as [n, O, M, K], the weights with n = 1."""
    return (
        weight.unsqueeze(0).flatten(2, -2),
        positions.flatten(2, -2),
        None if sigmas is None else sigmas.flatten(2, -2),
    )


def in_rows(kernel: Tensor, sizes: Sequence[int]) -> Tensor:
    """A kernel [O, C, D.., S..] as [O, M, H, W]; a view, except where nobody writes to it."""
    return kernel.reshape(len(kernel), -1, *(1,) * (2 - len(sizes)), *sizes)


def blocks(weights: Tensor) -> list[slice]:
    """The out channels of weights [1, O, M, K] whose kernels are built at a time."""
    outs, kernels = weights.shape[1], weights.shape[2]
    step = max(1, BLOCK // kernels) if few(weights) and weights.device.type == "cpu" else outs
    return [slice(start, start + step) for start in range(0, outs, step)]


def few(taps: Tensor) -> bool:
    return taps.shape[-1] <= FEW


def arranged(tensor: Tensor | None, block: slice) -> Any:
    """The block of [n, O, M, K] as [n, T]; None for None."""
    if tensor is None:
        return None
    part = tensor[:, block].flatten(1, 2)
    return part.mT.contiguous() if few(tensor) else part


def joined(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """torch.cat, without a copy of a single part."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)


def grouped(sizes: Sequence[int]) -> list[tuple[slice, int]]:
    """The groups of axes of equal size, which stand together."""
    if len(set(sizes)) == 1:
        return [(slice(0, len(sizes)), sizes[0])]
    return [(slice(axis, axis + 1), size) for axis, size in enumerate(sizes)]


def by_axis(groups: Sequence[Tensor]) -> list[Tensor]:
    """One tensor an axis from one a group."""
    return [each for group in groups for each in group]


def norm(sums: Tensor) -> Tensor:
    """Z + epsilon [T] of the sums [N, T] along each axis."""
    return (sums[0] * sums[1] if len(sums) == 2 else sums[0]) + EPSILON


def contract(share: Tensor, factors: Sequence[Tensor], rows: Tensor, thin: bool) -> None:
    """Write sum_k share_k prod_d factor_dk to rows [o, M, H, W]."""
    *outer, last = factors
    first = reduce(mul, outer, share.unsqueeze(-2))
    if not thin:
        rows.copy_((first @ last.mT).unflatten(0, rows.shape[:2]))
        return
    built = first[0].unsqueeze(1) * last[0]
    for one, other in zip(first[1:], last[1:], strict=True):
        built.addcmul_(one.unsqueeze(1), other)
    rows.copy_(built.unflatten(-1, rows.shape[:2]).permute(2, 3, 0, 1))


def pull(rows: Tensor, factors: Sequence[Tensor], along: Sequence[Tensor], thin: bool) -> None:
    """Write to `along` what the factors' gradients are where every share is 1; rows [o, M, H, W] is the kernel's."""
    *outer, last = factors
    first = outer[0] if outer else torch.ones_like(last[..., :1, :])
    lines = rows.permute(2, 3, 0, 1).flatten(2).contiguous() if thin else rows.flatten(0, 1)
    if thin:
        pull_lanes(first, lines.unbind(0), along[-1])
    else:
        torch.bmm(lines.mT, first, out=along[-1])
    if outer and thin:
        pull_lanes(last, lines.unbind(1), along[0])
    elif outer:
        torch.bmm(lines, last, out=along[0])


def pull_lanes(factor: Tensor, lines: Sequence[Tensor], along: Tensor) -> None:
    """along [K, S', L] = the sum over cells s of factor[:, s] times line s [S', L]; no product of all is ever made."""
    torch.mul(factor[:, :1], lines[0], out=along)
    for cell, line in enumerate(lines[1:], 1):
        along.addcmul_(factor[:, cell : cell + 1], line)


def pulled_back(
    rows: Tensor,
    parts: Sequence[Any],
    kept: Sequence[Any],
    sizes: Sequence[int],
    interpolation: Interpolation,
    thin: bool,
) -> list[Tensor]:
    """The gradients [n, T] of the parts weights, positions and sigmas; rows [o, M, H, W] is the kernel's."""
    (taps,), place, sigma = parts
    sums, *groups = kept
    slopes = [torch.empty_like(group) for group in groups]
    factors, along = by_axis(groups), by_axis(slopes)
    pull(rows, factors, along, thin)
    along_taps = (factors[-1] * along[-1]).sum(-2)
    if sums is not None:
        along_taps = through_norm(along_taps, taps, sums, slopes)
    else:
        for slope in slopes:
            slope.mul_(taps.unsqueeze(-2))
    return [along_taps.unsqueeze(0), *through_phi(slopes, groups, place, sigma, sizes, interpolation)]


def through_norm(along_share: Tensor, taps: Tensor, sums: Tensor, slopes: Sequence[Tensor]) -> Tensor:
    """The gradient of the weights from that of their share w / Z, completing, in place, those of the factors."""
    whole = norm(sums)
    share, along_taps = taps / whole, along_share / whole
    along_norm = (along_taps * share).neg_()
    along_sums = along_norm * sums.flip(0) if len(sums) == 2 else along_norm.unsqueeze(0)
    for slope, each in zip(slopes, along_sums.split([len(slope) for slope in slopes]), strict=True):
        torch.addcmul(each.unsqueeze(-2), slope, share.unsqueeze(-2), out=slope)
    return along_taps


def through_phi(
    slopes: Sequence[Tensor],
    groups: Sequence[Tensor],
    place: Tensor,
    sigma: Tensor | None,
    sizes: Sequence[int],
    interpolation: Interpolation,
) -> list[Tensor]:
    """The gradients of positions and sigmas [N, T] from those of the factors."""
    assert interpolation.pullback is not None
    widths = None if sigma is None else interpolation.width(sigma).unsqueeze(-2)
    pairs = [
        interpolation.pullback(slope, factor, distance(place[axes], size), None if widths is None else widths[axes])
        for slope, factor, (axes, size) in zip(slopes, groups, grouped(sizes), strict=True)
    ]
    along_place = joined([pair[0] for pair in pairs])
    if sigma is None:
        return [along_place]
    return [along_place, joined([pair[1] for pair in pairs if pair[1] is not None]).mul_(sigma.sign())]
