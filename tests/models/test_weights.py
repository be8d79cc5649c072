import copy

import pytest
import torch

import models
from dcls.errors import CheckpointError
from dcls.layers import layers


@pytest.mark.parametrize("name", ["convnext_tiny", "resnet50", "caformer_s18", "fastvit_sa24"])
def test_everything_but_the_dcls_layers_comes_from_the_plain_model(build, name):
    plain, model = build(name), build(name)
    models.convert(model, mode="dcls", version="gauss")
    before = copy.deepcopy(model.state_dict())
    fresh = models.load_plain(model, plain.state_dict())
    assert set(fresh) == {f"{layer}.{key}" for layer, _ in layers(model) for key in ("weight", "P", "SIG")}
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key] if key in fresh else plain.state_dict()[key]), key
    assert all(layer.P is not None for _, layer in layers(model))


def test_a_head_of_other_classes_is_fresh():
    plain = models.create("convnext_quickstart", num_classes=10)
    model = models.create("convnext_quickstart", num_classes=3)
    models.convert(model, mode="dcls")
    fresh = models.load_plain(model, plain.state_dict())
    assert [name for name in fresh if name.startswith("head")] == ["head.fc.weight", "head.fc.bias"]
    assert "head.norm.weight" not in fresh


def test_both_heads_of_a_distilled_network_are_fresh():
    plain = models.create("deit_tiny_distilled_patch16_224", num_classes=10, depth=1)
    model = models.create("deit_tiny_distilled_patch16_224", num_classes=3, depth=1)
    heads = ["head.weight", "head.bias", "head_dist.weight", "head_dist.bias"]
    assert models.load_plain(model, plain.state_dict()) == heads


def test_weights_of_a_dcls_model_are_loaded_whole(build):
    source, model = build("convnext_tiny"), build("convnext_tiny")
    for each in (source, model):
        models.convert(each, mode="dcls")
    assert models.load_plain(model, source.state_dict()) == []
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(model.eval()(images), source.eval()(images))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda state: state.pop("head.norm.weight"), "1 missing, as head.norm.weight"),
        (lambda state: state.update(extra=torch.zeros(1)), "1 unexpected, as extra"),
        (lambda state: state.update({"stem.0.weight": torch.zeros(2)}), r"1 of another shape, as stem.0.weight \[2\]"),
        (lambda state: state.pop("stages.0.blocks.0.conv_dw.bias"), "missing, as stages.0.blocks.0.conv_dw.bias"),
    ],
)
def test_other_weights_are_refused_before_anything_is_loaded(change, match):
    plain, model = models.create("convnext_quickstart"), models.create("convnext_quickstart")
    models.convert(model, mode="dcls")
    before, state = copy.deepcopy(model.state_dict()), plain.state_dict()
    change(state)
    with pytest.raises(CheckpointError, match=rf"not this model's: .*{match}"):
        models.load_plain(model, state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("saved", "which", "expected"),
    [
        ({"model": {"a": 1}, "ema": {"a": 2}}, "auto", 2),
        ({"model": {"a": 1}, "ema": None}, "auto", 1),
        ({"model": {"a": 1}, "model_ema": {"a": 2}}, "model", 1),
        ({"model": {"a": 1}, "model_ema": {}}, "auto", 1),
        ({"state_dict": {"module.a": 1}, "state_dict_ema": {"module.a": 2}}, "ema", 2),
        ({"state_dict": {"_orig_mod.a": 1}}, "auto", 1),
        ({"a": 1}, "model", 1),
    ],
)
def test_weights_are_found_in_what_trainers_save(saved, which, expected):
    def tensors(value):
        return {k: tensors(v) for k, v in value.items()} if isinstance(value, dict) else value and torch.tensor(value)

    assert models.weights_of(tensors(saved), which) == {"a": expected}


def test_a_file_without_the_weights_asked_for_is_refused():
    with pytest.raises(CheckpointError, match=r"weights=ema: the file holds none of ema, state_dict_ema.* but model"):
        models.weights_of({"model": {"a": torch.zeros(1)}}, "ema")
    with pytest.raises(CheckpointError, match=r"weights=auto: .* but optimizer"):
        models.weights_of({"optimizer": {"lr": 1}})


@pytest.mark.parametrize(
    ("found", "line"),
    [
        ({"a": 3}, "found 'a', a int, among the weights"),
        ({7: torch.zeros(1)}, "found 7, a Tensor, among the weights"),
        ({"head.weight": torch.tensor(1.0)}, "found a single number as head.weight"),
    ],
)
def test_what_cannot_be_weights_is_refused(found, line):
    with pytest.raises(CheckpointError, match=line):
        models.weights_of({"model": {"b": torch.zeros(1)} | found})


def test_a_network_is_made_from_its_weights_with_their_classes():
    source = models.create("test_resnet", num_classes=7).eval()
    model = models.create_from("test_resnet", source.state_dict()).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(images), source(images))
    with pytest.raises(
        CheckpointError, match=r"model.name=test_convnext does not fit the weights: .* missing, as stem.0.weight"
    ):
        models.create_from("test_convnext", source.state_dict())
    with pytest.raises(CheckpointError, match=r"model.name=local-dir:/x has weights of its own: leave the file out"):
        models.restore(source.state_dict(), name="local-dir:/x")
