"""Where the taps of a model sit: copies of the positions, their statistics, and their history over a training run.

A *group* is one distinct position parameter, named after the first layer that holds it; in ConvNeXt that is a stage.

Shapes: n learned axes, O out channels, C in channels / groups, K taps; a tensor of positions is [n, O, C, .., K],
in pixels from the kernel's centre.
"""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dcls import layers
from dcls.errors import CheckpointError
from dcls.files.atomic import replacing

KERNELS_KEPT = 4096
"""Kernels of one group that a History keeps. Every depthwise stage fits; a dense ResNet-50 stage has up to 262,144."""


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Every distinct position parameter by the name of its group: float32 copies [n, O, C, .., K] on the CPU."""
    return {name: p.detach().to("cpu", torch.float32, copy=True) for name, p in layers.positions(model).items()}


def limits(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The largest absolute position of each group on each learned axis, in pixels: where the clamp stops a tap."""
    by_layer = {name: layer.position_limits for name, layer in layers.layers(model)}
    return {name: by_layer[name] for name in layers.positions(model)}


def statistics(
    start: Mapping[str, Tensor], now: Mapping[str, Tensor], limits: Mapping[str, tuple[int, ...]]
) -> dict[str, dict[str, float]]:
    """How the taps of each group moved since `start` and where they are.

    `movement`: mean Euclidean distance of a tap from its start, in pixels. `spread`: standard deviation of the
    coordinates about the kernel's centre, in pixels. `border`: fraction of the taps with a coordinate on the limit.
    """
    return {name: _statistics(start[name], now[name], limits[name]) for name in now}


def _statistics(start: Tensor, now: Tensor, limit: tuple[int, ...]) -> dict[str, float]:
    edge = torch.tensor(limit, dtype=now.dtype).view(-1, *[1] * (now.dim() - 1))
    return {
        "movement": (now - start).norm(dim=0).mean().item(),
        "spread": now.square().mean().sqrt().item(),
        "border": (now.abs() >= edge).any(dim=0).float().mean().item(),
    }


def sample(positions: Tensor, kernels: int = KERNELS_KEPT) -> Tensor:
    """At most `kernels` evenly strided kernels of positions [n, O, C, .., K], as [n, kernels, K]."""
    flat = positions.flatten(1, -2)
    count = flat.shape[1]
    if count <= kernels:
        return flat
    return flat[:, torch.arange(kernels) * count // kernels]


class History:
    """The positions at the start and after every epoch, in float16, at most 4096 evenly strided kernels a group.

    The rounding is at most 1/256 of a pixel inside a 17 x 17 kernel. The start is kept in float32 as well, because
    movement is measured from it. Epoch 0 is the start, epoch e the end of the e-th epoch.
    """

    def __init__(self, limits: Mapping[str, tuple[int, ...]]) -> None:
        self.limits = dict(limits)
        self.start: dict[str, Tensor] = {}
        self._epochs: dict[int, dict[str, Tensor]] = {}

    def add(self, epoch: int, snapshot: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
        """Keep `snapshot` as that of `epoch` (in place of an earlier one) and return its statistics since the start.

        The first snapshot added is the start. The statistics are those of the kernels kept.
        """
        kept = {name: sample(positions) for name, positions in snapshot.items()}
        if not self._epochs:
            self.start = {name: positions.clone() for name, positions in kept.items()}
        self._epochs[epoch] = {name: positions.half() for name, positions in kept.items()}
        return statistics(self.start, kept, self.limits)

    @property
    def epochs(self) -> list[int]:
        return sorted(self._epochs)

    def at(self, epoch: int) -> dict[str, Tensor]:
        """The kept positions of one epoch, float32 [n, kernels, K]; KeyError where there is none."""
        return {name: positions.float() for name, positions in self._epochs[epoch].items()}

    def state_dict(self) -> dict[str, Any]:
        """Tensors, strings and integers only, so that a checkpoint loads with `weights_only=True`."""
        return {"start": dict(self.start), "epochs": {epoch: dict(self._epochs[epoch]) for epoch in self.epochs}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a stored history; CheckpointError where its groups are not those of this model."""
        stored = set(state["start"])
        if stored and stored != set(self.limits):
            raise CheckpointError(
                f"position history of the checkpoint has groups {sorted(stored)}, the model has {sorted(self.limits)}: "
                "resume with the surgery.* options the checkpoint was trained with"
            )
        self.start = dict(state["start"])
        self._epochs = {int(epoch): dict(groups) for epoch, groups in state["epochs"].items()}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an .npz of float16 arrays [n, kernels, K] under `<group>/epoch-<four digits>`, atomically."""
        arrays = {
            f"{name}/epoch-{epoch:04d}": positions.numpy()
            for epoch in self.epochs
            for name, positions in self._epochs[epoch].items()
        }
        with replacing(path) as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]  # the stubs take `allow_pickle` for any keyword
