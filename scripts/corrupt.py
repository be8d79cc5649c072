"""Make ImageNet-C from clean images, in its published layout, with the package imagecorruptions-imaug.

    python scripts/corrupt.py /path/to/imagenet/val /path/to/imagenet-c
    python scripts/corrupt.py VAL OUT --corruptions fog snow --severities 3 --workers 8

VAL holds one folder a class. Each image is resized to 256 and cropped to 224 x 224, corrupted, and stored as a JPEG of
quality 85 in OUT/<corruption>/<severity>/<class>/<image>. What an image becomes depends on its corruption, severity and
path alone, so a command that was interrupted continues when it is given again. The package's noise, masks and JPEG
encoder are not bit for bit those of the published files: compare only what was made in the same way.
"""

import checkout

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
from command_line import OneLine
from PIL import Image
from rich.progress import track
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from dcls.data import FolderSource, robustness
from dcls.errors import ConfigError, DataError, reported
from dcls.files.atomic import replacing, writable
from dcls.runtime.randomness import key, seed_all

SHOWN = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])
SEEDED = ("impulse_noise", "glass_blur")
"""They draw from generators of their own."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = OneLine(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("val", help="folder with one folder a class")
    parser.add_argument("out", help="folder that becomes ImageNet-C")
    names = (*robustness.ALEXNET, *robustness.EXTRA)
    parser.add_argument("--corruptions", nargs="+", choices=names, default=list(robustness.ALEXNET), metavar="NAME")
    severities = robustness.SEVERITIES
    parser.add_argument("--severities", nargs="+", type=int, choices=severities, default=list(severities))
    parser.add_argument("--workers", type=int, default=0, help="processes (0: this one)")
    asked = parser.parse_args(arguments)
    if asked.workers < 0:
        raise ConfigError(f"--workers={asked.workers}: must be a number from 0 on")
    package()
    with about_val(asked.val):
        source = FolderSource(asked.val, ".", option="val")
    out = writable(asked.out, "out")
    work = DataLoader(Work(source, out, asked.corruptions, asked.severities), None, num_workers=asked.workers)
    made = 0
    for count in track(work, "corrupting", total=len(source)):
        if isinstance(count, str):
            raise DataError(count)
        made += count
    print(f"wrote {made} images to {out}; {len(source)} clean images of {len(source.class_names)} classes")
    return 0


@contextmanager
def about_val(val: str) -> Iterator[None]:
    """What other scripts call data.root is `val` here."""
    try:
        yield
    except DataError as error:
        said = str(error).removeprefix(f"data.root={val}: ").removeprefix("data.root: ").removeprefix("val: ")
        raise DataError(f"val={val}: {said}") from error


def package() -> ModuleType:
    try:
        import imagecorruptions
    except ImportError as error:
        raise ConfigError(
            f"imagecorruptions cannot be imported ({error}): pip install imagecorruptions-imaug"
        ) from error
    return imagecorruptions


@dataclass
class Work(Dataset[int | str]):
    """Image -> how many of its corrupted files were missing; by then they are made. Or why it cannot be read: an error
    raised in a worker process arrives with its whole traceback as its text.
    """

    source: FolderSource
    out: Path
    corruptions: Sequence[str]
    severities: Sequence[int]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> int | str:
        try:
            with about_val(self.source.folder):
                return self._made(index)
        except DataError as error:
            return str(error)

    def _made(self, index: int) -> int:
        name = Path(self.source.describe(index)).relative_to(self.source.folder)
        wanted = [(each, severity, self.out / each / str(severity) / name) for each in self.corruptions
                  for severity in self.severities]  # fmt: skip
        missing = [each for each in wanted if not each[2].exists()]
        if missing:
            clean = np.asarray(SHOWN(self.source.load(index).convert("RGB")))
        for corruption, severity, path in missing:
            with replacing(path) as stream:
                corrupted(clean, corruption, severity, name.as_posix()).save(stream, "JPEG", quality=85, optimize=True)
        return len(missing)


def corrupted(clean: np.ndarray, corruption: str, severity: int, name: str) -> Image.Image:
    """clean: uint8 [H, W, 3]. `name` of the image is a part of the seed."""
    seed = key(corruption, severity, name)
    seed_all(seed)
    own = {"seed": seed & 0x7FFFFFFF} if corruption in SEEDED else {}
    return Image.fromarray(package().corrupt(clean, severity=severity, corruption_name=corruption, **own))


if __name__ == "__main__":
    sys.exit(reported(main))
