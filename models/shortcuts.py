"""Names for the published checkpoints, and their files: fetched once, kept where torch.hub keeps its own."""

import difflib
import hashlib
import os
import shutil
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

import torch
from rich.console import Console
from rich.progress import wrap_file

from dcls.errors import CheckpointError, ConfigError

TIMEOUT = 30  # seconds that a server may stay silent


@dataclass(frozen=True)
class Released:
    """A file of a Zenodo record. sha256: None until somebody has seen the file; then the first download's is kept."""

    record: int
    file: str
    sha256: str | None = None

    @property
    def url(self) -> str:
        return f"https://zenodo.org/records/{self.record}/files/{self.file}?download=1"

    @property
    def path(self) -> Path:
        return Path(torch.hub.get_dir()) / "checkpoints" / self.file


# Records and file names from the code of ConvNeXt-dcls, DCLS-GradCAM-Eval and DCLS-PyTorch's tutorial.
RELEASED = {
    "convnext_dcls_tiny.paper": Released(7112021, "convnext_dcls_tiny_1k_224_ema.pth"),
    "convnext_dcls_small.paper": Released(7112021, "convnext_dcls_small_1k_224_ema.pth"),
    "convnext_dcls_base.paper": Released(7112021, "convnext_dcls_base_1k_224_ema.pth"),
    "convnext_dcls_gauss_tiny.paper": Released(8029747, "convnext_dcls_gauss_tiny_1k_224_ema.pth"),
    "resnet_dcls50.paper": Released(8373830, "resnet_dcls_kernel_5_model_best.pth.tar"),
    "caformer_dcls_s18.paper": Released(8370737, "caformer_s18_v1_17lim_34el_seed0.pth.tar"),
    "convformer_dcls_s18.paper": Released(8370737, "convformer_s18_v1_17lim_40el_seed0.pth.tar"),
    "fastvit_dcls_sa24.paper": Released(8370737, "fastvit_sa24_v1_17lim_34el_seed0.pth.tar"),
    "fastvit_dcls_sa36.paper": Released(8370737, "fastvit_sa36_v1_17lim_34el_seed0.pth.tar"),
}


def located(checkpoint: str, option: str = "checkpoint") -> Path:
    """The file that `option` names: a path, or the local copy of a name such as convnext_dcls_tiny.paper.

    Fetches it where there is no copy. Raises ConfigError for an unknown name ending in .paper and where nothing can be
    fetched, CheckpointError where the copy is not what was fetched.
    """
    path = Path(checkpoint)
    if not checkpoint.endswith(".paper") or path.is_file():
        return path
    released = RELEASED.get(checkpoint)
    if released is None:
        close = difflib.get_close_matches(checkpoint, RELEASED, n=1)
        guess = f"did you mean {close[0]}? " if close else ""
        raise ConfigError(f"{option}={checkpoint} is not published: {guess}there are {', '.join(RELEASED)}")
    if not released.path.is_file():
        _fetch(f"{option}={checkpoint}", released)
    _verify(f"{option}={checkpoint}", released)
    return released.path


def _fetch(asked: str, released: Released) -> None:
    """Download beside the file's place and rename, so that a file in its place is whole."""
    path, draft = released.path, released.path.with_name(f"{released.file}.{os.getpid()}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _download(released.url, draft)
        digest = _sha256(draft)
        os.replace(draft, path)
        _digest_file(path).write_text(f"{digest}\n")
    except (OSError, HTTPException) as error:
        reason = str(error) or type(error).__name__
        raise ConfigError(
            f"{asked} cannot be fetched from {released.url} ({reason}); a file put at {path} is used as it is"
        ) from error
    finally:
        draft.unlink(missing_ok=True)


def _download(url: str, path: Path) -> None:
    """torch.hub's own has no time limit, and takes an answer that ends early for the whole file."""
    with urlopen(url, timeout=TIMEOUT) as answer, path.open("wb") as file:
        length = int(answer.headers.get("Content-Length", 0))
        with wrap_file(answer, length, description=url, console=Console(stderr=True)) as source:
            shutil.copyfileobj(source, file)
    if length and path.stat().st_size != length:
        raise OSError(f"the connection ended after {path.stat().st_size} of {length} bytes")


def _verify(asked: str, released: Released) -> None:
    """Compare with the published digest, or else with that of the first download; a file put there by hand has none."""
    recorded = _digest_file(released.path)
    expected = released.sha256 or (recorded.read_text().strip() if recorded.is_file() else None)
    if expected and _sha256(released.path) != expected:
        raise CheckpointError(
            f"{asked}: the sha256 of {released.path} is not {expected}: delete the file to fetch it again"
        )


def _digest_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
