import os
import shutil
from dataclasses import asdict

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dcls.config import composition
from dcls.config import schema as config
from dcls.config.composition import answer, complete_data, explain
from dcls.config.schema import CONFIGS, DataConfig
from dcls.errors import ConfigError

DRY = ("dry_run=true", "data.classes=10", "data.train_images=1000")


def test_the_mode_that_an_experiment_has_keeps_its_own_choice(typed):
    run = typed("+experiment=quickstart", "surgery.mode=dcls")
    assert run.surgery.position_init_std == 2.0
    assert typed("+experiment=convnext_dcls_gauss", "surgery.mode=dcls", "dry_run=true").surgery.version == "gauss"
    assert typed("surgery=dcls_gauss", "surgery.mode=dcls", "dry_run=true").surgery.version == "gauss"


def test_the_overrides_come_back_as_they_act():
    def came_back(*arguments: str) -> list[str]:
        return composition.compose("train", arguments)[1]

    assert came_back("+experiment=quickstart", "surgery.mode=none") == ["experiment=quickstart", "surgery=none"]
    assert came_back("+experiment=quickstart", "surgery.mode=dcls") == ["experiment=quickstart"]
    assert came_back("++recipe.epochs=3") == ["recipe.epochs=3"]


def test_an_option_follows_the_mode_it_belongs_to(typed):
    run = typed("+experiment=quickstart", "surgery.mode=dcls", "surgery.kernel_count=9", "surgery.version=gauss")
    assert (run.surgery.kernel_count, run.surgery.version) == (9, "gauss")
    assert typed(
        "surgery.mode=large_kernel", "surgery.dilated_kernel_size=[9,7]", *DRY
    ).surgery.dilated_kernel_size == [9, 7]


@pytest.mark.parametrize("word", ["+experiment=quickstart", "experiment=quickstart", "++experiment=quickstart"])
def test_an_experiment_is_chosen_with_or_without_a_plus(word, typed):
    assert typed(word).experiment == "quickstart"


def test_text_is_taken_as_it_is_typed(typed, typed_eval):
    paths = ["/data/a=b", "/data/(x,y)", "/data/it's", "0012", "1e3", "[1,2]", "with space", "'quoted=1'"]
    found = [typed(f"data.root={path}").data.root for path in paths]
    assert found == [*paths[:-1], "quoted=1"]
    assert typed("data.root=~/images").data.root == os.path.expanduser("~/images")
    assert typed_eval("checkpoint=runs/a=b/last.pt").checkpoint == "runs/a=b/last.pt"


def test_mappings_are_added_to(typed):
    run = typed("recipe.opt_args.foreach=true", "model.args={ls_init_value: 1.0}", *DRY)
    assert run.recipe.opt_args == {"betas": [0.9, 0.999], "eps": 1e-8, "foreach": True}
    assert run.model.args == {"ls_init_value": 1.0}


def test_workers_follow_the_cores_and_the_processes(monkeypatch, typed):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(12)))
    assert typed(*DRY).data.workers == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert typed(*DRY).data.workers == 3
    assert typed("data.workers=0", *DRY).data.workers == 0
    assert typed("data=fashion_mnist", *DRY).data.workers == 0


# Exceptions of Hydra and OmegaConf themselves, which someone's own file can still raise


@pytest.fixture
def own_configs(tmp_path, monkeypatch):
    shutil.copytree(CONFIGS, tmp_path / "configs")
    for module in (composition, config):
        monkeypatch.setattr(module, "CONFIGS", tmp_path / "configs")
    return tmp_path / "configs"


MINE = "configs/experiment/mine.yaml"
OWN_FILES = {
    "recipe:\n  epoch: 3\n": f"{MINE}: recipe.epoch: unknown option recipe.epoch; did you mean recipe.epochs",
    "recipe:\n  epochs: three\n": f"{MINE}: recipe.epochs: must be a whole number (passes over",
    "surgery:\n  kernel_count: 3\n": f"{MINE}: surgery.kernel_count: an option of surgery=dcls alone",
    "recipe: [\n": "while parsing",
    "defaults:\n  - override /model: resnet5\n": "model=resnet5: unknown model; did you mean model=resnet50? choose",
}


@pytest.mark.parametrize("text", OWN_FILES)
def test_a_file_of_ones_own_is_told_what_is_wrong(own_configs, text, refusal):
    (own_configs / "experiment" / "mine.yaml").write_text(f"# @package _global_\n# mine\n{text}")
    line = refusal("+experiment=mine", "data.root=/x")
    assert line.startswith(OWN_FILES[text])
    assert "\n" not in line


def test_a_recipe_of_ones_own_is_complete(own_configs, refusal):
    (own_configs / "recipe" / "mine.yaml").write_text("# mine\nepochs: 3\n")
    assert refusal("recipe=mine", "data.root=/x").startswith("data.image_size is not set: give data.image_size=<value>")


def test_sizes_in_data_of_ones_own_count(own_configs, typed):
    (own_configs / "data" / "mine.yaml").write_text(
        "defaults:\n  - folder\n  - _self_\neval_size: 288\ncrop_pct: 0.95\n"
    )
    data = typed("+experiment=convnext_dcls", "data=mine", "data.root=/x").data
    assert (data.image_size, data.eval_size, data.crop_pct, data.val_images) == (224, 288, 0.95, None)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("recipe.epoch=3", "recipe.epoch=3: unknown option recipe.epoch; did you mean recipe.epochs"),
        ("recipe.epochs=three", "recipe.epochs=three: must be a whole number"),
        ("surgery.kernel_count=34", "surgery.kernel_count=34: an option of surgery=dcls alone"),
        ("surgery=nonee", "surgery=nonee: unknown surgery; did you mean surgery=none?"),
    ],
)
def test_the_reason_is_found_in_hydras_own_exceptions(override, line):
    composition.compose("train", [])  # registers the schemas
    raises = pytest.raises((HydraException, OmegaConfBaseException), match=override.split("=")[0])
    with initialize_config_dir(str(CONFIGS), version_base="1.3"), raises as caught:
        hydra_compose("train", [override])
    assert explain(caught.value).startswith(line)


def test_our_own_exceptions_are_their_line():
    assert explain(ConfigError("data.root=/x:\n  not there")) == "data.root=/x: not there"


# Evaluation


def test_nothing_of_the_data_is_set_but_what_was_asked_for(typed_eval):
    assert typed_eval("checkpoint=a.pt", "data.workers=1").data == {"workers": 1}
    found = typed_eval("checkpoint=[a.pt,b.pt]", "data=imagenet", "data.root=/x", "data.crop_pct=1", "data.workers=1")
    assert found.checkpoint == ["a.pt", "b.pt"]
    counts = {"classes": 1000, "train_images": 1281167, "val_images": 50000}
    splits = {"name": "imagenet", "kind": "folder", "root": "/x", "train_split": "train", "val_split": "val"}
    assert found.data == {**splits, **counts, "crop_pct": 1.0, "workers": 1}


def test_the_transform_comes_from_the_checkpoint(typed):
    stored = asdict(typed("+experiment=quickstart"))["data"]
    whole = complete_data({"root": "/mine", "kind": "folder", "workers": 2, "mean": [0.5]}, stored)
    assert isinstance(whole, DataConfig)
    assert (whole.root, whole.kind, whole.mean, whole.eval_size, whole.workers) == ("/mine", "folder", [0.5], 56, 2)


def test_data_that_nobody_describes(typed_eval):
    timms = {"channels": 3, "mean": (0.5,) * 3, "std": (0.5,) * 3, "eval_size": 224, "crop_pct": 0.9}
    with pytest.raises(ConfigError, match=r"data\.kind is not set.*data=imagenet"):
        complete_data({"root": "/x"}, {**timms, "interpolation": "bicubic", "name": "x"})
    given = typed_eval("model.name=resnet50", "model.pretrained=true", "data=imagenet", "data.root=/x").data
    assert complete_data(given, {**timms, "interpolation": "bicubic"}).crop_pct == 0.9
    with pytest.raises(ConfigError, match=r"data\.crop_pct=0\.9 has no effect: set data\.crop_mode=center"):
        complete_data({**given, "crop_pct": 0.9, "eval_size": 384}, {**timms, "interpolation": "bicubic"})
    with pytest.raises(ConfigError, match=r"data\.crop_pct=2: must lie in \(0, 1\]"):
        complete_data({**given, "crop_pct": 2}, {**timms, "interpolation": "bicubic"})


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("", "checkpoint is not set: give checkpoint="),
        ("checkpoint=[1,2]", r"checkpoint=\[1, 2\]: must be a file"),
        ("checkpoint=a.pt model.pretrained=true", "model.pretrained=true contradicts checkpoint=a.pt"),
        ("weights=ema model.name=resnet50", "weights=ema has no effect without a checkpoint"),
        ("model.name=resnet50 surgery.version=v1", "surgery.version=v1 has no effect without a checkpoint"),
        ("checkpoint=a.pt surgery.version=v2", "surgery.version=v2: choose one of auto, v0"),
        ("checkpoint=a.pt surgery.share=true", "surgery.share=true: unknown option surgery.share"),
        ("checkpoint=a.pt weights=best", "weights=best: choose one of auto, model, ema"),
        ("checkpoint=a.pt batch=0", r"batch=0: must lie in \[1, inf\)"),
        ("checkpoint=a.pt data.image_size=64", "data.image_size=64 has no effect: evaluation has data.eval_size"),
        ("checkpoint=a.pt data.eval_size=big", "data.eval_size=big: must be a whole number"),
        ("checkpoint=a.pt recipe.epochs=3", "recipe.epochs=3: unknown option recipe.epochs"),
        ("checkpoint=a.pt surgery=dcls", "surgery=dcls: unknown option surgery"),
        ("chekpoint=a.pt", "chekpoint=a.pt: unknown option chekpoint; did you mean checkpoint"),
    ],
)
def test_what_is_wrong_with_an_evaluation(words, line, typed_eval):
    with pytest.raises(ConfigError, match=f"^{line}"):
        typed_eval(*words.split())


# Answers that are not runs


def test_help_is_answered_for_both():
    assert "convnext_dcls_base" in (answer("train", ["+experiment=quickstart", "--help"]) or "")
    assert "checkpoint" in (answer("eval", ["-h"]) or "")
    assert answer("train", ["+experiment=quickstart"]) is None


@pytest.mark.parametrize("flag", [["--cfg", "job"], ["--cfg=job"], ["-c", "job"]])
def test_the_composed_configuration_is_shown(flag):
    shown = OmegaConf.create(answer("train", [*flag, "+experiment=convnext_dcls", "recipe.epochs=7"]) or "")
    assert (shown.experiment, shown.recipe.epochs, shown.surgery.mode) == ("convnext_dcls", 7, "dcls")
    with pytest.raises(ConfigError, match="--cfg: no such flag"):
        composition.compose("train", ["--cfg", "hydra"])
