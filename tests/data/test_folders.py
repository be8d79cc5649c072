import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcls.data.folders import FolderSource
from dcls.errors import DataError
from tests.data.conftest import write


def paths(source: FolderSource) -> list[str]:
    return [os.path.relpath(source.describe(index), source.folder) for index in range(len(source))]


def test_classes_and_images_stand_in_the_order_of_their_names(tree):
    source = FolderSource(str(tree), "train")
    assert source.class_names == ("cat", "dog")
    assert paths(source) == ["cat/a.jpg", "cat/b.jpg", "cat/c.png", "dog/a.jpg", "dog/b.JPEG"]
    assert source.labels.tolist() == [0, 0, 0, 1, 1]
    assert source.labels.dtype == np.int64


def test_folders_below_links_and_odd_names_count_and_hidden_files_do_not(tree, photo, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write(photo, elsewhere / "emu" / "images" / "deep.png")
    write(photo, elsewhere / "eagle.png")
    (tree / "train" / "emu").symlink_to(elsewhere / "emu")
    (tree / "train" / "cat" / "z.png").symlink_to(elsewhere / "eagle.png")
    write(photo, tree / "train" / "dog" / "größe 1\n.png")
    write(photo, tree / "train" / "dog" / ".hidden.png")
    (tree / "train" / ".ipynb_checkpoints").mkdir()
    (tree / "train" / "cat" / "notes.txt").write_text("no image")
    (tree / "train" / "LOC_synset_mapping.txt").write_text("no class")
    source = FolderSource(str(tree), "train")
    assert source.class_names == ("cat", "dog", "emu")
    assert paths(source)[3:] == ["cat/z.png", "dog/a.jpg", "dog/b.JPEG", "dog/größe 1\n.png", "emu/images/deep.png"]
    assert all(source.load(index).size == (50, 40) for index in range(len(source)))


def test_names_that_are_no_text_are_read(tree, photo):
    odd = os.fsencode(tree / "train" / "cat") + b"/\xff\xfe.png"
    shutil.copy(tree / "train" / "cat" / "c.png", odd)
    source = FolderSource(str(tree), "train")
    assert os.fsencode(source.describe(3)) == odd
    assert source.load(3).size == (50, 40)


def test_the_fingerprint_knows_names_and_not_places(tree, tmp_path_factory):
    copy = tmp_path_factory.mktemp("copy") / "data"
    shutil.copytree(tree, copy)
    before = FolderSource(str(tree), "train").fingerprint()
    assert FolderSource(str(copy), "train").fingerprint() == before
    (copy / "train" / "cat" / "a.jpg").rename(copy / "train" / "cat" / "d.jpg")
    assert FolderSource(str(copy), "train").fingerprint() != before
    (tree / "train" / "dog").rename(tree / "train" / "hound")
    assert FolderSource(str(tree), "train").fingerprint() != before


def test_home_is_expanded(tree, monkeypatch):
    monkeypatch.setenv("HOME", str(tree.parent))
    assert len(FolderSource(f"~/{tree.name}", "val")) == 2


def no_root(tree: Path) -> str:
    return ""


def absent_root(tree: Path) -> str:
    return str(tree / "nowhere")


def absent_split(tree: Path) -> str:
    shutil.rmtree(tree / "val")
    return str(tree)


def unsorted_images(tree: Path) -> str:
    for name in ("cat", "dog"):
        (tree / "val" / name / "x.jpg").rename(tree / "val" / f"ILSVRC2012_{name}.JPEG")
        (tree / "val" / name).rmdir()
    return str(tree)


def half_sorted_images(tree: Path) -> str:
    shutil.copy(tree / "val" / "cat" / "x.jpg", tree / "val" / "ILSVRC2012_1.JPEG")
    return str(tree)


def no_classes(tree: Path) -> str:
    shutil.rmtree(tree / "val")
    (tree / "val").mkdir()
    return str(tree)


def empty_class(tree: Path) -> str:
    (tree / "val" / "dog" / "x.jpg").unlink()
    (tree / "val" / "dog" / "readme.txt").write_text("")
    return str(tree)


def link_upwards(tree: Path) -> str:
    (tree / "val" / "dog" / "all").symlink_to(tree / "val")
    return str(tree)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (no_root, r"data\.root is not set.*data\.root=/path"),
        (absent_root, r"data\.root=.*nowhere: no such folder"),
        (absent_split, r"data\.val_split=val: no folder .*has 'train'.*check data\.root"),
        (
            unsorted_images,
            r"data\.val_split: images lie unsorted in .*\(2, such as 'ILSVRC2012_cat\.JPEG'\).*valprep\.sh",
        ),
        (half_sorted_images, r"data\.val_split: images lie unsorted in .*\(1, such as"),
        (no_classes, r"data\.val_split: no class folders in .*one folder of images per class"),
        (empty_class, r"data\.val_split: class folder '.*dog' holds no image \(\.jpeg, \.jpg, \.png\); fill or remove"),
        (link_upwards, r"data\.root: '.*all' is a link to a folder above it"),
    ],
)
def test_a_tree_that_cannot_be_used_is_refused_in_one_line(tree, break_it, message):
    root = break_it(tree)
    with pytest.raises(DataError, match=message) as caught:
        FolderSource(root, "val", option="data.val_split")
    assert "\n" not in str(caught.value)


def test_a_split_below_folders_that_are_not_there_is_refused(tree):
    with pytest.raises(DataError, match=r"split=Data/CLS-LOC/val: no folder .*has 'train', 'val': name the split"):
        FolderSource(str(tree), "Data/CLS-LOC/val")


def test_a_folder_that_cannot_be_listed_is_refused(tree, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"data\.val_split=val: cannot list .*Permission denied"):
        FolderSource(str(tree), "val", option="data.val_split")


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def no_image(path: Path) -> None:
    path.write_text("404 not found")


def broken_chunk(path: Path) -> None:
    """A PNG whose second chunk has a name that is none: Pillow raises SyntaxError."""
    content = bytearray(path.read_bytes())
    content[37:41] = b"+\x00\x01\x02"
    path.write_bytes(content)


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


@pytest.mark.parametrize("break_it", [torn, no_image, broken_chunk, dangling])
def test_an_unreadable_image_is_named(tree, break_it):
    break_it(tree / "train" / "cat" / "c.png")
    source = FolderSource(str(tree), "train")
    with pytest.raises(DataError, match=r"data\.root: cannot read image '.*train/cat/c\.png' \(.+\); repair") as caught:
        source.load(2)
    assert "\n" not in str(caught.value)


def test_an_absurdly_large_image_is_named(tree, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match=r"data\.root: .*a\.jpg"):
        FolderSource(str(tree), "train").load(0)
