import pytest
import torch
from torch import nn

import models
from dcls.errors import ConfigError


def test_every_parameter_has_a_layer_from_stem_to_head():
    model = models.create("convnext_quickstart")
    models.convert(model, mode="dcls")
    numbers = models.layer_ids(model)
    assert set(numbers) == set(model.parameters())
    assert numbers[model.stem[0].weight] == 0
    assert numbers[model.head.fc.weight] == max(numbers.values())
    first, second = model.stages[1].blocks
    # One P for both blocks: it learns at the rate of the first.
    assert numbers[first.conv_dw.weight] == numbers[first.conv_dw.P] == numbers[second.conv_dw.P]
    assert numbers[second.conv_dw.weight] > numbers[first.conv_dw.weight]


@pytest.mark.parametrize("name", ["caformer_s18", "convformer_s18"])
def test_networks_that_timm_does_not_group_are_grouped_as_convnext_is(name):
    with torch.device("meta"):
        model = models.create(name)
    numbers = models.layer_ids(model)
    assert set(numbers) == set(model.parameters())
    assert {numbers[each] for each in model.stem.parameters()} == {0}
    of_blocks = [{numbers[each] for each in block.parameters()} for stage in model.stages for block in stage.blocks]
    assert all(len(each) == 1 for each in of_blocks)
    assert len(set().union(*of_blocks)) == 18
    assert [min(each) for each in of_blocks] == sorted(min(each) for each in of_blocks)
    head = {numbers[each] for each in model.head.parameters()}
    assert head == {max(numbers.values())}
    assert head.isdisjoint(set().union(*of_blocks))


def test_a_model_without_groups_is_refused():
    with pytest.raises(ConfigError, match="recipe.layer_decay is set, but timm groups no layers of Linear"):
        models.layer_ids(nn.Linear(1, 1))
