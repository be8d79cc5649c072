import checkout

import json
import subprocess
import sys

import pytest
import torch

from scripts import benchmark


def tiny(*arguments):
    return benchmark.main([*arguments, "--tiny", "--seconds", "0.01", "--threads", "1"])


@pytest.mark.parametrize("bench", benchmark.BENCHES)
def test_every_benchmark_reports_each_peer_in_three_files(bench, tmp_path, capsys, monkeypatch):
    # The processes of the memory rows have a test of their own.
    monkeypatch.setattr(benchmark.memory, "compared", lambda *arguments: [])
    assert tiny(bench, "--out", str(tmp_path)) == 0
    rows = json.loads((tmp_path / f"{bench}.json").read_text())
    assert {row["bench"] for row in rows} == {bench}
    assert all({"case", "peer", "ours_ms", "peer_ms", "ratio", "ratio_q1", "ratio_q3"} <= set(row) for row in rows)
    assert all(row["ratio_q1"] <= row["ratio"] <= row["ratio_q3"] for row in rows)
    table = (tmp_path / f"{bench}.md").read_text()
    assert all(f"| {row['case']} | {row['peer']} |" in table for row in rows)
    for text in ("1 threads", f"torch {torch.__version__.partition('+')[0]}", "revision"):
        assert text in table
    assert (tmp_path / f"{bench}.png").stat().st_size > 10_000
    assert rows[0]["peer"] in capsys.readouterr().out


def test_a_wrong_result_is_not_reported(tmp_path, capsys, monkeypatch):
    from benchmarks import construct  # benchmark.py has put its folder on the path

    right = construct.construct
    monkeypatch.setattr(construct, "construct", lambda *arguments: right(*arguments) * 1.001)
    assert tiny("construct", "--out", str(tmp_path)) == 1
    assert "result 0 of ours is off by 1.0e-03" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_result_that_is_no_number_is_wrong(capsys, monkeypatch):
    from benchmarks import construct  # benchmark.py has put its folder on the path

    right = construct.construct
    monkeypatch.setattr(construct, "construct", lambda *arguments: right(*arguments) * torch.nan)
    assert tiny("construct") == 1
    assert "off by nan" in capsys.readouterr().err


def test_a_text_that_no_case_holds_is_told(capsys):
    assert tiny("construct", "--only", "v7") == 2
    assert "--only 'v7'" in capsys.readouterr().err


def test_no_case_is_begun_after_the_time_given(tmp_path):
    """What is there is reported, with a line on what is not, and without sums over a part of a group."""
    assert tiny("layer", "--within", "0", "--out", str(tmp_path)) == 0
    rows = json.loads((tmp_path / "layer.json").read_text())
    assert {row["case"] for row in rows} == {"v0, 8x6x6, 17x17, N=8"}
    assert "left out, by --within 0: 'v0, 16x3x3" in (tmp_path / "layer.md").read_text()


@pytest.mark.parametrize("bench", ["conv", "layer", "model"])
def test_lower_precision_by_autocast(bench, capsys, monkeypatch):
    monkeypatch.setattr(benchmark.memory, "compared", lambda *arguments: [])
    only = ["--only", "training"] if bench == "model" else []
    assert tiny(bench, "--dtype", "bf16", "--no-reference", *only) == 0
    shown = capsys.readouterr().out
    assert "bf16" in shown
    assert "left out: the reference package" in shown
    assert "DCLS 0.1.1 " not in shown.partition("ratio above 1")[0]


def test_another_backend_is_ours_then(capsys, monkeypatch):
    monkeypatch.setattr(benchmark.memory, "compared", lambda *arguments: [])
    try:
        assert tiny("conv", "--backend", "torch") == 0
        assert benchmark.dispatch.get_backend() == "torch"
    finally:
        benchmark.ops.set_backend("auto")
    assert "backend torch" in capsys.readouterr().out


def test_groups_are_summed_round_by_round():
    parts = [{"ours": [1.0, 2.0], "peer": [2.0, 2.0]}, {"ours": [1.0, 2.0, 9.0], "peer": [4.0, 6.0, 9.0]}]
    (row,) = benchmark.against_peers("layer", "together", benchmark.summed(parts))
    assert (row.ours, row.theirs, row.ratio) == (3.0, 7.0, 2.5)


WASTEFUL = """
import torch
from benchmarks import memory
from benchmarks.contest import Contest

run = {"ours": lambda: [torch.ones(10 * 2**20).sum()], "peer": lambda: [torch.ones(10).sum()]}
print(memory.peak([Contest("memory", "waste", run, list)], [], "waste", sys.argv[1]))
"""


@pytest.mark.skipif(not benchmark.memory.CLEAR.exists(), reason="peak memory is read from Linux's /proc")
def test_peak_memory_is_the_candidates_own():
    """40 MiB that are made and dropped count, and so they are ours; in processes that hold nothing to reuse."""
    path = f"import sys; sys.path[:0] = {[str(checkout.SCRIPTS), str(checkout.ROOT)]}"
    peaks = {
        name: float(subprocess.check_output([sys.executable, "-c", path + WASTEFUL, name], text=True))
        for name in ("ours", "peer")
    }
    assert 38 < peaks["ours"] < 48
    assert peaks["peer"] < 5


@pytest.mark.skipif(not benchmark.memory.CLEAR.exists(), reason="peak memory is read from Linux's /proc")
def test_memory_has_rows_of_its_own_from_processes_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark.memory, "REPEATS", 1)
    assert tiny("construct", "--only", "v0, dense", "--out", str(tmp_path)) == 0
    rows = json.loads((tmp_path / "construct.json").read_text())
    peers = [row["peer"] for row in rows if "ours_mib" in row]
    assert peers == [row["peer"] for row in rows if "ours_ms" in row]
    assert "MiB" in (tmp_path / "construct.md").read_text()


def test_it_runs_from_anywhere():
    script = checkout.SCRIPTS / "benchmark.py"
    done = subprocess.run([sys.executable, script, "--help"], cwd="/", capture_output=True, text=True)
    assert done.returncode == 0
    assert "--seconds" in done.stdout
