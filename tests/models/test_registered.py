"""The names that timm learns: their figures, and that timm's own scripts can use them."""

import copy
import importlib
import warnings

import pytest
import timm
import torch
from timm.data import resolve_data_config
from timm.models import resolve_model_input_args
from timm.optim import create_optimizer_v2

import models
from dcls.errors import ConfigError
from dcls.layers import layers, roles

# taps, cells, version, parameters at 1000 classes
FIGURES = {
    "convnext_tiny_dcls": (34, 17, "v0", 28_587_688),
    "convnext_small_dcls": (40, 17, "v0", 50_217_064),
    "convnext_base_dcls": (40, 17, "v0", 88_582_632),
    "convnext_tiny_dcls_gauss": (26, 23, "gauss", 28_586_536),
    "resnet50_dcls": (5, 7, "v0", 24_008_744),
    "convformer_s18_dcls": (34, 17, "v1", 26_763_952),
    "convformer_s18_dcls_gauss": (26, 23, "gauss", 26_757_808),
    "caformer_s18_dcls": (29, 17, "v1", 26_340_888),
    "fastvit_sa24_dcls": (37, 17, "v1", 21_548_456),
    "fastvit_sa36_dcls_v1": (40, 17, "v1", 31_520_168),
    "convnext_quickstart_dcls": (24, 13, "v0", 144_090),
    "convnext_quickstart_dcls_gauss": (16, 13, "gauss", 144_090),
    # Released with another number of taps: +73,984 and +8,832 over the plain models.
    "convformer_s18_dcls.paper": (40, 17, "v1", 26_774_448 + 73_984),
    "caformer_s18_dcls_v1.paper": (34, 17, "v1", 26_341_656 + 8_832),
    "fastvit_sa24_dcls.paper": (34, 17, "v1", 21_523_496),
    "convnext_tiny_dcls.paper": (34, 17, "v0", 28_587_688),
    "convnext_tiny_dcls_gauss.paper": (26, 23, "gauss", 28_586_536),
    "resnet50_dcls.paper": (5, 7, "v0", 24_008_744),
}
PLAIN = {
    "convnext_tiny": 28_589_128,
    "convnext_small": 50_223_688,
    "convnext_base": 88_591_464,
    "resnet50": 25_557_032,
    "convnext_quickstart": 144_314,
}


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", FIGURES)
def test_registered_models_have_the_published_figures(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    found = {(layer.kernel_count, *set(layer.dilated_kernel_size), layer.version) for _, layer in layers(model)}
    assert found == {FIGURES[name][:3]}
    assert count(model) == FIGURES[name][3]


@pytest.mark.parametrize("name", PLAIN)
def test_plain_models_have_theirs(name):
    with torch.device("meta"):
        assert count(timm.create_model(name)) == PLAIN[name]


def test_count_six_of_resnet50():
    with torch.device("meta"):
        model = models.create("resnet50")
    assert models.convert(model, mode="dcls", kernel_count=6).params_after == 25_962_536


def test_every_plain_name_has_five_of_ours_and_released_ones_a_tag():
    for plain in ("convnextv2_atto", "resnet50", "fastvit_sa36", "convnext_quickstart"):
        assert timm.is_model(f"{plain}_dcls")
        assert all(timm.is_model(f"{plain}_dcls_{version}") for version in ("v0", "v1", "max", "gauss"))
    tagged = timm.list_models("*_dcls*.paper", include_tags=True)
    # Six of them are the family's own version and stand twice, the gauss one once, with and without the version.
    assert len(tagged) == 2 * 8 + 1
    assert "convnext_tiny_dcls_gauss.paper" in tagged
    assert not timm.list_models("*_dcls*", pretrained=True)


def test_importing_again_neither_warns_nor_registers_anew():
    entry = timm.models.model_entrypoint("convnext_tiny_dcls")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for module in ("models.quickstart", "models.registered", "models"):
            importlib.reload(importlib.import_module(module))
    assert timm.models.model_entrypoint("convnext_tiny_dcls") is entry


def test_arguments_reach_the_timm_model():
    model = timm.create_model("convnext_quickstart_dcls", num_classes=7, in_chans=2, drop_path_rate=0.2)
    assert model(torch.randn(2, 2, 56, 56)).shape == (2, 7)
    assert model.stages[2].blocks[1].drop_path.drop_prob == pytest.approx(0.2)
    assert timm.create_model("convnext_quickstart_dcls")(torch.randn(1, 1, 56, 56)).shape == (1, 10)


@pytest.mark.parametrize("name", ["convformer_s18_dcls", "convformer_s18_dcls.paper"])
def test_the_arguments_that_timms_scripts_resolve_keep_the_tag(name):
    arguments = resolve_model_input_args(name, {"num_classes": 5}, num_classes=5)
    with torch.device("meta"):
        model = timm.create_model(arguments.pop("model_name"), **arguments)
    assert next(layers(model))[1].kernel_count == FIGURES[name][0]
    assert model.num_classes == 5


@pytest.mark.parametrize(
    ("name", "crop"), [("convnext_tiny_dcls", 0.875), ("resnet50_dcls.paper", 0.95), ("caformer_s18_dcls", 1.0)]
)
def test_evaluation_settings_are_those_of_training_resolution(name, crop):
    with torch.device("meta"):
        model = timm.create_model(name)
    settings = resolve_data_config({}, model=model, use_test_size=True)
    assert (settings["input_size"], settings["crop_pct"]) == ((3, 224, 224), crop)
    assert model.pretrained_cfg["architecture"] == name.partition(".")[0]


@pytest.mark.parametrize("layer_decay", [None, 0.7])
def test_timms_optimizers_do_not_decay_positions(layer_decay):
    model = timm.create_model("convnext_quickstart_dcls_gauss")
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=layer_decay)
    decay = {parameter: group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    assert set(decay) == set(model.parameters())
    assert {decay[parameter] for parameter in roles(model)} == {0.0}
    assert {decay[layer.weight] for _, layer in layers(model)} == {0.05}


def test_models_copy_and_change_heads_as_timms_do():
    model = timm.create_model("convnext_quickstart_dcls").eval()
    images = torch.randn(1, 1, 56, 56)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(images), model(images))
    shared = [layer.P for _, layer in layers(twin)]
    assert shared[0] is shared[1]
    assert shared[0] is not next(layers(model))[1].P
    assert model.forward_features(images).shape == (1, 128, 1, 1)
    model.reset_classifier(3)
    assert model(images).shape == (1, 3)


def test_a_backbone_of_features_is_converted_too():
    model = timm.create_model("convnext_quickstart_dcls", features_only=True)
    assert [tuple(maps.shape[1:]) for maps in model(torch.randn(1, 1, 56, 56))] == [
        (16, 14, 14),
        (32, 7, 7),
        (64, 3, 3),
        (128, 1, 1),
    ]
    assert len(list(layers(model))) == 6


def test_weights_that_do_not_exist_are_refused():
    with pytest.raises(ConfigError, match="model.pretrained=true: there are no weights for convnext_tiny_dcls here"):
        timm.create_model("convnext_tiny_dcls", pretrained=True)


def test_an_unknown_tag_is_refused():
    with pytest.raises(RuntimeError, match=r"Invalid pretrained tag \(papre\) for convnext_tiny_dcls"):
        timm.create_model("convnext_tiny_dcls.papre")
