"""Checkpoints that cannot be half there.

A file is written beside its place, flushed to disk and renamed to `step-<step>.<sha256 prefix>.pt`: the digest in
the name is the commit mark, and loading checks it (torch.load alone misses most flipped bits). `last.pt` and
`best.pt` are links, replaced atomically. Only plain types are stored, so `torch.load(..., weights_only=True)` opens
them anywhere.
"""

import argparse
import hashlib
import logging
import os
import pickle
import re
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from dcls.errors import CheckpointError

log = logging.getLogger(__name__)
NAME = re.compile(r"step-(\d+)\.([0-9a-f]{16})\.pt")
UNFINISHED = ".unfinished"
# Trainers leave their command line beside the weights, and the best accuracy as a number of numpy's.
HARMLESS: list[Any] = [
    argparse.Namespace,
    (PurePosixPath, "pathlib.PosixPath"),
    (PurePosixPath, "pathlib._local.PosixPath"),  # Python 3.13's name for it
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *(np.dtype, *{type(np.dtype(kind)) for kind in "?bhilBHILefd"}),
]

UNREADABLE = (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, ValueError, LookupError, OSError)


class Checkpoints:
    """The checkpoints of one run folder: the two newest and the best are kept. Only rank 0 writes."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def save(self, state: dict[str, Any], step: int, *, best: bool = False) -> Path:
        """Write `state`; when this returns, the file survives a power cut. `best` also moves `best.pt` to it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(f"*{UNFINISHED}"):  # by a killed run: it takes the room of this one
            left.unlink(missing_ok=True)
        draft = self.folder / f"step-{step}{UNFINISHED}"
        try:
            with draft.open("wb") as file:
                writer = _Digesting(file)
                torch.save(state, cast(IO[bytes], writer))
                file.flush()
                os.fsync(file.fileno())
        except BaseException:  # a full disk or a second Ctrl-C: what is left of it helps nobody
            draft.unlink(missing_ok=True)
            raise
        path = self.folder / f"step-{step}.{writer.digest()}.pt"
        os.replace(draft, path)
        self._link("last.pt", path)
        if best:
            self._link("best.pt", path)
        _sync_folder(self.folder)
        self._prune(step)
        return path

    def link(self, last: Path, best_step: int | None) -> None:
        """Point last.pt and best.pt where a run that was killed between a file and its links left them behind."""
        self._link("last.pt", last)
        best = next((path for path in self._by_age() if _step(path) == best_step), None)
        if best is not None:
            self._link("best.pt", best)

    def newest(self) -> Path | None:
        """The newest checkpoint whose digest is right, None where there is none. A torn one is named in the log.

        Raises CheckpointError where all are torn: to begin anew would overwrite the run's record.
        """
        for path in self._by_age():
            if intact(path):
                return path
            log.warning(
                "checkpoint %s is torn (its content does not match the digest in its name); trying the one before", path
            )
        if self._files():
            raise CheckpointError(
                f"run.dir={self.folder.parent}: every checkpoint there is torn; choose another run.dir"
            )
        return None

    def _by_age(self) -> list[Path]:
        """Newest first; of several at one step (two runs of it), the one written last."""
        found = [(_step(path), path.stat().st_mtime_ns, path) for path in self._files() if NAME.fullmatch(path.name)]
        return [path for *_, path in sorted(found, reverse=True)]

    def _files(self) -> list[Path]:
        return [path for path in self.folder.glob("step-*.pt") if not path.is_symlink()]

    def _link(self, name: str, target: Path) -> None:
        draft = self.folder / f"{name}{UNFINISHED}"
        draft.unlink(missing_ok=True)
        draft.symlink_to(target.name)
        os.replace(draft, self.folder / name)

    def _prune(self, step: int) -> None:
        """Files of later steps are torn ones, which this run began before: they must not take the place of new ones."""
        best = self.folder / "best.pt"
        reached = [path for path in self._by_age() if _step(path) <= step]
        kept = {path.name for path in reached[: self.keep]} | ({best.readlink().name} if best.is_symlink() else set())
        for path in self._files():
            if path.name not in kept:
                path.unlink(missing_ok=True)


def _step(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(path.name.partition(".")[0].removeprefix("step-"))


def intact(path: Path) -> bool:
    """Whether the file's sha256 begins with the digest in its name; True for names that carry none."""
    match = NAME.fullmatch(path.resolve().name)
    if match is None:
        return True
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest().startswith(match[2])


def load(path: Path | str, option: str = "checkpoint") -> dict[str, Any]:
    """The content of a checkpoint, or of a file of safetensors, on the CPU.

    Raises CheckpointError naming `option` when it is absent, torn or foreign.
    """
    path = Path(path)
    if path.is_dir():
        inside = [file for name in ("best.pt", "last.pt") for file in (path / "checkpoints" / name, path / name)]
        found = next(
            (str(file) for file in inside if file.is_file()), "no best.pt or last.pt, and none in checkpoints/"
        )
        raise CheckpointError(
            f"{option}={path} is a folder; expected a file such as <run.dir>/checkpoints/best.pt, found {found}"
        )
    if not path.is_file():
        raise CheckpointError(f"{option}={path}: there is no such file")
    if not intact(path):
        raise CheckpointError(
            f"{option}={path} is torn: its content does not match the digest in its name; "
            "use the checkpoint before it in the same folder"
        )
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            with torch.serialization.safe_globals(HARMLESS):
                state = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise CheckpointError(
            f"{option}={path} is not a checkpoint that torch can open safely: {_reason(error)}"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{option}={path} holds a {type(state).__name__}; expected a dictionary of tensors")
    return state


def _reason(error: Exception) -> str:
    """The one sentence of torch's advice that says what is wrong with the file."""
    lines = str(error).strip().splitlines() or [""]
    mark = "WeightsUnpickler error: "
    said = [line.partition(mark)[2] for line in lines if mark in line]
    reason = (said or lines)[0].partition(". ")[0]
    # Of other files a pickle's reader says nothing, or the first byte.
    return reason if " " in reason else "it is neither a zip archive nor a pickle of tensors"


class _Digesting:
    """A file that remembers the sha256 of what went through it; torch.save writes strictly forward."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def digest(self) -> str:
        return self._hash.hexdigest()[:16]


def _sync_folder(folder: Path) -> None:
    """Make the renames themselves durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
