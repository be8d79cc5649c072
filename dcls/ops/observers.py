"""Who else looks at a call: compilers, tracers, transforms and modes, which must see torch's operators.

Eager torch alone may take shorter ways, whose gradients are our own.
"""

import torch
from torch import Tensor
from torch.autograd import forward_ad

from dcls.ops.native import PLAIN


def observed(*tensors: Tensor | None) -> bool:
    """Does anything but autograd follow what is done to these tensors, or are their numbers not at hand?"""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or transformed():
        return True
    if torch._C._len_torch_dispatch_stack():
        return True
    return any(each is not None and (type(each) not in PLAIN or each.is_meta) for each in tensors)


def transformed() -> bool:
    """Inside torch.func's transforms or forward-mode differentiation, where an operator would lose the tangents."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
