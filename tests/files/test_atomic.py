import pytest

from dcls.files import atomic


def test_an_interrupted_write_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "made" / "file.json"
    atomic.write_text(path, "old")
    with pytest.raises(TypeError, match="bytes"), atomic.replacing(path) as stream:
        stream.writelines([b"half of the n", None])
    assert path.read_text() == "old"
    assert [file.name for file in path.parent.iterdir()] == ["file.json"]
