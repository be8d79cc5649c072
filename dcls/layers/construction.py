"""The dense kernel that a DCLS layer convolves with, and which way it is built.

`separable` is the method in plain differentiable operations: the oracle, and what compilers see and fuse by themselves.
Eager torch spends most of that on autograd's intermediate results, so three ways have gradients of their own:
`generated` machine code, where there can be any; `scattering` for v0; and `factoring` for any interpolation whose
derivative is known. The choice is a function of the arguments and of `dcls.ops.set_backend` alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dcls.layers.factoring import Factored
from dcls.layers.generated import Generated, supports
from dcls.layers.interpolation import Interpolation, bilinear
from dcls.layers.scattering import Scattered
from dcls.layers.separable import separable
from dcls.ops.observers import observed


def construct(
    weight: Tensor,
    positions: Tensor,
    sigmas: Tensor | None,
    sizes: Sequence[int],
    interpolation: Interpolation,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """The kernel [O, C, D.., S_1, .., S_N] of weights [O, C, D.., K] at positions [N, O, C, D.., K].

    positions are in cells from the kernel's centre, index S_d // 2; they may lie outside the kernel.
    sigmas has the shape of positions, or is None for an interpolation without widths. Any floating dtype, float64
    included; differentiable in weight, positions and sigmas, twice too.
    memory_format: how the kernel lies in memory; channels_last for kernels of four axes.
    """
    kernel = _built(weight, positions, sigmas, tuple(sizes), interpolation, memory_format)
    return kernel.contiguous(memory_format=memory_format)


def _built(
    weight: Tensor,
    positions: Tensor,
    sigmas: Tensor | None,
    sizes: tuple[int, ...],
    interpolation: Interpolation,
    memory_format: torch.memory_format,
) -> Tensor:
    if not _eager(weight, positions, sigmas):
        return separable(weight, positions, sigmas, sizes, interpolation)
    if weight.dim() > 3:
        # Dense axes between C and the cells would be strangely strided.
        memory_format = torch.contiguous_format
    if supports(weight, sizes, interpolation) is None:
        sigmas = sigmas if interpolation.has_sigma else None
        return Generated.apply(weight, positions, sigmas, sizes, interpolation, memory_format)
    # Scattered sums have no fixed order on CUDA: there the two cells of an axis are a factor like any other.
    if interpolation.phi is bilinear and weight.device.type == "cpu":
        return Scattered.apply(weight, positions, sizes, memory_format)
    if interpolation.pullback is not None and len(sizes) <= 2:
        return Factored.apply(weight, positions, sigmas, sizes, interpolation, memory_format)
    return separable(weight, positions, sigmas, sizes, interpolation)


def _eager(*tensors: Tensor | None) -> bool:
    """Are these plain tensors whose numbers can be read now, of types that gradients of our own are exact for?"""
    if observed(*tensors):
        return False
    dtypes = {tensor.dtype for tensor in tensors if tensor is not None}
    return dtypes in ({torch.float32}, {torch.float64}) and all(tensor is None or tensor.numel() for tensor in tensors)
