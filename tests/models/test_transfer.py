"""Which checkpoints a model may start from, and what it then has of them."""

import pytest
import torch

import models
from dcls.errors import CheckpointError
from dcls.layers import layers

SMALL = {"depths": (1, 2, 1, 1), "dims": (8, 16, 32, 64), "ls_init_value": 1.0}
DCLS = {"mode": "dcls", "version": "gauss"}


def network(name="convnext_tiny", surgery=None, num_classes=5, **options):
    model = models.create(name, num_classes=num_classes, **(SMALL | options if "convnext" in name else options))
    models.convert(model, **(surgery or {"mode": "none"}))
    return model.eval()


def started(model, weights, **asked):
    return models.transfer(model, models.donor(weights, model, asked, **SMALL))


@pytest.mark.parametrize("published", [True, False])
def test_positions_arrive_in_our_order_and_outside_the_kernel_where_they_were(published):
    """A file in the repository's naming has the reference's order of axes, and nothing is clamped on the way."""
    source, model = network(surgery=DCLS, num_classes=7), network(surgery=DCLS)
    with torch.no_grad():
        for layer in {layer.P: layer for _, layer in layers(source)}.values():
            layer.P[0] += 1.0
            layer.P[1, 0, 0, 0] = 11.4
    if published:
        lines = started(model, models.publish(source))
    else:
        lines = models.transfer(model, source)
    assert lines == ["the head starts fresh: 7 classes there, 5 here"]
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(model.forward_features(images), source.forward_features(images))
    assert model.head.fc.weight.shape == (5, 64)


def test_dcls_layers_of_a_plain_checkpoint_start_fresh():
    source, model = network(), network(surgery=DCLS)
    assert started(model, models.publish(source)) == ["5 DCLS layers start fresh: there they are plain"]
    assert torch.equal(model.head.fc.weight, source.head.fc.weight)
    registered = network("convnext_tiny_dcls")
    assert started(registered, source.state_dict()) == ["5 DCLS layers start fresh: there they are plain"]


@pytest.mark.parametrize(
    ("build", "surgery", "line"),
    [
        (
            lambda: network(depths=(1, 1, 1, 1)),
            None,
            r"found a ConvNeXt of 1-1-1-1 blocks and 8 channels in the stem, expected a ConvNeXt of 1-2-1-1 .*"
            r"\(model.name=convnext_tiny, model.args\)",
        ),
        (
            lambda: network("resnet18"),
            None,
            "found a ResNet of 2-2-2-2 blocks and 64 channels in the stem, expected a ConvNeXt of 1-2-1-1 blocks",
        ),
        (
            lambda: network("test_resnet"),
            None,
            "found .* names such as conv1.0.weight, .* expected a ConvNeXt of 1-2-1-1",
        ),
        (lambda: network("convnext_tiny_hnf"), None, "found convnext_tiny_hnf, expected model.name=convnext_tiny"),
        (lambda: network(in_chans=1), None, "found 1 colour channels, expected data.channels=3"),
        (lambda: network(surgery=DCLS), None, "found a DCLS layer stages.0.blocks.0.conv_dw, .* set surgery=dcls"),
        (lambda: network(surgery=DCLS), {"mode": "dcls"}, "found version gauss in .*, expected surgery.version=v0"),
        (
            lambda: network(surgery=DCLS | {"dilated_kernel_size": 17}),
            DCLS,
            r"found dilated_kernel_size \(17, 17\) in .*, expected surgery.dilated_kernel_size=\(23, 23\)",
        ),
        (
            lambda: network(surgery=DCLS | {"kernel_count": 7}),
            DCLS | {"kernel_count": 5},
            "found kernel_count 7 in .*, expected surgery.kernel_count=5",
        ),
        (
            lambda: network(surgery=DCLS | {"share": False, "kernel_count": 5}),
            DCLS | {"kernel_count": 5},
            "found blocks with positions of their own, expected surgery.share=true",
        ),
    ],
)
def test_what_contradicts_is_refused_with_found_and_expected(build, surgery, line):
    source, model = build(), network(surgery=surgery)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=line):
        models.transfer(model, source)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_published_file_is_read_as_what_is_trained():
    source = network(surgery=DCLS)
    with pytest.raises(CheckpointError, match="surgery.version=v1 contradicts the file"):
        started(network(surgery={"mode": "dcls", "version": "v1"}), models.publish(source), version="v1")
    with torch.no_grad():
        next(layers(source))[1].P[0, 0, 0, 0] = 9.0
    model = network(surgery=DCLS | {"dilated_kernel_size": 13})
    with pytest.raises(CheckpointError, match=r"P reaches 9.0 cells .* kernel of 13 x 13: give the size these"):
        started(model, models.publish(source), dilated_kernel_size=13)
