"""ClickMe: images, what people marked in them as important for their class, and the class."""

import io
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dcls.data.folders import UNREADABLE
from dcls.data.tfrecords import TFRecordFile, Values
from dcls.data.transforms import Transform
from dcls.errors import DataError

SIDE, SHOWN = 256, 224  # pixels of what is stored, and of what arXiv 2408.03164 compares
CLASSES = 1000


class ClickMe:
    """The validation shards of ClickMe in a folder: TFRecord files with "val" in their names.

    An item is an image through `transform`, its human map as it is stored, float32 [256, 256] from 0 to 255, and its
    ImageNet class. A dataset for torch's DataLoader. Raises DataError where there is no shard, where one is cut short,
    and for a record that is none of ClickMe's.
    """

    def __init__(self, folder: str | os.PathLike[str], transform: Transform) -> None:
        found = [path for path in Path(folder).glob("*val*") if path.is_file()]
        if not found:
            raise DataError(
                f"clickme={folder} holds no shard: expected TFRecord files with val in their names, such as "
                "val-0.tfrecords"
            )
        self.transform = transform
        self.shards = [TFRecordFile(path) for path in sorted(found, key=lambda path: (len(path.name), path.name))]
        counts = [len(shard) for shard in self.shards]
        if 0 in counts:
            raise DataError(f"{self.shards[counts.index(0)].path} has 0 records, expected some")
        self.shard_of = np.repeat(np.arange(len(counts)), counts)
        self._first = np.cumsum([0, *counts])

    def __len__(self) -> int:
        return len(self.shard_of)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        image, human, label = self.load(index)
        return self.transform(image), human, label

    def load(self, index: int) -> tuple[Image.Image, Tensor, int]:
        """The image of 224 x 224 pixels, resized bilinearly from 256 and cut down to whole numbers, map and class."""
        shard = int(self.shard_of[index])
        number = index - int(self._first[shard])
        example = self.shards[shard][number]
        try:
            pixels, human = _decoded(example, "image", "RGB"), _decoded(example, "heatmap", "L")
            label = _label(example)
        except DataError as error:
            raise DataError(f"{self.shards[shard].path}, record {number}: {error}") from error
        resized = F.interpolate(pixels[None], SHOWN, mode="bilinear", align_corners=False)[0]
        return Image.fromarray(resized.byte().permute(1, 2, 0).numpy()), human[0], label


def _decoded(example: Mapping[str, Values], name: str, mode: str) -> Tensor:
    """float32 [C, 256, 256] of an encoded image."""
    data = _single(example, name)
    if not isinstance(data, bytes):
        raise DataError(f"{name} is {data!r}, expected a JPEG image")
    try:
        image = Image.open(io.BytesIO(data)).convert(mode)
    except UNREADABLE as error:
        raise DataError(f"{name} has {len(data)} bytes that are no image, expected a JPEG image") from error
    if image.size != (SIDE, SIDE):
        raise DataError(f"{name} has {image.width} x {image.height} pixels, expected {SIDE} x {SIDE}")
    return torch.from_numpy(np.array(image, np.float32).reshape(SIDE, SIDE, -1)).permute(2, 0, 1)


def _label(example: Mapping[str, Values]) -> int:
    found = _single(example, "label")
    if not isinstance(found, int) or not 0 <= found < CLASSES:
        raise DataError(f"label is {found!r}, expected a number from 0 to {CLASSES - 1}")
    return found


def _single(example: Mapping[str, Values], name: str) -> bytes | int | float:
    found = example.get(name, [])
    if len(found) != 1:
        raise DataError(f"{name} has {len(found)} values, expected 1")
    return found[0]
