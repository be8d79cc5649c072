import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from dcls.errors import ConfigError
from dcls.layers import geometry


def outputs(kernel, stride, padding, dilation=1):
    """Output sizes for as many successive input sizes as the stride tells apart."""
    inputs = [torch.zeros(1, 1, pixels, device="meta") for pixels in range(40, 40 + stride)]
    return [
        F.conv1d(x, torch.zeros(1, 1, kernel, device="meta"), None, stride, padding, dilation).shape[-1] for x in inputs
    ]


@settings(deadline=None, max_examples=60)
@given(
    kernel=st.integers(1, 5),
    dilation=st.integers(1, 3),
    padding=st.integers(0, 4),
    stride=st.integers(1, 4),
    size=st.integers(1, 12),
)
def test_the_padding_found_gives_the_same_output_size_for_every_input(kernel, dilation, padding, stride, size):
    wanted = outputs(kernel, stride, padding, dilation)
    found = geometry.same_output_padding(size, kernel=kernel, dilation=dilation, padding=padding)
    if found is not None:
        assert outputs(size, stride, found) == wanted
    else:
        assert all(outputs(size, stride, other) != wanted for other in range(12))


def test_numbers_of_numpy_are_whole_numbers():
    assert geometry.per_axis("stride", np.int64(2), 2, 1) == (2, 2)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3", None])
def test_what_is_not_a_whole_number_is_refused(value):
    with pytest.raises(ConfigError, match="kernel_count="):
        geometry.whole("kernel_count", value, 1)


@pytest.mark.parametrize("value", [(1, 2, 3), (), 2.5, "17"])
def test_sizes_that_do_not_fit_the_axes_are_refused(value):
    with pytest.raises(ConfigError, match=f"dilated_kernel_size={re.escape(repr(value))}"):
        geometry.per_axis("dilated_kernel_size", value, 2, 1)


@pytest.mark.parametrize("axes", [(), (0, 0), (2,), (-3,), (0, -2), 2, 0.5, "0"])
def test_learned_axes_that_are_none_or_twice_or_absent_are_refused(axes):
    with pytest.raises(ConfigError, match="learned_axes="):
        geometry.chosen_axes(axes, 2)


def test_learned_axes_are_sorted_and_may_count_from_the_end():
    assert geometry.chosen_axes([-1, 0], 3) == (0, 2)
    assert geometry.chosen_axes(1, 3) == (1,)
