import pytest
import torch

import models
from dcls import ops
from dcls.runtime.prepare import measured_choices, precision
from dcls.runtime.processes import World


def small():
    model = models.create("convnext_quickstart", num_classes=4, in_chans=1)
    models.convert(model, mode="dcls", dilated_kernel_size=13)
    return model


def test_every_convolution_of_every_batch_gets_a_choice():
    world = World(0, 1, torch.device("cpu"))
    choices = measured_choices(small(), world, precision(world.device), [(2, 1, 56, 56), (8, 1, 56, 56)])
    # Three maps in two batches; on a CPU nothing has to be measured.
    assert len(choices) == 6
    assert all("kernel 13x13" in case for case in choices)
    assert set(choices.values()) == {"reference"}


@pytest.mark.gpu
def test_measured_choices_change_nothing_but_the_time():
    world = World(0, 1, torch.device("cuda"))
    model, numeric = small().cuda().to(memory_format=torch.channels_last), precision(world.device)
    images = numeric.place(torch.randn(64, 1, 56, 56))

    def logits() -> torch.Tensor:
        with numeric.autocast(), torch.no_grad():
            return model.eval()(images).float()

    before = logits()
    choices = measured_choices(model, world, numeric, [images.shape])
    assert len(choices) == 3
    try:
        ops.set_choices(choices)
        torch.testing.assert_close(logits(), before, rtol=2e-2, atol=2e-2)
    finally:
        ops.set_choices({})
