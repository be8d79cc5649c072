"""DCLS models under timm names: `<timm name>_dcls`, `<timm name>_dcls_<version>` and, where one was released, `.paper`.

import models
timm.create_model("convnext_tiny_dcls")              the family's version and size, equal parameters
timm.create_model("convformer_s18_dcls_v1.paper")    the released number of taps
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import timm
from timm.models import (
    DefaultCfg,
    PretrainedCfg,
    generate_default_cfgs,
    get_pretrained_cfg,
    model_entrypoint,
    register_model,
    resolve_pretrained_cfg,
)
from torch import nn

from dcls.errors import ConfigError
from dcls.layers import INTERPOLATIONS
from models.conversion import convert
from models.families import Family, plain_names

PAPER = "paper"
# Registration looks for this name in the entry point's module.
default_cfgs: dict[str, DefaultCfg] = {}


def register(plain: str, version: str, name: str, rule: Family) -> None:
    """Register `name` with timm: the model `plain`, converted to DCLS of `version`."""
    count = rule.released.get((plain, version))
    cfg = without_weights(plain, rule)
    tags = ("", f".{PAPER}") if count else ("",)
    default_cfgs.update(generate_default_cfgs({name + tag: cfg for tag in tags}))
    entry = _entry_point(plain, version, name, count)
    globals()[name] = entry
    register_model(entry)


def without_weights(plain: str, rule: Family) -> PretrainedCfg:
    """timm's input and evaluation settings of the plain model, at the training resolution, without its weights."""
    cfg = get_pretrained_cfg(plain) or PretrainedCfg()
    none: dict[str, Any] = dict.fromkeys(["url", "file", "hf_hub_id", "hf_hub_filename", "test_input_size", "tag"])
    cfg = replace(cfg, **none, custom_load=False, test_crop_pct=None)
    return replace(cfg, crop_pct=rule.crop_pct) if rule.crop_pct else cfg


def _entry_point(plain: str, version: str, name: str, count: int | None) -> Callable[..., nn.Module]:
    def entry(
        pretrained: bool = False,
        pretrained_cfg: str | dict[str, Any] | None = None,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        cache_dir: Any = None,
        **options: Any,
    ) -> nn.Module:
        if pretrained:
            raise ConfigError(
                f"model.pretrained=true: there are no weights for {name} here; load a file with timm's checkpoint_path"
            )
        cfg = resolve_pretrained_cfg(name, pretrained_cfg, pretrained_cfg_overlay)
        model = model_entrypoint(plain)(pretrained=False, pretrained_cfg=cfg.to_dict(), **options)
        convert(model, mode="dcls", version=version, kernel_count=count if count and cfg.tag == PAPER else "auto")
        return model

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = f"{plain} with {version} DCLS layers at equal parameters, or with the released number of taps."
    return entry


def _register_all() -> None:
    for plain, rule in plain_names().items():
        versions = {f"{plain}_dcls": rule.default_version}
        versions |= {f"{plain}_dcls_{version}": version for version in INTERPOLATIONS}
        for name, version in versions.items():
            if not timm.is_model(name):
                register(plain, version, name, rule)


_register_all()
