"""Five training steps on random data, in as many processes as the environment says; rank 0 saves what came out.

Run by test_step.py: `python steps_of_a_world.py OUT`, with torchrun's variables for more than one process.
"""

import sys
from pathlib import Path

import torch
from timm.layers import DropPath
from torch import nn

from dcls import Dcls2d
from dcls.engine import optim
from dcls.engine.ema import Ema
from dcls.engine.slots import assign
from dcls.engine.step import PositionRules, Step
from dcls.runtime import processes
from dcls.runtime.prepare import precision, prepare
from dcls.task import objective

STEPS, SLOT, SLOTS = 5, 4, 4


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.spatial = Dcls2d(6, 6, 4, dilated_kernel_size=7, padding=3, groups=6)
        self.norm, self.drop = nn.BatchNorm2d(6), DropPath(0.3)

    def forward(self, x):
        return x + self.drop(torch.relu(self.norm(self.spatial(x))))


def network() -> nn.Module:
    torch.manual_seed(0)
    blocks = [Block(), Block()]
    blocks[1].spatial.P = blocks[0].spatial.P
    return nn.Sequential(nn.Conv2d(3, 6, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))


def batch(step: int, slot: int):
    generator = torch.Generator().manual_seed(100 * step + slot)
    return torch.randn(SLOT, 3, 9, 9, generator=generator), torch.randint(0, 5, (SLOT,), generator=generator)


def train(world: processes.World) -> dict:
    model = network()
    forward = prepare(model, world)
    groups = optim.parameter_groups(model, weight_decay=0.05, lr_scales={"position": 5.0})
    optimizer = optim.build_optimizer(groups, name="adamw", lr=1e-2, arguments={"eps": 1e-3})
    schedule = optim.build_schedule(optimizer, total_steps=STEPS, warmup_steps=1, lr_min=0.0, warmup_lr=1e-3)
    slots = assign(SLOT * SLOTS, SLOT, world.rank, world.size)
    step = Step(
        model,
        forward,
        optimizer,
        schedule,
        objective.build(classes=5, smoothing=0.1, mixup=0.8, cutmix=1.0),
        world,
        slots,
        precision(world.device),
        seed=3,
        ema=Ema(model, 0.9),
        clip_grad=1.0,
        positions=PositionRules(repulsive_loss=True, repulsive_after_epoch=0),
    )
    losses = []
    for number in range(STEPS):
        losses.append(float(step(number, number // 2, iter([batch(number, slot) for slot in slots.mine]))))
    return {"model": model.state_dict(), "ema": step.ema.state_dict(), "losses": losses}


if __name__ == "__main__":
    with processes.join("cpu") as world:
        result = train(world)
        if world.is_main:
            torch.save(result, Path(sys.argv[1]))
