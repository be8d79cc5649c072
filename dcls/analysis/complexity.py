"""Parameters and multiply-adds of a classifier, counted as the literature counts them.

One multiply-add counts once. fvcore's table of operators: convolutions and products, layer and batch norm (5 and 2 an
element), pooling (1 an element); additions, activations and layer scale are free. Two things are ours: attention,
nothing in fvcore, counts its two products; and DCLS layers count as the dense convolutions that their constructed
kernels are, at inference, the construction left out, as the papers do (ConvNeXt-T-dcls: 5.0 G).
"""

import copy
import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dcls.errors import ConfigError
from dcls.layers import fuse

# Operators whose work is products of matrices; fvcore's names.
PRODUCTS = ("conv", "linear", "matmul", "bmm", "einsum", "attention")


@dataclass(frozen=True)
class Cost:
    """What one image costs.

    params, trainable: elements of the distinct parameters, and of those that require gradients.
    flops: multiply-adds of one image. by_operator: the same, by fvcore's name of the operator. uncounted: how often
    an operator was met that counts as nothing.
    """

    params: int
    trainable: int
    flops: int
    by_operator: Mapping[str, int]
    uncounted: Mapping[str, int]

    @property
    def products(self) -> int:
        """Multiply-adds of convolutions and matrix products alone, torch's FlopCounterMode halved."""
        return sum(self.by_operator.get(operator, 0) for operator in PRODUCTS)


def count(model: nn.Module, input_size: Sequence[int], option: str = "data.eval_size") -> Cost:
    """The cost of `model` on one image of input_size (channels, height, width) in evaluation mode.

    Works on a fused float32 copy on the CPU, so the model, its mode, device and gradients stay as they are; it may live
    on any device, meta included. Takes a forward pass of one image, below a second up to ConvNeXt-B at 224 pixels.
    Raises ConfigError naming `option` where the model cannot take images of that size.
    """
    distinct = list(model.parameters())
    params = sum(parameter.numel() for parameter in distinct)
    trainable = sum(parameter.numel() for parameter in distinct if parameter.requires_grad)
    twin = _inference_copy(model)
    try:
        by_operator, uncounted = _operators(twin, torch.zeros(1, *input_size, device="cpu"))
    except (RuntimeError, AssertionError, ValueError) as error:
        size, reason = "x".join(map(str, input_size)), str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"{option}={input_size[-1]}: {type(model).__name__} cannot take an image of {size} ({reason}); "
            "choose another size"
        ) from error
    return Cost(params, trainable, sum(by_operator.values()), by_operator, uncounted)


@torch.no_grad()
def _inference_copy(model: nn.Module) -> nn.Module:
    """The fused model on the CPU. Values do not matter, shapes do."""
    twin = copy.deepcopy(model)
    if any(parameter.is_meta for parameter in twin.parameters()):
        twin.to_empty(device="cpu")
        for tensor in [*twin.parameters(), *twin.buffers()]:
            tensor.zero_()
    return fuse(twin.to("cpu", torch.float32).eval())


def _operators(model: nn.Module, image: torch.Tensor) -> tuple[Mapping[str, int], Mapping[str, int]]:
    """Multiply-adds by operator, and the calls of operators without a count."""
    with warnings.catch_warnings():
        # fvcore is built on torch.jit, whose deprecation says nothing about a model.
        warnings.filterwarnings("ignore", ".*torch.jit.*", FutureWarning)
        warnings.filterwarnings("ignore", ".*torch.jit.*", DeprecationWarning)
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(model, image.contiguous(memory_format=torch.channels_last))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        analysis.set_op_handle("aten::scaled_dot_product_attention", _attention)
        analysis.set_op_handle("dcls::depthwise", _depthwise)
        with torch.no_grad():
            by_operator = {name: int(flops) for name, flops in analysis.by_operator().items()}
        return by_operator, dict(analysis.unsupported_ops())


def _depthwise(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Of plain convolutions that run as our operator: a multiply-add for each tap and output, as of the others."""
    (out,), kernel = (each.type().sizes() for each in outputs), inputs[1].type().sizes()
    return Counter({"conv": math.prod(out) * math.prod(kernel[2:])})


def _attention(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """softmax(q k^T) v with q [.., L, E], k [.., S, E], v [.., S, V]: L S (E + V) multiply-adds for each head."""
    query, key, value = (each.type().sizes() for each in inputs[:3])
    *heads, length, width = query
    return Counter({"attention": math.prod(heads) * length * key[-2] * (width + value[-1])})
