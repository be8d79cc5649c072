"""How deep in the network each parameter sits, for layer-wise learning-rate decay."""

from timm.models import group_parameters
from torch import nn

from dcls.errors import ConfigError


def layer_ids(model: nn.Module) -> dict[nn.Parameter, int]:
    """Every distinct parameter's layer by timm's `group_matcher`: 0 is the stem, the largest the head.

    A shared P belongs to the first block that holds it. ConfigError where timm has no grouping for the model.
    """
    matcher = getattr(model, "group_matcher", None)
    if matcher is None:
        raise ConfigError(
            f"recipe.layer_decay is set, but timm groups no layers of {type(model).__name__}: leave it out"
        )
    numbers: dict[str, int] = group_parameters(model, matcher(coarse=False), reverse=True)
    return {parameter: numbers[name] for name, parameter in model.named_parameters()}
