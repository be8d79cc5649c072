"""The interpolations: how a tap at a real position spreads over the integer cells of one axis.

phi(x) is a tap's weight on a cell at signed distance x = index - position, and the product over the axes is its weight
on a cell of the kernel. Everything else (separable construction, normalisation, layers, conversion) is the same for
all of them, so a new interpolation is one entry of `INTERPOLATIONS`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dcls.errors import ConfigError


def bilinear(x: Tensor) -> Tensor:
    """1 - r on the cell floor(p), r on the next one, r = p - floor(p). arXiv:2112.03740.

    The derivative at an integer position is that of the interval on its right: -1 on the cell, +1 on the next. This is
    not relu(1 - |x|), whose derivative there is 0, and clamped positions sit on integers.
    """
    rising_or_falling = torch.where(x > 0, 1 - x, 1 + x)
    # A product rather than a `where`: a NaN position must not become an empty kernel.
    return rising_or_falling * ((x > -1) & (x <= 1))


def triangle(x: Tensor) -> Tensor:
    """relu(1 - |x|). No gradient where a position sits exactly on an integer. arXiv:2306.00817."""
    return torch.relu(1 - x.abs())


def wide_triangle(x: Tensor, s: Tensor) -> Tensor:
    """relu(s - |x|). arXiv:2306.00817."""
    return torch.relu(s - x.abs())


# Below it e^a is nothing beside the 1e-7 that a kernel's sums are divided by, and products of it are no normal numbers:
# many processors take a hundred cycles for one, here and in every convolution of the kernel.
LOWEST = -41.0


def gaussian(x: Tensor, s: Tensor) -> Tensor:
    """exp(-x^2 / 2 s^2), and 0 where that is below e^LOWEST. arXiv:2306.00817."""
    exponent = ((-0.5 / s**2) * x).mul_(x)
    if torch.is_grad_enabled():
        return exponent.masked_fill_(exponent < LOWEST, -math.inf).exp_()
    # Three times as fast, because torch's exp is slow where its result is 0, but autograd needs that result unchanged.
    return torch.threshold_(exponent.clamp_(min=LOWEST).exp_(), 1.001 * math.exp(LOWEST), 0.0)


def bilinear_pullback(gradient: Tensor, value: Tensor, x: Tensor, s: None) -> tuple[Tensor, None]:
    return (gradient * torch.where(x > 0, 1, -1) * ((x > -1) & (x <= 1))).sum(-2), None


def triangle_pullback(gradient: Tensor, value: Tensor, x: Tensor, s: None) -> tuple[Tensor, None]:
    return (gradient * x.sign() * (value > 0)).sum(-2), None


def wide_triangle_pullback(gradient: Tensor, value: Tensor, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    along_width = gradient * (value > 0)
    return (along_width * x.sign()).sum(-2), along_width.sum(-2)


def gaussian_pullback(gradient: Tensor, value: Tensor, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    slope = gradient.mul_(value).mul_(x)
    along_position = slope.sum(-2)
    width = s.squeeze(-2)
    square = width * width
    return along_position.div_(square), slope.mul_(x).sum(-2).div_(square * width)


@dataclass(frozen=True)
class Interpolation:
    """One row of the table.

    phi: elementwise function of the distance x, and of the width s where there is one.
    pullback: the gradients of position and width s [.., K] from that of phi, given (it, phi, x [.., S, K], s [.., 1, K]
        or None); it may write to the first. Only speed depends on it: without one autograd differentiates phi.
    alias: a second name that `version` accepts.
    normalised: each tap is divided by the sum of its weights over the kernel (plus 1e-7).
    sigma_floor: the width is s = sigma_floor + |SIG|; None: there is no SIG.
    sigma_init: the value SIG starts from.
    """

    phi: Callable[..., Tensor]
    pullback: Callable[..., tuple[Tensor, Tensor | None]] | None = None
    alias: str = ""
    normalised: bool = True
    sigma_floor: float | None = None
    sigma_init: float | None = None

    @property
    def has_sigma(self) -> bool:
        return self.sigma_floor is not None

    def weights(self, distance: Tensor, sigma: Tensor | None) -> Tensor:
        """phi at distances x, with the width that SIG stands for; the shapes broadcast."""
        if self.sigma_floor is None or sigma is None:
            return self.phi(distance)
        return self.phi(distance, self.width(sigma))

    def width(self, sigma: Tensor) -> Tensor:
        """The s that SIG stands for."""
        return sigma.abs() + (self.sigma_floor or 0.0)


INTERPOLATIONS: dict[str, Interpolation] = {
    "v0": Interpolation(bilinear, bilinear_pullback, alias="bilinear", normalised=False),
    "v1": Interpolation(triangle, triangle_pullback, alias="triangle"),
    # |SIG| has no gradient at 0, so this one stays a triangle of width 1 unless it is started elsewhere.
    "max": Interpolation(wide_triangle, wide_triangle_pullback, sigma_floor=1.0, sigma_init=0.0),
    "gauss": Interpolation(gaussian, gaussian_pullback, sigma_floor=0.27, sigma_init=0.23),
}


def resolve(version: str) -> str:
    """The short name of a version given by its short name or its alias. ConfigError where there is none."""
    for short, interpolation in INTERPOLATIONS.items():
        if version == short or (interpolation.alias and version == interpolation.alias):
            return short
    known = ", ".join(f"{short} ({row.alias})" if row.alias else short for short, row in INTERPOLATIONS.items())
    raise ConfigError(f"version={version!r} is no interpolation: choose one of {known}")
