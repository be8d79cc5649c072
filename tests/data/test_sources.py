import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from dcls.data import sources
from dcls.data.sources import BundledSource, class_map, open_eval, open_splits
from dcls.errors import ConfigError, DataError
from tests.data.conftest import write

BUNDLED = Path(sources.BUNDLED)


@pytest.mark.parametrize(("split", "images", "per_class"), [("train", 12_000, 1_200), ("test", 10_000, 1_000)])
def test_the_bundled_data_is_whole_and_balanced(split, images, per_class):
    source = BundledSource(split)
    assert len(source) == images
    assert np.bincount(source.labels).tolist() == [per_class] * 10
    assert source.class_names[9] == "Ankle boot"
    picture = source.load(0)
    assert (picture.mode, picture.size) == ("L", (28, 28))
    assert source.describe(3).endswith(f"{split}.npz[3]")


def test_parts_of_the_training_images_are_balanced_and_share_none():
    train, fit, held_out = (BundledSource(split) for split in ("train", "fit", "held_out"))
    assert np.bincount(fit.labels).tolist() == [1000] * 10
    assert np.bincount(held_out.labels).tolist() == [200] * 10
    places = [int(part.describe(i).rpartition("[")[2][:-1]) for part in (fit, held_out) for i in range(len(part))]
    assert sorted(places) == list(range(len(train)))
    assert np.array_equal(np.array(held_out.load(7)), np.array(train.load(places[10_000 + 7])))
    assert fit.fingerprint() != train.fingerprint()


def test_the_committed_files_are_those_of_the_readme():
    readme = (BUNDLED / "README.md").read_text()
    for split in ("train", "test"):
        assert hashlib.sha256((BUNDLED / f"{split}.npz").read_bytes()).hexdigest() in readme
    assert "Zalando SE" in (BUNDLED / "LICENSE").read_text()


def test_the_bundled_data_without_the_checkout_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BUNDLED", tmp_path)
    with pytest.raises(DataError, match=r"data\.root: the bundled Fashion-MNIST is not at .*no part of the wheel"):
        open_splits("bundled", val_split="test")


def test_torn_bundled_data_is_refused(tmp_path):
    (tmp_path / "test.npz").write_bytes((BUNDLED / "test.npz").read_bytes()[:1000])
    with pytest.raises(DataError, match=r"data\.root: .*test\.npz' is torn"):
        BundledSource("test", root=str(tmp_path))


def test_an_unknown_bundled_split_is_refused():
    with pytest.raises(
        DataError, match=r"data\.val_split=val: the bundled Fashion-MNIST has the splits train and test"
    ):
        open_splits("bundled")


def test_the_bundled_fingerprint_knows_the_pixels(tmp_path):
    original = BundledSource("test")
    changed = original._images.copy()
    changed[5, 5, 5] += 1
    np.savez(tmp_path / "test.npz", images=changed, labels=original.labels)
    assert BundledSource("test", root=str(BUNDLED)).fingerprint() == original.fingerprint()
    assert BundledSource("test", root=str(tmp_path)).fingerprint() != original.fingerprint()


def test_both_splits_open_with_their_counts(tree):
    train, val = open_splits("folder", str(tree), "train", "val", classes=2, train_images=5, val_images=2)
    assert (len(train), len(val)) == (5, 2)
    assert train.class_names == val.class_names


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"classes": 3}, r"data\.classes=3: found 2 classes in 'train'.*set data\.classes=2"),
        ({"train_images": 1281167}, r"data\.train_images=1281167: found 5 images in 'train'.*data\.train_images=5"),
        ({"val_images": 50000}, r"data\.val_images=50000: found 2 images in 'val' of '.*'; complete"),
    ],
)
def test_counts_that_disagree_are_refused(tree, counts, message):
    with pytest.raises(DataError, match=message):
        open_splits("folder", str(tree), "train", "val", **counts)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("train", r"data\.val_split=val: class 'emu' of data\.train_split=train is missing"),
        ("val", r"data\.train_split=train: class 'emu' of data\.val_split=val is missing"),
    ],
)
def test_a_class_missing_in_one_split_is_named(tree, photo, extra, message):
    write(photo, tree / extra / "emu" / "a.png")
    with pytest.raises(DataError, match=message):
        open_splits("folder", str(tree))


def test_an_unknown_kind_is_refused(tree):
    with pytest.raises(ConfigError, match=r"data\.kind=tar: unknown; use folder or bundled"):
        open_eval("tar", str(tree))


def test_evaluation_opens_one_split_alone(tree):
    shutil.rmtree(tree / "train")
    assert len(open_eval("folder", str(tree), "val", classes=2, val_images=2)) == 2
    with pytest.raises(DataError, match=r"data\.val_images=3"):
        open_eval("folder", str(tree), "val", val_images=3)


def test_classes_are_mapped_by_name_or_refused(tree):
    val = open_eval("folder", str(tree), "val")
    assert class_map(val, ["ape", "dog", "cat"]).tolist() == [2, 1]
    with pytest.raises(DataError, match=r"data\.root: class 'dog' \(1 of 2\) is none of the checkpoint's 2 classes"):
        class_map(val, ["ape", "cat"])
