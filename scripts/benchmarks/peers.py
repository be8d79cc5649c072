"""Other people's layers."""

import importlib.util
import logging
from typing import Any


def has_reference() -> bool:
    return importlib.util.find_spec("DCLS") is not None


def reference_layer(ins: int, outs: int, taps: int, cells: int, version: str, **options: Any) -> Any:
    """PyPI `DCLS`'s Dcls2d, square, without the warning it logs at each construction where an extension is missing."""
    root = logging.getLogger()
    disabled, root.disabled = root.disabled, True
    try:
        from DCLS.construct.modules import Dcls2d

        return Dcls2d(ins, outs, taps, dilated_kernel_size=cells, version=version, bias=False, **options)
    finally:
        root.disabled = disabled
