"""The ClickMe score of a small network, on two shards of six images written here."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from scipy.stats import spearmanr
from torch.nn import functional as F

import models
from dcls.analysis.alignment import human_maps
from dcls.data import ClickMe, eval_transform, robustness
from dcls.errors import DataError, reported
from scripts import gradcam
from tests.data.records import example, framed

ARGS = "model.args={layers: [1, 1, 1, 1], channels: [8, 8, 16, 16]}"
LABELS = ((3, 999, 0, 500), (41, 7))


def jpeg(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def sample(label: int, constant: bool = False, side: int = 256) -> dict[str, list]:
    rng = np.random.default_rng(label)
    image = np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((side // 8, side // 8, 1))).astype(np.uint8)
    human = np.zeros((side, side), np.uint8)
    if not constant:
        row, column = rng.integers(0, 160, 2)
        human[row : row + 80, column : column + 80] = 255
    return {"image": [jpeg(image)], "heatmap": [jpeg(human)], "label": [label]}


def write(path: Path, samples: list[dict[str, list]]) -> None:
    path.write_bytes(b"".join(framed(example(each)) for each in samples))


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("click-me")
    for name, labels in zip(("val-2.tfrecords", "val-10.tfrecords"), LABELS, strict=True):
        write(folder / name, [sample(label, constant=label == 0) for label in labels])
    (folder / "train-0.tfrecords").write_bytes(b"not looked at")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "small.pt"
    torch.save(models.create("resnet18", layers=(1, 1, 1, 1), channels=(8, 8, 16, 16)).state_dict(), path)
    return path


def run(*arguments: str) -> int:
    return reported(lambda: gradcam.main(arguments))


@pytest.fixture
def small(weights, shards) -> tuple[str, ...]:
    return f"checkpoint={weights}", "model.name=resnet18", ARGS, f"clickme={shards}", "device=cpu"


def test_the_score_is_that_of_the_packages_maps_and_scipys_correlation(small, weights, shards, tmp_path, capsys):
    assert run(*small, "batch=3", f"out={tmp_path}") == 0
    found = json.loads((tmp_path / "gradcam.json").read_text())
    plain = found["methods"]["gradcam"]
    model = models.create("resnet18", layers=(1, 1, 1, 1), channels=(8, 8, 16, 16)).eval()
    model.load_state_dict(torch.load(weights))
    model.fc.weight.data *= 1e6  # far from the 1e-7 that the package adds to a map's largest value
    # timm's resnet18: 95 % of the picture, bicubic
    shown = ClickMe(shards, eval_transform(
        image_size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), crop_pct=0.95, interpolation="bicubic"
    ))  # fmt: skip
    expected = np.full(6, np.nan)
    for index in range(6):
        image, stored, label = shown[index]
        with GradCAM(model, [model.layer4]) as package:
            (heat,) = package(image[None], [ClassifierOutputTarget(label)])
        if np.ptp(heat) and stored.any():
            expected[index] = spearmanr(heat.ravel(), human_maps(stored[None]).numpy().ravel()).statistic / 0.65753
    counted = expected[~np.isnan(expected)]
    assert plain["score"] == pytest.approx(np.mean(counted), abs=2e-3)
    assert plain["standard_error"] == pytest.approx(np.std(counted, ddof=1) / 4**0.5, abs=2e-3)
    assert (plain["images"], plain["skipped"]) == (4, 2)  # the third has no human map, and one no positive place
    assert list(plain["shards"]) == ["val-2.tfrecords", "val-10.tfrecords"]
    assert plain["shards"]["val-10.tfrecords"]["score"] == pytest.approx(np.nanmean(expected[4:]), abs=2e-3)
    assert (found["methods"]["threshold"]["images"], found["methods"]["threshold"]["skipped"]) == (5, 1)
    assert f"gradcam    score {plain['score']:.4f} ± {plain['standard_error']:.4f}  (4 images, 2 skipped)" in (
        capsys.readouterr().out
    )
    with Image.open(tmp_path / "gradcam.png") as sheet:
        assert sheet.height > 6 * 150


def test_it_is_deterministic_and_a_limit_takes_the_first_images(small, tmp_path):
    texts = []
    for name in ("a", "b"):
        assert run(*small, "limit=2", "method=threshold", "batch=2", f"out={tmp_path / name}") == 0
        texts.append((tmp_path / name / "gradcam.json").read_text())
    assert texts[0] == texts[1]
    (only,) = json.loads(texts[0])["methods"].values()
    assert only["images"] == 2
    assert list(only["shards"]) == ["val-2.tfrecords"]


def test_an_image_is_resized_and_cut_down_to_whole_numbers(shards):
    image, stored, label = ClickMe(shards, transform=lambda image: image).load(4)
    original = Image.open(io.BytesIO(sample(41)["image"][0]))
    pixels = torch.from_numpy(np.array(original, np.float32)).permute(2, 0, 1)
    expected = F.interpolate(pixels[None], (224, 224), mode="bilinear")[0].floor()
    np.testing.assert_array_equal(np.array(image), expected.permute(1, 2, 0).numpy())
    assert label == 41
    assert stored.shape == (256, 256)
    assert stored.max() == 255


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"image": [b"abc"]}, "image has 3 bytes that are no image, expected a JPEG image"),
        ({"heatmap": [0.5]}, "heatmap is 0.5, expected a JPEG image"),
        ({"image": sample(1)["image"] * 2}, "image has 2 values, expected 1"),
        ({"heatmap": sample(1, side=128)["heatmap"]}, "heatmap has 128 x 128 pixels, expected 256 x 256"),
        ({"label": [1000]}, "label is 1000, expected a number from 0 to 999"),
    ],
)
def test_a_record_that_is_none_of_clickmes_is_said(tmp_path, changed, reason):
    write(tmp_path / "val-0", [sample(1), sample(1) | changed])
    with pytest.raises(DataError, match=f"val-0, record 1: {reason}"):
        ClickMe(tmp_path, transform=lambda image: image)[1]


def test_an_empty_shard_is_said(tmp_path):
    (tmp_path / "val-0").touch()
    with pytest.raises(DataError, match="val-0 has 0 records, expected some"):
        ClickMe(tmp_path, transform=lambda image: image)


def test_a_shard_cut_short_is_one_line_with_found_and_expected(small, shards, tmp_path, capsys):
    whole = (shards / "val-10.tfrecords").read_bytes()
    (tmp_path / "val-10.tfrecords").write_bytes(whole[:-1000])
    assert run(*small[:3], f"clickme={tmp_path}", f"out={tmp_path / 'out'}") == 2
    last = len(example(sample(LABELS[1][1]))) + 4
    start = len(whole) - last
    assert capsys.readouterr().err == (
        f"error: {tmp_path / 'val-10.tfrecords'} is cut short: the record at byte {start} has {last - 1000} bytes, "
        f"expected {last}\n"
    )


def test_a_run_whose_classes_stand_in_another_order_is_refused(small, tmp_path, monkeypatch, capsys):
    found = gradcam.subjects
    order = robustness.SYNSETS[::-1]
    monkeypatch.setattr(
        gradcam, "subjects", lambda config: [replace(each, class_names=order) for each in found(config)]
    )
    assert run(*small, f"out={tmp_path}") == 2
    assert "has other classes than ImageNet's synsets in their order" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["method=cam"], "method=cam: choose one of gradcam, threshold, both"),
        (["limit=-1"], "limit=-1: must be a whole number from 0 on"),
        (["batch=0"], "batch=0"),
        (["clickme="], "clickme= is not set"),
        (["clickme=/nowhere"], "clickme=/nowhere holds no shard"),
        (["data.root=/x"], "data.root=/x: no such option here"),
        (["weights=none"], "weights=none"),
        (["model.args={num_classes: 10}", "checkpoint="], "has 10 outputs: ClickMe's labels are ImageNet's 1,000"),
        (["out=/dev/null/x"], "out=/dev/null/x: cannot be written"),
    ],
)
def test_bad_input_is_one_line(small, tmp_path, arguments, expected, capsys):
    out = () if "out=" in arguments[0] else (f"out={tmp_path}",)
    assert run(*small, *out, *arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert expected in error
