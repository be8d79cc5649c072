"""Checkpoints as the papers' repositories save them, against timm's networks with the reference package's layers."""

import math
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import eval as evaluation
import models
import train
from dcls.config import composition
from dcls.errors import CheckpointError, ConfigError, reported
from dcls.files import checkpoints
from dcls.layers import layers
from models.layouts import LAYOUTS, recognised
from scripts.benchmarks.peers import reference_layer

CLASSES, SIDE = 4, 64
SMALL = {"depths": (1, 2, 1, 1), "dims": (8, 16, 32, 64)}
SMALL_RESNET = {"layers": (1, 2, 1, 1), "channels": (8, 16, 32, 64)}
SMALL_FASTVIT = {"layers": (1, 2, 1, 1), "embed_dims": (8, 16, 32, 64)}

# timm's name, version, size, taps, arguments of a smaller network than the real one.
PUBLISHED = {
    "convnext v0": ("convnext_tiny", "v0", 17, 34, SMALL),
    "convnext gauss": ("convnext_tiny", "gauss", 23, 26, SMALL),
    "resnet": ("resnet50", "v0", 7, 5, SMALL_RESNET),
    "fastvit": ("fastvit_sa24", "v1", 17, 34, SMALL_FASTVIT),
    "convnext real": ("convnext_tiny", "v0", 17, 34, {}),
    "convformer real": ("convformer_s18", "v1", 17, 40, {}),
    "caformer real": ("caformer_s18", "v1", 17, 34, {}),
}

# Every name in the original repositories' files, with N for numbers. ResNet's are timm's.
BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
METAFORMER_NAMES = {
    *(f"downsample_layers.N.{each}" for each in ("conv.weight", "conv.bias", "post_norm.weight", "pre_norm.weight")),
    *(f"stages.N.N.{each}.weight" for each in ("normN", "mlp.fcN", "token_mixer.pwconvN", "token_mixer.dwconv")),
    *(f"stages.N.N.{each}" for each in ("mlp.act.scale", "mlp.act.bias", "res_scaleN.scale", "token_mixer.dwconv.P")),
    *("stages.N.N.token_mixer.actN.scale", "stages.N.N.token_mixer.actN.bias", "norm.weight", "norm.bias"),
    *(f"head.{each}.{kind}" for each in ("fcN", "norm") for kind in ("weight", "bias")),
}
NAMES = {
    "convnext": {
        *(f"{each}.{kind}" for each in ("downsample_layers.N.N", "norm", "head") for kind in ("weight", "bias")),
        *(f"stages.N.N.{each}.{kind}" for each in ("dwconv", "norm", "pwconvN") for kind in ("weight", "bias")),
        *("stages.N.N.gamma", "stages.N.N.dwconv.P"),
    },
    "convformer": METAFORMER_NAMES,
    "caformer": METAFORMER_NAMES | {f"stages.N.N.token_mixer.{each}.weight" for each in ("qkv", "proj")},
    "fastvit": {
        *(f"{each}.rbr_conv.N.conv.weight" for each in ("patch_embed.N", "network.N.proj.N", "conv_exp")),
        *(f"{each}.rbr_conv.N.bn.{kind}" for each in ("patch_embed.N", "network.N.proj.N") for kind in BATCH_NORM),
        *(f"conv_exp.rbr_{each}.{kind}" for each in ("conv.N.bn", "scale.bn") for kind in BATCH_NORM),
        *(f"patch_embed.N.rbr_{each}.{kind}" for each in ("scale.bn", "skip") for kind in BATCH_NORM),
        *(f"{each}.rbr_scale.conv.weight" for each in ("patch_embed.N", "conv_exp")),
        *(f"conv_exp.se.{each}.{kind}" for each in ("reduce", "expand") for kind in ("weight", "bias")),
        *(f"network.N.proj.N.rbr_skip.{kind}" for kind in BATCH_NORM),
        *(f"network.N.proj.N.{each}.conv.weight" for each in ("lkb_origin", "small_conv")),
        *(f"network.N.proj.N.{each}.bn.{kind}" for each in ("lkb_origin", "small_conv") for kind in BATCH_NORM),
        *(f"network.N.N.token_mixer.{each}.rbr_skip.{kind}" for each in ("norm", "mixer") for kind in BATCH_NORM),
        *(f"network.N.N.token_mixer.mixer.rbr_{each}.conv.weight" for each in ("conv.N", "scale")),
        *(f"network.N.N.token_mixer.mixer.rbr_{each}.bn.{k}" for each in ("conv.N", "scale") for k in BATCH_NORM),
        *(f"network.N.N.{each}" for each in ("layer_scale", "layer_scale_N", "token_mixer.layer_scale")),
        *(f"network.N.N.token_mixer.{each}" for each in ("qkv.weight", "proj.weight", "proj.bias")),
        *(f"network.N.N.{each}.{kind}" for each in ("norm", "convffn.conv.bn") for kind in BATCH_NORM),
        *(f"network.N.N.convffn.{each}" for each in ("conv.conv.weight", "conv.conv.P", "fcN.weight", "fcN.bias")),
        *("network.N.pe.weight", "network.N.pe.bias", "network.N.pe.P", "head.weight", "head.bias"),
    },
}


def assembled(name: str, version: str, size: int, taps: int, options: Mapping) -> nn.Module:
    """timm's network with the reference package's layers, one P for a stage, everything random."""
    torch.manual_seed(0)
    model = models.create(name, num_classes=CLASSES, **options)
    rule = models.family(name)
    channels, first = 0, None
    for path, conv in [(p, m) for p, m in model.named_modules() if isinstance(m, nn.Conv2d) and rule.select(p, m)]:
        layer = reference_layer(
            conv.in_channels,
            conv.out_channels,
            taps,
            size,
            version,
            stride=conv.stride,
            padding=size // 2,
            groups=conv.groups,
            bias=conv.bias is not None,
        )
        if channels < conv.in_channels:
            channels, first = conv.in_channels, layer
        layer.P, layer.SIG = first.P, first.SIG
        parent, _, child = path.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)
    limit = size // 2
    for path, tensor in model.state_dict().items():
        if path.endswith(".P"):
            tensor.uniform_(-limit - 0.4, limit + 0.4)  # some outside the border, as averages are
        elif path.endswith(".SIG"):
            tensor.uniform_(-1, 1)
        elif tensor.dim() == 1 or path.endswith(("gamma", "scale")):
            tensor.uniform_(0.5, 1)  # biases, norms, statistics, layer scales
        elif tensor.dim() > 1:
            tensor.normal_(0, tensor[0].numel() ** -0.5)
    return model.eval()


def published(model: nn.Module, name: str) -> dict[str, Tensor]:
    """Its weights under the original repository's names, which the tests compare with NAMES."""
    layout = next(layout for layout in LAYOUTS if name in layout.architectures.values())
    return layout.to_original(dict(model.state_dict()))


def subject(path: Path, *arguments: str) -> evaluation.Subject:
    """What eval.py makes of the file."""
    config = composition.typed_eval(*composition.compose("eval", [f"checkpoint={path}", *arguments]))
    return evaluation.load(str(path), config)


def arguments_for(name: str, options: Mapping) -> list[str]:
    """Nothing for a network of real size: it is recognised."""
    sizes = ", ".join(f"{key}: {list(value)}" for key, value in options.items())
    return [f"model.name={name}", f"model.args={{{sizes}}}"] if options else []


def pattern(names) -> set[str]:
    return {re.sub(r"\d+", "N", name) for name in names}


@pytest.mark.parametrize("case", PUBLISHED)
def test_a_published_checkpoint_computes_here_what_it_computes_there(case, tmp_path):
    name, version, size, taps, options = PUBLISHED[case]
    theirs = assembled(name, version, size, taps, options)
    weights = published(theirs, name)
    torch.save({"state_dict": {}, "state_dict_ema": weights}, tmp_path / "published.pth.tar")
    found = subject(tmp_path / "published.pth.tar", *arguments_for(name, options))
    assert {(layer.version, layer.kernel_count, layer.dilated_kernel_size) for _, layer in layers(found.model)} == {
        (version, taps, (size, size))
    }
    images = torch.randn(1, 3, SIDE, SIDE)
    with torch.no_grad():
        ours, expected = found.model.eval()(images), theirs(images)
    assert (ours - expected).abs().max() < 1e-4
    # And back: every name, every shape, every number.
    again = models.publish(found.model)
    assert again.keys() == weights.keys()
    assert [key for key, value in weights.items() if not torch.equal(again[key], value)] == []
    # Blocks of a stage share one Parameter, as they do there.
    distinct = {id(parameter) for path, parameter in theirs.named_parameters() if path.endswith(".P")}
    assert len({id(layer.P) for _, layer in layers(found.model)}) == len(distinct)
    # The comparison could have failed: in another order of axes it is another function.
    with torch.no_grad():
        for parameter in {layer.P for _, layer in layers(found.model)}:
            parameter.copy_(parameter.flip(0))
        assert (found.model(images) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("case", ["convnext v0", "fastvit", "convformer real", "caformer real"])
def test_names_are_those_of_the_original_repository(case):
    name = PUBLISHED[case][0]
    weights = published(assembled(*PUBLISHED[case]), name)
    assert pattern(weights) == NAMES[name.partition("_")[0]]
    if "former" in name:
        assert weights["stages.0.0.mlp.fc1.weight"].dim() == weights["stages.0.0.token_mixer.pwconv1.weight"].dim() == 2
    if name.startswith("fastvit"):
        assert {"network.6.pe.P", "network.7.0.convffn.conv.conv.P", "network.5.proj.0.lkb_origin.conv.weight"} <= {
            *weights
        }


# What is recognised


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.family.name)
def test_an_architecture_is_recognised_by_its_blocks_and_width_in_both_namings(layout):
    for name in layout.architectures.values():
        with torch.device("meta"):
            weights = models.create(name).state_dict()
        for naming, given in zip(layout.namings, (weights, layout.to_original(dict(weights)))):
            assert recognised(given) == (layout, naming)
            assert layout.architecture(given, naming) == name


@pytest.mark.parametrize("case", ["convnext real", "resnet", "fastvit"])
def test_a_plain_network_in_the_original_naming_is_read_too(case):
    torch.manual_seed(0)
    name, *_, options = PUBLISHED[case]
    plain = models.create(name, num_classes=CLASSES, **options).eval()
    model = models.restore(published(plain, name), name=name if options else "", **options).eval()
    images = torch.randn(1, 3, SIDE, SIDE)
    assert torch.equal(model(images), plain(images))
    assert case != "convnext real" or model.pretrained_cfg["crop_pct"] == 0.875


@pytest.fixture(scope="module")
def small() -> dict[str, Tensor]:
    """A published ConvNeXt-dcls of version v0, 17 x 17 with 34 taps."""
    return published(assembled(*PUBLISHED["convnext v0"]), "convnext_tiny")


SMALL_NAME = {"name": "convnext_tiny", **SMALL}


def test_timms_naming_is_read_in_the_references_order_and_a_name_of_ours_in_ours():
    theirs = assembled(*PUBLISHED["convnext gauss"])
    images = torch.randn(1, 3, SIDE, SIDE)
    model = models.restore(theirs.state_dict(), **SMALL_NAME).eval()
    assert (model(images) - theirs(images)).abs().max() < 1e-4
    ours = models.restore(model.state_dict(), name="convnext_tiny_dcls_gauss", **SMALL).eval()
    assert torch.equal(ours(images), model(images))
    with pytest.raises(CheckpointError, match="surgery.version=v1 contradicts the file"):
        models.restore(model.state_dict(), name="convnext_tiny_dcls_v1", **SMALL)
    swapped = models.restore(model.state_dict(), **SMALL_NAME).eval()
    assert (swapped(images) - model(images)).abs().max() > 1e-2  # the axes matter


def test_another_version_and_size_than_the_published_are_asked_for():
    theirs = assembled("convnext_tiny", "max", 11, 9, SMALL)
    weights = published(theirs, "convnext_tiny")
    model = models.restore(weights, version="max", dilated_kernel_size=11, **SMALL_NAME).eval()
    images = torch.randn(1, 3, SIDE, SIDE)
    assert (model(images) - theirs(images)).abs().max() < 1e-4
    assert {layer.dilated_kernel_size for _, layer in layers(model)} == {(11, 11)}
    assert {layer.dilated_kernel_size for _, layer in layers(models.restore(weights, **SMALL_NAME))} == {(23, 23)}


def test_blocks_with_positions_of_their_own_keep_them(small):
    weights = small | {"stages.1.1.dwconv.P": small["stages.1.1.dwconv.P"] + 0.1}
    model = models.restore(weights, **SMALL_NAME)
    assert len({id(layer.P) for _, layer in layers(model)}) == 5
    assert torch.equal(models.publish(model)["stages.1.1.dwconv.P"], weights["stages.1.1.dwconv.P"])


# What is refused


@pytest.mark.parametrize(
    ("change", "options", "line"),
    [
        ({}, {"version": "gauss"}, "surgery.version=gauss contradicts the file, which has no SIG beside each P"),
        ({}, {"dilated_kernel_size": 5}, "kernel_count=34 gives 34 taps, but dilated_kernel_size=5x5 has 25 cells"),
        ({"stages.0.0.dwconv.P": 11.0}, {}, r"conv_dw.P reaches 11.0 cells .* v0 kernel of 17 x 17: give the size"),
        ({}, {"dilated_kernel_size": 9}, r"conv_dw.P reaches [78]\.\d cells .* v0 kernel of 9 x 9: give the size"),
        ({"stages.0.0.dwconv.P": math.nan}, {}, r"conv_dw.P reaches nan cells"),
        ({"stages.0.0.gamma": None}, {}, "look like convnext_tiny's .* 1 missing, as stages.0.blocks.0.gamma"),
        ({"stages.0.0.extra": 1.0}, {}, "1 unexpected, as stages.0.blocks.0.extra"),
        ({"stages.0.0.dwconv.P": None}, {}, "missing, as stages.0.blocks.0.conv_dw.P"),
        ({}, {"name": "", "depths": None, "dims": None}, r"ConvNeXt's with \(1, 2, 1, 1\) blocks and 8 channels"),
        ({}, {"name": "resnet18", "depths": None, "dims": None}, "model.name=resnet18 does not fit the weights"),
        ({}, {"name": "resnet18", "version": "v1"}, "surgery.version=v1 has no effect: model.name=resnet18 is loaded"),
        ({"downsample_layers.0.0.weight": [8]}, {}, r"downsample_layers.0.0.weight has the shape \[8\], expected four"),
        (
            {"head.weight": None},
            {"name": ""},
            "unknown: found .* missing: ConvNeXt head.weight; ResNet conv1",
        ),
    ],
)
def test_what_does_not_fit_is_refused(small, change, options, line):
    weights = {key: value for key, value in small.items() if change.get(key, 0) is not None}
    weights |= {
        key: torch.zeros(value) if isinstance(value, list) else torch.full_like(small.get(key, torch.zeros(1)), value)
        for key, value in change.items()
        if value
    }
    options = {key: value for key, value in (SMALL_NAME | options).items() if value is not None}
    with pytest.raises(ConfigError, match=line):
        models.restore(weights, **options)


def test_a_metaformer_with_a_name_too_many_is_refused():
    weights = published(models.create("convformer_s18", num_classes=CLASSES), "convformer_s18")
    with pytest.raises(CheckpointError, match="look like convformer_s18's .* unexpected stages.0.blocks.0.extra"):
        models.restore(weights | {"stages.0.0.extra": torch.zeros(3)})


def test_options_of_dcls_layers_need_some():
    weights = published(models.create("convnext_tiny", **SMALL), "convnext_tiny")
    with pytest.raises(ConfigError, match=r"surgery.dilated_kernel_size=\(17, 17\) has no effect: the file holds no"):
        models.restore(weights, dilated_kernel_size=(17, 17), **SMALL_NAME)


def test_a_model_that_nobody_published_is_not_exported():
    with pytest.raises(ConfigError, match="test_resnet has no published layout: convnext_tiny"):
        models.publish(models.create("test_resnet"))


# eval.py


def test_a_published_checkpoint_is_evaluated(small, image_tree, tmp_path, capsys):
    torch.save({"model": small}, tmp_path / "published.pth")
    data = ["data=folder", f"data.root={image_tree}", "data.workers=0", "data.eval_size=64", f"run.dir={tmp_path}"]
    arguments = [f"checkpoint={tmp_path / 'published.pth'}", *data, *arguments_for("convnext_tiny", SMALL)]
    assert reported(lambda: evaluation.main(arguments)) == 0
    assert (tmp_path / "eval.csv").read_text().splitlines()[1].endswith("64,0.875,bicubic")
    torch.save({"model": {"encoder.weight": torch.zeros(3)}}, tmp_path / "foreign.pth")
    assert reported(lambda: evaluation.main([f"checkpoint={tmp_path / 'foreign.pth'}", *data])) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "foreign.pth: the layout is unknown: found 1 names such as encoder.weight; missing: ConvNeXt stem.0" in error


# train.py


@pytest.fixture
def three_classes(image_tree, tmp_path) -> Path:
    for split in ("train", "val"):
        (tmp_path / "images" / split).mkdir(parents=True)
        for name in ("class0", "class1", "class2"):
            (tmp_path / "images" / split / name).symlink_to(image_tree / split / name)
    return tmp_path / "images"


def fine_tuned(tree: Path, folder: Path, file: Path, *more: str) -> int:
    data = [f"data.root={tree}", "data.workers=0", "data.image_size=384", "data.eval_size=384"]
    recipe = ["recipe.layer_decay=0.5", "recipe.global_batch=8", "recipe.slot=8", "recipe.warmup_epochs=0"]
    recipe += ["recipe.lr=1e-9", "recipe.lr_min=0", "recipe.drop_path=0"]
    run = [f"run.dir={folder}", "debug=true", "logger.progress=off", "runtime.threads=1"]
    arguments = ["+experiment=finetune", *arguments_for("convnext_tiny", SMALL), *data, *recipe, *run]
    return reported(lambda: train.main([*arguments, f"model.init_from={file}", *more]))


def test_fine_tuning_at_384_pixels_starts_from_a_published_checkpoint(small, three_classes, tmp_path, capsys):
    """With three classes in place of four; positions come as they are, outside the border too."""
    file, folder = tmp_path / "published.pth", tmp_path / "run"
    torch.save({"model": small}, file)
    assert fine_tuned(three_classes, folder, file, "surgery.kernel_count=34", "surgery.clamp=false") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"weights from {file}" in shown
    assert "the head starts fresh: 4 classes there, 3 here" in shown
    saved = checkpoints.load(folder / "checkpoints" / "last.pt")
    ours = saved["model"]
    torch.testing.assert_close(ours["stages.1.blocks.0.conv_dw.P"], small["stages.1.0.dwconv.P"], rtol=0, atol=1e-6)
    assert ours["head.fc.weight"].shape == (3, 64)
    rates = {group["group_name"]: group["lr"] for group in saved["optimizer"]["param_groups"]}
    positions = {name: rate for name, rate in rates.items() if name.startswith("position")}
    assert len(positions) == 4
    assert len(set(positions.values())) > 1  # the layer's scale
    for name, rate in positions.items():
        assert rate == pytest.approx(5 * rates[name.replace("position", "decay")])


def test_a_published_name_is_known_to_be_of_its_version(small, three_classes, tmp_path, monkeypatch, capsys):
    """The tensors of v0 and v1 are the same."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    name = "convnext_dcls_tiny.paper"
    models.RELEASED[name].path.parent.mkdir(parents=True)
    torch.save({"model": small}, models.RELEASED[name].path)
    asked = ["surgery.version=v1", "surgery.kernel_count=34"]
    assert fine_tuned(three_classes, tmp_path / "run", Path(name), *asked) == 2
    error = capsys.readouterr().err
    assert (
        f"model.init_from={name}: found version v0 in stages.0.blocks.0.conv_dw, expected surgery.version=v1" in error
    )


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("surgery.version=v0", "found kernel_count 34 in stages.0.blocks.0.conv_dw, expected surgery.kernel_count=17"),
        ("surgery.version=gauss", "surgery.version=gauss contradicts the file, which has no SIG beside each P"),
        ("surgery.mode=none", "found a DCLS layer stages.0.blocks.0.conv_dw, expected a plain one"),
        ("data.classes=9", "data.classes=9: found 3 classes in 'train'"),
        (
            "model.args={depths: [2, 2, 1, 1]}",
            "found a ConvNeXt of 1-2-1-1 blocks and 8 channels in the stem, expected a",
        ),
        ("model.init_from=convnext_dcls_tiy.paper", "model.init_from=convnext_dcls_tiy.paper is not published"),
    ],
)
def test_a_checkpoint_that_contradicts_the_run_is_one_line(small, three_classes, tmp_path, capsys, option, line):
    file = tmp_path / "published.pth"
    torch.save({"model": small}, file)
    assert fine_tuned(three_classes, tmp_path / "run", file, option) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert line in error
    assert (f"model.init_from={file}: " in error) == (not option.startswith(("data", "model.init")))
