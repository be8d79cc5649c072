"""Whole networks: a training step (forward, loss, all gradients) and inference, against the plain network.

The plain network computes something else, so the check is of ours alone: its loss and the gradient of its first
convolution, which every layer has had a part in, are those of torch's own convolutions under autograd. Beside the DCLS
networks stand the plain ConvNeXt with our operator in its depthwise convolutions, and ResNet-50, whose peer has dense
kernels of the same size that need no building.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import models
from benchmarks.contest import OURS, Contest, unchecked
from benchmarks.peers import reference_model
from benchmarks.setting import Setting
from dcls import fuse, ops

BENCH = "model"
FLOAT32 = Setting()
# What a network becomes in place of a DCLS one.
OPERATOR = "plain with our operator"


class Network(NamedTuple):
    """versions: interpolations, or OPERATOR. size: of the kernels. images: where not the setting's number.

    dense: its kernels are not depthwise. Dense ones that need no building are a peer then, and the reference package,
    which would take minutes to build them, is none. options: more arguments of timm's constructor.
    """

    name: str
    classes: int
    channels: int
    pixels: int
    versions: tuple[str, ...]
    size: int | str = "auto"
    images: int = 0
    dense: bool = False
    options: Mapping[str, Any] = MappingProxyType({})


NETWORKS = [
    Network("convnext_tiny", 1000, 3, 224, ("v0", "gauss", OPERATOR)),
    Network("convnext_quickstart", 10, 1, 56, ("v0", "gauss", OPERATOR), 13, 64),
    Network("resnet50", 1000, 3, 224, ("v0",), 7, dense=True),
]
TINY = [
    Network("convnext_quickstart", 10, 1, 32, ("v0", "gauss", OPERATOR), 13, 2),
    Network("resnet18", 10, 3, 32, ("v0",), 7, 2, dense=True, options={"channels": [8, 8, 16, 16]}),
]


def contests(setting: Setting) -> Iterator[Contest]:
    for network in TINY if setting.tiny else NETWORKS:
        for version in network.versions:
            for train in (True, False):
                images = network.images or setting.batch
                what = f"{network.name} {version}, {network.pixels} px, N={images}"
                case = f"{'training' if train else 'inference'}, {what}"
                if setting.wants(case):
                    yield contest(case, network, images, version, train, setting)


def contest(case: str, network: Network, images: int, version: str, train: bool, setting: Setting) -> Contest:
    torch.manual_seed(0)
    plain = models.create(network.name, num_classes=network.classes, in_chans=network.channels, **network.options)
    networks = {OURS: converted(plain, network, version), "plain": plain}
    if network.dense:
        networks[f"static {network.size}x{network.size} weights"] = large(plain, network)
    last = torch.channels_last
    networks = {name: each.train(train).to(setting.device).to(memory_format=last) for name, each in networks.items()}
    ours = networks.pop(OURS)
    shape = (images, network.channels, network.pixels, network.pixels)
    x = torch.randn(shape, device=setting.device).to(memory_format=last)
    labels = torch.randint(network.classes, (images,), device=setting.device)
    setting.prove(ours, x)

    def run(model: nn.Module) -> Callable[[], Sequence[Tensor]]:
        return train_step(model, x, labels, setting) if train else inference(model, x, setting)

    def timed(model: nn.Module) -> Callable[[], Sequence[Tensor]]:
        # A module, whatever the stub says.
        return run(torch.compile(model)) if setting.compile else run(model)  # type: ignore[arg-type]  # see above

    candidates = {OURS: timed(ours if train else ops.adopt(fuse(deepcopy(ours))).to(memory_format=last))}
    candidates |= {name: unchecked(timed(each)) for name, each in networks.items()}
    if setting.reference and version != OPERATOR and not network.dense:
        candidates["DCLS 0.1.1"] = unchecked(timed(reference_model(ours)))
    return Contest(
        BENCH,
        case,
        candidates,
        by_torch_alone(run(ours)),
        tolerance=setting.tolerance(1e-3, 0.1),
        memory="process" if train else "",
    )


def converted(plain: nn.Module, network: Network, version: str) -> nn.Module:
    model = deepcopy(plain)
    if version == OPERATOR:
        return ops.adopt(model)
    models.convert(model, mode="dcls", version=version, dilated_kernel_size=network.size)
    return model


def large(plain: nn.Module, network: Network) -> nn.Module:
    model = deepcopy(plain)
    models.convert(model, mode="large_kernel", dilated_kernel_size=network.size)
    return model


def train_step(
    model: nn.Module, x: Tensor, labels: Tensor, setting: Setting = FLOAT32
) -> Callable[[], Sequence[Tensor]]:
    """Loss, and the first parameter's gradient; every other gradient is computed too."""
    parameters = list(model.parameters())

    def run() -> Sequence[Tensor]:
        with setting.autocast():
            loss = nn.functional.cross_entropy(model(x), labels)
        return [loss.detach(), torch.autograd.grad(loss, parameters)[0]]

    return run


def inference(model: nn.Module, x: Tensor, setting: Setting = FLOAT32) -> Callable[[], Sequence[Tensor]]:
    def run() -> Sequence[Tensor]:
        with torch.inference_mode(), setting.autocast():
            return [model(x)]

    return run


def by_torch_alone(run: Callable[[], Sequence[Tensor]]) -> Callable[[], Sequence[Tensor]]:
    """The same by F.conv2d and autograd."""

    def reference() -> Sequence[Tensor]:
        before = ops.get_backend()
        ops.set_backend("reference")
        try:
            return run()
        finally:
            ops.set_backend(before)

    return reference
