import json

import numpy as np
import pytest
import torch
import yaml

from dcls.record.record import Record, plain


class Memory:
    """A mirror that remembers."""

    def __init__(self):
        self.calls = []

    def begin(self, history):
        self.calls.append(("begin", history))

    def epoch(self, row):
        self.calls.append(("epoch", row))

    def summary(self, values):
        self.calls.append(("summary", values))

    def close(self, *, failed):
        self.calls.append(("close", failed))


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_resumed_file_has_the_checkpoints_rows_and_no_others(tmp_path):
    first = Record(tmp_path)
    first.begin({"seed": 0})
    for epoch in (1, 2, 3):
        first.epoch({"epoch": epoch, "top1": epoch * 10.0})
    # Killed after row 3; the checkpoint knows row 1 alone.
    resumed = Record(tmp_path)
    resumed.begin({"seed": 0}, [{"epoch": 1, "top1": 10.0}])
    assert rows(tmp_path) == [{"epoch": 1, "top1": 10.0}]
    resumed.epoch({"epoch": 2, "top1": 21.0})
    resumed.epoch({"epoch": 2, "top1": 22.0})
    assert rows(tmp_path) == [{"epoch": 1, "top1": 10.0}, {"epoch": 2, "top1": 22.0}]


def test_values_are_plain_json_and_what_is_not_finite_is_null(tmp_path):
    record = Record(tmp_path)
    record.begin({"path": tmp_path, "sizes": (1, 2), "off": None})
    record.epoch({"epoch": 1, "loss": torch.tensor(float("nan")), "deep": {"x": [float("inf"), np.float32(0.5)]}})
    record.summary({"top1": np.float64(81.5), "ok": True})
    assert rows(tmp_path) == [{"epoch": 1, "loss": None, "deep": {"x": [None, 0.5]}}]
    assert json.loads((tmp_path / "summary.json").read_text()) == {"top1": 81.5, "ok": True}
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config == {"path": str(tmp_path), "sizes": [1, 2], "off": None}


def test_mirrors_get_the_same_plain_rows_and_learn_how_the_run_ended(tmp_path):
    memory = Memory()
    with Record(tmp_path, [memory]) as record:
        record.begin({}, [{"epoch": 1, "step": 5}])
        record.epoch({"epoch": 2, "loss": float("nan")})
        record.summary({"top1": 1.0})
    history = [{"epoch": 1, "step": 5}]
    epoch = {"epoch": 2, "loss": None}
    assert memory.calls == [("begin", history), ("epoch", epoch), ("summary", {"top1": 1.0}), ("close", False)]
    with pytest.raises(KeyboardInterrupt, match="by hand"), Record(tmp_path, [memory]):
        raise KeyboardInterrupt("by hand")
    assert memory.calls[-1] == ("close", True)


def test_plain_keeps_booleans_and_integers_as_they_are():
    assert plain({"a": True, 1: (None, 2, "x")}) == {"a": True, "1": [None, 2, "x"]}
    assert plain(np.int64(3)) == 3
