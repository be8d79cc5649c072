"""A split as a folder of class folders: `<root>/<split>/<class>/.../<image>`.

Classes are the folders of the split in the order of their names, as in torchvision's ImageFolder; images are the files
below them with one of timm's extensions, in the order of their paths. Links are followed, hidden files and folders are
ignored.
"""

import hashlib
import logging
import os
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image
from timm.data.readers.img_extensions import get_img_extensions

from dcls.errors import DataError

log = logging.getLogger(__name__)

# Listing a class folder on a network file system is waiting, not work.
LISTING_THREADS = 8

_EXTENSIONS = frozenset(get_img_extensions())

# What Pillow raises on a file it cannot decode: torn, not an image, broken chunks or headers, absurdly large.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, RuntimeError, struct.error, Image.DecompressionBombError)


class FolderSource:
    """The images of `<root>/<split>`; `option` is the name of the option that `split` came from, for messages.

    Paths are held as one block of bytes: a list of a million strings would be copied into every worker, object by
    object. Raises DataError where the folder is missing, unreadable, empty, has an empty class, or has images beside
    its classes.
    """

    def __init__(self, root: str, split: str, *, option: str = "split") -> None:
        root = existing_root(root)
        self.folder = root if split == "." else os.path.join(root, split)
        if not os.path.isdir(self.folder):
            raise DataError(f"{option}={split}: no folder {self.folder!r}; {_instead(root)}")
        start = time.perf_counter()
        log.info("listing %s", self.folder)
        try:
            images = list_classes(self.folder, option)
        except OSError as error:
            raise DataError(f"{option}={split}: cannot list {error.filename!r}: {error.strerror}") from error
        self.class_names = tuple(images)
        counts = [len(paths) for paths in images.values()]
        self.labels = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
        self._paths = os.fsencode("".join(f"{path}\0" for paths in images.values() for path in paths))
        self._ends = np.flatnonzero(np.frombuffer(self._paths, dtype=np.uint8) == 0)
        seconds = time.perf_counter() - start
        log.info("%s: %d images in %d classes (%.1f s)", self.folder, len(self), len(counts), seconds)

    def __len__(self) -> int:
        return len(self.labels)

    def describe(self, index: int) -> str:
        """The path of an image."""
        start = self._ends[index - 1] + 1 if index else 0
        return os.path.join(self.folder, os.fsdecode(self._paths[start : self._ends[index]]))

    def load(self, index: int) -> Image.Image:
        """The decoded image in the mode of its file. Raises DataError with its path where it cannot be read."""
        path = self.describe(index)
        try:
            with Image.open(path) as image:
                image.load()
                return image
        except UNREADABLE as error:
            reason = str(error).replace("\n", " ")
            raise DataError(f"data.root: cannot read image {path!r} ({reason}); repair or remove it") from error

    def fingerprint(self) -> str:
        """sha256 over class names and relative paths: a resumed run can tell that the tree has changed."""
        classes = os.fsencode("".join(f"{name}\0" for name in self.class_names))
        return hashlib.sha256(classes + b"\0" + self._paths).hexdigest()


def existing_root(root: str) -> str:
    """`root` with ~ expanded. Raises DataError where it is not given or no folder."""
    if not root:
        raise DataError("data.root is not set; give the folder that holds the splits: data.root=/path/to/imagenet")
    folder = os.path.expanduser(root)
    if not os.path.isdir(folder):
        raise DataError(f"data.root={root}: no such folder; give the folder that holds the splits")
    return folder


def list_classes(folder: str, option: str) -> dict[str, list[str]]:
    """Class name -> its images as sorted paths relative to `folder`, both in the order of their names."""
    with os.scandir(folder) as entries:
        visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    loose = [entry.name for entry in visible if _is_image(entry.name)]
    classes = [entry.name for entry in visible if not _is_image(entry.name) and entry.is_dir()]
    _refuse_loose_images(folder, option, loose, classes)
    real = os.path.realpath(folder)
    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        images = list(pool.map(lambda name: sorted(_below(os.path.join(folder, name), f"{name}/", (real,))), classes))
    empty = [name for name, paths in zip(classes, images) if not paths]
    if empty:
        others = f" (and {len(empty) - 1} others)" if len(empty) > 1 else ""
        raise DataError(
            f"{option}: class folder {os.path.join(folder, empty[0])!r}{others} holds no image "
            f"({', '.join(sorted(_EXTENSIONS))}); fill or remove it"
        )
    return dict(zip(classes, images))


def _below(folder: str, prefix: str, above: tuple[str, ...]) -> Iterator[str]:
    """The images below a folder, unsorted. No stat per file: a name with an image's extension is taken for one."""
    real = os.path.realpath(folder)
    if real in above:
        raise DataError(f"data.root: {folder!r} is a link to a folder above it; remove the link")
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_image(entry.name):
                yield prefix + entry.name
            elif entry.is_dir():
                yield from _below(entry.path, f"{prefix}{entry.name}/", (*above, real))


def _is_image(name: str) -> bool:
    return name[name.rfind(".") :].lower() in _EXTENSIONS


def _refuse_loose_images(folder: str, option: str, loose: list[str], classes: list[str]) -> None:
    if loose:
        raise DataError(
            f"{option}: images lie unsorted in {folder!r} ({len(loose)}, such as {loose[0]!r}); move each image into a "
            "folder named after its class (for ImageNet's validation images: valprep.sh of "
            "soumith/imagenetloader.torch, run inside that folder)"
        )
    if not classes:
        raise DataError(f"{option}: no class folders in {folder!r}; it must hold one folder of images per class")


def _instead(folder: str) -> str:
    """What a folder holds in place of the split that was asked for."""
    names = sorted(name for name in os.listdir(folder) if os.path.isdir(os.path.join(folder, name)))
    if not names:
        return f"{folder!r} has no folders; check data.root"
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{folder!r} has {', '.join(map(repr, names[:5]))}{more}: name the split's folder or check data.root"
