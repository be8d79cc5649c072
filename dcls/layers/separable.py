"""The kernel in plain differentiable operations: every way torch may run, twice differentiable, the others' oracle.

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


def separable(
    weight: Tensor, positions: Tensor, sigmas: Tensor | None, sizes: Sequence[int], interpolation: Interpolation
) -> Tensor:
    """The kernel [L.., S_1, .., S_N] of weights [L.., K] at positions and sigmas [N, L.., K]."""
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
    return interpolation.weights(distance(position, size), None if sigma is None else sigma.unsqueeze(-2))


def distance(position: Tensor, size: int) -> Tensor:
    """From each tap at positions [L.., K] to each cell of an axis, [L.., S, K]."""
    cells = torch.arange(size, dtype=position.dtype, device=position.device).unsqueeze(-1)
    # The centre is added first, in the positions' own precision: it decides on which side of an integer a position
    # like 2.9999998 falls, and so do the published weights.
    return cells - (position + size // 2).unsqueeze(-2)


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


def twice_differentiable(
    gradient: Tensor,
    weight: Tensor,
    positions: Tensor,
    sigmas: Tensor | None,
    sizes: Sequence[int],
    interpolation: Interpolation,
) -> list[Tensor | None]:
    """The gradients of weight, positions and sigmas by autograd and with a graph of their own."""
    inputs = (weight, positions, sigmas)
    kernel = separable(*inputs, sizes, interpolation)
    wanted = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
    found = iter(torch.autograd.grad(kernel, wanted, gradient, create_graph=True))
    return [next(found) if tensor is not None and tensor.requires_grad else None for tensor in inputs]
