"""Building kernels, forward and backward: the reference package and the separable form under autograd."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.contest import OURS, Contest
from benchmarks.peers import reference_layer
from benchmarks.setting import Setting
from dcls.layers import INTERPOLATIONS, construct, to_reference
from dcls.layers.reference_layout import reference_axes
from dcls.layers.separable import separable

BENCH = "construct"
VERSIONS = ("v0", "gauss")
# Name: out channels, in channels / groups, taps, cells along each of two axes.
SHAPES = {
    "depthwise 768 x 34 taps, 17x17": (768, 1, 34, 17),
    "dense 256x256 x 5 taps, 7x7": (256, 256, 5, 7),
    "quickstart 16 x 24 taps, 13x13": (16, 1, 24, 13),
    "quickstart 32 x 24 taps, 13x13": (32, 1, 24, 13),
    "quickstart 64 x 24 taps, 13x13": (64, 1, 24, 13),
}
TINY = {"depthwise 8 x 9 taps, 5x5": (8, 1, 9, 5), "dense 2x8 x 2 taps, 5x5": (2, 8, 2, 5)}


def contests(setting: Setting) -> Iterator[Contest]:
    for shape, numbers in (TINY if setting.tiny else SHAPES).items():
        for version in VERSIONS:
            if setting.wants(f"{version}, {shape}"):
                yield contest(f"{version}, {shape}", version, *numbers, setting)


def contest(case: str, version: str, outs: int, ins: int, taps: int, cells: int, setting: Setting) -> Contest:
    torch.manual_seed(0)
    row, sizes = INTERPOLATIONS[version], (cells, cells)
    inputs = [torch.randn(outs, ins, taps), torch.randn(2, outs, ins, taps).mul_(cells / 8).clamp_(-(cells // 2))]
    if row.has_sigma:
        inputs.append(torch.full((2, outs, ins, taps), row.sigma_init or 0.0))
    inputs = [each.to(setting.device) for each in inputs]
    cotangent = torch.randn(outs, ins, *sizes, device=setting.device)

    def ours(build: Callable[..., Tensor], dtype: torch.dtype = torch.float32) -> Callable[[], Sequence[Tensor]]:
        leaves = [each.to(dtype).requires_grad_() for each in inputs]
        return lambda: forward_backward(build, leaves, cotangent.to(dtype), sizes, version)

    candidates = {OURS: ours(construct), "separable, autograd": ours(separable)}
    if setting.reference:
        candidates["DCLS 0.1.1"] = reference(version, outs, ins, taps, cells, inputs, cotangent)
    memory = "" if "quickstart" in case else "call"
    return Contest(BENCH, case, candidates, ours(separable, torch.float64), tolerance=2e-5, memory=memory)


def forward_backward(
    build: Callable[..., Tensor], leaves: Sequence[Tensor], cotangent: Tensor, sizes: Sequence[int], version: str
) -> Sequence[Tensor]:
    sigmas = leaves[2] if len(leaves) == 3 else None
    kernel = build(leaves[0], leaves[1], sigmas, sizes, INTERPOLATIONS[version])
    return [kernel.detach(), *torch.autograd.grad(kernel, leaves, cotangent)]


def reference(
    version: str, outs: int, ins: int, taps: int, cells: int, inputs: Sequence[Tensor], cotangent: Tensor
) -> Callable[[], Sequence[Tensor]]:
    """The reference package's kernel and its gradients, both in our layout."""
    layer = reference_layer(ins, outs, taps, cells, version, bias=False).to(cotangent.device)
    sigmas = inputs[2] if len(inputs) == 3 else None
    placed = to_reference(inputs[1], sigmas, version=version, dilated_kernel_size=(cells, cells))
    leaves = [layer.weight, layer.P, layer.SIG][: len(inputs)]
    with torch.no_grad():
        for leaf, value in zip(leaves, (inputs[0], *placed), strict=False):
            leaf.copy_(value)
    axes = reference_axes(version, 2)
    order = [axes.index(axis) for axis in range(2)]

    def run() -> Sequence[Tensor]:
        kernel = layer.DCK(layer.weight, layer.P, layer.SIG)
        along_weight, *others = torch.autograd.grad(kernel, leaves, cotangent)
        return [kernel.detach(), along_weight, *(each[order] for each in others)]

    return run
