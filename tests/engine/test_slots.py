import pytest
import torch
from torch import nn

from dcls.engine.slots import BatchNormStatistics, Slots, assign
from dcls.errors import ConfigError
from dcls.runtime.processes import World

ALONE = World(0, 1, torch.device("cpu"))


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_every_slot_has_exactly_one_process(world_size):
    shares = [assign(4096, 512, rank, world_size) for rank in range(world_size)]
    assert [slot for share in shares for slot in share.mine] == list(range(8))
    assert {share.global_batch for share in shares} == {4096}


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ConfigError, match=r"recipe.global_batch=100 is not a multiple of recipe.slot=32"):
        assign(100, 32)
    with pytest.raises(ConfigError, match=r"recipe.global_batch=96.*3 slots.*2 processes.*use 1 or 3 processes"):
        assign(96, 32, 0, 2)


def test_running_statistics_move_once_a_step_by_the_mean_of_the_slots():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3, momentum=0.3)
    norm.running_mean.uniform_()
    before_mean, before_var = norm.running_mean.clone(), norm.running_var.clone()
    slots = torch.randn(4, 8, 3, 5, 5)
    statistics = BatchNormStatistics(norm, Slots(8, 4, range(4)), ALONE)
    statistics.begin_step()
    for images in slots:
        statistics.begin_slot()
        output = norm(images)
        statistics.after_forward()
        norm(images)  # what activation checkpointing does in the backward
        output.sum().backward()
    statistics.end_step()
    means, variances = slots.mean((1, 3, 4)), slots.transpose(1, 2).flatten(2).var(-1)
    torch.testing.assert_close(norm.running_mean, 0.7 * before_mean + 0.3 * means.mean(0))
    torch.testing.assert_close(norm.running_var, 0.7 * before_var + 0.3 * variances.mean(0))
    assert norm.num_batches_tracked == 1
