import pytest
import timm
import torch
from torch import nn

import models
from dcls.errors import ConfigError
from models.families import plain_names


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("convnext_tiny", "ConvNeXt"),
        ("convnext_tiny.fb_in1k", "ConvNeXt"),
        ("convnextv2_base", "ConvNeXt"),
        ("convnext_base_dcls_gauss", "ConvNeXt"),
        ("convformer_s18_dcls.paper", "ConvFormer"),
        ("convnext_quickstart", "ConvNeXt for small images"),
        ("resnet50", "ResNet"),
        ("caformer_b36", "CAFormer"),
        ("fastvit_sa36", "FastViT"),
    ],
)
def test_a_name_has_its_family(name, family):
    assert models.family(name).name == family


def test_a_built_model_has_the_family_of_its_name():
    with torch.device("meta"):
        assert models.family(models.create("caformer_s18")).name == "CAFormer"
        assert models.family(models.create("caformer_s18_dcls")).name == "CAFormer"


@pytest.mark.parametrize("model", ["resnet50d", "resnext50_32x4d", "poolformer_s12", "convnext_nope", nn.Linear(1, 1)])
def test_what_has_no_rule_is_refused_with_the_families(model):
    with pytest.raises(ConfigError, match=r"model.name='.*' has no rule for surgery: .*FastViT"):
        models.family(model)


@pytest.mark.parametrize(
    ("model", "name", "stage"),
    [
        ("convnext_tiny", "stages.2.blocks.8.conv_dw", 2),
        ("convnext_tiny", "stages_1.blocks.0.conv_dw.P", 1),
        ("convnext_tiny", "stem.0", None),
        ("resnet50", "layer1.0.conv2", 0),
        ("resnet50", "layer4.2.conv2.P", 3),
        ("resnet50", "fc", None),
        ("fastvit_sa24", "stages.3.pos_emb.pos_enc", 3),
        ("caformer_s18", "stages.0.blocks.0.token_mixer.dwconv", 0),
    ],
)
def test_stages_count_from_zero(model, name, stage):
    assert models.family(model).stage_of(name) == stage


def test_sizes_are_the_published_ones_and_new_versions_have_one():
    convnext = models.family("convnext_tiny")
    assert [convnext.size_of(version) for version in ("v0", "v1", "max", "gauss", "another")] == [17, 17, 17, 23, 17]
    assert models.family("resnet50").size_of("gauss") == 7
    assert models.family("convnext_quickstart").size_of("gauss") == 13
    assert [models.family(name).default_version for name in ("resnet50", "convformer_s18")] == ["v0", "v1"]


@pytest.mark.parametrize("rule", models.FAMILIES, ids=lambda rule: rule.name)
@pytest.mark.parametrize("mode", ["dcls", "dilated", "large_kernel"])
def test_every_rule_converts_a_model_of_its_own(rule, mode):
    name = next(name for name, covering in plain_names().items() if covering is rule)
    with torch.device("meta"):
        model = models.create(name)
    report = models.convert(model, mode=mode, version=rule.default_version)
    assert {rule.stage_of(row.name) for row in report.rows} >= {0, 1}
    released = rule.released.items()
    assert all(timm.is_model(f"{plain}_dcls_{version}.paper") for (plain, version), _ in released)


@pytest.mark.parametrize(
    ("name", "channels", "reduction"),
    [
        ("resnet50_dcls", 2048, 32),
        ("convnext_tiny_dcls", 768, 32),
        ("caformer_s18", 512, 32),
        ("convformer_s18_dcls", 512, 32),
        ("fastvit_sa24", 1024, 32),
        ("convnext_quickstart", 64, 16),
    ],
)
def test_heat_maps_are_of_the_last_features(name, channels, reduction):
    with torch.device("meta"):
        model = models.create(name).eval()
    seen = []
    models.target_layer(model).register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    model(torch.empty(2, 3, 128, 128, device="meta"))
    assert seen == [(2, channels, 128 // reduction, 128 // reduction)]


def test_heat_maps_need_a_rule():
    with torch.device("meta"), pytest.raises(ConfigError, match="model.name='poolformer_s12': no rule says of which"):
        models.target_layer(models.create("poolformer_s12"))
