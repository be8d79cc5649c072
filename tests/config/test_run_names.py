from dataclasses import asdict

import pytest

from dcls.config import composition
from dcls.config.composition import differing, run_name

DRY = ("dry_run=true", "data.classes=10", "data.train_images=1000")


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


def test_a_name_can_be_typed_as_a_path_without_quotes(typed):
    run = typed(*DRY)
    for value in ("~a=(b)", "$HOME/it's", "x" * 300, "a,b c"):
        name = run_name(run, [f"model.init_from={value}"])
        assert composition.read("train", f"recipe.lr_batch={name}").value == name
        assert len(name) < 120
    long = {run_name(run, [f"model.init_from={'x' * 300}{end}"]) for end in "ab"}
    assert len(long) == 2


# Whether two configurations are one run


def test_what_does_not_change_the_result_does_not_differ(typed):
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
def test_what_changes_the_result_is_listed(words, names, typed):
    old, new = (asdict(typed("+experiment=quickstart", *more)) for more in ([], words.split(" ")))
    assert differing(old, new) == names
    assert differing(new, old) == names


def test_an_option_that_an_older_version_had_not_counts_by_its_value(typed):
    old, new = (asdict(typed("+experiment=quickstart")) for _ in range(2))
    del old["recipe"]["clip_grad"]  # null in the new one: nothing differs
    del old["recipe"]["smoothing"]
    assert differing(old, new) == ["recipe.smoothing"]
