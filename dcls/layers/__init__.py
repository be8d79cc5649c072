"""The method: convolutions whose taps learn where they sit. Needs torch alone."""

from dcls.layers.construction import construct
from dcls.layers.convolution import Dcls1d, Dcls2d, Dcls3d, DclsNd
from dcls.layers.fusion import fuse
from dcls.layers.interpolation import INTERPOLATIONS, Interpolation
from dcls.layers.inventory import clamp_positions, layers, positions, roles
from dcls.layers.reference_layout import from_reference, to_reference
from dcls.layers.repulsion import repulsive_loss

__all__ = [
    "INTERPOLATIONS",
    "Dcls1d",
    "Dcls2d",
    "Dcls3d",
    "DclsNd",
    "Interpolation",
    "clamp_positions",
    "construct",
    "from_reference",
    "fuse",
    "layers",
    "positions",
    "repulsive_loss",
    "roles",
    "to_reference",
]
