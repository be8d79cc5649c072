import pytest

from dcls.config import checks
from dcls.config.schema import Config, options

DRY = ("dry_run=true", "data.classes=10", "data.train_images=1000")
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
def test_what_is_wrong_is_said_in_one_line(words, refusal):
    arguments = words.split(" ") if "{" not in words else [words]
    data = [] if "data.root" in words or "dry_run" in words else ["data.root=/images"]
    line = refusal(*arguments, *data)
    assert line.startswith(REFUSED[words])
    assert "\n" not in line


def test_data_that_lies_nowhere(typed, refusal):
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
def test_an_option_given_by_name_has_an_effect(words, refusal):
    option = words.split(" ")[0]
    line = refusal(*words.split(" "), "dry_run=true")
    assert line.startswith(option.split("=")[0])
    assert "has no effect" in line
    assert IDLE[words] in line


def test_every_idle_option_is_tested_and_exists():
    tested = [(words.split("=")[0], IDLE[words]) for words in IDLE]
    assert len(checks.IDLE) == len(tested)
    assert all(any(option == name and part in remedy for name, part in tested) for option, _, remedy in checks.IDLE)
    assert {option for option, _, _ in checks.IDLE} <= options(Config).keys()


def test_an_idle_option_of_the_recipe_itself_is_no_error(typed):
    assert typed("recipe=quickstart", *DRY).recipe.mixup_prob == 1.0
    assert typed("recipe.color_jitter=0.4", "recipe.auto_augment=", *DRY).recipe.color_jitter == 0.4
