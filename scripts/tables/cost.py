"""What a row costs, computed here: parameters, multiply-adds, and its speed over the first row's in the same run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from benchmarks.contest import OURS, Contest, hold, unchecked
from benchmarks.model import inference, train_step
from torch import Tensor, nn

import train
from dcls.analysis import complexity
from dcls.config.schema import Config
from dcls.evaluation.scoring import fused


@dataclass(frozen=True)
class Speed:
    """ratio: images a second over those of the first network. latency: milliseconds an image."""

    ratio: float
    latency: float


def network(config: Config) -> nn.Module:
    """The converted network, with random weights."""
    return train.build_model(config, config.data.classes, begins=False)[0]


def count(model: nn.Module, config: Config) -> complexity.Cost:
    side = config.data.eval_size
    return complexity.count(model, (config.data.channels, side, side))


def relative_speeds(
    networks: Mapping[str, tuple[nn.Module, Config]], *, training: bool, device: str, batch: int, seconds: float
) -> dict[str, Speed]:
    """By name, medians of rounds in which all networks take turns."""
    candidates: dict[str, Callable[[], Sequence[Tensor]]] = {}
    for i, (name, (model, config)) in enumerate(networks.items()):
        side = config.data.image_size if training else config.data.eval_size
        images = torch.randn(batch, config.data.channels, side, side, device=device)
        images = images.to(memory_format=torch.channels_last)
        model = model.to(device).to(memory_format=torch.channels_last)
        labels = torch.zeros(batch, dtype=torch.long, device=device)
        run = train_step(model.train(), images, labels) if training else inference(fused(model), images)
        candidates[name if i else OURS] = unchecked(run)
    times = hold(Contest("speed", "", candidates, list), seconds=seconds)
    first, speeds = times[OURS], {}
    for i, name in enumerate(networks):
        own = times[name if i else OURS]
        speeds[name] = Speed(median(a / b for a, b in zip(first, own, strict=True)), median(own) / batch)
    return speeds
