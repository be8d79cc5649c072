import os
import signal

import pytest
import torch

from dcls.errors import ConfigError
from dcls.runtime.processes import StopRequest, World, join

ALONE = World(0, 1, torch.device("cpu"))


def test_a_signal_asks_to_stop_and_handlers_return():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest(ALONE) as stop:
        assert not stop.agreed()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.agreed()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_interrupt_stops_at_once(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with StopRequest(ALONE) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # forwarded by torchrun within the same moment
        assert stop.agreed()
        now[0] += 3
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_devices_are_checked():
    with pytest.raises(ConfigError, match="runtime.device=tpu"), join("tpu"):
        pass
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="runtime.device=cuda: no CUDA device"), join("cuda"):
            pass


def test_work_on_rank_0_raises_for_everybody():
    assert ALONE.on_main(lambda: 3) == 3

    def fail():
        raise ConfigError("run.dir=x: no")

    with pytest.raises(ConfigError, match="run.dir=x"):
        ALONE.on_main(fail)
