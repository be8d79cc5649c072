"""Make datasets/fashion_mnist/ from the four complete IDX files: the first 1,200 training images of each class, all
test images.

    python scripts/make_fashion_mnist.py /usr/share/datasets/fashion-mnist

The files are those of https://github.com/zalandoresearch/fashion-mnist (Debian ships them as `dataset-fashion-mnist`).
The choice has no randomness and keeps the order of the original files; `--check` compares what is committed and writes
nothing.
"""

import argparse
import gzip
import sys
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parents[1] / "datasets" / "fashion_mnist"
PER_CLASS = 1200

# What an IDX file starts with: two zero bytes, the element type (8 = unsigned byte), the number of axes.
MAGIC = bytes([0, 0, 8])


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array of a compressed IDX file."""
    content = gzip.decompress(path.read_bytes())
    if content[:3] != MAGIC:
        raise SystemExit(f"{path} is not an IDX file of unsigned bytes")
    axes = content[3]
    shape = np.frombuffer(content, dtype=">u4", count=axes, offset=4)
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * axes).reshape(shape)


def first_of_each_class(labels: np.ndarray, count: int) -> np.ndarray:
    """Indices of the first `count` images of every class, ascending."""
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:count] for label in np.unique(labels)]))


def splits(source: Path) -> dict[str, dict[str, np.ndarray]]:
    train_labels = read_idx(source / "train-labels-idx1-ubyte.gz")
    chosen = first_of_each_class(train_labels, PER_CLASS)
    return {
        "train": {
            "images": read_idx(source / "train-images-idx3-ubyte.gz")[chosen],
            "labels": train_labels[chosen],
        },
        "test": {
            "images": read_idx(source / "t10k-images-idx3-ubyte.gz"),
            "labels": read_idx(source / "t10k-labels-idx1-ubyte.gz"),
        },
    }


def stale(name: str, arrays: dict[str, np.ndarray]) -> bool:
    """Does the committed file of a split hold other arrays?"""
    with np.load(FOLDER / f"{name}.npz") as committed:
        return any(not np.array_equal(committed[part], arrays[part]) for part in arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, help="folder with the four complete IDX .gz files")
    parser.add_argument("--check", action="store_true", help="compare with the committed files, write nothing")
    arguments = parser.parse_args()
    for name, arrays in splits(arguments.source).items():
        if arguments.check:
            if stale(name, arrays):
                sys.exit(f"{FOLDER / name}.npz differs from what {arguments.source} gives")
        else:
            np.savez_compressed(FOLDER / f"{name}.npz", images=arrays["images"], labels=arrays["labels"])
        print(f"{name}: {len(arrays['labels'])} images")


if __name__ == "__main__":
    main()
