"""Long fault and scale tests with real processes: `make soak`."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dcls.engine.checkpoints import load

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.soak


def command(tree: Path, folder: Path, processes: int, *more: str) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    data = ["data=folder", f"data.root={tree}", "data.channels=1", "data.mean=[0.286]", "data.std=[0.353]"]
    recipe = ["recipe.epochs=6", "recipe.global_batch=16", "recipe.slot=4", "data.workers=1", "runtime.threads=1"]
    options = ["+experiment=quickstart", *data, *recipe, f"run.dir={folder}", "logger.progress=off", *more]
    return [sys.executable, *launcher, "train.py", *options]


@pytest.fixture(scope="module")
def uninterrupted(image_tree, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    subprocess.run(command(image_tree, folder, 1), cwd=ROOT, check=True)
    return folder


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["train_loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_killed_at_ten_random_moments(uninterrupted, image_tree, tmp_path):
    """Anywhere: while loading, in a step, while a checkpoint or a picture is written."""
    moments = random.Random(0)
    for _ in range(10):
        with subprocess.Popen(command(image_tree, tmp_path, 1, "run.save_minutes=0.0001"), cwd=ROOT) as process:
            deadline = time.monotonic() + moments.uniform(5, 20)
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            os.kill(process.pid, signal.SIGKILL)
    subprocess.run(command(image_tree, tmp_path, 1), cwd=ROOT, check=True)
    one, two = (load(folder / "checkpoints" / "last.pt") for folder in (uninterrupted, tmp_path))
    for part in ("model", "ema"):
        assert all(torch.equal(one[part][name], two[part][name]) for name in one[part])
    assert losses(uninterrupted) == losses(tmp_path)


def test_stopped_by_a_scheduler_and_continued_with_fewer_processes(uninterrupted, image_tree, tmp_path):
    """SIGTERM to torchrun reaches every process; they save at one step. 4 processes, then 2, then 1."""
    for processes in (4, 2):
        before = set(tmp_path.glob("checkpoints/step-*"))
        with subprocess.Popen(
            command(image_tree, tmp_path, processes, "run.save_minutes=0.0001"), cwd=ROOT
        ) as launcher:
            deadline = time.monotonic() + 180
            while len(set(tmp_path.glob("checkpoints/step-*")) - before) < 2 and launcher.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            launcher.send_signal(signal.SIGTERM)
    subprocess.run(command(image_tree, tmp_path, 1), cwd=ROOT, check=True)
    assert losses(tmp_path) == pytest.approx(losses(uninterrupted), rel=5e-3)
