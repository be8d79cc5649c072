from pathlib import Path

import pytest
from PIL import Image

from dcls.data import BundledSource

CLASSES, TRAIN, VAL = 4, 16, 5


@pytest.fixture(scope="session")
def image_tree(tmp_path_factory) -> Path:
    """A folder of real images: 4 classes, 16 training and 5 validation PNGs each, 28 x 28 grey."""
    root = tmp_path_factory.mktemp("images")
    for split, name, count in (("train", "train", TRAIN), ("val", "test", VAL)):
        source = BundledSource(name)
        for label in range(CLASSES):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for index in (source.labels == label).nonzero()[0][:count]:
                source.load(int(index)).save(folder / f"{index}.png")
    return root


@pytest.fixture(scope="session")
def blank_image() -> Image.Image:
    return Image.new("L", (28, 28))
