"""From a bare model to what the step calls, in one order: operators, device, layout, checkpointing, DDP, compile."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dcls import ops
from dcls.errors import ConfigError
from dcls.ops import trial
from dcls.runtime.processes import World

AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """How images reach the device and in which type products are computed; parameters stay float32."""

    device: torch.device
    amp: torch.dtype | None
    channels_last: bool

    def autocast(self) -> AbstractContextManager[object]:
        return nullcontext() if self.amp is None else torch.autocast(self.device.type, dtype=self.amp)

    def place(self, images: torch.Tensor) -> torch.Tensor:
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return images.to(self.device, non_blocking=True, memory_format=layout)


def settled_amp(device: torch.device, amp: str) -> str:
    """What auto stands for: bf16 on CUDA, off on a CPU."""
    if amp == "auto":
        return "bf16" if device.type == "cuda" else "off"
    return amp


def precision(device: torch.device, *, amp: str = "auto", channels_last: bool = True) -> Precision:
    """`amp` is auto (bf16 on CUDA, off on a CPU), off, bf16 or fp16."""
    settled = settled_amp(device, amp)
    if settled not in AMP:
        raise ConfigError(f"runtime.amp={amp}: choose one of auto, {', '.join(AMP)}")
    if settled == "fp16" and device.type == "cpu":
        raise ConfigError("runtime.amp=fp16 needs a CUDA device; use runtime.amp=bf16 or off on a CPU")
    return Precision(device, AMP[settled], channels_last)


def prepare(
    model: nn.Module,
    world: World,
    *,
    channels_last: bool = True,
    fast_depthwise: bool = False,
    activation_checkpointing: bool = False,
    compile: bool = False,
) -> nn.Module:
    """The callable of the training step. `model` itself is moved in place and stays the bare module that state is
    about. fast_depthwise: its plain depthwise convolutions run as those of DCLS layers do.
    """
    if fast_depthwise:
        ops.adopt(model)
    model.to(world.device)
    if channels_last:
        model.to(memory_format=torch.channels_last)
    if activation_checkpointing:
        _checkpoint_activations(model)
    forward: nn.Module = model
    if world.size > 1:
        ids = [world.device] if world.device.type == "cuda" else None
        # Buffers belong to the slots' own averaging; broadcasting rank 0's would make them depend on the world.
        forward = DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True)
    return torch.compile(forward) if compile else forward  # type: ignore[return-value]  # a module, whatever the stub says


def measured_choices(
    model: nn.Module, world: World, precision: Precision, inputs: Sequence[Sequence[int]]
) -> dict[str, str]:
    """The fastest right backend of each depthwise convolution that `model` makes of images of these shapes
    [B, C, H, W], for ops.set_choices. Rank 0 measures, all get its answer; some seconds a shape of convolution.
    """

    def measure() -> dict[str, str]:
        cases = []
        for shape in inputs:
            with precision.autocast():
                cases += trial.cases(model, precision.place(torch.zeros(*shape)))
        return trial.choose(cases, channels_last=precision.channels_last)

    return world.on_main(measure)


def _checkpoint_activations(model: nn.Module) -> None:
    switch = getattr(model, "set_grad_checkpointing", None)
    if switch is None:
        raise ConfigError(
            f"runtime.activation_checkpointing=true: {type(model).__name__} does not offer it; set it to false"
        )
    switch(True)
