"""What is known about timm's families: factory, which convolutions are replaced and how, published figures, heads.

Importing it registers `<timm name>_dcls`, `<timm name>_dcls_<version>` and `convnext_quickstart` with timm.
"""

from models import quickstart as _quickstart  # noqa: F401  registered before the families look at timm's names
from models import registered as _registered  # noqa: F401
from models.blueprint import Blueprint, blueprint
from models.conversion import convert
from models.depth import layer_ids
from models.factory import create
from models.families import FAMILIES, Family, family, target_layer
from models.published import paper_figures
from models.released import publish, restore
from models.shortcuts import RELEASED, located
from models.transfer import colours, donor, transfer
from models.weights import create_from, load_plain, misfit, weights_of

__all__ = [
    "Blueprint",
    "FAMILIES",
    "RELEASED",
    "Family",
    "blueprint",
    "colours",
    "convert",
    "create",
    "create_from",
    "donor",
    "family",
    "layer_ids",
    "load_plain",
    "located",
    "misfit",
    "paper_figures",
    "publish",
    "restore",
    "target_layer",
    "transfer",
    "weights_of",
]
