"""Whole networks: a training step (forward, loss, all gradients) and inference, against the plain network.

The plain network computes something else, so the check is of ours alone: its loss and the gradient of its first
convolution, which every layer has had a part in, are those of torch's own convolutions under autograd.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

import models
from benchmarks.contest import OURS, Contest
from benchmarks.peers import reference_model
from benchmarks.setting import Setting
from dcls import fuse, ops

BENCH = "model"
# Name, classes, input channels, pixels and, where it is not the setting's, images.
NETWORKS = [("convnext_tiny", 1000, 3, 224, 0), ("convnext_quickstart", 10, 1, 56, 64)]
TINY = [("convnext_quickstart", 10, 1, 32, 2)]
VERSIONS = ("v0", "gauss")
FLOAT32 = Setting()


def contests(setting: Setting) -> Iterator[Contest]:
    for network in TINY if setting.tiny else NETWORKS:
        for version in VERSIONS:
            for train in (True, False):
                images = network[-1] or setting.batch
                case = f"{'training' if train else 'inference'}, {network[0]} {version}, {network[3]} px, N={images}"
                if setting.wants(case):
                    yield contest(case, network, images, version, train, setting)


def contest(
    case: str, network: tuple[str, int, int, int, int], images: int, version: str, train: bool, setting: Setting
) -> Contest:
    torch.manual_seed(0)
    name, classes, channels, pixels, _ = network
    plain = models.create(name, num_classes=classes, in_chans=channels)
    ours = deepcopy(plain)
    # The quickstart's kernels are 13x13; the others' are their family's.
    models.convert(ours, mode="dcls", version=version, dilated_kernel_size=13 if "quickstart" in name else "auto")
    last = torch.channels_last
    plain, ours = (each.train(train).to(setting.device).to(memory_format=last) for each in (plain, ours))
    x = torch.randn(images, channels, pixels, pixels, device=setting.device).to(memory_format=last)
    labels = torch.randint(classes, (images,), device=setting.device)
    setting.prove(ours, x)

    def run(model: nn.Module) -> Callable[[], Sequence[Tensor]]:
        return train_step(model, x, labels, setting) if train else inference(model, x, setting)

    def timed(model: nn.Module) -> Callable[[], Sequence[Tensor]]:
        # A module, whatever the stub says.
        return run(torch.compile(model)) if setting.compile else run(model)  # type: ignore[arg-type]

    candidates = {OURS: timed(ours if train else ops.adopt(fuse(deepcopy(ours)))), "plain": unchecked(timed(plain))}
    if setting.reference:
        candidates["DCLS 0.1.1"] = unchecked(timed(reference_model(ours)))
    return Contest(
        BENCH,
        case,
        candidates,
        by_torch_alone(run(ours)),
        tolerance=setting.tolerance(1e-3, 0.1),
        memory="process" if train else "",
    )


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


def unchecked(run: Callable[[], Sequence[Tensor]]) -> Callable[[], Sequence[Tensor]]:
    """The same work, without results to compare."""

    def only_run() -> Sequence[Tensor]:
        run()
        return []

    return only_run


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
