import csv
import json
import math
import statistics
from dataclasses import asdict
from pathlib import Path

import pytest
import timm
import yaml

from dcls.analysis import complexity
from dcls.errors import reported
from models.shortcuts import RELEASED
from scripts import gradcam, reproduce
from scripts.reproduce import TABLES, results, robustness
from scripts.reproduce import gradcam as heat_maps


def run(*arguments):
    return reported(lambda: reproduce.main(arguments))


def evaluated(path, checkpoint, **row):
    """What eval.py would leave."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps([{"checkpoint": checkpoint, **row}]))


def finish(root, table, arm_name, seed, top1, **changes):
    """What train.py would leave of a run at mini scale."""
    arm = next(arm for arm in TABLES[table].arms["mini"] if arm.name == arm_name)
    wanted = results.wanted(arm, seed, "mini", root, ())
    config = asdict(wanted.config)
    config["runtime"] |= {"device": "cpu", "amp": "off"}
    config["recipe"] |= changes
    wanted.folder.mkdir(parents=True)
    (wanted.folder / "config.yaml").write_text(yaml.safe_dump(config))
    (wanted.folder / "summary.json").write_text(json.dumps({"top1": top1 - 1, "top1_ema": top1}))


def test_a_table_has_costs_accuracies_and_paired_differences(tmp_path, capsys):
    plain, ours = [87.0, 88.0, 87.4], [87.5, 88.2, 88.3]
    for seed in range(3):
        finish(tmp_path, "interpolations", "plain", seed, plain[seed])
        finish(tmp_path, "interpolations", "dcls_v0", seed, ours[seed])
    options = ["table=interpolations", "scale=mini", "seconds=0", f"root={tmp_path}", f"out={tmp_path / 'out'}"]
    assert run(*options) == 0
    text = (tmp_path / "out" / "interpolations-mini.md").read_text()
    gains = [b - a for a, b in zip(plain, ours, strict=True)]
    half = 4.303 * statistics.stdev(gains) / math.sqrt(3)  # Student's t, 2 degrees of freedom
    assert "| ConvNeXt, 7x7 | 144,314 | 3.1 M | 87.47 ± 0.50 | - | 3 |" in text
    assert (
        f"| DCLS v0, 13x13 | 144,090 | 4.3 M | 88.00 ± 0.44 | {statistics.fmean(gains):+.2f} ± {half:.2f} | 3 |" in text
    )
    assert "| DCLS gauss, 13x13 | 144,090 | 4.3 M | - | - | - |" in text
    # 5 arms of 5 seeds, less the 6 that are finished
    assert "not run here: 19 runs" in text
    assert text.count("    python train.py +experiment=quickstart surgery=") == 19
    rows = list(csv.DictReader((tmp_path / "out" / "interpolations-mini.csv").read_text().splitlines()))
    assert [row["top1_ema"] for row in rows if row["model"] == "DCLS v0, 13x13"] == ["87.5", "88.2", "88.3"]
    assert (tmp_path / "out" / "interpolations-mini.png").stat().st_size > 10_000
    assert "88.00 ± 0.44" in capsys.readouterr().out


def test_published_figures_stand_beside_ours_and_released_weights_too(tmp_path):
    (tmp_path / "convnext_dcls_tiny.paper").mkdir()
    evaluated(
        tmp_path / "convnext_dcls_tiny.paper" / "eval.json", "convnext_dcls_tiny.paper", top1=82.41, images=50_000
    )
    options = ["table=interpolations", "seconds=0", f"root={tmp_path}", f"out={tmp_path}"]
    assert run(*options) == 0
    text = (tmp_path / "interpolations.md").read_text()
    assert "| v0, 17x17 | 28,587,688 | 28 M | 4.985 G | 5 G | - | 82.5 | 82.41 | - |" in text
    assert "| max, 17x17, SIG from 0.5 | 28,586,536 | - | 4.985 G | - | - | - | - | - |" in text
    assert "| model | parameters | paper: parameters | FLOPs | paper: FLOPs | top-1 % (EMA) | paper: top-1 % |" in text
    assert text.count(" data.root=/path/to/imagenet\n") == 5, "each command can be pasted"
    assert (tmp_path / "interpolations.png").stat().st_size > 10_000
    assert "ema.shared=per_block" in text
    gauss = "convnext_dcls_gauss_tiny.paper"
    folder = f"run.dir={tmp_path / gauss}"
    assert f"python eval.py checkpoint={gauss} data=imagenet data.root=/path/to/imagenet {folder}" in text
    named = {arm.released for table in TABLES.values() for arm in table.arms.get("full", ()) if arm.released}
    assert named <= RELEASED.keys()


def test_missing_runs_are_started_one_after_another(tmp_path, monkeypatch):
    called = []

    def call(script, *arguments, label, folder):
        assert folder == Path.cwd()
        called.append((script, *arguments))
        arm, seed = arguments[-2].rpartition("/")[2].rsplit("-s", 1)
        finish(tmp_path, "resnet50", arm, int(seed), 80.0)

    monkeypatch.setattr(reproduce, "call", call)
    options = ["table=resnet50", "scale=mini", "run=missing", "seeds=3", "seconds=0", f"root={tmp_path}"]
    assert run(*options, f"out={tmp_path}") == 0
    names = [arm.name for arm in TABLES["resnet50"].arms["mini"]]
    assert [Path(words[-2]).name for words in called] == [f"{name}-s3" for name in names]
    network = ("model.name=resnet18", "model.args={channels: [16, 16, 32, 64]}")
    folder = f"run.dir={tmp_path / 'mini' / 'resnet_plain-s3'}"
    choices = ("+experiment=quickstart", *network, "surgery=none", "seed=3", folder)
    assert called[0] == ("train.py", *choices, "runtime.threads=1")
    assert "not run here" not in (tmp_path / "resnet50-mini.md").read_text()
    assert run(*options, f"out={tmp_path}") == 0
    assert len(called) == len(names)


def test_speeds_are_relative_to_the_first_row():
    asked = reproduce.parsed(["table=interpolations", "scale=mini", "seeds=0", "seconds=0.01", "batch=2"])
    arms = TABLES["interpolations"].arms["mini"][:2]
    runs = {(arm.name, 0): results.wanted(arm, 0, "mini", reproduce.Path("runs"), ()) for arm in arms}
    rows = reproduce.with_speeds([reproduce.Row(arm, 0, 0, {}, {}, {}, None) for arm in arms], runs, asked)
    assert rows[0].speeds["train"].ratio == rows[0].speeds["inference"].ratio == 1
    assert all(row.speeds[kind].latency > 0 for row in rows for kind in ("train", "inference"))


def test_robustness_is_read_from_what_eval_wrote(tmp_path):
    released = tmp_path / "convnext_dcls_tiny.paper"
    trained, second = (tmp_path / f"convnext_small-s{seed}" for seed in (0, 1))
    for folder, kind, row in (
        (released, "imagenet_c", {"top1": 40.0, "mce": 51.25, "images": 3_750_000}),
        (released, "imagenet_a", {"top1": 22.5, "images": 200}),
        (trained, "imagenet_real", {"top1": 88.125, "images": 46_837}),
        (second, "imagenet_real", {"top1": 88.5, "images": 46_837}),
    ):
        checkpoint = folder.name if folder is released else str(folder / "checkpoints" / "last.pt")
        evaluated(folder / f"eval_{kind}.json", checkpoint, **row)
    assert run("table=robustness", "seeds=0,1", f"root={tmp_path}", f"out={tmp_path}") == 0
    text = (tmp_path / "robustness.md").read_text()
    assert "| model | parameters | FLOPs | -C: mCE % | -A | -R | -Sketch | -V2 | ReaL | paper |" in text
    costs = "28,587,688 | 4.985 G"
    assert f"| ConvNeXt-T-dcls, released | {costs} | 51.25 | 22.50 (200 images) | - | - | - | - | - |" in text
    assert "| 8.705 G | - | - | - | - | - | 88.31 ± 0.27 | - |" in text
    assert "ema.shared=per_block" in text
    # 7 trained networks, twice, and 3 released ones on 6 sets, less the 4 that are there
    assert text.count("    python eval.py checkpoint=") == 98
    assert "not run here: 98 evaluations" in text
    checkpoint = trained / "checkpoints" / "last.pt"
    asked = f"checkpoint={checkpoint} data=imagenet_a data.root=/path/to/imagenet-a run.dir={trained}"
    assert f"    python eval.py {asked}\n" in text
    assert len((tmp_path / "robustness.csv").read_text().splitlines()) == 11
    assert (tmp_path / "robustness.png").stat().st_size > 10_000


def test_missing_evaluations_of_what_is_there_are_started(tmp_path, monkeypatch):
    """Of the sets -A and ReaL alone, and of a trained network and the released ones, which may be fetched."""
    called, sets = [], tmp_path / "all sets"
    for name in ("imagenet-a", "imagenet"):
        (sets / name).mkdir(parents=True)
    checkpoint = tmp_path / "convnext_small-s1" / "checkpoints" / "last.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    monkeypatch.setattr(reproduce, "call", lambda *command, folder: called.append(command))
    monkeypatch.setattr(robustness.cost, "count", lambda *_: complexity.Cost(1, 1, 1, {}, {}))
    where = [f"data.root={sets}", f"root={tmp_path}", f"out={tmp_path}"]
    assert run("table=robustness", "seeds=1", "run=missing", *where) == 0
    assert len(called) == 8
    of_run = f"checkpoint={checkpoint}", f"run.dir={checkpoint.parent.parent}"
    for kind, folder in (("imagenet_a", "imagenet-a"), ("imagenet_real", "imagenet")):
        assert ("eval.py", of_run[0], f"data={kind}", f"data.root={sets / folder}", of_run[1]) in called


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"checkpoint": "other.pt", "top1": 12.34, "images": 8}]', "is about other.pt, expected convnext_dcls_tiny"),
        ('[{"checkpoint": "convnext_dcls_ti', "is not what eval.py writes"),
        ("[]", "is about nothing"),
    ],
)
def test_another_evaluation_in_the_place_of_one_is_refused(text, expected, tmp_path, capsys):
    (tmp_path / "convnext_dcls_tiny.paper").mkdir()
    (tmp_path / "convnext_dcls_tiny.paper" / "eval.json").write_text(text)
    assert run("table=interpolations", "seconds=0", f"root={tmp_path}", f"out={tmp_path}") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert expected in error


def test_a_table_without_runs_keeps_its_columns_and_says_what_it_wrote(tmp_path, capsys):
    assert run("table=reach", "scale=mini", "seconds=0", f"root={tmp_path}", f"out={tmp_path}") == 0
    assert "| ConvNeXt, dense 7x7: 49 weights | 59,210 | 1.7 M | - | - |" in (tmp_path / "reach-mini.md").read_text()
    assert "reach-mini.md and .csv\n" in capsys.readouterr().out
    assert not (tmp_path / "reach-mini.png").exists()


def test_no_run_is_begun_after_one_that_failed(tmp_path, monkeypatch):
    begun = []

    def call(script, *arguments, label, folder):
        begun.append(arguments)
        raise SystemExit(7)

    monkeypatch.setattr(reproduce, "call", call)
    with pytest.raises(SystemExit, match="7"):
        reproduce.main(
            ["table=resnet50", "scale=mini", "run=missing", "seconds=0", f"root={tmp_path}", f"out={tmp_path}"]
        )
    assert len(begun) < 3


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["table=robust"], "table=robust: choose one of imagenet"),
        (["table=imagenet", "scale=half"], "scale=half: choose one of full, mini"),
        (["table=reach"], "scale=full: table=reach has mini alone"),
        (["table=robustness", "scale=mini"], "scale=mini has no effect: table=robustness neither"),
        (["table=robustness", "jobs=4"], "jobs=4 has no effect"),
        (["table=robustness", "run=missing", "data.root=/none"], "run=missing: data.root=/none is no folder"),
        (["table=robustness", "run=missing"], "run=missing: data.root=? is no folder"),
        (["table=imagenet", "seeds=x"], "seeds=x"),
        (["table=imagenet", "seeds=0,0"], "seeds=0,0: must be different numbers"),
        (["table=imagenet", "jobs=0"], "jobs=0: must be a number from 1 on"),
        (["table=imagenet", "batch=-2"], "batch=-2"),
        (["table=imagenet", "seconds=nan"], "seconds=nan"),
        (["table=imagenet", "seconds=long"], "seconds=long"),
        (["table=imagenet", "data.rot=/x"], "did you mean data.root"),
        (["imagenet"], "table=imagenet"),
        (["table=gradcam", "scale=mini"], "scale=mini has no effect: table=gradcam neither trains"),
        (["table=gradcam", "run=missing"], "run=missing: table=gradcam needs clickme="),
        (
            ["table=gradcam", "data.root=/x"],
            "data.root=/x has no effect: table=gradcam takes root, out, run and clickme",
        ),
        (["table=imagenet", "out=/dev/null/x"], "out=/dev/null/x: cannot be written"),
    ],
)
def test_bad_input_is_one_line(arguments, expected, capsys):
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert expected in error


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("summary.json", '{"top1": 3', "summary.json is torn"),
        ("summary.json", "[]", "summary.json holds list"),
        ("config.yaml", "a: [", "config.yaml is torn"),
        ("config.yaml", "", "config.yaml holds NoneType"),
    ],
)
def test_a_torn_run_is_one_line(name, text, expected, tmp_path, capsys):
    finish(tmp_path, "imagenet", "plain", 0, 90.0)
    (tmp_path / "mini" / "plain-s0" / name).write_text(text)
    assert run("table=imagenet", "scale=mini", "seeds=0", f"root={tmp_path}", f"out={tmp_path}") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert expected in error


def test_seeds_needed_are_those_of_a_paired_t_test():
    """G*Power 3.1, two-sided, power 0.8 at 5 %: effects of 1, 0.5 and 0.8 need 10, 34 and 15 pairs."""
    gains = (results.Difference(0.0, 0.0, 0.3 / effect, 5) for effect in (1.0, 0.5, 0.8))
    assert [gain.seeds_for for gain in gains] == [10, 34, 15]


def test_another_run_in_the_place_of_a_row_is_refused(tmp_path, capsys):
    finish(tmp_path, "imagenet", "plain", 0, 90.0, epochs=3)
    assert run("table=imagenet", "scale=mini", "seeds=0", f"root={tmp_path}", f"out={tmp_path}") == 2
    assert "holds another run than the table asks for (recipe.epochs differ)" in capsys.readouterr().err


def scored(root, name, checkpoint, **methods):
    """What scripts/gradcam.py would leave."""
    (root / name).mkdir()
    found = {
        method: {"score": score, "standard_error": 0.0015, "images": 90, "skipped": 10}
        for method, score in methods.items()
    }
    (root / name / "gradcam.json").write_text(json.dumps({"checkpoint": checkpoint, "methods": found}))


@pytest.fixture
def quickly_counted(monkeypatch):
    """All sixteen networks take a minute."""
    cost = heat_maps.cost
    shown = {"convnext_tiny.fb_in1k", "convformer_s18_dcls.paper"}
    monkeypatch.setattr(
        heat_maps, "cost", lambda row: cost(row) if row.network in shown else complexity.Cost(1, 1, 1, {}, {})
    )


def test_missing_heat_map_scores_are_started(tmp_path, monkeypatch, quickly_counted):
    called = []

    def call(script, *arguments, folder):
        called.append((script, *arguments))
        name = Path(arguments[-1].removeprefix("out=")).name
        scored(tmp_path, name, name, gradcam=0.5, threshold=0.6)

    monkeypatch.setattr(reproduce, "call", call)
    where = [f"root={tmp_path}", f"out={tmp_path}"]
    assert run("table=gradcam", "clickme=/data/cm", "run=missing", *where) == 0
    assert len(called) == 16
    released = "convnext_dcls_tiny.paper"
    wanted = f"checkpoint={released}", "data.crop_pct=0.875", "clickme=/data/cm", f"out={tmp_path / released}"
    assert called[3] == ("scripts/gradcam.py", *wanted)
    assert "not run here" not in (tmp_path / "gradcam.md").read_text()


def test_heat_map_scores_stand_beside_dashes_and_the_commands_that_fill_them(tmp_path, quickly_counted):
    scored(tmp_path, "convnext_tiny.fb_in1k", "convnext_tiny.fb_in1k", gradcam=0.5, threshold=0.6125)
    scored(tmp_path, "convnext_dcls_tiny.paper", "convnext_dcls_tiny.paper", gradcam=0.55)
    assert run("table=gradcam", "clickme=/data/cm", f"root={tmp_path}", f"out={tmp_path}") == 0
    text = (tmp_path / "gradcam.md").read_text()
    assert "| ConvNeXt-T | 28,589,128 | 4.470 G | 0.500 ± 0.002 | - | 0.613 ± 0.002 | - | 100 |" in text
    assert "| ConvNeXt-T-dcls | 1 | 0.0 M | 0.550 ± 0.002 | - | - | - | 100 |" in text
    assert "| FastViT-SA36-dcls | 1 | 0.0 M | - | - | - | - | - |" in text
    assert "| ConvFormer-S18-dcls | 26,848,432 | 4.700 G | - " in text  # the released 40 taps
    assert "its scores could not be read from here" in text
    assert "not run here: 15 evaluations" in text
    commands = [line.split()[2:] for line in text.splitlines() if line.startswith("    python scripts/gradcam.py")]
    assert len(commands) == 15
    assert [
        "checkpoint=convnext_dcls_tiny.paper",
        "data.crop_pct=0.875",
        "clickme=/data/cm",
        f"out={tmp_path}/convnext_dcls_tiny.paper",
    ] in commands
    for command in commands:
        asked, config = gradcam.parsed(command)
        assert asked.clickme == "/data/cm"
        assert config.checkpoint in ("", *RELEASED)
        assert config.checkpoint or timm.is_model_pretrained(config.model.name)
        assert ("data.crop_pct=1" in command) == ("fastvit" in config.checkpoint + config.model.name)
    rows = list(csv.DictReader((tmp_path / "gradcam.csv").read_text().splitlines()))
    assert [row["score"] for row in rows if row["model"].startswith("ConvNeXt-T")] == ["0.5", "0.6125", "0.55", ""]
    assert (tmp_path / "gradcam.png").stat().st_size > 10_000


@pytest.mark.parametrize("text", ['{"checkpoint": "conv', "{}", "[]"])
def test_torn_scores_are_one_line(text, tmp_path, capsys):
    (tmp_path / "resnet50.a1_in1k").mkdir()
    (tmp_path / "resnet50.a1_in1k" / "gradcam.json").write_text(text)
    assert run("table=gradcam", f"root={tmp_path}", f"out={tmp_path}") == 2
    assert "gradcam.json is not what scripts/gradcam.py writes" in capsys.readouterr().err


def test_the_scores_of_another_network_are_refused(tmp_path, capsys):
    scored(tmp_path, "convnext_dcls_tiny.paper", "best.pt", gradcam=0.5)
    assert run("table=gradcam", f"root={tmp_path}", f"out={tmp_path}") == 2
    assert "has the scores of best.pt, expected those of convnext_dcls_tiny.paper" in capsys.readouterr().err
