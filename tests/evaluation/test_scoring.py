import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from dcls import Dcls2d, surgery
from dcls.evaluation import scoring
from dcls.runtime.prepare import precision
from dcls.runtime.processes import World

CPU = torch.device("cpu")


def images_and_labels():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(37, 3, 8, 8, generator=generator), torch.randint(0, 7, (37,), generator=generator)


def network() -> nn.Module:
    torch.manual_seed(1)
    spatial = Dcls2d(3, 7, 4, dilated_kernel_size=5, padding=2)
    return nn.Sequential(spatial, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


@pytest.mark.parametrize("batch", [1, 5, 37])
def test_scores_are_those_of_the_whole_set(batch):
    model, (images, labels) = network(), images_and_labels()
    batches = zip(images.split(batch), labels.split(batch))
    other = network().requires_grad_(False)
    other[0].weight.neg_()
    scores, others = scoring.evaluate([model, other], batches, World(0, 1, CPU), precision=precision(CPU))
    assert others.loss == pytest.approx(F.cross_entropy(other(images), labels).item(), rel=1e-5)
    logits = model(images)
    assert scores.images == 37
    assert scores.top1 == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item())
    five = (logits.argsort(1, descending=True)[:, :5] == labels[:, None]).any(1)
    assert scores.top5 == pytest.approx(100 * five.float().mean().item())
    assert scores.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)


def test_hits_are_those_that_count():
    model, (images, labels) = network(), images_and_labels()
    right = scoring.hits(model, zip(images.split(5), labels.split(5)), precision(CPU))
    assert torch.equal(right, model(images).argmax(1) == labels)
    assert 0 < right.sum() < 37


def test_fusing_a_copy_leaves_the_model_and_the_logits_alone():
    model, (images, _) = network(), images_and_labels()
    fused = scoring.fused(model)
    assert isinstance(fused[0], nn.Conv2d)
    assert isinstance(model[0], Dcls2d)
    torch.testing.assert_close(fused(images), model(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 16, 37])
def test_features_are_what_timm_shows_its_classifier(batch):
    torch.manual_seed(0)
    model = timm.create_model("test_convnext", num_classes=7).eval()
    surgery.convert(model, mode="dcls", select=surgery.depthwise(kernel_above=3), dilated_kernel_size=9)
    images, labels = torch.randn(37, 3, 32, 32), torch.arange(37)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(images), pre_logits=True)
    batches = zip(images.split(batch), labels.split(batch))
    found, order = scoring.features(scoring.fused(model), batches, precision=precision(CPU))
    assert torch.equal(order, labels)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.get_classifier()(found), model(images), rtol=1e-4, atol=1e-5)
