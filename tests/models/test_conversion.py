"""Every family in every mode: what is replaced, what stays, what learns."""

import copy

import pytest
import torch
from torch.nn import functional as F

import models
from dcls.errors import ConfigError
from dcls.layers import fuse, layers, roles

FAMILIES = ["convnext_tiny", "convnext_quickstart", "resnet50", "convformer_s18", "caformer_s18", "fastvit_sa24"]
MODES = [("none", "v0"), ("dilated", "v0"), ("large_kernel", "v0")] + [
    ("dcls", v) for v in ("v0", "v1", "max", "gauss")
]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("mode", "version"), MODES, ids=lambda value: value)
def test_every_parameter_gets_a_finite_gradient(build, name, mode, version):
    torch.manual_seed(0)
    model = build(name)
    report = models.convert(model, mode=mode, version=version, sigma_init=0.3 if version == "max" else None)
    assert bool(report.rows) == (mode != "none")
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    F.cross_entropy(model(images), labels).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name


LAYERS = {
    "convnext_tiny": 18,
    "convnext_small": 36,
    "convnextv2_atto": 12,
    "resnet50": 16,
    "convformer_s18": 18,
    "caformer_s18": 6,
    "fastvit_sa24": 25,
    "fastvit_sa36": 37,
    "fastvit_mci0": 21,
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_layers_of_the_paper_are_replaced_and_share_positions_by_stage(name):
    with torch.device("meta"):
        model = models.create(name)
    rule = models.family(model)
    report = models.convert(model, mode="dcls", version=rule.default_version)
    assert len(report.rows) == LAYERS[name]
    # A group is a stage: the pairs are as many as the groups and as the stages.
    pairs = {(row.group, rule.stage_of(row.name)) for row in report.rows}
    assert len(pairs) == len({group for group, _ in pairs}) == len({stage for _, stage in pairs})
    assert 0 <= report.params_before - report.params_after < 0.1 * report.params_before


def test_fastvit_keeps_its_mixers_and_patch_embeddings():
    with torch.device("meta"):
        model = models.create("fastvit_sa24")
    names = [row.name for row in models.convert(model, mode="dcls", version="v1").rows]
    assert "stages.3.pos_emb.pos_enc" in names
    assert {name.rpartition(".mlp.")[2] for name in names if "pos_emb" not in name} == {"conv.conv"}
    assert not any("downsample" in name or "token_mixer" in name for name in names)


def test_controls_have_the_sizes_of_the_paper():
    with torch.device("meta"):
        convnext, resnet, dense = (models.create(name) for name in ("convnext_tiny", "resnet50", "convnext_tiny"))
    assert models.convert(convnext, mode="dilated").rows[0].new == "7x7 dilation 2 depthwise 96"
    assert models.convert(resnet, mode="dilated").rows[0].new == "3x3 dilation 2 dense 64"
    assert resnet.layer2[0].conv2.stride == (2, 2)
    # The dense control has 6,624 channels x (289 - 49) weights more.
    report = models.convert(dense, mode="large_kernel")
    assert report.params_after - report.params_before == 1_589_760


def test_the_dilated_control_keeps_the_plain_weights(build):
    model = build("convnext_tiny")
    before = copy.deepcopy(model.state_dict())
    models.convert(model, mode="dilated")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_new_convnext_weights_are_small_and_resnet_keeps_the_layers_own(build):
    convnext, resnet = build("convnext_tiny"), build("resnet50")
    for model in (convnext, resnet):
        models.convert(model, mode="dcls")
    for name, layer in layers(convnext):
        assert 0.015 < layer.weight.std() < 0.025, name
        assert layer.bias.abs().max() == 0, name
    for name, layer in layers(resnet):
        # uniform on +-1 / sqrt(I/g K)
        assert 0.9 < layer.weight.abs().max() * layer.weight[0].numel() ** 0.5 <= 1, name


@pytest.mark.parametrize("name", FAMILIES)
def test_evaluation_by_fused_kernels_agrees(build, name):
    model = build(name)
    models.convert(model, mode="dcls", version="gauss", position_init_std=2.0)
    model.eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(fuse(copy.deepcopy(model))(images), model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["convnext_tiny", "fastvit_sa24"])
def test_no_weight_decay_names_positions_and_sigmas(build, name):
    model = build(name)
    model.no_weight_decay = lambda: {"stem.0.bias"}
    models.convert(model, mode="dcls", version="gauss")
    twin = copy.deepcopy(model)
    by_name = dict(twin.named_parameters(remove_duplicate=False))
    named = twin.no_weight_decay()
    assert named - {"stem.0.bias"} == {key for key in by_name if key.endswith((".P", ".SIG"))}
    assert "stem.0.bias" in named
    assert {by_name[key] for key in named - {"stem.0.bias"}} == set(roles(twin))
    named.clear()
    assert twin.no_weight_decay()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"mode": "dlcs"}, "mode='dlcs'"),
        ({"mode": "dcls", "version": "v9"}, "version='v9'"),
        ({"mode": "dcls", "dilated_kernel_size": "17"}, "dilated_kernel_size='17' must be 'auto'"),
        ({"mode": "dcls", "kernel_count": 1000}, "kernel_count=1000"),
    ],
    ids=str,
)
def test_bad_options_are_refused(build, options, match):
    with pytest.raises(ConfigError, match=match):
        models.convert(build("convnext_tiny"), **options)


def test_a_model_without_a_rule_is_refused_but_may_stay_plain():
    with torch.device("meta"):
        model = models.create("test_vit")
    with pytest.raises(ConfigError, match=r"model.name='test_vit' has no rule .*ConvNeXt .*ResNet .*FastViT"):
        models.convert(model, mode="dcls")
    assert models.convert(model, mode="none").rows == ()


def test_sizes_and_counts_can_be_given():
    with torch.device("meta"):
        model = models.create("convnext_tiny")
    report = models.convert(model, mode="dcls", dilated_kernel_size=(13, 9), kernel_count=20)
    assert {row.new for row in report.rows} == {"13x9 of 20 taps"}
