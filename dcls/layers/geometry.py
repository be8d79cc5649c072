"""The integers of a convolution: checked, one per axis, and related to each other."""

from collections.abc import Sequence
from numbers import Integral
from typing import Literal

from dcls.errors import ConfigError

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
PADDING_MODES: tuple[PaddingMode, ...] = ("zeros", "reflect", "replicate", "circular")


def whole(name: str, value: object, minimum: int) -> int:
    """value as an int of at least minimum, or a ConfigError that names the option."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < minimum:
        raise ConfigError(f"{name}={value!r} must be a whole number of at least {minimum}")
    return int(value)


def per_axis(name: str, value: int | Sequence[int], dimensions: int, minimum: int) -> tuple[int, ...]:
    """One number for all axes, or one per axis, as one per axis. ConfigError otherwise."""
    several = value if isinstance(value, Sequence) and not isinstance(value, str) else None
    values: Sequence[object] = (value,) * dimensions if several is None else several
    if len(values) != dimensions:
        raise ConfigError(f"{name}={value!r} has {len(values)} numbers: give one, or one for each of {dimensions} axes")
    return tuple(whole(name, each, minimum) for each in values)


def divide(name: str, channels: int, groups: int) -> int:
    """channels / groups, or a ConfigError."""
    if whole(name, channels, 1) % groups:
        raise ConfigError(f"{name}={channels} is not divisible by groups={groups}: choose groups that divides it")
    return channels // groups


def chosen_axes(axes: int | Sequence[int] | None, dimensions: int) -> tuple[int, ...]:
    """The learned axes in increasing order; None means all of them, negative ones count from the last."""
    if axes is None:
        return tuple(range(dimensions))
    wanted = axes if isinstance(axes, Sequence) else (axes,)
    known = [axis for axis in wanted if isinstance(axis, Integral) and -dimensions <= axis < dimensions]
    chosen = sorted({int(axis) % dimensions for axis in known})
    if not chosen or len(chosen) != len(wanted):
        raise ConfigError(f"learned_axes={axes!r} must be one or more different axes of 0..{dimensions - 1}")
    return tuple(chosen)


def known_mode(padding_mode: str) -> PaddingMode:
    """The padding mode, or a ConfigError that lists them."""
    for mode in PADDING_MODES:
        if mode == padding_mode:
            return mode
    raise ConfigError(f"padding_mode={padding_mode!r} must be one of {', '.join(PADDING_MODES)}")


def pads(
    padding: str | int | Sequence[int], sizes: Sequence[int], stride: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """Pixels added before and after each axis. 'same' keeps the input's size and puts an odd pixel at the end."""
    if padding == "valid":
        return ((0, 0),) * len(sizes)
    if padding == "same":
        if any(step != 1 for step in stride):
            raise ConfigError(f"padding='same' needs stride 1, not {tuple(stride)}: give padding as numbers")
        return tuple(((size - 1) // 2, size // 2) for size in sizes)
    if isinstance(padding, str):
        raise ConfigError(f"padding={padding!r} must be 'same', 'valid' or numbers")
    return tuple((each, each) for each in per_axis("padding", padding, len(sizes), 0))


def same_output_padding(size: int, *, kernel: int, dilation: int, padding: int) -> int | None:
    """The padding with which a kernel of `size` cells gives the output size of the other convolution, if any does.

    Whatever the input's size L and the stride: both outputs have floor((L + 2 padding - extent) / stride) + 1 pixels.
    """
    doubled = 2 * padding + size - 1 - dilation * (kernel - 1)
    return None if doubled < 0 or doubled % 2 else doubled // 2
