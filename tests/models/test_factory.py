import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import nn

import models
from dcls.errors import ConfigError


def test_arguments_reach_timm():
    model = models.create("convnext_quickstart", num_classes=4, in_chans=1, drop_path_rate=0.3, ls_init_value=0.5)
    assert model(torch.randn(2, 1, 56, 56)).shape == (2, 4)
    assert model.stages[2].blocks[1].drop_path.drop_prob == pytest.approx(0.3)
    assert model.stages[0].blocks[0].gamma.detach().unique().tolist() == [0.5]


def test_a_source_says_how_many_classes_and_colours_it_has(tmp_path):
    saved = timm.create_model("test_resnet", num_classes=4, in_chans=1)
    save_for_hf(saved, tmp_path, model_args={"num_classes": 4, "in_chans": 1}, safe_serialization=True)
    model = models.create(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(2, 1, 64, 64)
    assert torch.equal(model(images), saved.eval()(images))
    saved.layer1[0].conv1 = nn.Conv2d(1, 1, 7)
    save_for_hf(saved, tmp_path, model_args={"num_classes": 4, "in_chans": 1}, safe_serialization=True)
    with pytest.raises(ConfigError, match=r"model.name=local-dir:.* do not fit .*: Unexpected.*layer1.0.conv1.bias"):
        models.create(f"local-dir:{tmp_path}", pretrained=True)


def test_a_model_without_drop_path_takes_none():
    with torch.device("meta"):
        assert models.create("vgg11", num_classes=3).num_classes == 3


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"name": "convnext_tinny"}, r"model.name='convnext_tinny' is unknown to timm: did you mean convnext_tiny"),
        ({"name": "zzzzzzzz"}, "model.name='zzzzzzzz' is unknown to timm: timm.list_models"),
        ({"name": "convnext_tiny.fb_in1"}, "model.name='convnext_tiny.fb_in1' has an unknown tag: .*fb_in1k"),
        ({"name": "some/repository"}, "model.name='some/repository' is no timm name: .*hf-hub:some/repository"),
        ({"name": "convnext_quickstart", "pretrained": True}, "model.pretrained=true: .*convnext_quickstart"),
        ({"name": "convnext_tiny_dcls", "pretrained": True}, "model.pretrained=true: .*convnext_tiny_dcls"),
        (
            {"name": "vgg11", "drop_path_rate": 0.1},
            "recipe.drop_path=0.1 does not fit vgg11: .*give recipe.drop_path=0",
        ),
        ({"name": "test_convnext", "depht": 3}, "model.args={'depht': 3}.*test_convnext.*depht"),
    ],
    ids=str,
)
def test_what_timm_cannot_build_is_refused(options, match):
    with pytest.raises(ConfigError, match=match):
        models.create(**options)


def test_weights_that_cannot_be_fetched_are_one_line(monkeypatch):
    def offline(name, **options):
        raise FileNotFoundError("An error happened while trying to locate the file on the Hub\nand more")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        ConfigError, match=r"model.pretrained=true: the weights of resnet50 cannot be fetched"
    ) as caught:
        models.create("resnet50", pretrained=True)
    assert "\n" not in str(caught.value)
