import math

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate
from scipy.stats import spearmanr

from dcls.analysis.alignment import HUMAN_CEILING, alignment, human_maps, rank_correlation


def test_the_rank_correlation_is_scipys_with_and_without_ties():
    torch.manual_seed(0)
    first, second = torch.randn(4, 30, 20), torch.randn(4, 30, 20)
    second[1] = (first[1] + second[1]).round()
    first[2], second[2] = first[2].relu(), second[2].clamp_min(0.3)
    second[3] = -first[3].exp()
    expected = [spearmanr(a.flatten(), b.flatten()).statistic for a, b in zip(first, second)]
    np.testing.assert_allclose(rank_correlation(first, second), expected, rtol=1e-12)
    assert rank_correlation(first, second)[3] == -1


def test_a_constant_map_has_no_correlation():
    maps = torch.rand(3, 9, 9)
    flat = maps.clone()
    flat[1] = 0.3
    assert rank_correlation(maps, flat).isnan().tolist() == [False, True, False]
    assert rank_correlation(flat, maps).isnan().tolist() == [False, True, False]


def test_the_human_map_is_blurred_by_a_gaussian_without_a_centre():
    stored = torch.zeros(2, 256, 256)
    stored[0] = torch.arange(256.0)[:, None] + 2 * torch.arange(256.0)
    stored[1, 120:124, 40:44] = 255.0
    maps = human_maps(stored)
    offsets = np.arange(-5, 5)
    kernel = np.exp(-(offsets[None] ** 2 + offsets[::-1, None] ** 2) / 200)
    # Halfway between 4 pixels lie the 2 in the middle.
    coarse = stored.reshape(2, 64, 4, 64, 4)[:, :, 1:3, :, 1:3].mean((2, 4)).double().numpy()
    # scipy's kernel of 10 is centred on its cell 5, TensorFlow's on cell 4
    blurred = [correlate(each, kernel / kernel.sum(), mode="constant", origin=-1) for each in coarse]
    expected = torch.nn.functional.interpolate(torch.tensor(np.array(blurred))[:, None], 224, mode="bilinear")[:, 0]
    torch.testing.assert_close(maps.double(), expected, rtol=1e-5, atol=1e-3)


def test_perfect_agreement_scores_one_over_the_ceiling():
    maps = torch.rand(5, 8, 8)
    maps[4] = 1.0
    found = alignment(rank_correlation(maps, 3 * maps + 1))
    assert found.score == pytest.approx(1 / HUMAN_CEILING)
    assert (found.images, found.skipped) == (4, 1)
    assert found.standard_error == pytest.approx(0, abs=1e-12)


def test_the_standard_error_is_that_of_a_mean():
    found = alignment(torch.tensor([0.1, 0.2, 0.6, math.nan], dtype=torch.float64))
    assert found.score == pytest.approx(0.3 / HUMAN_CEILING)
    assert found.standard_error == pytest.approx(np.std([0.1, 0.2, 0.6], ddof=1) / 3**0.5 / HUMAN_CEILING)
    assert math.isnan(alignment(torch.tensor([math.nan])).score)
