"""The folder of a run: claimed while it runs, and continued when the same run is started in it again."""

import errno
import fcntl
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dcls.engine.state import TrainState
from dcls.errors import CheckpointError, ConfigError
from dcls.files.atomic import writable
from dcls.files.checkpoints import Checkpoints, load
from dcls.runtime.processes import World

log = logging.getLogger(__name__)


class RunFolder:
    """`path` with its checkpoints. Rank 0 holds a lock on it, so that a requeue cannot meet a run still going.

    `saved` is the newest whole checkpoint found there, None for a run that begins.
    """

    saved: Path | None

    def __init__(self, path: str | os.PathLike[str], world: World) -> None:
        self.path, self.world = Path(path), world
        self.checkpoints = Checkpoints(self.path / "checkpoints")
        self._lock: int | None = None

    def __enter__(self) -> Self:
        self.saved = self.world.on_main(self._claim)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            os.close(self._lock)

    def _claim(self) -> Path | None:
        self._lock = os.open(writable(self.path, "run.dir") / ".lock", os.O_RDWR | os.O_CREAT)
        try:
            # Unlike flock, a lock of this kind is not inherited by the loader's workers, which may outlive us a moment.
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                log.warning("run.dir=%s cannot be locked (%s): start no second run there", self.path, error.strerror)
                return self.checkpoints.newest()
            raise ConfigError(
                f"run.dir={self.path}: another process is running there; wait or choose another"
            ) from error
        return self.checkpoints.newest()

    def restore(
        self,
        state: TrainState,
        *,
        differing: Callable[[Mapping[str, Any], Mapping[str, Any]], list[str]],
        extend: bool = False,
    ) -> None:
        """Bring `state` to the checkpoint `saved`, if there is one.

        `differing` lists the options whose values differ between two configurations in a way that changes results.
        Raises CheckpointError when there are any (a change of recipe.epochs alone is allowed by `extend`), or when the
        images are not those the run began with.
        """
        if self.saved is None:
            return
        saved = load(self.saved, "run.dir")
        self._require_same(saved, state, differing(saved.get("config", {}), state.identity["config"]), extend)
        state.load_state_dict(saved)
        if self.world.is_main:
            self.checkpoints.link(self.saved, state.best_step)
        if len(state.history) > state.epochs:
            raise CheckpointError(
                f"recipe.epochs={state.epochs}: the run in run.dir={self.path} has done {len(state.history)} already"
            )
        if state.step > state.epochs * state.steps_per_epoch:
            raise CheckpointError(
                f"recipe.epochs={state.epochs}: the run in run.dir={self.path} is amid epoch {len(state.history) + 1}"
            )

    def _require_same(self, saved: Mapping[str, Any], state: TrainState, options: list[str], extend: bool) -> None:
        longer = options == ["recipe.epochs"]
        if options and not (longer and extend):
            hint = "; run.extend=true does so on purpose (the learning rate follows the new length)" if longer else ""
            raise CheckpointError(
                f"run.dir={self.path} holds a run with other options: {self._pairs(saved, state, options)}; "
                f"choose another run.dir, or put them back to continue{hint}"
            )
        if saved.get("backends") != state.identity["backends"]:
            began, now = (", ".join(each) for each in (saved.get("backends", ()), state.identity["backends"]))
            raise CheckpointError(
                f"run.dir={self.path}: the run's convolutions were computed by {began}, and this machine has {now}; "
                "go on where it began, with or without llvmlite as there, or begin anew in another run.dir"
            )
        began, now = saved.get("fingerprints", {}), state.identity["fingerprints"]
        if others := [split for split in now if began.get(split) != now[split]]:
            raise CheckpointError(
                f"run.dir={self.path}: the run began with other {' and '.join(others)} images than data.root holds now"
            )

    @staticmethod
    def _pairs(saved: Mapping[str, Any], state: TrainState, options: list[str]) -> str:
        return ", ".join(
            f"{name} ({_at(saved['config'], name)} there, {_at(state.identity['config'], name)} here)"
            for name in options
        )


def _at(config: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        config = config.get(part) if isinstance(config, Mapping) else None
    return config
