"""The surgery of a timm model by its family's rule."""

from collections.abc import Sequence
from functools import partial

from torch import nn

from dcls import surgery
from dcls.errors import ConfigError
from dcls.layers import roles
from dcls.layers.interpolation import resolve
from models.families import family


def convert(
    model: nn.Module,
    *,
    mode: str,
    dilated_kernel_size: str | int | Sequence[int] = "auto",
    kernel_count: str | int = "auto",
    version: str = "v0",
    share: bool = True,
    position_init_std: float = 0.5,
    sigma_init: float | None = None,
    dilation: int | None = None,
) -> surgery.Report:
    """`dcls.surgery.convert` with what the model's family says: which layers, initialisation and, where it is "auto",
    size. dilation=None: the family's.

    A converted model's `no_weight_decay()` names its positions and sigmas besides what timm's own names, so that timm's
    optimizer factories do not decay them. Mode none needs no rule and is open to every model.

    Raises ConfigError as `dcls.surgery.convert` does, and for a model without a rule.
    """
    if mode == "none":
        return surgery.convert(model, mode=mode, select=lambda name, conv: False)
    rule = family(model)
    report = surgery.convert(
        model,
        mode=mode,
        select=rule.select,
        dilated_kernel_size=_size(dilated_kernel_size, rule.size_of(resolve(version))),
        kernel_count=kernel_count,
        version=version,
        share=share,
        dilation=rule.dilation if dilation is None else dilation,
        # The dilated control has the plain model's shapes, so it keeps its initial (or pretrained) weights.
        weight_std=None if mode == "dilated" else rule.weight_std,
        position_init_std=position_init_std,
        sigma_init=sigma_init,
    )
    spare_positions(model)
    return report


def _size(asked: str | int | Sequence[int], published: int) -> int | Sequence[int]:
    if asked == "auto":
        return published
    if isinstance(asked, str):
        raise ConfigError(f"dilated_kernel_size={asked!r} must be 'auto', a number, or a number for each axis")
    return asked


def spare_positions(model: nn.Module) -> None:
    """Make `model.no_weight_decay()` name positions and sigmas, under each of their names."""
    declared = roles(model)
    if not declared:
        return
    own: set[str] = getattr(model, "no_weight_decay", set)()
    ours = {name for name, each in model.named_parameters(remove_duplicate=False) if each in declared}
    # A set of names rather than a method: it survives deepcopy and needs no class of ours where models are unpickled.
    model.no_weight_decay = partial(set, sorted(own | ours))  # type: ignore[assignment]  # in place of a method
