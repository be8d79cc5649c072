import pytest
import timm
from torch import nn

import models
from dcls import layers


def shapes(model: nn.Module) -> dict[str, str]:
    """All that defines each convolution, by name."""
    return {name: repr(conv) for name, conv in model.named_modules() if isinstance(conv, nn.Conv2d)}


@pytest.mark.parametrize(
    ("name", "options", "odd"),
    [
        ("convnext_tiny", {"mode": "dcls"}, 0),
        ("convnext_tiny", {"mode": "dcls", "version": "gauss"}, 0),
        ("convnext_tiny", {"mode": "large_kernel"}, 0),
        ("convnext_tiny", {"mode": "none"}, 0),
        ("convnext_tiny", {"mode": "dilated"}, 5),
        ("convnext_tiny", {"mode": "dcls", "dilated_kernel_size": [17, 9], "kernel_count": 20}, 5),
        ("convnext_quickstart", {"mode": "dcls"}, 0),
        ("convnext_quickstart_dcls", {"mode": "none"}, 0),
        ("resnet50", {"mode": "dcls"}, 5),
        ("fastvit_sa24", {"mode": "dcls", "version": "v1"}, 6),
    ],
)
def test_timm_builds_the_fused_network_by_its_blueprint(build, name, options, odd):
    model = build(name)
    models.convert(model, **options)
    plan = models.blueprint(layers.fuse(model))
    assert len(plan.convolutions) == odd
    assert plan.architecture in timm.list_models(module=plan.architecture.partition("_")[0].rstrip("0123456789"))
    built = timm.create_model(plan.architecture, **plan.arguments)
    assert built.state_dict().keys() == model.state_dict().keys()
    for conv, geometry in plan.convolutions.items():
        vars(built.get_submodule(conv)).update({key: tuple(value) for key, value in geometry.items()})
    assert shapes(built) == shapes(model)
