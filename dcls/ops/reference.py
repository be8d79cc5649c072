"""The convolution as torch does it: any dtype and device torch convolves, twice differentiable, every other's oracle.

Letters: B batch, I in channels, O out channels, C = I / groups, H one or more spatial axes, S the kernel's.
"""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def convolve(
    x: Tensor,
    kernel: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    groups: int = 1,
) -> Tensor:
    """x [B, I, H..] or [I, H..] convolved with kernel [O, C, S..], zeros beyond the border; 1-D to 3-D.

    stride and padding are in pixels, one per axis or one for all. The memory format of x is kept.
    """
    convolution = _CONVOLUTIONS[kernel.dim() - 2]
    return convolution(x, kernel, bias, tuple(stride), tuple(padding), 1, groups)
