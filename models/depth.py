"""How deep in the network each parameter sits, for layer-wise learning-rate decay."""

from timm.models import group_parameters, metaformer
from torch import nn

from dcls.errors import ConfigError

# timm groups no layers of CAFormer and ConvFormer. As it groups ConvNeXt's, whose stages have the same names.
METAFORMER = {
    "stem": r"^stem",
    "blocks": [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)],
}


def layer_ids(model: nn.Module) -> dict[nn.Parameter, int]:
    """Every distinct parameter's layer by timm's `group_matcher`: 0 is the stem, the largest the head.

    A shared P belongs to the first block that holds it. ConfigError where timm has no grouping for the model.
    """
    matcher = getattr(model, "group_matcher", None)
    if isinstance(model, metaformer.MetaFormer):
        groups = METAFORMER
    elif matcher is not None:
        groups = matcher(coarse=False)
    else:
        raise ConfigError(
            f"recipe.layer_decay is set, but timm groups no layers of {type(model).__name__}: leave it out"
        )
    numbers: dict[str, int] = group_parameters(model, groups, reverse=True)
    return {parameter: numbers[name] for name, parameter in model.named_parameters()}
