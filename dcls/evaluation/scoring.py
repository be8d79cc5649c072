"""Evaluation: every image counts exactly once, whatever the number of processes and the batch size."""

import time
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice

import torch
from torch import nn
from torch.nn import functional as F

from dcls import layers, ops
from dcls.runtime.prepare import Precision
from dcls.runtime.processes import World


@dataclass(frozen=True)
class Scores:
    """top1 and top5 in percent, loss the mean cross-entropy, images how many counted, img_per_s over all processes."""

    top1: float
    top5: float
    loss: float
    images: int
    img_per_s: float


def fused(model: nn.Module, *, channels_last: bool = True) -> nn.Module:
    """A copy for inference: DCLS layers become plain convolutions with the constructed kernels.

    Their operator still convolves these, and with them every depthwise convolution.
    """
    copy = ops.adopt(layers.fuse(deepcopy(model))).eval()
    return copy.to(memory_format=torch.channels_last) if channels_last else copy


@torch.inference_mode()
def hits(model: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], precision: Precision) -> torch.Tensor:
    """Which images of this process's share `model` (in eval mode) has right at first: bool [N], in their order."""
    right = []
    for images, labels in batches:
        with precision.autocast():
            logits = model(precision.place(images))
        right.append(logits.argmax(1).cpu() == labels)
    return torch.cat(right)


@torch.inference_mode()
def evaluate(
    models: Sequence[nn.Module],
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    world: World,
    *,
    precision: Precision,
    limit: int | None = None,
) -> list[Scores]:
    """Score each of `models` (in eval mode) on this process's share of the images, then sum over the processes.

    All see the same batches, so that a model and its average cost the decoding of the images once; img_per_s counts
    the images of every model. `limit` stops after that many batches (debug runs).
    """
    totals = torch.zeros(len(models), 4, dtype=torch.float64, device=world.device)
    start = time.perf_counter()
    for images, labels in islice(batches, limit):
        images, labels = precision.place(images), labels.to(world.device, non_blocking=True)
        for model, total in zip(models, totals, strict=True):
            with precision.autocast():
                logits = model(images)
            total += _counts(logits.float(), labels)
    sums: list[list[float]] = world.sum(totals).tolist()
    seconds = time.perf_counter() - start
    return [_scores(each, len(models) / seconds) for each in sums]


@torch.no_grad()
def features(
    model: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], *, precision: Precision
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the classifier is shown of each image, float32 [N, D], and the labels, int64 [N], where the model is.

    model: of timm's, in eval mode; D its pooled features, which timm's forward_head returns with pre_logits.
    """
    pooled, labels = [], []
    for images, answers in batches:
        with precision.autocast():
            maps = model.forward_features(precision.place(images))  # type: ignore[operator]  # methods of all timm models
            pooled.append(model.forward_head(maps, pre_logits=True).float())  # type: ignore[operator]  # the same
        labels.append(answers.to(precision.device))
    return torch.cat(pooled), torch.cat(labels)


def _scores(sums: list[float], passes_per_s: float) -> Scores:
    top1, top5, loss, images = sums
    count = max(images, 1.0)
    return Scores(100 * top1 / count, 100 * top5 / count, loss / count, int(images), images * passes_per_s)


def _counts(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[right at first, right among five (or all, of fewer classes), sum of losses, images], float64.

    labels: int64 [B], or [B, k] where any of several is right (filled up with -1): the loss is then that of their
    summed probability.
    """
    ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices
    if labels.dim() == 1:
        loss = F.cross_entropy(logits, labels, reduction="sum")
        labels = labels[:, None]
    else:
        right = logits.log_softmax(1).gather(1, labels.clamp(min=0)).masked_fill(labels < 0, -torch.inf)
        loss = -right.logsumexp(1).sum()
    hits = (ranked[:, :, None] == labels[:, None, :]).any(2)
    parts = [hits[:, 0].sum(), hits.any(1).sum(), loss, torch.tensor(len(labels), device=logits.device)]
    return torch.stack([part.double() for part in parts])


class Restricted(nn.Module):
    """`model` with some of its outputs alone, in the order of `outputs` (int64 [k])."""

    def __init__(self, model: nn.Module, outputs: torch.Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("outputs", outputs)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] -> [B, k]."""
        return self.model(images)[:, self.outputs]
