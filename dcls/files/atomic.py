"""Files that are whole or absent: written beside their name, flushed to the disk, then renamed over it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from dcls.errors import ConfigError


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file that takes the name `path` when the block ends without an error; its folder is made if missing.

    A reader, or a process killed at any moment, sees the old content or the new, never a part of it.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with beside.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def writable(folder: str | os.PathLike[str], option: str) -> Path:
    """The folder, made if missing. Raises ConfigError naming `option` where nothing can be written there."""
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise ConfigError(f"{option}={folder}: cannot be written ({error.strerror}); choose another") from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Replace the file `path` by `text` (UTF-8)."""
    with replacing(path) as stream:
        stream.write(text.encode())
