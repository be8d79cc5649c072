"""Dilated Convolution with Learnable Spacings: layers, surgery, ImageNet training.

The layers, `dcls.ops` and `dcls.surgery` need torch alone.
"""

from dcls.layers import Dcls1d, Dcls2d, Dcls3d, clamp_positions, fuse, repulsive_loss

__all__ = ["Dcls1d", "Dcls2d", "Dcls3d", "clamp_positions", "fuse", "repulsive_loss"]
