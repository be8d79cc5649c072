import gzip

import numpy as np
import pytest

from scripts.make_fashion_mnist import first_of_each_class, read_idx


def test_the_first_images_of_each_class_in_file_order():
    assert first_of_each_class(np.array([1, 0, 1, 1, 0, 0, 2]), 2).tolist() == [0, 1, 2, 4, 6]


def test_idx_files_are_read(tmp_path):
    path = tmp_path / "images.gz"
    shape = b"\x00\x00\x00\x02\x00\x00\x00\x03"
    path.write_bytes(gzip.compress(bytes([0, 0, 8, 2]) + shape + bytes(range(6))))
    assert read_idx(path).tolist() == [[0, 1, 2], [3, 4, 5]]
    path.write_bytes(gzip.compress(b"something else"))
    with pytest.raises(SystemExit, match="not an IDX file"):
        read_idx(path)
