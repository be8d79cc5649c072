import pytest

from dcls.engine.plan import plan
from dcls.errors import ConfigError

CONVNEXT = {
    "global_batch": 4096,
    "slot": 128,
    "epochs": 300,
    "warmup_epochs": 20,
    "lr": 4e-3,
    "lr_batch": 4096,
    "lr_min": 1e-6,
}


def test_the_papers_run():
    run = plan(train_images=1_281_167, world_size=8, **CONVNEXT)
    assert (run.steps_per_epoch, run.total_steps, run.warmup_steps) == (312, 93_600, 6_240)
    assert run.images_an_epoch == 312 * 4096
    assert run.lr == 4e-3
    assert run.as_dict()["slots_per_process"] == 4


def test_the_rate_scales_with_the_batch():
    assert plan(train_images=10_000, **CONVNEXT | {"global_batch": 1024}).lr == pytest.approx(1e-3)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="recipe.global_batch=4096 exceeds the 100 training images"):
        plan(train_images=100, **CONVNEXT)
    with pytest.raises(ConfigError, match="recipe.warmup_epochs=20 must be less than recipe.epochs=10"):
        plan(train_images=10_000, **CONVNEXT | {"epochs": 10})
