import copy

import torch
from torch import nn

import models
from dcls import ops


def test_a_network_computes_the_same_with_the_operator():
    torch.manual_seed(0)
    plain = models.create("convnext_quickstart", num_classes=4, in_chans=1)
    adopted = ops.adopt(copy.deepcopy(plain))
    switched = [name for name, module in adopted.named_modules() if type(module).__module__ == "dcls.ops.adoption"]
    assert len(switched) == 6
    assert all(name.endswith("conv_dw") for name in switched)
    assert adopted.state_dict().keys() == plain.state_dict().keys()
    images = torch.randn(2, 1, 56, 56)
    results = []
    for model in (plain, adopted):
        model(images).square().sum().backward()
        results.append([model(images), *(parameter.grad for parameter in model.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5 * one.abs().max().item())


def test_what_the_operator_does_not_compute_is_left_alone():
    class Own(nn.Conv2d):
        pass

    others = [
        nn.Conv2d(8, 8, 3),
        nn.Conv2d(8, 16, 3, groups=8),
        nn.Conv2d(8, 8, 3, groups=8, dilation=2),
        nn.Conv2d(8, 8, 3, groups=8, padding="same"),
        nn.Conv2d(8, 8, 3, groups=8, padding=1, padding_mode="reflect"),
        Own(8, 8, 3, groups=8),
    ]
    kinds = [type(conv) for conv in others]
    ops.adopt(nn.Sequential(*others))
    assert [type(conv) for conv in others] == kinds
