"""The layer: a convolution whose kernel is built from weights and learnable positions at each forward."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcls import ops
from dcls.errors import ConfigError
from dcls.layers import geometry
from dcls.layers.construction import construct
from dcls.layers.drop_in import options_of
from dcls.layers.interpolation import INTERPOLATIONS, Interpolation, resolve


class DclsNd(nn.Module):
    """Dilated Convolution with Learnable Spacings over `dimensions` axes (arXiv:2112.03740, arXiv:2306.00817).

    A kernel of dilated_kernel_size cells is the sum of kernel_count taps, each with a weight and a learnable position.
    Input [B, in_channels, H..] or [in_channels, H..], output as of the torch convolution with a kernel of that size.

    in_channels, out_channels, stride, padding (numbers, 'same' or 'valid'), groups, bias, padding_mode: as in torch.
    kernel_count: taps of each (out, in) kernel. dilated_kernel_size: cells along each axis.
    version: the interpolation, v0 (bilinear), v1 (triangle), max or gauss.
    learned_axes: the axes that positions move along (None: all). Each cell of the other axes has taps of its own; where
        their size is 1 the kernel is flat.
    position_init_std: standard deviation, in cells, of the initial positions about the centre.
    sigma_init: where SIG starts (None: the version's own value).

    Parameters, with D the sizes above 1 of the axes that are not learned, N the learned axes and K the taps:
    weight [out, in / groups, D.., K]; P [N, out, in / groups, D.., K], in cells from the centre, index size // 2, P[i]
    along the i-th learned axis in torch's order; SIG like P, or None; bias [out] or None.
    Positions may leave the kernel; `clamp_` brings them back, after each optimizer step.

    Raises ConfigError (a ValueError) that names the argument, at construction.
    """

    dimensions: ClassVar[int]
    weight: nn.Parameter
    P: nn.Parameter
    SIG: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_count: int,
        stride: int | Sequence[int] = 1,
        padding: str | int | Sequence[int] = 0,
        dilated_kernel_size: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        version: str = "v0",
        *,
        learned_axes: int | Sequence[int] | None = None,
        position_init_std: float = 0.5,
        sigma_init: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        n = self.dimensions
        self.groups = geometry.whole("groups", groups, 1)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_count = geometry.whole("kernel_count", kernel_count, 1)
        self.stride = geometry.per_axis("stride", stride, n, 1)
        self.dilated_kernel_size = geometry.per_axis("dilated_kernel_size", dilated_kernel_size, n, 1)
        self.learned_axes = geometry.chosen_axes(learned_axes, n)
        self._pads = geometry.pads(padding, self.dilated_kernel_size, self.stride)
        self.padding = padding if isinstance(padding, str) else tuple(before for before, _ in self._pads)
        self.padding_mode = geometry.known_mode(padding_mode)
        self.version = resolve(version)
        self.position_init_std = _checked_std(position_init_std)
        self.sigma_init = self._checked_sigma(sigma_init)
        self._register(bias, {"device": device, "dtype": dtype})
        self.reset_parameters()

    def _register(self, bias: bool, factory: dict[str, Any]) -> None:
        cells = [size for axis, size in self._fixed if size > 1]
        inputs = geometry.divide("in_channels", self.in_channels, self.groups)
        geometry.divide("out_channels", self.out_channels, self.groups)
        shape = (self.out_channels, inputs, *cells, self.kernel_count)
        by_axis = (len(self.learned_axes), *shape)
        self.weight = nn.Parameter(torch.empty(shape, **factory))
        self.P = nn.Parameter(torch.empty(by_axis, **factory))
        self.register_parameter(
            "SIG", nn.Parameter(torch.empty(by_axis, **factory)) if self.interpolation.has_sigma else None
        )
        self.register_parameter("bias", nn.Parameter(torch.empty(self.out_channels, **factory)) if bias else None)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw all parameters: weight and bias as torch's convolutions do, with kernel_count in place of the size."""
        # The same draws in the same order as the reference package's: equal seeds give equal layers.
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)
        for position in self.P:
            nn.init.normal_(position, 0, self.position_init_std)
        self.clamp_()
        if self.SIG is not None and self.sigma_init is not None:
            nn.init.constant_(self.SIG, self.sigma_init)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As of any module, but that parameters stay contiguous: none of them is a map that a memory format is for."""
        super()._apply(lambda tensor: fn(tensor.flatten()).view(tensor.shape), recurse)
        return self

    @property
    def interpolation(self) -> Interpolation:
        return INTERPOLATIONS[self.version]

    @property
    def learned_sizes(self) -> tuple[int, ...]:
        """Cells along each learned axis."""
        return tuple(self.dilated_kernel_size[axis] for axis in self.learned_axes)

    @property
    def _fixed(self) -> list[tuple[int, int]]:
        """(axis, cells) of the axes that are not learned."""
        return [pair for pair in enumerate(self.dilated_kernel_size) if pair[0] not in self.learned_axes]

    @property
    def parameter_roles(self) -> dict[str, str]:
        """What the optimizer should know: which parameters are positions and which are sigmas."""
        roles = {"P": "position", "SIG": "sigma"}
        return roles if self.SIG is not None else {"P": roles["P"]}

    @property
    def position_limits(self) -> tuple[int, ...]:
        """The largest |P[i]| that `clamp_` leaves: size // 2 along each learned axis, in cells."""
        return tuple(size // 2 for size in self.learned_sizes)

    @torch.no_grad()
    def clamp_(self) -> Self:
        """Bring positions back into the kernel, in place. At even sizes the upper limit is one past the last cell."""
        for position, limit in zip(self.P, self.position_limits, strict=True):
            position.clamp_(-limit, limit)
        return self

    def construct_kernel(self) -> Tensor:
        """The dense kernel [out, in / groups, *dilated_kernel_size], in float32 (float64 for float64 parameters).

        Under autocast too: bfloat16 has steps of 1/16 of a cell at index 8 and beyond.
        """
        return self._kernel(torch.contiguous_format)

    def _kernel(self, memory_format: torch.memory_format, together: int = 1) -> Tensor:
        """The kernel, in the memory format unless it has dense axes. together: L, for a depthwise [C / L, L, H, W]."""
        dtype = torch.promote_types(torch.promote_types(self.weight.dtype, self.P.dtype), torch.float32)
        weight, positions = (_together(each.to(dtype), together) for each in (self.weight, self.P))
        sigmas = None if self.SIG is None else _together(self.SIG.to(dtype), together)
        with _without_autocast(self.weight.device.type):
            kernel = construct(weight, positions, sigmas, self.learned_sizes, self.interpolation, memory_format)
        return self._in_axis_order(kernel)

    def _form_read(self, x: Tensor) -> tuple[torch.memory_format, int]:
        """How the convolution of x reads a kernel, see _kernel: copying one takes longer than building it."""
        if torch._C._are_functorch_transforms_active():
            return torch.contiguous_format, 1  # vmap knows no memory formats
        planar = self.weight.dim() == 3 and self.learned_axes == (0, 1)
        shape = (*self.weight.shape[:2], *self.dilated_kernel_size)
        together = ops.side_by_side(x, shape, self.groups) if planar else 1
        if together > 1:
            return torch.channels_last, together
        last = self.weight.dim() == 3 and self.weight.shape[1] > 1 and x.dim() == 4 and len(self.learned_axes) == 2
        # A tensor that is both, as one of single pixels, would come out of a convolution with such a kernel as one.
        last = last and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        return (torch.channels_last if last else torch.contiguous_format), 1

    def _in_axis_order(self, kernel: Tensor) -> Tensor:
        """[O, C, cells of the dense, then of the learned axes] -> [O, C, cells of every axis in torch's order]."""
        axes = [axis for axis, _ in self._fixed] + list(self.learned_axes)
        if axes == sorted(axes) and len(axes) == kernel.dim() - 2:
            return kernel
        kernel = kernel.reshape(*kernel.shape[:2], *(self.dilated_kernel_size[axis] for axis in axes))
        return kernel.permute(0, 1, *(2 + axes.index(axis) for axis in range(self.dimensions))).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        padding = [before for before, _ in self._pads]
        if self.padding_mode != "zeros" or any(before != after for before, after in self._pads):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x = F.pad(x, [each for pair in reversed(self._pads) for each in pair], mode=mode)
            padding = [0] * self.dimensions
        kernel = self._kernel(*self._form_read(x)).to(self.weight.dtype)
        return ops.convolve(x, kernel, self.bias, self.stride, padding, self.groups)

    @classmethod
    def like(
        cls, conv: nn.Module, *, kernel_count: int, dilated_kernel_size: int | Sequence[int], **options: Any
    ) -> Self:
        """The drop-in for a torch convolution: same channels, stride, groups, bias, padding mode and output size.

        conv: nn.Conv1d, nn.Conv2d or nn.Conv3d, of this class's dimensions. options: further arguments of the layer,
        for example version or learned_axes; device and dtype are the convolution's. Its weights are not taken over.

        Raises ConfigError for subclasses and other modules, for padding given as a string, and, with the nearest size
        that works, for a size that no integer padding makes fit.
        """
        size = geometry.per_axis("dilated_kernel_size", dilated_kernel_size, cls.dimensions, 1)
        arguments = options_of(conv, cls.dimensions, size) | options
        layer = cls(kernel_count=kernel_count, dilated_kernel_size=size, **arguments)
        return layer.train(conv.training)

    def _checked_sigma(self, sigma_init: float | None) -> float | None:
        if sigma_init is not None and not self.interpolation.has_sigma:
            raise ConfigError(f"sigma_init={sigma_init} has no effect with version={self.version!r}: leave it out")
        return self.interpolation.sigma_init if sigma_init is None else float(sigma_init)

    def extra_repr(self) -> str:
        shown = f"{self.in_channels}, {self.out_channels}, kernel_count={self.kernel_count}, "
        shown += f"dilated_kernel_size={self.dilated_kernel_size}, version={self.version}"
        usual = {
            "stride": (1,) * self.dimensions,
            "padding": (0,) * self.dimensions,
            "groups": 1,
            "padding_mode": "zeros",
            "learned_axes": tuple(range(self.dimensions)),
        }
        for name, value in usual.items():
            if getattr(self, name) != value:
                shown += f", {name}={getattr(self, name)}"
        return shown if self.bias is not None else shown + ", bias=False"


class Dcls1d(DclsNd):
    __doc__ = DclsNd.__doc__
    dimensions = 1


class Dcls2d(DclsNd):
    __doc__ = DclsNd.__doc__
    dimensions = 2


class Dcls3d(DclsNd):
    __doc__ = DclsNd.__doc__
    dimensions = 3


def _checked_std(position_init_std: float) -> float:
    if not 0 <= position_init_std < math.inf:
        raise ConfigError(f"position_init_std={position_init_std} must be zero or a positive number of cells")
    return float(position_init_std)


def _together(values: Tensor, count: int) -> Tensor:
    """[.., C, 1, K] -> [.., C / count, count, K] for a count above 1."""
    return values if count == 1 else values.reshape(*values.shape[:-3], -1, count, values.shape[-1])


def _without_autocast(device_type: str) -> contextlib.AbstractContextManager[Any]:
    # Devices without autocast, as meta, refuse to enter the context.
    if not torch.amp.is_autocast_available(device_type):
        return contextlib.nullcontext()
    return torch.autocast(device_type, enabled=False)
