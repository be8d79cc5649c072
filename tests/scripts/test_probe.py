import csv
import json

import pytest
import torch

import models
from dcls import data
from dcls.errors import reported
from scripts import probe

SIDE = 28


def run(*arguments):
    return reported(lambda: probe.main(arguments))


@pytest.fixture
def weights(tmp_path):
    """A plain network's, as timm names them."""
    torch.manual_seed(0)
    model = models.create("test_resnet", num_classes=9, in_chans=1)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    return model.eval()


def options(tree, folder, *more):
    network = [f"checkpoint={folder / 'weights.pth'}", "model.name=test_resnet", "data=folder", f"data.root={tree}"]
    shown = ["data.channels=1", "data.mean=[0.286]", "data.std=[0.353]", f"data.eval_size={SIDE}", "data.crop_pct=1"]
    return [*network, *shown, "data.workers=0", "batch=7", f"run.dir={folder / 'out'}", *more]


def features_of(model, tree, split):
    """By timm alone, all images in one batch."""
    source = data.FolderSource(str(tree), split)
    shown = data.eval_transform(image_size=SIDE, channels=1, mean=[0.286], std=[0.353], crop_pct=1.0)
    images = torch.stack([shown(source.load(index)) for index in range(len(source))])
    with torch.no_grad():
        return model.forward_head(model.forward_features(images), pre_logits=True), torch.from_numpy(source.labels)


def test_a_table_and_files_of_what_features_are_worth(weights, image_tree, tmp_path, capsys):
    assert run(*options(image_tree, tmp_path, "k=1,3")) == 0
    rows = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert [(row["method"], row["k"], row["temperature"]) for row in rows] == [
        ("k-NN", 1, None),
        ("k-NN", 3, None),
        ("k-NN", 3, 0.07),
        ("linear", None, None),
    ]
    (train, answers), (test, expected) = (features_of(weights, image_tree, split) for split in ("train", "val"))
    cosines = torch.cosine_similarity(test[:, None].double(), train[None].double(), dim=2)
    assert rows[0]["top1"] == pytest.approx(100 * (answers[cosines.argmax(1)] == expected).double().mean().item())
    assert all((row["images"], row["train_images"]) == (20, 64) for row in rows)
    assert {row["features"] for row in rows} == {train.shape[1]}
    assert rows[-1]["penalty"] in probe.probes.PENALTIES
    written = list(csv.DictReader((tmp_path / "out" / "probe.csv").read_text().splitlines()))
    assert [float(row["top1"]) for row in written] == [row["top1"] for row in rows]
    shown = capsys.readouterr()
    assert "k-NN, k=3, temperature 0.07" in shown.out
    assert "features of 64 images" in shown.err


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("k=1,1", "k=1,1: must be different numbers of"),
        ("temperature=inf", "temperature=inf: must be a number above 0"),
        ("k=0", "k=0: must be different numbers of neighbours from 1 on"),
        ("k=many", "k=many temperature=0.07: must be numbers"),
        ("k=65", "k=65: data.train_split=train has 64 images"),
        ("temperature=0", "temperature=0: must be a number above 0"),
        ("data.train_split=val", "data.val_split=val is data.train_split too"),
        ("data.train_split=fit", "data.train_split=fit"),
        ("fuse=true", "fuse=true has no effect: the network is fused always"),
        ("neighbours=3", "neighbours=3: unknown option"),
    ],
)
def test_bad_input_is_one_line(weights, image_tree, tmp_path, capsys, option, line):
    assert run(*options(image_tree, tmp_path, option)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert line in error
