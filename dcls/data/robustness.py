"""ImageNet's robustness sets in the layouts they are published in, with ImageNet-1k's classes.

    imagenet_a, imagenet_r       <root>/<synset>/<image>, 200 of the 1000 classes
    imagenet_sketch              <root>/<synset>/<image>
    imagenet_v2                  <root>/<0 .. 999>/<image>, folders named by the class's index
    imagenet_real                ImageNet's own <root>/val/<synset>/ILSVRC2012_val_*.JPEG with the labels of ReaL
    imagenet_c                   <root>/<corruption>/<severity 1 .. 5>/<synset>/<image>, or one folder of a group above

Class lists and ReaL's labels are those that timm brings along.
"""

import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from statistics import fmean

import numpy as np
from timm.data import ImageNetInfo
from timm.data.real_labels import RealLabelsImagenet

from dcls.data.folders import FolderSource, existing_root
from dcls.errors import DataError

SYNSETS = tuple(ImageNetInfo("imagenet-1k").label_names())

KINDS = ("imagenet_c", "imagenet_a", "imagenet_r", "imagenet_sketch", "imagenet_v2", "imagenet_real")
SUBSETS = ("imagenet_a", "imagenet_r")
"""Their authors choose among the set's own 200 classes alone."""

SEVERITIES = (1, 2, 3, 4, 5)
GROUPS = ("noise", "blur", "weather", "digital", "extra")

ALEXNET = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
"""AlexNet's top-1 error, mean over the severities (arXiv 1903.12261; digits: github.com/hendrycks/robustness)."""

EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
"""Corruptions held out by the authors: reported where they are there, no part of the mCE."""


class RobustnessSource(FolderSource):
    """A robustness set, or with imagenet_c one corruption at one severity (`split`).

    `class_names` are synsets, whatever the folders are called. Raises DataError where class folders are missing or
    have other names.
    """

    def __init__(self, kind: str, root: str, split: str, *, option: str) -> None:
        super().__init__(root, split, option=option)
        folders = _folders(kind)
        _check_folders(kind, self.folder, self.class_names, folders)
        place = {name: position for position, name in enumerate(folders)}
        self.labels = np.array([place[name] for name in self.class_names], dtype=np.int64)[self.labels]
        self.class_names = folders if kind in SUBSETS else SYNSETS


class RealSource(RobustnessSource):
    """ImageNet's validation images that have a label in ReaL (arXiv 2006.07159).

    `labels` is int64 [n, k]: all the right classes of an image, filled up with -1.
    """

    def __init__(self, kind: str, root: str, split: str, *, option: str) -> None:
        super().__init__(kind, root, split, option=option)
        # It asks for the names only to count them.
        known: Mapping[str, list[int]] = RealLabelsImagenet(range(50_000)).real_labels
        paths = [super(RealSource, self).describe(index) for index in range(len(self))]
        strange = [path for path in paths if os.path.basename(path) not in known]
        if strange:
            raise DataError(
                f"data.root: {strange[0]!r} ({len(strange)} of {len(paths)} images) has no name such as "
                "ILSVRC2012_val_00000001.JPEG, by which ReaL's labels go; give ImageNet's own validation images"
            )
        right = [known[os.path.basename(path)] for path in paths]
        self._kept = [index for index, labels in enumerate(right) if labels]
        if not self._kept:
            raise DataError(f"data.root: none of the {len(paths)} images in {self.folder!r} has a label in ReaL")
        most = max(len(labels) for labels in right)
        self.labels = np.array([right[i] + [-1] * (most - len(right[i])) for i in self._kept], dtype=np.int64)

    def describe(self, index: int) -> str:
        return super().describe(self._kept[index])


def open_set(kind: str, root: str, split: str, option: str) -> FolderSource:
    """The images of a set, `kind` one of KINDS. Raises DataError."""
    made = RealSource if kind == "imagenet_real" else RobustnessSource
    return made(kind, root, split, option=option)


def corrupted_splits(root: str) -> dict[tuple[str, int], str]:
    """(corruption, severity) -> its folder below `root`, as `split` of `open_set`; extra corruptions where they are.

    Raises DataError where one of the 15 corruptions or a severity is missing.
    """
    folder = existing_root(root)
    places = {}
    for corruption in (*ALEXNET, *EXTRA):
        candidates = (corruption, *(f"{group}/{corruption}" for group in GROUPS))
        if found := [each for each in candidates if os.path.isdir(os.path.join(folder, each))]:
            places[corruption] = found[0]
    missing = [corruption for corruption in ALEXNET if corruption not in places]
    if missing:
        raise DataError(
            f"data.root={root}: found {len(ALEXNET) - len(missing)} of the {len(ALEXNET)} corruptions of ImageNet-C; "
            f"expected a folder {missing[0]!r}{_others(missing)}, each with the severities 1 to 5"
        )
    splits = {(name, severity): f"{place}/{severity}" for name, place in places.items() for severity in SEVERITIES}
    absent = [split for split in splits.values() if not os.path.isdir(os.path.join(folder, split))]
    if absent:
        raise DataError(
            f"data.root={root}: expected a folder {absent[0]!r}{_others(absent)}: each corruption of ImageNet-C has "
            "the severities 1 to 5"
        )
    return splits


def mean_corruption_error(errors: Mapping[str, Sequence[float]]) -> float:
    """mCE, percent (arXiv 1903.12261, section 4): errors over AlexNet's, mean over the 15 corruptions.

    errors: of each corruption, percent, one a severity; corruptions beyond the 15 are left out.
    """
    return fmean(corruption_error(name, errors[name]) for name in ALEXNET)


def corruption_error(corruption: str, errors: Sequence[float]) -> float:
    """The errors (percent, one a severity) summed and over AlexNet's sum, percent."""
    return fmean(errors) / ALEXNET[corruption]


def _folders(kind: str) -> tuple[str, ...]:
    """The names of the class folders, in the order of the classes."""
    if kind in SUBSETS:
        return tuple((files("timm.data") / "_info" / f"{kind}_synsets.txt").read_text().split())
    return tuple(map(str, range(len(SYNSETS)))) if kind == "imagenet_v2" else SYNSETS


def _check_folders(kind: str, folder: str, found: Sequence[str], expected: Sequence[str]) -> None:
    missing = sorted(set(expected) - set(found))
    unknown = sorted(set(found) - set(expected))
    if missing or unknown:
        named = (("missing", missing), ("of another name", unknown))
        wrong = [f"{what} {names[0]!r}{_others(names)}" for what, names in named if names]
        raise DataError(
            f"data.root: {folder!r} is not {kind} as it is published: found {len(found)} class folders, expected "
            f"{len(expected)}, from {expected[0]!r} to {expected[-1]!r}: {', '.join(wrong)}"
        )


def _others(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} others)" if len(names) > 1 else ""
