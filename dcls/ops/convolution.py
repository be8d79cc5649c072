"""The entry: a convolution of any kind, by the depthwise operator where that is faster than torch's own."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dcls.ops import cpu, dispatch, reference
from dcls.ops.case import Case, case_of, reached
from dcls.ops.observers import transformed
from dcls.ops.operator import shortest


def convolve(
    x: Tensor,
    kernel: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    groups: int = 1,
    backend: str | None = None,
) -> Tensor:
    """x [B, I, H..] or [I, H..] convolved with kernel [O, C, S..], C = I / groups; zeros beyond the border; 1-D to 3-D.

    A depthwise kernel may also be [groups / L, L, S..]: the kernels of L neighbouring channels, see side_by_side().
    stride and padding are in pixels, one per axis or one for all. The memory format of x is kept. backend: a name that
    goes before what set_backend chose. Depthwise convolutions in 1-D and 2-D, but for float64, run as the operator
    dcls::depthwise, which is differentiable once; all others are torch's. So are, where no backend is named, those on
    devices other than the CPU, but for the cases of dispatch.set_choices().
    """
    name = dispatch.get_backend() if backend is None else dispatch.known(backend)
    if name == dispatch.REFERENCE:
        return reference.convolve(x, _alone(kernel, groups), bias, stride, padding, groups)
    axes = kernel.dim() - 2
    stride, padding = _per_axis(stride, axes), _per_axis(padding, axes)
    fits = unfit(x, kernel.shape, groups) is None
    if not fits or x.device.type != "cpu":  # The CPU's backends see to it themselves.
        kernel, padding = reached(_alone(kernel, groups), x.shape[-axes:], stride, padding)
    if fits:
        if x.device.type != "cpu" or dispatch.is_recording():
            backend = _noted(name, _case(x, kernel, stride, padding))
        if backend != dispatch.REFERENCE:
            return shortest(x, kernel, bias)(x, kernel, bias, stride, padding, backend)
    return reference.convolve(x, _alone(kernel, groups), bias, stride, padding, groups)


def side_by_side(x: Tensor, shape: Sequence[int], groups: int) -> int:
    """L: of how many neighbouring channels the kernels are best built in one piece for convolve() of x.

    As [groups / L, L, S..] in channels_last. 1: as a kernel of torch's shape [O, C, S..], with which it is asked.
    """
    if torch.compiler.is_compiling() or len(shape) != 4 or dispatch.get_backend() not in ("auto", cpu.NAME):
        return 1
    if (x.device.type, x.dtype) != ("cpu", torch.float32) or torch.is_autocast_enabled("cpu"):
        return 1
    return 1 if unfit(x, shape, groups) else cpu.side_by_side(groups)


def _alone(kernel: Tensor, groups: int) -> Tensor:
    """[groups / L, L, S..] -> [groups, 1, S..]."""
    # Torch's own kernels have groups or more in front.
    return kernel if kernel.shape[0] >= groups else kernel.reshape(groups, 1, *kernel.shape[2:])


def _noted(name: str, case: Case) -> str:
    """The name, or what 'auto' comes to; for dispatch.recording() the case is written down."""
    dispatch.record(case)
    return dispatch.choice(case) if name == "auto" else name


def _case(x: Tensor, kernel: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Case:
    """The case that the operator will meet: autocast lowers its tensors."""
    case = case_of(x.device.type, x.dtype, x.shape, kernel.shape, stride, padding)
    if case.device in ("cpu", "cuda") and torch.is_autocast_enabled(case.device):
        case = case._replace(dtype=torch.get_autocast_dtype(case.device))
    return case


def unfit(x: Tensor, kernel: Sequence[int], groups: int) -> str | None:
    """Why a convolution with a kernel of that shape is not the operator's, or None."""
    if len(kernel) not in (3, 4) or x.dim() != len(kernel):
        return f"input {tuple(x.shape)}: only batches of 1-D and 2-D images"
    if groups == 1 or kernel[0] * kernel[1] != groups or x.shape[1] != groups:
        return f"kernel {tuple(kernel)} with groups={groups}: only depthwise, one kernel a channel"
    if x.dtype == torch.float64:
        return "float64: torch's convolution, twice differentiable"
    if transformed():
        return "torch.func and forward-mode differentiation: the operator has neither"
    return None


def explain(
    x: Tensor,
    kernel: Tensor,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    groups: int = 1,
) -> str:
    """Print, a line each, which backends can run a convolution and why the others cannot. Returns the chosen name."""
    reason = unfit(x, kernel.shape, groups)
    if reason is not None:
        print(f"{dispatch.REFERENCE}: {reason}")
        return dispatch.REFERENCE
    axes = kernel.dim() - 2
    stride, padding = _per_axis(stride, axes), _per_axis(padding, axes)
    if x.device.type != "cpu":
        kernel, padding = reached(_alone(kernel, groups), x.shape[2:], stride, padding)
    case = _case(x, kernel, stride, padding)
    print(case)
    for name, why in dispatch.reasons(case).items():
        print(f"{name}: {'can' if why is None else why}")
    name = dispatch.get_backend()
    name = dispatch.choice(case) if name == "auto" else name
    return name if name == dispatch.REFERENCE else dispatch.choose(case, name).NAME


def _per_axis(numbers: Sequence[int], axes: int) -> list[int]:
    return list(numbers) * axes if len(numbers) == 1 else list(numbers)
