"""The whole layer, kernel and convolution, forward and backward: the reference layer, and what the layer replaces."""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from benchmarks.contest import OURS, Contest, unchecked
from benchmarks.peers import reference_like
from benchmarks.setting import Setting
from dcls import Dcls1d, Dcls2d, fuse
from dcls.layers.reference_layout import reference_axes

BENCH = "layer"
VERSIONS = ("v0", "gauss")
TAPS = {"v0": 34, "gauss": 26}
# Channels and pixels of ConvNeXt-T's four stages at 224 pixels, and of the quickstart's three.
STAGES = ((96, 56), (192, 28), (384, 14), (768, 7))
TINY = ((8, 6), (16, 3))


# Images, channels, length, taps and cells of 1-D layers, as audio and sequence models have them: depthwise, then dense.
LINES = ((8, 256, 256, 8, 25, 256), (16, 128, 100, 10, 51, 128), (8, 64, 1024, 5, 31, 1))
TINY_LINES = ((2, 8, 20, 2, 5, 8),)


def contests(setting: Setting) -> Iterator[Contest]:
    for version in VERSIONS:
        for channels, pixels in TINY if setting.tiny else STAGES:
            case = f"{version}, {channels}x{pixels}x{pixels}, 17x17, N={setting.batch}"
            if setting.wants(case):
                yield contest(case, version, channels, pixels, setting)
    for version in VERSIONS:
        for numbers in TINY_LINES if setting.tiny else LINES:
            images, channels, length, taps, cells, groups = numbers
            kind = "depthwise" if groups > 1 else "dense"
            case = f"1-D {version}, {kind} {channels}x{length}, {taps} taps in {cells}, N={images}"
            if setting.wants(case):
                yield line(case, version, numbers, setting)


def contest(case: str, version: str, channels: int, pixels: int, setting: Setting) -> Contest:
    torch.manual_seed(0)
    taps, size = (3, 5) if setting.tiny else (TAPS[version], 17)
    ours = Dcls2d(channels, channels, taps, 1, size // 2, size, channels, False, version=version)
    ours = ours.to(setting.device)
    shape = (setting.batch, channels, pixels, pixels)
    x, cotangent = (setting.randn(*shape).to(memory_format=torch.channels_last) for _ in range(2))
    setting.prove(ours, x)
    candidates: dict[str, Callable[[], Sequence[Tensor]]] = {OURS: step(ours, x, cotangent, setting)}
    if setting.reference:
        candidates["DCLS 0.1.1"] = reference_step(ours, x, cotangent, setting)
    plain = nn.Conv2d(channels, channels, 7, padding=3, groups=channels, bias=False).to(setting.device)
    candidates["nn.Conv2d 7x7"] = unchecked(step(plain, x, cotangent, setting))
    group = f"{version}, the four stages together"
    tolerance = setting.tolerance(5e-5, 5e-2)
    return Contest(BENCH, case, candidates, truth(ours, x, cotangent), tolerance=tolerance, group=group)


def line(case: str, version: str, numbers: tuple[int, ...], setting: Setting) -> Contest:
    """A 1-D layer against F.conv1d with the same kernel as its weights."""
    torch.manual_seed(0)
    images, channels, length, taps, cells, groups = numbers
    ours = Dcls1d(channels, channels, taps, 1, cells // 2, cells, groups, False, version=version).to(setting.device)
    x, cotangent = (setting.randn(images, channels, length) for _ in range(2))
    setting.prove(ours, x)
    conv = fuse(deepcopy(ours))
    peer, expected = step(conv, x, cotangent, setting), truth(ours, x, cotangent)
    candidates = {OURS: step(ours, x, cotangent, setting), "F.conv1d": unchecked(peer)}
    return Contest(BENCH, case, candidates, expected, tolerance=setting.tolerance(5e-5, 5e-2))


def step(layer: nn.Module, x: Tensor, cotangent: Tensor, setting: Setting) -> Callable[[], Sequence[Tensor]]:
    """The output and the gradients of the input and every parameter."""
    leaves = [x.detach().requires_grad_(), *layer.parameters()]

    def run() -> Sequence[Tensor]:
        with setting.autocast():
            output = layer(leaves[0])
        return [output.detach(), *torch.autograd.grad(output, leaves, cotangent)]

    return run


def truth(layer: nn.Module, x: Tensor, cotangent: Tensor) -> Callable[[], Sequence[Tensor]]:
    """The same in float64, which runs torch's own convolution."""
    return step(deepcopy(layer).double(), x.double(), cotangent.double(), Setting())


def reference_step(ours: Dcls2d, x: Tensor, cotangent: Tensor, setting: Setting) -> Callable[[], Sequence[Tensor]]:
    """`step` of the reference layer with the same parameters, its results in our layout."""
    layer = reference_like(ours)
    leaves = [layer.weight, layer.P, layer.SIG][: 2 if ours.SIG is None else 3]
    axes = reference_axes(ours.version, 2)
    order = [axes.index(axis) for axis in range(2)]
    inputs = [x.detach().requires_grad_(), *leaves]

    def run() -> Sequence[Tensor]:
        with setting.autocast():
            output = layer(inputs[0])
        along_x, along_weight, *others = torch.autograd.grad(output, inputs, cotangent)
        return [output.detach(), along_x, along_weight, *(each[order] for each in others)]

    return run
