"""What the step minimises: timm's mixup and losses, always on soft targets, so that one path serves every recipe."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from timm.data.mixup import Mixup, mixup_target
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy

from dcls.errors import ConfigError

LOSSES: dict[str, Callable[[float | None], torch.nn.Module]] = {
    "soft_ce": lambda threshold: SoftTargetCrossEntropy(),
    "bce": lambda threshold: BinaryCrossEntropy(smoothing=0.0, target_threshold=threshold),
}


@dataclass
class Objective:
    """`prepare` blends a batch and softens its labels; `loss` compares logits [B, classes] with targets [B,
    classes].
    """

    mix: Mixup
    loss: torch.nn.Module
    mixup_off_epoch: int | None = None
    mixes: bool = True

    def set_epoch(self, epoch: int) -> None:
        """Stop mixing from the zero-based epoch `mixup_off_epoch` on; labels stay smoothed."""
        self.mixes = self._can_mix and (self.mixup_off_epoch is None or epoch < self.mixup_off_epoch)

    @property
    def _can_mix(self) -> bool:
        return self.mix.mixup_alpha > 0 or self.mix.cutmix_alpha > 0

    def prepare(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mixed images and soft targets. Draws from numpy's generator, which the step seeds before each slot."""
        if self.mixes:
            return self.mix(images, labels)
        return images, mixup_target(labels, self.mix.num_classes, 1.0, self.mix.label_smoothing)


def build(
    *,
    classes: int,
    loss: str = "soft_ce",
    smoothing: float = 0.0,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    mixup_prob: float = 1.0,
    mixup_switch_prob: float = 0.5,
    mixup_mode: str = "batch",
    mixup_off_epoch: int | None = None,
    bce_threshold: float | None = None,
) -> Objective:
    """Soft-target cross-entropy (`soft_ce`) or binary cross-entropy (`bce`), with mixup, cutmix and label smoothing."""
    if loss not in LOSSES:
        raise ConfigError(f"recipe.loss={loss}: choose one of {', '.join(LOSSES)}")
    mix = Mixup(
        mixup_alpha=mixup,
        cutmix_alpha=cutmix,
        prob=mixup_prob,
        switch_prob=mixup_switch_prob,
        mode=mixup_mode,
        label_smoothing=smoothing,
        num_classes=classes,
    )
    objective = Objective(mix, LOSSES[loss](bce_threshold), mixup_off_epoch)
    objective.set_epoch(0)
    return objective
