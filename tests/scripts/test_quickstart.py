import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import quickstart

TOP1 = {("plain", 0): 87.0, ("plain", 1): 88.0, ("dcls", 0): 87.5, ("dcls", 1): 88.1}


@pytest.fixture
def commands(monkeypatch, tmp_path):
    """The commands called, answered with the files that train.py and eval.py would leave."""
    called = []
    started = subprocess.Popen

    def answer(command, **options):
        script, *arguments = Path(command[2]).relative_to(tmp_path).as_posix(), *command[3:]  # after python -u
        called.append([script, *arguments])
        if script == "scripts/report.py":
            return started([sys.executable, "-c", "print('wrote the page')"], **options)
        given = dict(argument.lstrip("+").split("=", 1) for argument in arguments)
        folder = tmp_path / given["run.dir"]
        folder.mkdir(parents=True, exist_ok=True)
        if script == "train.py":
            arm, seed = folder.name.rsplit("-s", 1)
            rows = [
                {"epoch": epoch, "train_loss": 1.0, "top1": TOP1[arm, int(seed)], "seconds": 5.0} for epoch in (1, 2)
            ]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            (folder / "curves.png").touch()
        else:
            names = [path.split("/")[-3] for path in given["checkpoint"].strip("[]").split(",")]
            measured = {"params": 144314, "flops": 3_210_000, "img_per_s": 1000.0}
            results = [{"top1": TOP1[name[:-3], int(name[-1])] + 0.25, **measured} for name in names]
            (folder / "eval.json").write_text(json.dumps(results))
        return started([sys.executable, "-c", "print('trained')"], **options)

    monkeypatch.setattr(quickstart, "ROOT", tmp_path)
    monkeypatch.setattr(quickstart.subprocess, "Popen", answer)
    return called


def test_every_seed_trains_both_networks_and_the_table_has_their_spread(commands, tmp_path, capsys):
    assert quickstart.main(["--seeds", "0,1", "--root", "runs/q", "--jobs", "1", "recipe.epochs=2"]) == 0
    assert [command[0] for command in commands] == ["train.py"] * 4 + ["eval.py", "scripts/report.py"]
    expected = ["+experiment=quickstart", "surgery=none", "seed=0", "run.dir=runs/q/plain-s0", "runtime.threads=1"]
    assert commands[0][1:] == [*expected, "recipe.epochs=2"]
    folders = [f"runs/q/{arm}-s{seed}/checkpoints/last.pt" for seed in (0, 1) for arm in ("plain", "dcls")]
    assert commands[4][1] == f"checkpoint=[{','.join(folders)}]"
    page = ["run.dir=runs/q/dcls-s0", "against=runs/q/plain-s0", "out=runs/q/report.html", "threads=1"]
    assert commands[5][1:] == page
    table = (tmp_path / "runs/q/table.md").read_text()
    assert "| plain | 87.50 (sd 0.71) | 87.75 (sd 0.71) | 144,314 | 3.2 M | 1,000 | 10 |" in table
    assert "DCLS minus plain, EMA top-1, paired over 2 seeds: +0.30 (se 0.20)." in table
    shown = capsys.readouterr().out
    assert "dcls-s1   | trained" in shown
    for text in ("chance level 10 %", "no difference between plain and DCLS", "runs/q/comparison.png"):
        assert text in " ".join(shown.split())
    assert "runs/q/dcls-s0/curves.png" in shown
    assert "positions.png" not in shown  # it was not drawn
    assert (tmp_path / "runs/q/comparison.png").stat().st_size > 10_000


def test_one_seed_has_no_spread_and_claims_no_difference(commands, tmp_path):
    quickstart.main(["--root", "runs/q"])
    table = (tmp_path / "runs/q/table.md").read_text()
    assert "| DCLS | 87.50 | 87.75 |" in table
    assert "paired" not in table


def test_a_failing_command_ends_it_with_its_exit_code(tmp_path, monkeypatch, capsys):
    (tmp_path / "train.py").write_text("raise SystemExit(2)")
    monkeypatch.setattr(quickstart, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match="2"):
        quickstart.main([])
    assert "plain-s0  | $ python train.py" in capsys.readouterr().out


def test_it_runs_from_anywhere():
    script = quickstart.ROOT / "scripts" / "quickstart.py"
    done = subprocess.run([sys.executable, script, "--help"], cwd="/", capture_output=True, text=True)
    assert done.returncode == 0
    assert "--seeds" in done.stdout
