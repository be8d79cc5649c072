import shutil

import numpy as np
import pytest
from PIL import Image

from dcls.data import robustness
from dcls.errors import reported
from scripts import corrupt

pytest.importorskip("imagecorruptions", reason="pip install imagecorruptions-imaug")

CORRUPTIONS = (*robustness.ALEXNET, *robustness.EXTRA)


@pytest.fixture
def clean(tmp_path):
    """Two classes of one photo-like image."""
    ramp = np.linspace(40, 200, 300)[:, None, None] + np.linspace(0, 40, 280)[None, :, None] + np.zeros(3)
    for name in ("cat", "dog"):
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.fromarray(ramp.astype(np.uint8)).save(tmp_path / "val" / name / "x.JPEG")
    return tmp_path / "val"


def run(*arguments):
    return reported(lambda: corrupt.main([str(each) for each in arguments]))


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_corrupted_image_depends_on_its_address_alone(clean, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    asked = ["--severities", 1, 5, "--corruptions", *CORRUPTIONS]
    assert run(clean, first, *asked) == 0
    made = files(first)
    assert len(made) == 2 * 2 * 19
    with Image.open(first / "fog" / "5" / "cat" / "x.JPEG") as image:
        assert (image.size, image.format) == ((224, 224), "JPEG")
    # Two equal images: 8 of the corruptions draw nothing, the 11 others draw for each image anew.
    assert len(set(made.values())) == 76 - 8 * 2
    # Another order, with a part lost in between.
    assert run(clean, second, "--severities", 5, "--corruptions", *reversed(CORRUPTIONS)) == 0
    shutil.rmtree(second / "glass_blur")
    capsys.readouterr()
    assert run(clean, second, *asked) == 0
    assert "wrote 40 images" in capsys.readouterr().out  # 38 of severity 1, 2 of glass_blur
    assert files(second) == made


def test_bad_input_is_one_line(tmp_path, capsys):
    assert run(tmp_path / "no", tmp_path / "out") == 2
    assert capsys.readouterr().err.count("\n") == 1
