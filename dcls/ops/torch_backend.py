"""Depthwise convolution by torch's own operators, in the forms in which they are fast.

Three facts about torch on a CPU shape this file. Its forward is 17 to 30 times slower on contiguous tensors than on
channels_last ones. Its input gradient is slower than a forward pass with the kernel turned over, which is the same
sum. And its weight gradient takes 20 to 40 times as long as a forward pass, though it is a convolution too: of the
image with the output's gradient as kernel, each channel of each image for itself.

Letters: B batch, C channels, H W the image, R S the kernel, Y X the output.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dcls.ops.case import Case, reached

NAME = "torch"

# Bytes of a batch's gradient from which one call an image beats one call for the batch, whose tensors then leave the
# cache. Measured on 64 x 3 x 3 to 96 x 56 x 56, B from 4 to 128, kernels from 7 to 17, in float32 and bfloat16.
LARGE_BATCH = 900_000


def supports(case: Case) -> str | None:
    """None: torch convolves everything."""
    return None


def forward(x: Tensor, kernel: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """The convolution [B, C, Y, X] of x [B, C, H, W] with kernel [C, 1, R, S]."""
    kernel, padding = reached(kernel, x.shape[2:], stride, padding)
    return F.conv2d(_last(x), kernel, bias, tuple(stride), tuple(padding), groups=x.shape[1])


def input_gradient(grad: Tensor, x: Tensor, kernel: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """d / dx [B, C, H, W] of the convolution whose gradient is grad [B, C, Y, X]."""
    kernel, padding = reached(kernel, x.shape[2:], stride, padding)
    turned = [size - 1 - pad for size, pad in zip(kernel.shape[2:], padding, strict=True)]
    if max(stride) > 1 or min(turned) < 0:
        return _autograd(grad, x, kernel, stride, padding, (True, False, False))[0]
    return F.conv2d(_last(grad), kernel.flip(2, 3), padding=turned, groups=grad.shape[1])


def kernel_gradient(
    grad: Tensor, x: Tensor, kernel: Tensor, stride: Sequence[int], padding: Sequence[int], with_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """d / dkernel [C, 1, R, S] and, when asked for, d / dbias [C]."""
    bias = grad.sum((0, 2, 3)) if with_bias else None
    if max(stride) > 1 or x.device.type != "cpu":
        return _autograd(grad, x, kernel, stride, padding, (False, True, False))[1], bias
    form = _image_by_image if grad.nbytes > LARGE_BATCH else _batch_as_channels
    _, kept = reached(kernel, x.shape[2:], stride, padding)
    beyond = [pad - own for pad, own in zip(padding, kept, strict=True)]
    of_kernel = F.pad(form(_last(grad), _last(x), kept), [each for each in reversed(beyond) for _ in range(2)])
    return of_kernel, bias


def _image_by_image(grad: Tensor, x: Tensor, padding: Sequence[int]) -> Tensor:
    """One convolution of C channels an image. Nothing is copied: the gradient as a kernel [C, 1, Y, X] is a view."""
    # Slices, never x[i][None]: a wrong stride on the new axis hides channels_last from torch, which is 4 times slower.
    each = (
        F.conv2d(x[i : i + 1], grad[i : i + 1].transpose(0, 1), padding=tuple(padding), groups=x.shape[1])
        for i in range(x.shape[0])
    )
    total = next(each)
    for one in each:
        total += one
    return total.transpose(0, 1)


def _batch_as_channels(grad: Tensor, x: Tensor, padding: Sequence[int]) -> Tensor:
    """One convolution of an image with B * C channels: its many small pieces cost one call."""
    batch, channels = x.shape[:2]
    image = x.permute(2, 3, 0, 1).reshape(1, *x.shape[2:], batch * channels).permute(0, 3, 1, 2)
    kernel = grad.permute(2, 3, 0, 1).reshape(*grad.shape[2:], 1, batch * channels).permute(3, 2, 0, 1)
    each = F.conv2d(image, kernel, padding=tuple(padding), groups=batch * channels)
    return each.unflatten(1, (batch, channels)).sum(1).transpose(0, 1)


def _autograd(
    grad: Tensor,
    x: Tensor,
    kernel: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """What autograd calls for F.conv2d."""
    return torch.ops.aten.convolution_backward(
        _last(grad), _last(x), kernel, None, stride, padding, (1, 1), False, (0, 0), x.shape[1], wanted
    )


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
