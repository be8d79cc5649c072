"""Positions in the layout of the reference package (PyPI `DCLS` 0.1.1), and back.

There P[i] does not always move taps along the i-th axis, and it is measured from index S_i // 2 of its own size S_i
even where it moves them along another axis a. Here P[a] moves along axis a and is measured from S_a // 2.
Weights need no conversion, but Dcls3_1d keeps dense axes of size 1 in its shapes, which are left out here.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dcls.errors import ConfigError
from dcls.layers.interpolation import resolve


def reference_axes(version: str, dimensions: int) -> tuple[int, ...]:
    """For each i the axis that the reference's P[i] moves taps along, in a kernel with that many learned axes."""
    orders = {1: (0,), 2: (1, 0), 3: (2, 1, 0)}
    if resolve(version) == "v0":
        orders = {1: (0,), 2: (0, 1), 3: (0, 2, 1)}
    if dimensions not in orders:
        raise ConfigError(f"dimensions={dimensions} must be 1, 2 or 3 learned axes")
    return orders[dimensions]


def from_reference(
    positions: Tensor, sigmas: Tensor | None = None, *, version: str, dilated_kernel_size: Sequence[int]
) -> tuple[Tensor, Tensor | None]:
    """P and SIG [N, ..] of the reference package as this package's. Nothing is clamped.

    dilated_kernel_size: cells along each learned axis, in the axes' order. Raises ConfigError where it does not fit P.
    """
    axes, shift = _plan(positions, version, dilated_kernel_size)
    order = [axes.index(axis) for axis in range(len(axes))]
    return (positions + shift)[order], None if sigmas is None else sigmas[order]


def to_reference(
    positions: Tensor, sigmas: Tensor | None = None, *, version: str, dilated_kernel_size: Sequence[int]
) -> tuple[Tensor, Tensor | None]:
    """The inverse of `from_reference`."""
    axes, shift = _plan(positions, version, dilated_kernel_size)
    order = list(axes)
    return positions[order] - shift, None if sigmas is None else sigmas[order]


def _plan(positions: Tensor, version: str, sizes: Sequence[int]) -> tuple[tuple[int, ...], Tensor]:
    """The axis of each reference P[i], and what to add to P[i] because it is measured from another centre."""
    if len(sizes) != len(positions):
        raise ConfigError(
            f"dilated_kernel_size={tuple(sizes)} must have one size for each of P's {len(positions)} axes"
        )
    axes = reference_axes(version, len(sizes))
    shifts = [sizes[i] // 2 - sizes[axis] // 2 for i, axis in enumerate(axes)]
    shift = torch.tensor(shifts, dtype=positions.dtype, device=positions.device)
    return axes, shift.view(-1, *(1,) * (positions.dim() - 1))
