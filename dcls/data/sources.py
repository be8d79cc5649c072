"""Where images come from: a tree of class folders, or the Fashion-MNIST subset that the repository brings along."""

import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from dcls.data import robustness
from dcls.data.folders import FolderSource
from dcls.errors import ConfigError, DataError

__all__ = ["BundledSource", "FolderSource", "Source", "class_map", "open_eval", "open_splits"]

# Relative to the checkout: the data is no part of the wheel.
BUNDLED = Path(__file__).resolve().parents[2] / "datasets" / "fashion_mnist"

# Names of the labels 0 .. 9, from the data set's README.
FASHION_CLASSES: tuple[str, ...] = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


# Of the training images.
PARTS = ("fit", "held_out")
HELD_OUT = 200  # of each class


class Source(Protocol):
    """What a loader asks of a split; pickled into worker processes, so it holds arrays rather than lists."""

    class_names: tuple[str, ...]
    labels: np.ndarray  # int64 [n], positions in class_names; [n, k] where several are right, filled up with -1

    def __len__(self) -> int: ...

    def load(self, index: int) -> Image.Image: ...

    def describe(self, index: int) -> str: ...

    def fingerprint(self) -> str: ...


class BundledSource:
    """The committed subset of Fashion-MNIST: split "train" (12,000 grey 28 x 28 images) or "test" (10,000).

    And, so that a recipe need not be chosen on the test images, two parts of train: "held_out", the last 200 images of
    each class, and "fit", the 10,000 others. `root` is another folder with the two files. Raises DataError where they
    are absent or torn.
    """

    def __init__(self, split: str, *, root: str = "", option: str = "split") -> None:
        self.path = Path(root or BUNDLED) / f"{'train' if split in PARTS else split}.npz"
        if split not in ("train", "test", *PARTS):
            raise DataError(
                f"{option}={split}: the bundled Fashion-MNIST has the splits train and test, and of train fit and "
                "held_out"
            )
        if not self.path.is_file():
            raise DataError(
                f"data.root: the bundled Fashion-MNIST is not at {str(self.path)!r}; it lies in datasets/fashion_mnist "
                "of the repository's checkout (no part of the wheel): run from there, or set data.root to a copy of it"
            )
        self.class_names = FASHION_CLASSES
        try:
            # np.load leaves a file open that it opened itself and found torn.
            with self.path.open("rb") as file, np.load(file) as arrays:
                self._images = arrays["images"]
                self.labels = arrays["labels"].astype(np.int64)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"data.root: {str(self.path)!r} is torn; restore it from the repository") from error
        # Positions in the file.
        self._chosen = np.flatnonzero(_held_out(self.labels) == (split == "held_out")) if split in PARTS else None
        if self._chosen is not None:
            self._images, self.labels = self._images[self._chosen], self.labels[self._chosen]

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: int) -> Image.Image:
        """A grey image, 28 x 28."""
        return Image.fromarray(self._images[index])

    def describe(self, index: int) -> str:
        return f"{self.path}[{index if self._chosen is None else self._chosen[index]}]"

    def fingerprint(self) -> str:
        """sha256 over pixels and labels."""
        return hashlib.sha256(self._images.tobytes() + self.labels.tobytes()).hexdigest()


def _held_out(labels: np.ndarray) -> np.ndarray:
    """Which images are among the last HELD_OUT of their class."""
    later = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        later[np.flatnonzero(labels == label)[-HELD_OUT:]] = True
    return later


def open_splits(
    kind: str,
    root: str = "",
    train_split: str = "train",
    val_split: str = "val",
    classes: int | None = None,
    train_images: int | None = None,
    val_images: int | None = None,
) -> tuple[Source, Source]:
    """The training and the validation split, both with the same classes in the same order.

    `classes`, `train_images` and `val_images` are the counts that the data must have, None where it may have any.
    Raises DataError (and ConfigError for an unknown kind), one line that names the option.
    """
    train = _open(kind, root, train_split, "data.train_split")
    val = _open(kind, root, val_split, "data.val_split")
    _same_classes(train, train_split, val, val_split)
    _check_counts(
        root or str(BUNDLED),
        ("data.classes", classes, len(train.class_names), f"classes in {train_split!r}"),
        ("data.train_images", train_images, len(train), f"images in {train_split!r}"),
        ("data.val_images", val_images, len(val), f"images in {val_split!r}"),
    )
    return train, val


def open_eval(
    kind: str,
    root: str = "",
    val_split: str = "val",
    classes: int | None = None,
    val_images: int | None = None,
) -> Source:
    """The validation split alone, for evaluation; counts and errors as in `open_splits`."""
    val = _open(kind, root, val_split, "data.val_split")
    _check_counts(
        root or str(BUNDLED),
        ("data.classes", classes, len(val.class_names), f"classes in {val_split!r}"),
        ("data.val_images", val_images, len(val), f"images in {val_split!r}"),
    )
    return val


def class_map(source: Source, class_names: Sequence[str]) -> np.ndarray:
    """int64 [classes of the source]: where each of its classes stands in a checkpoint's `class_names`, by name.

    A source with fewer classes than the checkpoint is fine; a class that the checkpoint does not know raises DataError.
    """
    place = {name: position for position, name in enumerate(class_names)}
    unknown = [name for name in source.class_names if name not in place]
    if unknown:
        raise DataError(
            f"data.root: class {unknown[0]!r} ({len(unknown)} of {len(source.class_names)}) is none of the "
            f"checkpoint's {len(class_names)} classes (such as {class_names[0]!r}); name the class folders as those"
        )
    return np.array([place[name] for name in source.class_names], dtype=np.int64)


def _open(kind: str, root: str, split: str, option: str) -> Source:
    if kind == "folder":
        return FolderSource(root, split, option=option)
    if kind == "bundled":
        return BundledSource(split, root=root, option=option)
    if kind in robustness.KINDS:
        return robustness.open_set(kind, root, split, option)
    raise ConfigError(f"data.kind={kind}: unknown; use folder or bundled")


def _same_classes(train: Source, train_split: str, val: Source, val_split: str) -> None:
    sides = (
        (train, f"data.train_split={train_split}", val, f"data.val_split={val_split}"),
        (val, f"data.val_split={val_split}", train, f"data.train_split={train_split}"),
    )
    for one, one_option, other, other_option in sides:
        missing = sorted(set(one.class_names) - set(other.class_names))
        if missing:
            others = f" (and {len(missing) - 1} others)" if len(missing) > 1 else ""
            raise DataError(
                f"{other_option}: class {missing[0]!r}{others} of {one_option} is missing; "
                "both splits need a folder for every class"
            )


def _check_counts(folder: str, *counts: tuple[str, int | None, int, str]) -> None:
    """Each (option, number wanted or None, number found, of what). All that differ are named at once."""
    wrong = [each for each in counts if each[1] is not None and each[1] != each[2]]
    if wrong:
        wanted = ", ".join(f"{option}={number}" for option, number, _, _ in wrong)
        found = ", ".join(f"{number} {what}" for _, _, number, what in wrong)
        remedy = " ".join(f"{option}={number}" for option, _, number, _ in wrong)
        raise DataError(f"{wanted}: found {found} of {folder!r}; complete the data, or set {remedy}")
