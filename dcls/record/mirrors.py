"""Second places for a run's rows: Weights & Biases and TensorBoard. One that fails is dropped and training goes on."""

import logging
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dcls.errors import ConfigError
from dcls.files.atomic import write_text
from dcls.record.record import Mirror

log = logging.getLogger(__name__)

WANDB_MODES = ("disabled", "offline", "online")
INIT_SECONDS = 60.0
FINISH_SECONDS = 300.0
"""How long a server that does not answer may hold up the start and the end of a run."""


def open_mirrors(
    folder: str | os.PathLike[str],
    name: str,
    config: Mapping[str, Any],
    *,
    wandb: str = "disabled",
    project: str = "dcls",
    entity: str | None = None,
    tensorboard: bool = False,
) -> list[Mirror]:
    """The mirrors asked for, each guarded: its first failure is logged, then it is left alone.

    folder: the run's, where both keep their files. name: what the run is called. config: plain types.
    wandb: `disabled`, `offline` (needs no account) or `online`. ConfigError for another mode.
    """
    if wandb not in WANDB_MODES:
        raise ConfigError(f"logger.wandb={wandb} is unknown: choose one of {', '.join(WANDB_MODES)}")
    mirrors: list[Mirror] = []
    if wandb != "disabled":
        mirrors.append(Guarded(Wandb(Path(folder), name, config, mode=wandb, project=project, entity=entity)))
    if tensorboard:
        mirrors.append(Guarded(TensorBoard(Path(folder) / "tensorboard")))
    return mirrors


class Guarded:
    """A mirror that never raises: other people's services and files must not end a training run."""

    def __init__(self, mirror: Mirror) -> None:
        self.mirror: Mirror | None = mirror

    def begin(self, history: list[dict[str, Any]]) -> None:
        with self._dropping():
            if self.mirror:
                self.mirror.begin(history)

    def epoch(self, row: Mapping[str, Any]) -> None:
        with self._dropping():
            if self.mirror:
                self.mirror.epoch(row)

    def summary(self, values: Mapping[str, Any]) -> None:
        with self._dropping():
            if self.mirror:
                self.mirror.summary(values)

    def close(self, *, failed: bool) -> None:
        with self._dropping():
            if self.mirror:
                self.mirror.close(failed=failed)

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        with _Failures() as failures:
            yield
        if failures.error is not None:
            label = type(self.mirror).__name__
            log.warning("%s failed and is off from here on, training goes on: %r", label, failures.error)
            self.mirror = None


class _Failures:
    """Stops any error (not an interrupt) at the boundary to a foreign service, and keeps it to be reported."""

    error: Exception | None = None

    def __enter__(self) -> "_Failures":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        self.error = error if isinstance(error, Exception) else None
        return self.error is not None


class Wandb:
    """Rows at their optimizer step. A run started again in its folder continues the same wandb run.

    The id lies in the folder (`wandb-id`), so a folder that is deleted and made anew is a new run. Rows that a resumed
    run repeats have a step wandb has seen, which it ignores.
    """

    def __init__(
        self, folder: Path, name: str, config: Mapping[str, Any], *, mode: str, project: str, entity: str | None
    ) -> None:
        self.folder, self.name, self.config = folder, name, config
        self.mode, self.project, self.entity = mode, project, entity
        self.run: Any = None

    def begin(self, history: list[dict[str, Any]]) -> None:
        import wandb  # a second of import, and a service process, that a run without it does not pay

        # The bar stays ours (console), and no git or code of the user's leaves the machine unasked.
        settings = wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            init_timeout=INIT_SECONDS,
            login_timeout=INIT_SECONDS,
            finish_timeout=FINISH_SECONDS,
            x_disable_stats=self.mode == "offline",
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        self.run = wandb.init(
            id=self._id(),
            resume="allow" if self.mode == "online" else None,  # offline, there is nothing to ask
            dir=self.folder,
            name=self.name,
            config=dict(self.config),
            mode="offline" if self.mode == "offline" else "online",
            project=self.project,
            entity=self.entity,
            settings=settings,
        )

    def _id(self) -> str:
        path = self.folder / "wandb-id"
        if not path.exists():
            write_text(path, secrets.token_hex(8))
        return path.read_text().strip()

    def epoch(self, row: Mapping[str, Any]) -> None:
        self.run.log(dict(scalars(row)), step=row["step"])

    def summary(self, values: Mapping[str, Any]) -> None:
        self.run.summary.update(dict(scalars(values, depth=0)))

    def close(self, *, failed: bool) -> None:
        if self.run is not None:
            self.run.finish(exit_code=int(failed))


class TensorBoard:
    """Scalars at their optimizer step. On resume, points past the checkpoint are purged, then written again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer: Any = None
        self.step = 0

    def begin(self, history: list[dict[str, Any]]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.step = history[-1]["step"] if history else 0
        self.writer = SummaryWriter(str(self.folder), purge_step=self.step + 1)

    def epoch(self, row: Mapping[str, Any]) -> None:
        self.step = row["step"]
        for name, value in scalars(row):
            self.writer.add_scalar(name, value, self.step)
        self.writer.flush()

    def summary(self, values: Mapping[str, Any]) -> None:
        for name, value in scalars(values, depth=0):
            self.writer.add_scalar(f"summary/{name}", value, self.step)

    def close(self, *, failed: bool) -> None:
        if self.writer is not None:
            self.writer.close()


def scalars(values: Mapping[str, Any], depth: int = 4, prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of `values` and of `depth` levels of mappings in it, as (`outer/inner`, number), and nothing else."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from scalars(value, depth - 1, f"{prefix}{name}/") if depth else ()
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield prefix + name, value
