import hashlib
import io
from pathlib import Path
from urllib.response import addinfourl

import pytest

from dcls.errors import CheckpointError, ConfigError
from models import RELEASED, located
from models.shortcuts import Released

NAME = "convnext_dcls_tiny.paper"


@pytest.fixture
def server(tmp_path, monkeypatch) -> Path:
    """A file in the place of Zenodo's; nothing leaves this machine."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(Released, "url", property(lambda self: (tmp_path / self.file).as_uri()))
    return tmp_path / RELEASED[NAME].file


def test_addresses_are_zenodos():
    assert RELEASED[NAME].url == (
        "https://zenodo.org/records/7112021/files/convnext_dcls_tiny_1k_224_ema.pth?download=1"
    )
    assert len({released.url for released in RELEASED.values()}) == len(RELEASED) == 9


def test_a_file_is_fetched_once_and_its_digest_kept(server):
    server.write_bytes(b"weights")
    path = located(NAME)
    assert path == RELEASED[NAME].path
    assert path.read_bytes() == b"weights"
    assert {each.name for each in path.parent.iterdir()} == {path.name, f"{path.name}.sha256"}
    server.unlink()
    assert located(NAME) == path
    path.write_bytes(b"waights")
    with pytest.raises(CheckpointError, match=f"checkpoint={NAME}: the sha256 of {path} is not .* delete the file"):
        located(NAME)


def test_without_a_network_one_line_says_what_to_do(server):
    place = RELEASED[NAME].path
    with pytest.raises(ConfigError, match=f"checkpoint={NAME} cannot be fetched from file:.*put at {place} is used"):
        located(NAME)
    assert list(place.parent.iterdir()) == []
    place.write_bytes(b"put there by hand")
    assert located(NAME) == place


def test_an_answer_that_ends_early_is_no_file(server, monkeypatch):
    answer = addinfourl(io.BytesIO(b"wei"), {"Content-Length": "7"}, "")
    monkeypatch.setattr("models.shortcuts.urlopen", lambda url, timeout: answer)
    with pytest.raises(ConfigError, match="the connection ended after 3 of 7 bytes"):
        located(NAME)
    assert list(RELEASED[NAME].path.parent.iterdir()) == []


@pytest.mark.parametrize(("content", "fits"), [(b"weights", True), (b"waights", False)])
def test_a_known_digest_is_compared(server, monkeypatch, content, fits):
    known = Released(1, server.name, hashlib.sha256(b"weights").hexdigest())
    monkeypatch.setitem(RELEASED, NAME, known)
    server.write_bytes(content)
    if fits:
        assert located(NAME).is_file()
    else:
        with pytest.raises(CheckpointError, match="the sha256 of"):
            located(NAME)


def test_other_names_are_paths_and_unknown_ones_are_refused(tmp_path, monkeypatch):
    assert located("runs/last.pt") == Path("runs/last.pt")
    with pytest.raises(ConfigError, match=r"convnext_dcls_tiy.paper is not published: did you mean convnext_dcls_tiny"):
        located("convnext_dcls_tiy.paper")
    monkeypatch.chdir(tmp_path)
    Path(NAME).write_bytes(b"")
    assert located(NAME) == Path(NAME)
