import math

import pytest
import torch
from torch import nn

from dcls import Dcls2d
from dcls.engine import optim
from dcls.errors import ConfigError

SCALES = {"position": 5.0, "sigma": 5.0}


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = Dcls2d(4, 4, 3, dilated_kernel_size=5, padding=2, groups=4, version="gauss")
        self.second = Dcls2d(4, 4, 3, dilated_kernel_size=5, padding=2, groups=4, version="gauss")
        self.second.P, self.second.SIG = self.first.P, self.first.SIG
        self.norm = nn.BatchNorm2d(4)
        self.token = nn.Parameter(torch.zeros(2, 2))
        self.frozen = nn.Parameter(torch.zeros(3), requires_grad=False)

    def no_weight_decay(self):
        return {"token"}


def test_groups_by_role_hold_every_parameter_once():
    model = Network()
    groups = {g["group_name"]: g for g in optim.parameter_groups(model, weight_decay=0.05, lr_scales=SCALES)}
    assert {name: (g["weight_decay"], g["lr_scale"]) for name, g in groups.items()} == {
        "decay": (0.05, 1.0),
        "no_decay": (0.0, 1.0),
        "position": (0.0, 5.0),
        "sigma": (0.0, 5.0),
    }
    assert [id(p) for p in groups["position"]["params"]] == [id(model.first.P)]
    assert [id(p) for p in groups["sigma"]["params"]] == [id(model.first.SIG)]
    assert {id(p) for p in groups["decay"]["params"]} == {id(model.first.weight), id(model.second.weight)}
    counted = [id(p) for g in groups.values() for p in g["params"]]
    assert sorted(counted) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_layer_decay_keeps_the_factor_of_the_positions():
    model = Network()
    ids = {p: 0 if p is model.first.P else 3 for p in model.parameters()}
    groups = optim.parameter_groups(model, weight_decay=0.05, lr_scales=SCALES, layer_decay=0.5, layer_ids=ids)
    scales = {g["group_name"]: g["lr_scale"] for g in groups}
    assert scales["position.layer0"] == 5.0 * 0.5**3
    assert scales["sigma.layer3"] == 5.0
    assert scales["decay.layer3"] == 1.0


def test_the_rate_is_a_function_of_the_step():
    groups = optim.parameter_groups(Network(), weight_decay=0.05, lr_scales=SCALES)
    optimizer = optim.build_optimizer(groups, name="adamw", lr=4e-3)
    schedule = optim.build_schedule(optimizer, total_steps=100, warmup_steps=20, lr_min=1e-6, warmup_lr=0.0)

    def rates(step):
        schedule.step_update(step)
        return optim.learning_rates(optimizer)

    assert rates(0)["decay"] == 0.0
    assert rates(10)["decay"] == pytest.approx(2e-3)
    assert rates(20)["decay"] == pytest.approx(4e-3)
    halfway = 1e-6 + 0.5 * (4e-3 - 1e-6) * (1 + math.cos(math.pi * 40 / 80))
    assert rates(60)["decay"] == pytest.approx(halfway)
    assert rates(100)["decay"] == pytest.approx(1e-6)
    for step in (7, 20, 63, 99):
        assert rates(step)["position"] == pytest.approx(5 * rates(step)["no_decay"])


def test_unknown_optimizers_and_arguments_are_refused():
    groups = optim.parameter_groups(Network(), weight_decay=0.0, lr_scales={})
    with pytest.raises(ConfigError, match="recipe.optimizer=adamx"):
        optim.build_optimizer(groups, name="adamx", lr=1.0)
    with pytest.raises(ConfigError, match="recipe.opt_args=.*betaz"):
        optim.build_optimizer(groups, name="adamw", lr=1.0, arguments={"betaz": 1})
    with pytest.raises(ConfigError, match="recipe.opt_args=.*betas"):
        optim.build_optimizer(groups, name="adamw", lr=1.0, arguments={"betas": [0.9]})
    with pytest.raises(ConfigError, match="recipe.opt_args=.*: layer_decay has no effect there"):
        optim.build_optimizer(groups, name="adamw", lr=1.0, arguments={"layer_decay": 0.5})
