"""What a run leaves to read: config.yaml, metrics.jsonl, summary.json in its folder, and the same rows to mirrors."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import yaml

from dcls.files.atomic import write_text


class Mirror(Protocol):
    """A second place that rows go to, such as wandb; see `dcls.engine.mirrors`."""

    def begin(self, history: list[dict[str, Any]]) -> None: ...

    def epoch(self, row: Mapping[str, Any]) -> None: ...

    def summary(self, values: Mapping[str, Any]) -> None: ...

    def close(self, *, failed: bool) -> None: ...


class Record:
    """Writes the run's files, each atomically, and hands every row on to the mirrors. For rank 0 alone.

    A context manager: leaving it closes the mirrors.
    """

    def __init__(self, folder: str | os.PathLike[str], mirrors: Iterable[Mirror] = ()) -> None:
        self.folder = Path(folder)
        self.mirrors = list(mirrors)
        self.rows: list[dict[str, Any]] = []

    def begin(self, config: Mapping[str, Any], history: Iterable[Mapping[str, Any]] = ()) -> None:
        """Write config.yaml, and metrics.jsonl anew from the history that the checkpoint holds.

        So rows written after the checkpoint a run resumes from do not stand twice, and none is missing.
        """
        self.rows = [plain(row) for row in history]
        text = yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)
        write_text(self.folder / "config.yaml", text)
        self._write_metrics()
        for mirror in self.mirrors:
            mirror.begin(list(self.rows))

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Add one row to metrics.jsonl; a row of the same `epoch` is replaced."""
        new: dict[str, Any] = plain(row)
        self.rows = [*(old for old in self.rows if old.get("epoch") != new["epoch"]), new]
        self._write_metrics()
        for mirror in self.mirrors:
            mirror.epoch(new)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Write summary.json."""
        values = plain(values)
        write_text(self.folder / "summary.json", json.dumps(values, indent=2, allow_nan=False) + "\n")
        for mirror in self.mirrors:
            mirror.summary(values)

    def close(self, *, failed: bool = False) -> None:
        """Close the mirrors, which show the run as failed or finished."""
        for mirror in self.mirrors:
            mirror.close(failed=failed)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None)

    def _write_metrics(self) -> None:
        lines = [json.dumps(row, allow_nan=False) + "\n" for row in self.rows]
        write_text(self.folder / "metrics.jsonl", "".join(lines))


def plain(value: Any) -> Any:
    """`value` in JSON's types: NaN and infinities become None, scalars of torch and numpy numbers, the rest text."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
