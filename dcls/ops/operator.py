"""The operators dcls::depthwise and dcls::depthwise_gradients: what torch's compiler, exporter and autocast see.

    output[b, c, y, x] = bias[c] + sum_rs  kernel[c, 0, r, s] * input[b, c, y * stride - padding + r, ..s]

with zeros beyond the border. Both are opaque to torch, and the backend is chosen inside, so that one graph serves all.
Torch's way to them takes longer than small images do, so where nobody but autograd looks on Depthwise does the same.

Letters: B batch, C channels, H.. one or two spatial axes of the input, S.. of the kernel, Y.. of the output.
The kernels of L neighbouring channels may be one entry of [C / L, L, S..], in channels_last where that is 4-D.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from dcls.errors import ConfigError
from dcls.ops import cpu
from dcls.ops.case import Case, case_of, output_size
from dcls.ops.dispatch import Backend, choose
from dcls.ops.observers import observed


def _forward(
    x: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    backend: str | None = None,
) -> Tensor:
    """x [B, C, H..] convolved with kernel [C, 1, S..], or [C / L, L, S..]; stride and padding have one entry an axis.

    Channels that are neighbours in x (channels_last) are neighbours in the result. backend: None for what
    dcls.ops.set_backend chose, or a name. Differentiable once. ConfigError for shapes and dtypes that do not fit.
    """
    case = _checked(x, kernel, bias, stride, padding)
    if case.batch == 0:
        return _fresh(x, _output_shape(x, kernel, stride, padding))
    chosen = choose(case, backend)
    output = chosen.forward(_flat(x), _flat_kernel(kernel, chosen), bias, case.stride, case.padding)
    return _in_format(output, x)


def _gradients(
    grad: Tensor,
    x: Tensor,
    kernel: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    wanted: Sequence[bool],
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, kernel and bias [C] for grad [B, C, Y..]; those not wanted have no elements."""
    case = _checked(x, kernel, None, stride, padding)
    if grad.shape != _output_shape(x, kernel, stride, padding) or grad.dtype != x.dtype:
        raise ConfigError(f"grad {tuple(grad.shape)} {grad.dtype} does not fit a convolution of {case}")
    if case.batch == 0 or not any(wanted):
        return _empty_gradients(x, kernel, wanted)
    chosen, flat_grad, flat_x = choose(case, backend), _flat(grad), _flat(x)
    flat_kernel = _flat_kernel(kernel, chosen)
    of_x = of_kernel = of_bias = None
    if wanted[0]:
        of_x = _in_format(chosen.input_gradient(flat_grad, flat_x, flat_kernel, case.stride, case.padding), x)
    if wanted[1]:
        of_kernel, of_bias = chosen.kernel_gradient(
            flat_grad, flat_x, flat_kernel, case.stride, case.padding, wanted[2]
        )
        of_kernel = of_kernel.reshape(kernel.shape).contiguous(memory_format=_format(kernel))
    elif wanted[2]:
        of_bias = flat_grad.sum((0, 2, 3))
    return _or_empty(of_x, x), _or_empty(of_kernel, x), _or_empty(of_bias, x)


depthwise = torch.library.custom_op("dcls::depthwise", _forward, mutates_args=())
depthwise_gradients = torch.library.custom_op("dcls::depthwise_gradients", _gradients, mutates_args=())


@depthwise.register_fake
def _(
    x: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    backend: str | None = None,
) -> Tensor:
    return _fresh(x, _output_shape(x, kernel, stride, padding))


@depthwise_gradients.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    kernel: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    wanted: Sequence[bool],
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_gradients(x, kernel, wanted)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, kernel, _, ctx.stride, ctx.padding, ctx.backend = inputs
    ctx.save_for_backward(x, kernel)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (x, kernel), wanted = ctx.saved_tensors, list(ctx.needs_input_grad[:3])
    # Where a graph is wanted the operator's own, which refuses to be differentiated again.
    short = not torch.is_grad_enabled() and unobserved(grad, x, kernel)
    way = _gradients if short else depthwise_gradients
    gradients = way(grad, x, kernel, ctx.stride, ctx.padding, wanted, ctx.backend)
    return *(each if want else None for each, want in zip(gradients, wanted, strict=True)), None, None, None


def _refuse(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError(
        "the gradients of dcls::depthwise cannot be differentiated again: "
        "for second derivatives call dcls.ops.set_backend('reference')"
    )


def unobserved(*tensors: Tensor | None) -> bool:
    """Is autograd the only one to look on?"""
    devices = {tensor.device.type for tensor in tensors if tensor is not None}
    return devices in ({"cpu"}, {"cuda"}) and not observed(*tensors) and not torch.is_autocast_enabled(devices.pop())


class Depthwise(torch.autograd.Function):
    """The arguments, the result and the gradients of depthwise()."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        _save(ctx, inputs, None)
        return _forward(*inputs)

    backward = staticmethod(_backward)


def shortest(*tensors: Tensor | None) -> Callable[..., Tensor]:
    """depthwise(), or what does the same in less time for these x, kernel and bias."""
    return Depthwise.apply if unobserved(*tensors) else depthwise


depthwise.register_autograd(_backward, setup_context=_save)
depthwise_gradients.register_autograd(_refuse)


# Autocast: register_autocast() casts to one fixed dtype, so the rule is ours. Without it the backends themselves would
# run under autocast, and torch's convolution would round inside them.
_library = torch.library.Library("dcls", "FRAGMENT")


def _register_autocast(name: str, operator: Callable[..., Any], device: str, key: str) -> None:
    def lower(*arguments: Any) -> Any:
        dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            return operator(*(_lowered(each, dtype) for each in arguments))

    _library.impl(name, lower, key)


def _lowered(argument: Any, dtype: torch.dtype) -> Any:
    """As torch's autocast does: floating tensors but those of double precision."""
    lowers = isinstance(argument, Tensor) and argument.is_floating_point() and argument.dtype != torch.float64
    return argument.to(dtype) if lowers else argument


for _device, _key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
    _register_autocast("depthwise", depthwise, _device, _key)
    _register_autocast("depthwise_gradients", depthwise_gradients, _device, _key)


@register_flop_formula(torch.ops.dcls.depthwise)
def _flops(x_shape: Sequence[int], kernel_shape: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
    """Two operations a tap and output pixel, as torch counts its own convolutions."""
    return 2 * math.prod(out_shape) * math.prod(kernel_shape[2:])


@register_flop_formula(torch.ops.dcls.depthwise_gradients)
def _gradient_flops(
    grad_shape: Sequence[int],
    x_shape: Sequence[int],
    kernel_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    wanted: Sequence[bool],
    *_: Any,
    **__: Any,
) -> int:
    return sum(wanted[:2]) * 2 * math.prod(grad_shape) * math.prod(kernel_shape[2:])


def _checked(x: Tensor, kernel: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]) -> Case:
    """The case, once shapes, dtypes and devices fit each other. ConfigError otherwise."""
    tensors = tuple(None if each is None else (each.shape, each.dtype, each.device) for each in (x, kernel, bias))
    return _case(tensors, tuple(stride), tuple(padding))


@functools.lru_cache(maxsize=4096)
def _case(tensors: tuple[Any, ...], stride: tuple[int, ...], padding: tuple[int, ...]) -> Case:
    (x, dtype, device), (kernel, *_), bias = tensors
    axes, channels = len(x) - 2, x[1] if len(x) > 1 else 0
    if axes not in (1, 2) or len(kernel) != len(x) or kernel[0] * kernel[1] != channels:
        raise ConfigError(f"kernel {tuple(kernel)} is not a depthwise one for x {tuple(x)}")
    if bias is not None and bias[0] != (channels,):
        raise ConfigError(f"bias {tuple(bias[0])} does not fit {channels} channels")
    kinds = [each[1:] for each in tensors if each is not None]
    if set(kinds) != {(dtype, device)} or not dtype.is_floating_point:
        found = ", ".join(f"{dtype} on {device}" for dtype, device in kinds)
        raise ConfigError(f"x, kernel and bias must have one floating dtype and device, not {found}")
    if len(stride) != axes or len(padding) != axes or min(stride) < 1 or min(padding) < 0:
        raise ConfigError(f"stride={list(stride)}, padding={list(padding)}: one number an axis, at least 1 and 0")
    for each in zip(x[2:], kernel[2:], stride, padding, strict=True):
        output_size(*each)
    return case_of(device.type, dtype, x, kernel, stride, padding)


def _output_shape(x: Tensor, kernel: Tensor, stride: Sequence[int], padding: Sequence[int]) -> tuple[int, ...]:
    """[B, C, Y..]. ConfigError where the kernel is larger than the padded input."""
    axes = zip(x.shape[2:], kernel.shape[2:], stride, padding, strict=True)
    return *x.shape[:2], *(output_size(*each) for each in axes)


def _empty_gradients(x: Tensor, kernel: Tensor, wanted: Sequence[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """The three results without values, zeros where a batch without images leaves them so."""
    of_x = _fresh(x, x.shape) if wanted[0] else x.new_empty(0)
    of_kernel = torch.zeros_like(kernel, memory_format=_format(kernel)) if wanted[1] else x.new_empty(0)
    return of_x, of_kernel, x.new_zeros(x.shape[1]) if wanted[2] else x.new_empty(0)


def _or_empty(gradient: Tensor | None, x: Tensor) -> Tensor:
    return x.new_empty(0) if gradient is None else gradient


def _flat(tensor: Tensor) -> Tensor:
    """4-D: a 1-D convolution is one of height 1."""
    return tensor if tensor.dim() == 4 else tensor.unsqueeze(2)


def _flat_kernel(kernel: Tensor, backend: Backend) -> Tensor:
    flat = _flat(kernel)
    return flat if backend is cpu else flat.reshape(-1, 1, *flat.shape[2:])


def _format(kernel: Tensor) -> torch.memory_format:
    """Of a kernel's gradient."""
    return torch.channels_last if kernel.dim() == 4 and kernel.shape[1] > 1 else torch.contiguous_format


def _channels_are_neighbours(x: Tensor) -> bool:
    return x.stride(1) == 1


def _fresh(x: Tensor, shape: Sequence[int]) -> Tensor:
    """An empty tensor [B, C, ..] of `shape`, its channels neighbours if those of x are."""
    if not _channels_are_neighbours(x):
        return x.new_empty(tuple(shape))
    return x.new_empty((shape[0], *shape[2:], shape[1])).movedim(-1, 1)


def _in_format(result: Tensor, x: Tensor) -> Tensor:
    """result [B, C, Y, X] with the axes of x, and in the strides of _fresh()."""
    if x.dim() == 3:
        result = result.squeeze(2)
    if not _channels_are_neighbours(x):
        return result.contiguous()
    last = result.movedim(1, -1)
    return result if last.is_contiguous() else last.contiguous().movedim(-1, 1)
