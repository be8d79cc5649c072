"""The repulsive loss, which keeps the taps of a kernel from meeting (arXiv:2112.03740)."""

import torch
from torch import Tensor, nn

from dcls.layers.inventory import positions


def repulsive_loss(model: nn.Module) -> Tensor:
    """Mean over a model's distinct position parameters of their `repulsion`; a scalar, 0 without any.

    The papers' recipe adds its square to the loss where the zero-based epoch is above 20.
    """
    terms = [repulsion(position) for position in positions(model).values()]
    return torch.stack(terms).mean() if terms else torch.zeros(())


def repulsion(position: Tensor) -> Tensor:
    """2 / (K (K - 1)) sum_{i<j} relu(1 - |p_i - p_j|), averaged over the kernels of positions [N, .., K].

    Distances are Euclidean, in cells: 1 when all taps coincide, 0 when all are at least a cell apart, 0 for one tap.
    """
    count = position.shape[-1]
    position = position.to(torch.promote_types(position.dtype, torch.float32))
    # Taps first and a written-out norm: ten times faster than indexing the last axis and vector_norm.
    taps = position.flatten(1, -2).transpose(1, 2).contiguous()
    first, second = torch.triu_indices(count, count, offset=1, device=position.device)
    squared = (taps.index_select(1, first) - taps.index_select(1, second)).square().sum(0)
    # Coincident taps get gradient 0, not the NaN of sqrt at 0.
    apart = squared != 0
    distance = torch.where(apart, squared, 1).sqrt() * apart
    return torch.relu(1 - distance).sum(0).mean() * (2 / max(count * (count - 1), 1))
