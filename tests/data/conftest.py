from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def photo():
    """A smooth RGB picture with some noise, 50 x 40."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 200, 40)[:, None, None] + np.linspace(0, 40, 50)[None, :, None]
    return Image.fromarray((ramp + rng.integers(0, 16, (40, 50, 3))).astype(np.uint8))


@pytest.fixture
def tree(tmp_path, photo):
    """An ImageFolder tree: train (3 of cat, 2 of dog), val (1 of each)."""
    for name in ("train/cat/a.jpg", "train/cat/b.jpg", "train/cat/c.png", "train/dog/a.jpg", "train/dog/b.JPEG"):
        write(photo, tmp_path / name)
    for name in ("val/cat/x.jpg", "val/dog/x.jpg"):
        write(photo, tmp_path / name)
    return tmp_path


def write(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
