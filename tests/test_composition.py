import os
import shutil
from dataclasses import asdict

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dcls import composition, config, validation
from dcls.composition import answer, complete_data, differing, explain, run_name
from dcls.config import CONFIGS, GROUPS, Config, DataConfig, EvalConfig, choices_of, options
from dcls.data.robustness import KINDS, SUBSETS
from dcls.errors import ConfigError

DRY = ("dry_run=true", "data.classes=10", "data.train_images=1000")
EXPERIMENTS = {
    # experiment: model, mode of surgery, recipe's lr and epochs, drop path
    "quickstart": ("convnext_quickstart", "dcls", 4e-3, 8, 0.0),
    "convnext_tiny": ("convnext_tiny", "none", 4e-3, 300, 0.1),
    "convnext_small": ("convnext_small", "none", 4e-3, 300, 0.4),
    "convnext_base": ("convnext_base", "none", 4e-3, 300, 0.5),
    "convnext_dcls": ("convnext_tiny", "dcls", 4e-3, 300, 0.1),
    "convnext_dcls_small": ("convnext_small", "dcls", 4e-3, 300, 0.4),
    "convnext_dcls_base": ("convnext_base", "dcls", 4e-3, 300, 0.5),
    "convnext_dcls_gauss": ("convnext_tiny", "dcls", 4e-3, 300, 0.1),
    "convnext_dilated": ("convnext_tiny", "dilated", 4e-3, 300, 0.1),
    "resnet50": ("resnet50", "none", 8e-3, 100, 0.0),
    "resnet50_dcls": ("resnet50", "dcls", 8e-3, 100, 0.0),
    "resnet50_dilated": ("resnet50", "dilated", 8e-3, 100, 0.0),
    "finetune": ("convnext_tiny", "dcls", 4e-4, 30, 0.1),
}
MODES = ("none", "dcls", "dilated", "large_kernel")


def typed(*arguments: str) -> Config:
    return composition.typed(*composition.compose("train", arguments))


def typed_eval(*arguments: str) -> EvalConfig:
    return composition.typed_eval(*composition.compose("eval", arguments))


def refusal(*arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        typed(*arguments)
    return explain(caught.value)


# Every file


def test_the_experiments_are_these():
    assert set(choices_of("experiment")) == set(EXPERIMENTS)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_is_its_row(experiment):
    run = typed(f"+experiment={experiment}", *DRY)
    recipe = run.recipe
    row = (run.model.name, run.surgery.mode, recipe.lr, recipe.epochs, recipe.drop_path)
    assert row == EXPERIMENTS[experiment]
    assert run.experiment == experiment
    head = (CONFIGS / "experiment" / f"{experiment}.yaml").read_text()
    assert f"+experiment={experiment}" in head
    assert all(line in head for line in ("# Row: ", "# Paper: ", "# Ours: ", "# Run: "))


CHOICES = [(group, choice) for group in GROUPS["train"][1:] for choice in choices_of(group)]


@pytest.mark.parametrize(("group", "choice"), [each for each in CHOICES if each[1] not in KINDS])
def test_every_choice_composes_into_a_checked_configuration(group, choice):
    run = typed(f"{group}={choice}", "model.init_from=weights.pt", *DRY)
    assert not [name for name in options(Config) if validation.value_of(run, name) == "???"]


@pytest.mark.parametrize("kind", KINDS)
def test_robustness_sets_are_for_evaluation_alone(kind):
    assert f"data.kind={kind} is for eval.py alone" in refusal("+experiment=convnext_tiny", f"data={kind}", *DRY)
    given = typed_eval("checkpoint=x.pt", f"data={kind}", "data.root=/x").data
    shown = {"mean": [0, 0, 0], "std": [1, 1, 1], "channels": 3, "image_size": 224, "eval_size": 224}
    data = complete_data(given, shown | {"crop_pct": 0.875, "interpolation": "bicubic"})
    assert (data.kind, data.name, data.classes) == (kind, kind, 200 if kind in SUBSETS else 1000)


def test_every_file_was_composed_by_the_tests_above():
    above = len(EXPERIMENTS) + len(CHOICES) + len(["train", "eval"])
    assert len(list(CONFIGS.rglob("*.yaml"))) == above == 48


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_mode_of_surgery_can_be_changed_in_every_experiment(experiment):
    own = typed(f"+experiment={experiment}", *DRY)
    runs = {mode: typed(f"+experiment={experiment}", f"surgery.mode={mode}", *DRY) for mode in MODES}
    assert {mode: run.surgery.mode for mode, run in runs.items()} == {mode: mode for mode in MODES}
    assert [mode for mode, run in runs.items() if run == own] == [own.surgery.mode]


def test_an_experiment_needs_its_name_and_the_data_alone():
    run = typed("+experiment=convnext_dcls", "data.root=/imagenet")
    assert (run.data.root, run.data.train_images, run.data.classes) == ("/imagenet", 1281167, 1000)


# Published figures


CONVNEXT = {
    "recipe.epochs": 300,
    "recipe.warmup_epochs": 20,
    "recipe.global_batch": 32 * 128,
    "recipe.slot": 128,
    "recipe.lr": 4e-3,
    "recipe.lr_batch": 4096,
    "recipe.lr_min": 1e-6,
    "recipe.warmup_lr": 0.0,
    "recipe.optimizer": "adamw",
    "recipe.opt_args": {"betas": [0.9, 0.999], "eps": 1e-8},
    "recipe.weight_decay": 0.05,
    "recipe.layer_decay": None,
    "recipe.clip_grad": None,
    "recipe.drop_path": 0.1,
    "recipe.needs_weights": False,
    "recipe.loss": "soft_ce",
    "recipe.bce_threshold": None,
    "recipe.smoothing": 0.1,
    "recipe.mixup": 0.8,
    "recipe.cutmix": 1.0,
    "recipe.mixup_prob": 1.0,
    "recipe.mixup_switch_prob": 0.5,
    "recipe.mixup_mode": "batch",
    "recipe.mixup_off_epoch": None,
    "recipe.scale": [0.08, 1.0],
    "recipe.ratio": [3 / 4, 4 / 3],
    "recipe.hflip": 0.5,
    "recipe.train_interpolation": "bicubic",
    "recipe.auto_augment": "rand-m9-mstd0.5-inc1",
    "recipe.color_jitter": 0.4,
    "recipe.erasing": 0.25,
    "recipe.erasing_mode": "pixel",
    "recipe.repeats": 1,
    "ema.decay": 0.9999,
    "data.image_size": 224,
    "data.eval_size": 224,
    "data.crop_pct": 0.875,
    "data.interpolation": "bicubic",
    "data.mean": [0.485, 0.456, 0.406],
    "data.std": [0.229, 0.224, 0.225],
    "surgery.version": "v0",
    "surgery.share": True,
    "surgery.position_init_std": 0.5,
    "surgery.position_lr_scale": 5,
    "surgery.sigma_lr_scale": 5,
    "surgery.clamp": True,
    "surgery.repulsive_loss": True,
    "surgery.repulsive_after_epoch": 20,
}
RESNET = {
    # A1, A2, A3
    "recipe.epochs": (600, 300, 100),
    "recipe.warmup_epochs": (5, 5, 5),
    "data.image_size": (224, 224, 160),
    "data.eval_size": (224, 224, 224),
    "data.crop_pct": (0.95, 0.95, 0.95),
    "recipe.optimizer": ("lamb", "lamb", "lamb"),
    "recipe.lr": (5e-3, 5e-3, 8e-3),
    "recipe.lr_batch": (2048, 2048, 2048),
    "recipe.global_batch": (2048, 2048, 2048),
    "recipe.lr_min": (1e-6, 1e-6, 1e-6),
    "recipe.weight_decay": (0.01, 0.02, 0.02),
    "recipe.loss": ("bce", "bce", "bce"),
    "recipe.bce_threshold": (0.2, 0.2, 0.2),
    "recipe.smoothing": (0.1, 0.0, 0.0),
    "recipe.mixup": (0.2, 0.1, 0.1),
    "recipe.cutmix": (1.0, 1.0, 1.0),
    "recipe.mixup_prob": (1.0, 1.0, 1.0),
    "recipe.mixup_switch_prob": (0.5, 0.5, 0.5),
    "recipe.auto_augment": ("rand-m7-mstd0.5-inc1", "rand-m7-mstd0.5-inc1", "rand-m6-mstd0.5-inc1"),
    "recipe.drop_path": (0.05, 0.05, 0.0),
    "recipe.repeats": (3, 3, 1),
}
QUICKSTART = {
    "recipe.epochs": 8,
    "recipe.warmup_epochs": 1,
    "recipe.global_batch": 64,
    "recipe.slot": 32,
    "recipe.lr": 4e-3,
    "recipe.lr_batch": 64,
    "recipe.optimizer": "adamw",
    "recipe.weight_decay": 0.05,
    "recipe.smoothing": 0.1,
    "recipe.mixup": 0,
    "recipe.cutmix": 0,
    "recipe.scale": None,
    "recipe.hflip": 0.5,
    "recipe.auto_augment": "",
    "recipe.erasing": 0,
    "recipe.train_interpolation": "bilinear",
    "ema.decay": 0.99,
    "data.image_size": 56,
    "data.channels": 1,
    "data.train_images": 12000,
    "data.val_images": 10000,
    "surgery.position_init_std": 2.0,
    "surgery.position_lr_scale": 5,
    "surgery.repulsive_loss": False,
}


def figures_of(run: Config, names: dict) -> dict:
    return {name: validation.value_of(run, name) for name in names}


def test_convnext_dcls_is_trained_as_published():
    run = typed("+experiment=convnext_dcls", "dry_run=true")
    assert figures_of(run, CONVNEXT) == CONVNEXT
    assert {name for name in options(Config) if name.startswith("recipe.")} <= CONVNEXT.keys()


def test_resnet_is_trained_by_a1_a2_and_a3():
    runs = [typed("+experiment=resnet50_dcls", f"recipe=resnet_a{n}", "dry_run=true") for n in (1, 2, 3)]
    found = [figures_of(run, RESNET) for run in runs]
    assert {name: tuple(figures[name] for figures in found) for name in RESNET} == RESNET
    assert not any(run.surgery.repulsive_loss for run in runs)
    assert typed("+experiment=resnet50_dcls", "dry_run=true") == runs[2]


def test_the_quickstart_is_the_measured_recipe():
    assert figures_of(typed("+experiment=quickstart"), QUICKSTART) == QUICKSTART


# The mode of surgery, and how an experiment is named


def test_the_mode_that_an_experiment_has_keeps_its_own_choice():
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


def test_an_option_follows_the_mode_it_belongs_to():
    run = typed("+experiment=quickstart", "surgery.mode=dcls", "surgery.kernel_count=9", "surgery.version=gauss")
    assert (run.surgery.kernel_count, run.surgery.version) == (9, "gauss")
    assert typed(
        "surgery.mode=large_kernel", "surgery.dilated_kernel_size=[9,7]", *DRY
    ).surgery.dilated_kernel_size == [9, 7]


@pytest.mark.parametrize("word", ["+experiment=quickstart", "experiment=quickstart", "++experiment=quickstart"])
def test_an_experiment_is_chosen_with_or_without_a_plus(word):
    assert typed(word).experiment == "quickstart"


def test_text_is_taken_as_it_is_typed():
    paths = ["/data/a=b", "/data/(x,y)", "/data/it's", "0012", "1e3", "[1,2]", "with space", "'quoted=1'"]
    found = [typed(f"data.root={path}").data.root for path in paths]
    assert found == [*paths[:-1], "quoted=1"]
    assert typed("data.root=~/images").data.root == os.path.expanduser("~/images")
    assert typed_eval("checkpoint=runs/a=b/last.pt").checkpoint == "runs/a=b/last.pt"


def test_mappings_are_added_to():
    run = typed("recipe.opt_args.foreach=true", "model.args={ls_init_value: 1.0}", *DRY)
    assert run.recipe.opt_args == {"betas": [0.9, 0.999], "eps": 1e-8, "foreach": True}
    assert run.model.args == {"ls_init_value": 1.0}


def test_workers_follow_the_cores_and_the_processes(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(12)))
    assert typed(*DRY).data.workers == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert typed(*DRY).data.workers == 3
    assert typed("data.workers=0", *DRY).data.workers == 0
    assert typed("data=fashion_mnist", *DRY).data.workers == 0


# One line for what is wrong


REFUSED = {
    # names
    "recipe.epoch=3": "recipe.epoch=3: unknown option recipe.epoch; did you mean recipe.epochs",
    "epochs=3": "epochs=3: unknown option epochs; did you mean recipe.epochs?",
    "recip.epoch=3": "recip.epoch=3: unknown option recip.epoch; did you mean recipe.epochs?",
    "recipe.kernel_count=3": "recipe.kernel_count=3: unknown option recipe.kernel_count; did you mean surgery.k",
    "surgry=none": "surgry=none: unknown option surgry; did you mean surgery",
    "+recipe.invented=3": "recipe.invented=3: unknown option recipe.invented; --help lists the options",
    "hydra.run.dir=x": "hydra.run.dir=x: unknown option hydra.run.dir",
    "+experiment=quickstrat": "experiment=quickstrat: unknown experiment; did you mean experiment=quickstart?",
    "surgery=nonee": "surgery=nonee: unknown surgery; did you mean surgery=none? choose one of dcls, ",
    "surgery=_dcls": "surgery=_dcls: unknown surgery",
    "surgery.mode=dlcs": "surgery.mode=dlcs: choose one of none, dcls, dilated, large_kernel",
    "recipe={epochs: 3}": "recipe={epochs: 3}: unknown recipe; choose one of convnext, finetune",
    # grammar
    "recipe.epochs": "recipe.epochs: options are written name=value",
    "~recipe.epochs": "~recipe.epochs: nothing can be deleted",
    "--multirun": "--multirun: no such flag",
    "recipe.epochs=(3": "recipe.epochs=(3: the value cannot be read; quote it",
    "recipe.epochs=1,2": "recipe.epochs=1,2: one value, please; a list is written [1,2]",
    # types
    "recipe.epochs=three": "recipe.epochs=three: must be a whole number (passes over the training images)",
    "recipe.epochs=1.5": "recipe.epochs=1.5: must be a whole number",
    "recipe.epochs=true": "recipe.epochs=true: must be a whole number",
    "recipe.epochs=null": "recipe.epochs=null: must be a whole number",
    "recipe.lr={a: 1}": "recipe.lr={a: 1}: must be a number",
    "recipe.scale=0.5": "recipe.scale=0.5: must be a list of numbers [a, b] or null",
    "recipe.scale=[0.1,big]": "recipe.scale=[0.1,big]: must be a list of numbers [a, b] or null",
    "recipe.opt_args=3": "recipe.opt_args=3: must be a mapping {name: value}",
    "debug=perhaps": "debug=perhaps: must be true or false",
    "data.root=${oc.env:NO_SUCH_VARIABLE}": "data.root: KeyError raised while resolving interpolation",
    # ranges and choices
    "seed=-1": "seed=-1: must lie in [0, inf)",
    "recipe.lr=0": "recipe.lr=0.0: must lie in (0, inf)",
    "recipe.drop_path=1": "recipe.drop_path=1.0: must lie in [0, 1)",
    "data.std=[0.2,0,0.2]": "data.std=[0.2, 0.0, 0.2]: must lie in (0, inf)",
    "recipe.lr=nan": "recipe.lr=nan: must lie in (0, inf)",
    "ema.decay=1": "ema.decay=1.0: must lie in [0, 1)",
    "logger.wandb=on": "logger.wandb=on: choose one of disabled, offline, online",
    "runtime.amp=fp17": "runtime.amp=fp17: choose one of auto, off, bf16, fp16",
    "surgery=dcls surgery.version=v2": "surgery.version=v2: choose one of v0, v1, max, gauss",
    # combinations
    "surgery=none surgery.kernel_count=34": "surgery.kernel_count=34: an option of surgery=dcls alone",
    "surgery=dcls surgery.dilation=2": "surgery.dilation=2: an option of surgery=dilated alone",
    "surgery.dilated_kernel_size=9": "surgery.dilated_kernel_size=9: an option of surgery=dcls and surgery=large",
    "surgery=none surgery.mode=dcls": "surgery.mode=dcls contradicts surgery=none: give one of them",
    "experiment=quickstart experiment=resnet50": "experiment=quickstart experiment=resnet50: give one experiment",
    "recipe.global_batch=100": "recipe.global_batch=100 is not a multiple of recipe.slot=128: use 128, or another slot",
    "recipe.global_batch=300": "recipe.global_batch=300 is not a multiple of recipe.slot=128: use 256 or 384",
    "recipe.global_batch=126 recipe.slot=63": "recipe.slot=63 is odd, and mixing pairs the images",
    "recipe.epochs=20": "recipe.warmup_epochs=20 must be less than recipe.epochs=20: set recipe.warmup_epochs=0",
    "recipe.lr=1e-7": "recipe.lr_min=1e-06 is above the peak rate 1e-07",
    "recipe.scale=[1.0,0.1]": "recipe.scale=[1.0, 0.1]: must be two numbers, the smaller first",
    "recipe.ratio=[1.0]": "recipe.ratio=[1.0]: must be two numbers",
    "recipe.scale=null recipe.train_interpolation=random": "recipe.train_interpolation=random needs the random crop",
    "surgery=dcls surgery.dilated_kernel_size=big": "surgery.dilated_kernel_size=big: must be auto, a number of pixels",
    "surgery=dcls surgery.dilated_kernel_size=[1,2,3]": "surgery.dilated_kernel_size=[1, 2, 3]: must be auto",
    "surgery=dcls surgery.kernel_count=0": "surgery.kernel_count=0: must be auto, or a number of taps",
    "surgery=dcls surgery.kernel_count=true": "surgery.kernel_count=True: must be auto, or a number of taps",
    "model.pretrained=true model.init_from=a.pt": "model.init_from=a.pt contradicts model.pretrained=true",
    "+experiment=finetune data.root=/x": "model.init_from is not set, and this recipe starts from trained weights",
    "data.channels=1": "data.mean=[0.485, 0.456, 0.406]: needs one number for each of data.channels=1",
    "data.channels=2 data.mean=[0,0] data.std=[1,1]": "data.channels=2: must be 3 (colour) or 1 (grey)",
    "+experiment=finetune dry_run=true": "data.classes is not set, and a dry run never opens the data",
    "data=folder data.classes=3 dry_run=true": "data.train_images is not set, and a dry run never opens the data",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_is_wrong_is_said_in_one_line(words):
    arguments = words.split(" ") if "{" not in words else [words]
    data = [] if "data.root" in words or "dry_run" in words else ["data.root=/images"]
    line = refusal(*arguments, *data)
    assert line.startswith(REFUSED[words])
    assert "\n" not in line


def test_data_that_lies_nowhere():
    wanted = "data.root is not set: data.root=/path/to/imagenet (a folder with train/ and val/)"
    assert refusal("+experiment=convnext_dcls") == wanted
    assert typed("+experiment=convnext_dcls", "dry_run=true").data.root == ""
    assert typed("+experiment=quickstart").data.root == ""


IDLE = {
    "surgery.sigma_init=0.3 surgery=dcls": "only surgery.version=max and gauss have sigmas",
    "surgery.sigma_lr_scale=2 surgery=dcls_v1": "only surgery.version=max and gauss have sigmas",
    "surgery.repulsive_after_epoch=3 surgery=dcls_resnet": "set surgery.repulsive_loss=true",
    "surgery.repulsive_loss=true +experiment=quickstart": "lower surgery.repulsive_after_epoch",
    "recipe.warmup_lr=1e-6 recipe.warmup_epochs=0": "there is no warm-up",
    "recipe.bce_threshold=0.2": "set recipe.loss=bce",
    "recipe.mixup_prob=0.5 recipe=quickstart": "set recipe.mixup or recipe.cutmix",
    "recipe.mixup_mode=elem recipe=quickstart": "set recipe.mixup or recipe.cutmix",
    "recipe.mixup_off_epoch=3 recipe=quickstart": "set recipe.mixup or recipe.cutmix",
    "recipe.mixup_off_epoch=300": "the run ends before",
    "recipe.mixup_switch_prob=0.1 recipe.mixup=0": "it chooses between mixup and cutmix",
    "recipe.ratio=[1.0,1.0] recipe=quickstart": "there is no random crop",
    "recipe.color_jitter=0.4": "timm ignores it beside recipe.auto_augment",
    "recipe.erasing_mode=const recipe.erasing=0": "set recipe.erasing",
    "ema.shared=per_block surgery=dcls ema.decay=0": "there is no average",
    "ema.shared=per_block surgery=none": "only surgery=dcls shares positions",
    "data.crop_pct=0.9 data.eval_size=384": "set data.crop_mode=center",
    "run.root=elsewhere run.dir=here": "run.dir is the whole path",
    "logger.project=mine": "set logger.wandb=online or offline",
    "logger.entity=us": "set logger.wandb=online",
}


@pytest.mark.parametrize("words", IDLE)
def test_an_option_given_by_name_has_an_effect(words):
    option = words.split(" ")[0]
    line = refusal(*words.split(" "), "dry_run=true")
    assert line.startswith(option.split("=")[0])
    assert "has no effect" in line
    assert IDLE[words] in line


def test_every_idle_option_is_tested_and_exists():
    tested = [(words.split("=")[0], IDLE[words]) for words in IDLE]
    assert len(validation.IDLE) == len(tested)
    assert all(any(option == name and part in remedy for name, part in tested) for option, _, remedy in validation.IDLE)
    assert {option for option, _, _ in validation.IDLE} <= options(Config).keys()


def test_an_idle_option_of_the_recipe_itself_is_no_error():
    assert typed("recipe=quickstart", *DRY).recipe.mixup_prob == 1.0
    assert typed("recipe.color_jitter=0.4", "recipe.auto_augment=", *DRY).recipe.color_jitter == 0.4


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
def test_a_file_of_ones_own_is_told_what_is_wrong(own_configs, text):
    (own_configs / "experiment" / "mine.yaml").write_text(f"# @package _global_\n# mine\n{text}")
    line = refusal("+experiment=mine", "data.root=/x")
    assert line.startswith(OWN_FILES[text])
    assert "\n" not in line


def test_a_recipe_of_ones_own_is_complete(own_configs):
    (own_configs / "recipe" / "mine.yaml").write_text("# mine\nepochs: 3\n")
    assert refusal("recipe=mine", "data.root=/x").startswith("data.image_size is not set: give data.image_size=<value>")


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


# Names of runs


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("+experiment=quickstart", "quickstart-s0"),
        ("+experiment=quickstart seed=3", "quickstart-s3"),
        ("+experiment=quickstart surgery.mode=none", "quickstart-surgery-none-s0"),
        ("+experiment=quickstart surgery.mode=dcls", "quickstart-s0"),
        ("+experiment=quickstart recipe.lr=1e-3 recipe.epochs=3", "quickstart-epochs-3+lr-1e-3-s0"),
        ("recipe.epochs=30 recipe.lr=1e-3 data.root=/x recipe.epochs=40", "custom-epochs-40+lr-1e-3-s0"),
        ("model.name=resnet26 data.root=/x", "custom-model.name-resnet26-s0"),
        ("+experiment=quickstart run.save_minutes=1 logger=tensorboard data.workers=1 profile=true", "quickstart-s0"),
        ("+experiment=quickstart run.dir=/a logger.wandb=offline runtime.threads=1 dry_run=true", "quickstart-s0"),
        ("model=resnet50 recipe.opt_args.eps=1e-6 data.root=/x", "custom-model-resnet50+recipe.opt_args.eps-1e-6-s0"),
        ("recipe.scale=[0.2,1.0] data.root=/x", "custom-scale-_0.2_1.0-s0"),
    ],
)
def test_a_run_is_named_by_what_changes_its_result(words, name):
    cfg, overrides = composition.compose("train", words.split(" "))
    assert run_name(composition.typed(cfg, overrides), overrides) == name


def test_a_name_can_be_typed_as_a_path_without_quotes():
    run = typed(*DRY)
    for value in ("~a=(b)", "$HOME/it's", "x" * 300, "a,b c"):
        name = run_name(run, [f"model.init_from={value}"])
        assert composition.read("train", f"recipe.lr_batch={name}").value == name
        assert len(name) < 120
    long = {run_name(run, [f"model.init_from={'x' * 300}{end}"]) for end in "ab"}
    assert len(long) == 2


# Whether two configurations are one run


def test_what_does_not_change_the_result_does_not_differ():
    old = asdict(typed("+experiment=quickstart"))
    same = typed("+experiment=quickstart", "data.workers=7", "logger=tensorboard", "run.dir=/a", "profile=true")
    assert differing(old, asdict(same)) == []


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("recipe.epochs=9", ["recipe.epochs"]),
        ("seed=1 recipe.lr=1e-3 recipe.opt_args.eps=1e-7", ["seed", "recipe.lr", "recipe.opt_args"]),
        ("surgery.mode=none", ["surgery.mode"]),
        ("surgery.version=v1 surgery.kernel_count=9", ["surgery.version", "surgery.kernel_count"]),
        ("runtime.channels_last=false ema.decay=0", ["ema.decay", "runtime.channels_last"]),
    ],
)
def test_what_changes_the_result_is_listed(words, names):
    old, new = (asdict(typed("+experiment=quickstart", *more)) for more in ([], words.split(" ")))
    assert differing(old, new) == names
    assert differing(new, old) == names


def test_an_option_that_an_older_version_had_not_counts_by_its_value():
    old, new = (asdict(typed("+experiment=quickstart")) for _ in range(2))
    del old["recipe"]["clip_grad"]  # null in the new one: nothing differs
    del old["recipe"]["smoothing"]
    assert differing(old, new) == ["recipe.smoothing"]


# Evaluation


def test_nothing_of_the_data_is_set_but_what_was_asked_for():
    assert typed_eval("checkpoint=a.pt", "data.workers=1").data == {"workers": 1}
    found = typed_eval("checkpoint=[a.pt,b.pt]", "data=imagenet", "data.root=/x", "data.crop_pct=1", "data.workers=1")
    assert found.checkpoint == ["a.pt", "b.pt"]
    counts = {"classes": 1000, "train_images": 1281167, "val_images": 50000}
    splits = {"name": "imagenet", "kind": "folder", "root": "/x", "train_split": "train", "val_split": "val"}
    assert found.data == {**splits, **counts, "crop_pct": 1.0, "workers": 1}


def test_the_transform_comes_from_the_checkpoint():
    stored = asdict(typed("+experiment=quickstart"))["data"]
    whole = complete_data({"root": "/mine", "kind": "folder", "workers": 2, "mean": [0.5]}, stored)
    assert isinstance(whole, DataConfig)
    assert (whole.root, whole.kind, whole.mean, whole.eval_size, whole.workers) == ("/mine", "folder", [0.5], 56, 2)


def test_data_that_nobody_describes():
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
def test_what_is_wrong_with_an_evaluation(words, line):
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
