"""How much a model's heat maps agree with people's: the ClickMe score of arXiv 2408.03164.

N images, H x W pixels of a map.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

HUMAN_CEILING = 0.65753
"""Rank correlation of people with people, as published: a model that agrees as well scores 1."""
SIDE, COARSE = 224, 64
KERNEL, SIGMA = 10, 10.0


@dataclass(frozen=True)
class Alignment:
    """score: mean rank correlation over the human ceiling, with its standard error over images. skipped: images where
    one of the maps is constant. NaN where nothing is left.
    """

    score: float
    standard_error: float
    images: int
    skipped: int


def alignment(correlations: Tensor) -> Alignment:
    """Of the rank correlation of each image [N], NaN where a map is constant."""
    counted = correlations[~correlations.isnan()].double() / HUMAN_CEILING
    error = counted.std().item() / math.sqrt(len(counted)) if len(counted) > 1 else math.nan
    return Alignment(counted.mean().item(), error, len(counted), len(correlations) - len(counted))


def human_maps(stored: Tensor) -> Tensor:
    """Maps [N, 224, 224] of ClickMe's [N, 256, 256]: to 64 pixels, blurred, to 224; bilinear without smoothing.

    The Gaussian has 10 x 10 cells, so that it has no centre. As in the published code its values are those at -5 .. 4
    from left to right and at 4 .. -5 from top to bottom; of the zeros around a map one more is on the right and below.
    """
    coarse = F.interpolate(stored[:, None], COARSE, mode="bilinear", align_corners=False)
    across = torch.exp(-(torch.arange(-5.0, 5.0, device=stored.device) ** 2) / (2 * SIGMA**2))
    kernel = across.flip(0)[:, None] * across
    padded = F.pad(coarse, (KERNEL // 2 - 1, KERNEL // 2) * 2)
    blurred = F.conv2d(padded, (kernel / kernel.sum())[None, None])
    return F.interpolate(blurred, SIDE, mode="bilinear", align_corners=False)[:, 0]


def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's correlation of maps [N, H, W], image by image, as float64 [N]; equal pixels share their mean rank.

    NaN where one of the two maps is constant.
    """
    a, b = (_centred_ranks(maps.flatten(1)) for maps in (first, second))
    return (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt()


def _centred_ranks(values: Tensor) -> Tensor:
    """[N, P], less their mean. Twice a rank is a whole number, so that a constant map has exactly zeros."""
    ordered, values = values.sort(1).values, values.contiguous()
    below = torch.searchsorted(ordered, values)
    up_to = torch.searchsorted(ordered, values, right=True)
    return (below + up_to - values.shape[1]).double() / 2
