"""How a constructed kernel is convolved: one operator for depthwise convolutions, one file a backend beneath it."""

from dcls.ops.adoption import adopt
from dcls.ops.convolution import convolve, explain, side_by_side
from dcls.ops.dispatch import get_backend, picked, set_backend, set_choices, usable

__all__ = [
    "adopt",
    "convolve",
    "explain",
    "get_backend",
    "picked",
    "set_backend",
    "set_choices",
    "side_by_side",
    "usable",
]
