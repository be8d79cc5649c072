"""Long fault and scale tests with real processes: `make soak`."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dcls.files.checkpoints import load

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


def test_killed_at_ten_random_moments(image_tree, tmp_path):
    """Somewhere after each of ten steps: in a step, while a checkpoint, a row or a picture is written."""
    one, other, epochs = tmp_path / "one", tmp_path / "other", "recipe.epochs=50"
    subprocess.run(command(image_tree, one, 1, epochs), cwd=ROOT, check=True)
    moments = random.Random(0)
    for step in sorted(moments.sample(range(1, 180), 10)):
        with subprocess.Popen(command(image_tree, other, 1, epochs, "run.save_minutes=0.0001"), cwd=ROOT) as process:
            reached = newest_step(other)
            while newest_step(other) < max(step, reached + 1):
                assert process.poll() is None, "the run ended before it could be killed"
                time.sleep(0.001)
            time.sleep(moments.uniform(0, 0.1))
            process.kill()
    assert newest_step(other) < 200
    subprocess.run(command(image_tree, other, 1, epochs), cwd=ROOT, check=True)
    ends = [load(folder / "checkpoints" / "last.pt") for folder in (one, other)]
    for part in ("model", "ema"):
        assert all(torch.equal(ends[0][part][name], ends[1][part][name]) for name in ends[0][part])
    assert losses(one) == losses(other)


def newest_step(folder: Path) -> int:
    """Of the whole checkpoints there; 0 where there are none."""
    return max((int(path.name.split(".")[0][5:]) for path in folder.glob("checkpoints/step-*.pt")), default=0)


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
