import pytest

from dcls.config import checks
from dcls.config.composition import complete_data
from dcls.config.schema import CONFIGS, GROUPS, Config, choices_of, options
from dcls.data.robustness import KINDS, SUBSETS

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


def test_the_experiments_are_these():
    assert set(choices_of("experiment")) == set(EXPERIMENTS)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_is_its_row(experiment, typed):
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
def test_every_choice_composes_into_a_checked_configuration(group, choice, typed):
    run = typed(f"{group}={choice}", "model.init_from=weights.pt", *DRY)
    assert not [name for name in options(Config) if checks.value_of(run, name) == "???"]


@pytest.mark.parametrize("kind", KINDS)
def test_robustness_sets_are_for_evaluation_alone(kind, typed_eval, refusal):
    assert f"data.kind={kind} is for eval.py alone" in refusal("+experiment=convnext_tiny", f"data={kind}", *DRY)
    given = typed_eval("checkpoint=x.pt", f"data={kind}", "data.root=/x").data
    shown = {"mean": [0, 0, 0], "std": [1, 1, 1], "channels": 3, "image_size": 224, "eval_size": 224}
    data = complete_data(given, shown | {"crop_pct": 0.875, "interpolation": "bicubic"})
    assert (data.kind, data.name, data.classes) == (kind, kind, 200 if kind in SUBSETS else 1000)


def test_every_file_was_composed_by_the_tests_above():
    above = len(EXPERIMENTS) + len(CHOICES) + len(["train", "eval"])
    assert len(list(CONFIGS.rglob("*.yaml"))) == above == 48


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_mode_of_surgery_can_be_changed_in_every_experiment(experiment, typed):
    own = typed(f"+experiment={experiment}", *DRY)
    runs = {mode: typed(f"+experiment={experiment}", f"surgery.mode={mode}", *DRY) for mode in MODES}
    assert {mode: run.surgery.mode for mode, run in runs.items()} == {mode: mode for mode in MODES}
    assert [mode for mode, run in runs.items() if run == own] == [own.surgery.mode]


def test_an_experiment_needs_its_name_and_the_data_alone(typed):
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
    return {name: checks.value_of(run, name) for name in names}


def test_convnext_dcls_is_trained_as_published(typed):
    run = typed("+experiment=convnext_dcls", "dry_run=true")
    assert figures_of(run, CONVNEXT) == CONVNEXT
    assert {name for name in options(Config) if name.startswith("recipe.")} <= CONVNEXT.keys()


def test_resnet_is_trained_by_a1_a2_and_a3(typed):
    runs = [typed("+experiment=resnet50_dcls", f"recipe=resnet_a{n}", "dry_run=true") for n in (1, 2, 3)]
    found = [figures_of(run, RESNET) for run in runs]
    assert {name: tuple(figures[name] for figures in found) for name in RESNET} == RESNET
    assert not any(run.surgery.repulsive_loss for run in runs)
    assert typed("+experiment=resnet50_dcls", "dry_run=true") == runs[2]


def test_the_quickstart_is_the_measured_recipe(typed):
    assert figures_of(typed("+experiment=quickstart"), QUICKSTART) == QUICKSTART
