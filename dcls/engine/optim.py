"""Optimizer groups by role, and a learning rate that is a function of the step."""

from collections.abc import Mapping, Sequence
from typing import Any

import timm.optim
import torch
from timm.scheduler import CosineLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn

from dcls import layers
from dcls.errors import ConfigError

UNDECAYED = ("no_decay", "position", "sigma")


def parameter_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    lr_scales: Mapping[str, float],
    layer_decay: float | None = None,
    layer_ids: Mapping[nn.Parameter, int] | None = None,
) -> list[dict[str, Any]]:
    """Groups named by role: decay, no_decay, position, sigma (with `.layer<i>` appended under layer decay).

    Roles are declared by the layers and found by identity, so a position shared by a whole stage stands in one group
    once. Norms, biases, positions and sigmas have no weight decay; `lr_scales` (position 5, sigma 5: arXiv 2112.03740)
    multiply the scheduled rate, and so does layer_decay ** (distance from the head), which therefore keeps the
    positions' factor.
    """
    declared = layers.roles(model)
    spared = set(getattr(model, "no_weight_decay", set)())
    depth = max(layer_ids.values()) if layer_ids else 0
    groups: dict[tuple[str, int], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        role = declared.get(parameter) or _plain_role(name, parameter, spared)
        layer = layer_ids[parameter] if layer_decay is not None and layer_ids else depth
        group = groups.setdefault((role, layer), _group(role, layer, depth, weight_decay, lr_scales, layer_decay))
        group["params"].append(parameter)
    return list(groups.values())


def _plain_role(name: str, parameter: nn.Parameter, spared: set[str]) -> str:
    return "no_decay" if parameter.ndim <= 1 or name.endswith(".bias") or name in spared else "decay"


def _group(
    role: str, layer: int, depth: int, weight_decay: float, lr_scales: Mapping[str, float], layer_decay: float | None
) -> dict[str, Any]:
    scale = lr_scales.get(role, 1.0) * (1.0 if layer_decay is None else layer_decay ** (depth - layer))
    return {
        "params": [],
        "group_name": role if layer_decay is None else f"{role}.layer{layer}",
        "weight_decay": 0.0 if role in UNDECAYED else weight_decay,
        "lr_scale": scale,  # read by timm's schedulers at every update
    }


# Of timm's factory, which makes groups by them out of a model; ours are made already.
IDLE_ARGUMENTS = {
    "weight_decay",
    "filter_bias_and_bn",
    "layer_decay",
    "layer_decay_min_scale",
    "layer_decay_no_opt_scale",
    "param_group_fn",
    "fallback_list",
    "fallback_no_weight_decay",
}


def build_optimizer(
    groups: Sequence[dict[str, Any]], *, name: str, lr: float, arguments: Mapping[str, Any] | None = None
) -> torch.optim.Optimizer:
    """timm's optimizer `name` over `groups`. Raises ConfigError for a name or an argument timm does not know.

    And for one that needs second derivatives, which the training step does not compute.
    """
    known = [str(each) for each in timm.optim.list_optimizers()]
    if name not in known:
        raise ConfigError(f"recipe.optimizer={name}: timm has no such optimizer; it has {', '.join(known[:12])}, ...")
    if timm.optim.get_optimizer_info(name).second_order:
        raise ConfigError(f"recipe.optimizer={name} needs second derivatives: choose a first-order one, such as adamw")
    arguments = dict(arguments or {})
    if idle := sorted(IDLE_ARGUMENTS & arguments.keys()):
        raise ConfigError(
            f"recipe.opt_args={arguments}: {', '.join(idle)} has no effect there: it takes the optimizer's own"
        )
    try:
        return timm.optim.create_optimizer_v2(list(groups), opt=name, lr=lr, weight_decay=0.0, **arguments)
    except (TypeError, ValueError, LookupError, AssertionError, ImportError, RuntimeError) as error:
        raise ConfigError(f"recipe.opt_args={arguments} does not fit recipe.optimizer={name}: {error}") from error


def build_schedule(
    optimizer: torch.optim.Optimizer, *, total_steps: int, warmup_steps: int, lr_min: float, warmup_lr: float
) -> Scheduler:
    """Linear warm-up to the peak, then a cosine to `lr_min` at the last step. Call `step_update(step)` before each
    step.

    timm counts the cosine from the end of the warm-up only with `warmup_prefix`; without it the peak is never reached.
    """
    return CosineLRScheduler(
        optimizer,
        t_initial=total_steps - warmup_steps,
        lr_min=lr_min,
        warmup_t=warmup_steps,
        warmup_lr_init=warmup_lr,
        warmup_prefix=True,
        t_in_epochs=False,
    )


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The current rate by role, of the layer nearest to the head: {"decay": .., "position": ..}."""
    return {group["group_name"].partition(".")[0]: group["lr"] for group in optimizer.param_groups}
