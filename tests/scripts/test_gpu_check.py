import os
import subprocess
import sys
import time

import pytest
import torch

from dcls.errors import ConfigError
from scripts import gpu_check

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")

# What a machine with torch, triton, timm, numpy and pytest alone does not have.
ABSENT = """
import sys
from importlib.machinery import PathFinder

class Absent(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        missing = {"hydra", "omegaconf", "llvmlite", "matplotlib", "hypothesis", "DCLS", "rich", "fvcore"}
        return None if name.partition(".")[0] in missing else PathFinder.find_spec(name, path, target)

sys.meta_path = [Absent if finder is PathFinder else finder for finder in sys.meta_path]
"""


def test_it_runs_where_little_is_installed(tmp_path):
    """Tests and benchmarks, without what is absent; every step in a process of its own."""
    (tmp_path / "sitecustomize.py").write_text(ABSENT)
    out = tmp_path / "out"
    command = [sys.executable, gpu_check.__file__, "--device", "cpu", "--tiny", "--out", out]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    steps = ["--steps", "tests", "construction", "conv", "loop"]
    done = subprocess.run([*command, *steps], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + (out / "tests.log").read_text()
    results = {row.split(" | ")[0].strip("| "): row.split(" | ")[1] for row in done.stdout.splitlines() if "|" in row}
    assert {name: results[name] for name in steps[1:]} == {
        "tests": "ok",
        "construction": "left out: needs hypothesis",
        "conv": "ok",
        "loop": "left out: needs rich",
    }
    assert {path.name for path in (out / "conv").iterdir()} == {"conv.md", "conv.json"}
    assert (out / "README.md").read_text() in done.stdout


@pytest.mark.parametrize(
    ("code", "result"),
    [("raise SystemExit(3)", "exit 3, see step.log"), ("import time; time.sleep(60)", "timed out, see step.log")],
)
def test_a_step_that_fails_or_hangs_fails_alone(code, result, tmp_path, monkeypatch, capsys):
    wanted = [gpu_check.Step("step", 0.5, ("-c", code)), gpu_check.Step("next", 20, ("-c", "print('here')"))]
    monkeypatch.setattr(gpu_check, "steps", lambda *arguments: wanted)
    start = time.monotonic()
    assert gpu_check.main(["--out", str(tmp_path), "--device", "cpu"]) == 1
    assert time.monotonic() - start < 20
    printed = capsys.readouterr().out
    assert f"| step | {result} |" in printed
    assert "| next | ok |" in printed
    assert (tmp_path / "next.log").read_text() == "here\n"


def test_the_time_of_all_steps_is_limited(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "steps", lambda *arguments: [gpu_check.Step("step", 20, ("-c", ""))])
    assert gpu_check.main(["--out", str(tmp_path), "--device", "cpu", "--seconds", "0.5"]) == 0
    assert "| step | left out: no time left | 0 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--device", "cpu", "--steps", "testz"], "--steps testz: choose among tests, conv"),
        pytest.param(["--steps", "conv"], "torch finds no GPU", marks=NO_GPU),
    ],
)
def test_what_cannot_run_is_one_line(arguments, expected, tmp_path):
    with pytest.raises(ConfigError, match=expected):
        gpu_check.main(["--out", str(tmp_path / "out"), *arguments])
    assert not (tmp_path / "out").exists()


def test_every_benchmark_is_a_step(tmp_path):
    from scripts import benchmark

    names = {step.name for step in gpu_check.steps("cuda", False, tmp_path)}
    assert set(benchmark.BENCHES) <= names
