"""The network of the quickstart: a ConvNeXt of 144,314 parameters for 56 x 56 grey images of 10 classes."""

from typing import Any

import timm
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.convnext import ConvNeXt
from torch import nn

# Registration looks for this name in the entry point's module.
default_cfgs = generate_default_cfgs(
    {
        "convnext_quickstart": {
            "num_classes": 10,
            "input_size": (1, 56, 56),
            "pool_size": (1, 1),
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "mean": (0.286,),
            "std": (0.353,),
            "first_conv": "stem.0",
            "classifier": "head.fc",
        }
    }
)


# Maps of 14, 7, 3 and 1 pixels; the last stage is its downsampling alone.
SHAPE: dict[str, Any] = {"depths": (2, 2, 2, 0), "dims": (16, 32, 64, 128), "patch_size": 4, "ls_init_value": 1.0}


def convnext_quickstart(pretrained: bool = False, **options: Any) -> nn.Module:
    return build_model_with_cfg(
        ConvNeXt,
        "convnext_quickstart",
        pretrained,
        feature_cfg={"out_indices": (0, 1, 2, 3), "flatten_sequential": True},
        **(SHAPE | options),
    )


# timm warns about a name registered twice, as a reloaded module would.
if not timm.is_model("convnext_quickstart"):
    register_model(convnext_quickstart)
