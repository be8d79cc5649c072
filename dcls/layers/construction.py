"""The dense kernel that a DCLS layer convolves with, built from its weights and positions.

    kernel[i_1, .., i_n] = sum_k  w_k / Z_k * prod_d  phi((i_d - S_d // 2) - p_kd ; s_kd)

The product over axes is separable: one factor an axis, then one contraction over the taps. Nothing of size
S_1 x .. x S_n x K is ever made for the last axis.

Letters: O out channels, C in channels / groups, D dense axes (zero or more), K taps, S cells of a learned axis,
N learned axes, L = [O, C, D..] together.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dcls.layers.interpolation import Interpolation

EPSILON = 1e-7


def construct(
    weight: Tensor, positions: Tensor, sigmas: Tensor | None, sizes: Sequence[int], interpolation: Interpolation
) -> Tensor:
    """The kernel [O, C, D.., S_1, .., S_N] of weights [O, C, D.., K] at positions [N, O, C, D.., K].

    positions are in cells from the kernel's centre, index S_d // 2; they may lie outside the kernel.
    sigmas has the shape of positions, or is None for an interpolation without widths. Any floating dtype, float64
    included; differentiable in weight, positions and sigmas, twice too.
    """
    widths = [None] * len(sizes) if sigmas is None else list(sigmas)
    factors = [
        axis_factor(position, width, size, interpolation)
        for position, width, size in zip(positions, widths, sizes, strict=True)
    ]
    if interpolation.normalised:
        weight = weight / (total(factors) + EPSILON)
    return contract(weight, factors)


def axis_factor(position: Tensor, sigma: Tensor | None, size: int, interpolation: Interpolation) -> Tensor:
    """phi of every cell and tap, [L.., S, K], for positions [L.., K] along one axis."""
    cells = torch.arange(size, dtype=position.dtype, device=position.device).unsqueeze(-1)
    # The centre is added first, in the positions' own precision: it decides on which side of an integer a position
    # like 2.9999998 falls, and so do the published weights.
    distance = cells - (position + size // 2).unsqueeze(-2)
    return interpolation.weights(distance, None if sigma is None else sigma.unsqueeze(-2))


def total(factors: Sequence[Tensor]) -> Tensor:
    """Z [L.., K]: the sum of each tap over the whole kernel, as the product of its sums along the axes."""
    result = factors[0].sum(-2)
    for factor in factors[1:]:
        result = result * factor.sum(-2)
    return result


def contract(weight: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """sum_k weight[.., k] prod_d factors[d][.., i_d, k], as [L.., S_1, .., S_N]."""
    *outer, last = factors
    taps = weight.unsqueeze(-2)
    for factor in outer:
        taps = (taps.unsqueeze(-2) * factor.unsqueeze(-3)).flatten(-3, -2)
    kernel = taps @ last.transpose(-1, -2)
    return kernel.unflatten(-2, [factor.shape[-2] for factor in outer]) if outer else kernel.squeeze(-2)
