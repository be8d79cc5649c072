import pytest
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn
from torch.nn import functional as F

import models
from dcls import fuse
from dcls.analysis.heatmaps import THRESHOLD, grad_cam, heat_maps, threshold_grad_cam

# A network of every family, smaller where timm takes sizes.
NETWORKS: dict[str, dict[str, tuple[int, ...]]] = {
    "resnet50": {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)},
    "convnext_tiny": {"depths": (1, 1, 1, 1), "dims": (8, 16, 16, 24)},
    "caformer_s18": {},
    "convformer_s18": {},
    "fastvit_sa24": {"layers": (1, 1, 1, 1), "embed_dims": (8, 16, 32, 32)},
}


def network(name: str, converted: bool) -> nn.Module:
    torch.manual_seed(0)
    model = models.create(name, num_classes=5, **NETWORKS[name])
    if converted:
        models.convert(model, mode="dcls", kernel_count=4)
    for parameter in model.get_classifier().parameters():
        parameter.data.normal_(std=1000)  # far from the 1e-7 that the package adds to a map's largest value
    return fuse(model).eval()


def from_0_to_1(maps: torch.Tensor) -> torch.Tensor:
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low).clamp_min(1e-30)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("converted", [False, True])
def test_grad_cam_is_the_packages(name, converted):
    model, classes = network(name, converted), [0, 1, 4, 2]
    images = torch.randn(4, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    maps = heat_maps(model, images, torch.tensor(classes), models.target_layer(model), size=96)
    with GradCAM(model, [models.target_layer(model)]) as package:
        expected = torch.from_numpy(package(images, [ClassifierOutputTarget(each) for each in classes]))
    assert (maps.amax((1, 2)) > 0.01).any()
    torch.testing.assert_close(from_0_to_1(maps), expected, rtol=0, atol=1e-4)


def test_both_methods_are_their_formulas_on_a_pooled_linear_classifier():
    """There the gradient of logit k is W[k] / (h w) at every place."""
    torch.manual_seed(0)
    features, head = nn.Conv2d(3, 6, 3, stride=4), nn.Linear(6, 5)
    model = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).eval().requires_grad_(False)
    shown, classes = torch.randn(4, 3, 32, 24), torch.tensor([0, 4, 4, 2])
    activations = features(shown)
    weighted = head.weight[classes][:, :, None, None] / activations[0, 0].numel() * activations
    plain = F.interpolate(weighted.mean(1, keepdim=True).relu(), (64, 48), mode="bilinear")[:, 0]
    torch.testing.assert_close(heat_maps(model, shown, classes, features, size=(64, 48)), plain)
    raised = from_0_to_1(weighted.relu().mean(1)).clamp_min(0.3)
    expected = F.interpolate(raised[:, None], (64, 48), mode="bilinear")[:, 0]
    torch.testing.assert_close(heat_maps(model, shown, classes, features, threshold=True, size=(64, 48)), expected)
    assert torch.is_grad_enabled()
    assert not features._forward_hooks


def test_a_plateau_is_exactly_flat_and_a_map_of_nothing_too():
    weighted = torch.tensor([[0.0, 0.1, 0.2, 1.0], [0.0, 0.0, 0.0, 0.0]]).view(2, 1, 1, 4).expand(2, 3, 4, 4)
    maps = threshold_grad_cam(weighted, 224)
    left = maps[:, :, : 224 * 5 // 8]  # up to the centre of the third cell, which is below the threshold
    assert (left == THRESHOLD).all()
    assert (maps[1] == THRESHOLD).all()
    assert maps[0].max() == 1
    assert (grad_cam(-weighted, 7) == 0).all()
