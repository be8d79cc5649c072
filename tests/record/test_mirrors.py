import logging

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dcls.errors import ConfigError
from dcls.record import mirrors
from dcls.record.mirrors import Guarded, open_mirrors
from dcls.record.record import Record


def row(epoch: int) -> dict:
    return {"epoch": epoch, "step": epoch * 10, "top1": 5.0 * epoch, "positions": {"stage": {"movement": 0.25}}}


def test_nothing_is_opened_by_default_and_an_unknown_mode_is_refused(tmp_path):
    assert open_mirrors(tmp_path, "run", {}) == []
    with pytest.raises(ConfigError, match=r"logger\.wandb=on is unknown.*offline"):
        open_mirrors(tmp_path, "run", {}, wandb="on")


def test_wandb_offline_needs_no_account_and_a_resumed_run_keeps_its_id(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_MODE", "online")  # the option decides, not the environment
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for epoch in (1, 2):
        with Record(tmp_path, open_mirrors(tmp_path, "run", {"seed": 7}, wandb="offline")) as record:
            record.begin({}, [row(done) for done in range(1, epoch)])
            record.epoch(row(epoch))
            record.summary({"top1": 5.0 * epoch, "config": {"seed": 7}})
    files = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    identifier = (tmp_path / "wandb-id").read_text()
    assert {file.stem for file in files} == {f"run-{identifier}"}
    assert any(b"positions/stage/movement" in file.read_bytes() for file in files)
    assert capfd.readouterr() == ("", "")


def test_tensorboard_points_stand_once_after_a_resume_from_an_earlier_checkpoint(tmp_path):
    for history, done in (([], (1, 2, 3)), ([row(1)], (2, 3, 4))):
        with Record(tmp_path, open_mirrors(tmp_path, "run", {}, tensorboard=True)) as record:
            record.begin({}, history)
            for epoch in done:
                record.epoch(row(epoch))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(point.step, point.value) for point in events.Scalars("top1")] == [(10, 5), (20, 10), (30, 15), (40, 20)]
    assert "positions/stage/movement" in events.Tags()["scalars"]


class Broken:
    """A service that fails at its first row."""

    def __init__(self, error):
        self.error, self.calls = error, []

    def begin(self, history):
        self.calls.append("begin")

    def epoch(self, row):
        self.calls.append("epoch")
        raise self.error

    def summary(self, values):
        self.calls.append("summary")

    def close(self, *, failed):
        self.calls.append("close")


def test_a_failing_mirror_is_logged_once_and_left_alone(tmp_path, caplog):
    broken = Broken(ConnectionError("no route"))
    with caplog.at_level(logging.WARNING, logger=mirrors.__name__), Record(tmp_path, [Guarded(broken)]) as record:
        record.begin({})
        for epoch in (1, 2, 3):
            record.epoch(row(epoch))
        record.summary({"top1": 1.0})
    assert broken.calls == ["begin", "epoch"]
    assert [message.split(" failed")[0] for message in caplog.messages] == ["Broken"]
    assert "no route" in caplog.text
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_wandb_that_cannot_start_does_not_touch_the_run(tmp_path, monkeypatch, caplog):
    import wandb

    def refuse(**settings):
        raise wandb.errors.CommError("server is gone")

    monkeypatch.setattr(wandb, "init", refuse)
    with Record(tmp_path, open_mirrors(tmp_path, "run", {}, wandb="online")) as record:
        record.begin({})
        record.epoch(row(1))
    assert caplog.text.count("server is gone") == 1


def test_an_interrupt_is_not_a_failure_of_the_mirror(tmp_path):
    record = Record(tmp_path, [Guarded(Broken(KeyboardInterrupt("by hand")))])
    record.begin({})
    with pytest.raises(KeyboardInterrupt, match="by hand"):
        record.epoch(row(1))
