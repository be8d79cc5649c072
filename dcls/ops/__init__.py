"""How a constructed kernel is convolved."""

from dcls.ops.reference import convolve

__all__ = ["convolve"]
