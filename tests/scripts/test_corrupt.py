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


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["{tmp}/no", "{tmp}/out"], "val={tmp}/no: no such folder"),
        (["{tmp}/val"], "the following arguments are required: out"),
        (["{tmp}/val", "{tmp}/out", "--severities", "9"], "invalid choice: 9"),
        (["{tmp}/val", "{tmp}/out", "--workers", "-1"], "--workers=-1: must be a number from 0 on"),
        (["{tmp}/val", "{tmp}/out", "--workers", "1"], "val={tmp}/val: cannot read image '{tmp}/val/dog/x.JPEG'"),
    ],
)
def test_bad_input_is_one_line(clean, tmp_path, capsys, arguments, expected):
    torn = clean / "dog" / "x.JPEG"
    torn.write_bytes(torn.read_bytes()[:500])
    few = ["--corruptions", "contrast"] if len(arguments) > 1 else []
    assert run(*(each.format(tmp=tmp_path) for each in arguments), *few) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "Traceback" not in error
    assert expected.format(tmp=tmp_path) in error
