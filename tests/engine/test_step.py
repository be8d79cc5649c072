import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dcls.runtime.processes import World

SCRIPT = Path(__file__).with_name("steps_of_a_world.py")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("steps_of_a_world", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def in_processes(size: int, out: Path) -> dict:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    peers = [
        subprocess.Popen([sys.executable, SCRIPT, out], env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(size)
    ]
    assert [peer.wait(timeout=120) for peer in peers] == [0] * size
    return torch.load(out, weights_only=True)


def test_two_processes_make_the_same_steps_as_one(script, tmp_path):
    alone = script.train(World(0, 1, torch.device("cpu")))
    together = in_processes(2, tmp_path / "two.pt")
    assert together["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    torch.testing.assert_close(together["model"], alone["model"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together["ema"], alone["ema"], rtol=1e-4, atol=1e-5)


def test_the_same_steps_give_the_same_bits(script):
    first, second = (script.train(World(0, 1, torch.device("cpu"))) for _ in range(2))
    assert first["losses"] == second["losses"]
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_positions_move_and_stay_clamped(script):
    start = script.network()[1].spatial.P.detach()
    end = script.train(World(0, 1, torch.device("cpu")))["model"]["1.spatial.P"]
    assert (end - start).abs().mean() > 1e-3
    assert end.abs().max() <= 3
