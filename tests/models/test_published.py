import pytest

import models


@pytest.mark.parametrize(
    ("arguments", "top1"),
    [
        (("convnext_tiny", "none"), 82.1),
        (("convnext_tiny.fb_in1k", "dcls"), 82.5),
        (("convnext_small", "dcls", "bilinear"), 83.7),
        (("convnext_base", "dcls", "v0"), 84.1),
        (("convnext_base_dcls", "none"), 84.1),
        (("convnext_tiny", "dilated"), 80.8),
        (("resnet50", "dcls"), 76.5),
        (("convnext_tiny", "dcls", "gauss"), None),
    ],
)
def test_figures_are_those_of_their_row(arguments, top1):
    assert models.paper_figures(*arguments)["top1"] == top1


@pytest.mark.parametrize(
    "arguments",
    [("convnext_base", "dilated"), ("convnext_tiny", "large_kernel"), ("vgg11", "none"), ("convformer_s18", "dcls")],
)
def test_where_nothing_is_known_nothing_is_said(arguments):
    assert models.paper_figures(*arguments) is None


def test_what_was_recalled_is_marked():
    assert "memory" in models.paper_figures("resnet50", "none")["source"]
    assert "memory" in models.paper_figures("convnext_tiny", "dilated")["source"]
    assert models.paper_figures("convnext_tiny", "dcls") == {
        "params": 28e6,
        "flops": 5.0e9,
        "top1": 82.5,
        "source": "ConvNeXt-dcls README",
    }
