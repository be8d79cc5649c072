"""One small network of each family, as timm builds the real ones."""

from collections.abc import Callable

import pytest
import torch
from timm.models import build_model_with_cfg
from timm.models.metaformer import Attention, LayerNorm2dNoBias, LayerNormNoBias, MetaFormer, SepConv
from torch import nn

import models

DEPTHS, WIDTHS = (1, 2, 1, 1), (8, 16, 32, 64)


def small(name: str) -> nn.Module:
    """`name` with few and narrow blocks: 10 classes, 3 channels."""
    if name == "convnext_tiny":
        return models.create(name, num_classes=10, depths=DEPTHS, dims=WIDTHS, ls_init_value=1.0)
    if name == "resnet50":
        return models.create(name, num_classes=10, layers=DEPTHS, channels=WIDTHS, zero_init_last=False)
    if name == "fastvit_sa24":
        # Layer scale starts at 1e-5 there, which would hide a wrong gradient.
        return models.create(name, num_classes=10, layers=DEPTHS, embed_dims=WIDTHS, layer_scale_init_value=1.0)
    if name in ("convformer_s18", "caformer_s18"):
        attention = name.startswith("caformer")
        return build_model_with_cfg(
            MetaFormer,
            name,
            False,
            num_classes=10,
            depths=DEPTHS,
            dims=WIDTHS,
            token_mixers=[SepConv] * 2 + [Attention if attention else SepConv] * 2,
            norm_layers=[LayerNorm2dNoBias] * 2 + [LayerNormNoBias if attention else LayerNorm2dNoBias] * 2,
        )
    return models.create(name, num_classes=10)


@pytest.fixture
def build() -> Callable[[str], nn.Module]:
    return small


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small only wait for each other's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
