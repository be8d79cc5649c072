"""train.py and eval.py as their users meet them, on a tree of 64 real images."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import eval as evaluation
import models
import train
from dcls.analysis import pictures
from dcls.engine.loop import Autosave
from dcls.errors import reported
from dcls.files.checkpoints import Checkpoints, load
from dcls.ops import cpu, dispatch
from dcls.runtime.processes import StopRequest

ROOT = Path(__file__).parents[1]
EPOCHS, STEPS = 3, 12  # 64 images in batches of 16


def options(tree: Path, folder: Path, *more: str) -> list[str]:
    data = ["data=folder", f"data.root={tree}", "data.channels=1", "data.mean=[0.286]", "data.std=[0.353]"]
    recipe = [
        f"recipe.epochs={EPOCHS}",
        "recipe.global_batch=16",
        "recipe.slot=8",
        "data.workers=0",
        "runtime.threads=1",
    ]
    return ["+experiment=quickstart", *data, *recipe, f"run.dir={folder}", "logger.progress=off", *more]


def run(arguments: list[str]) -> int:
    return reported(lambda: train.main(arguments))


@pytest.fixture(scope="module")
def finished(image_tree, tmp_path_factory) -> Path:
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("finished")
    assert run(options(image_tree, folder)) == 0
    return folder


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_end(folder: Path, other: Path) -> None:
    """Weights and averages equal to the last bit, and the same rows up to what a clock says."""
    one, two = (load(each / "checkpoints" / "last.pt") for each in (folder, other))
    for part in ("model", "ema"):
        assert one[part].keys() == two[part].keys()
        assert [name for name in one[part] if not torch.equal(one[part][name], two[part][name])] == []
    clocks = {"seconds", "data_wait", "train_img_per_s", "eval_img_per_s"}
    rows = [[{k: v for k, v in row.items() if k not in clocks} for row in rows_of(each)] for each in (folder, other)]
    assert rows[0] == rows[1]


def test_what_a_run_leaves(finished):
    written = {str(path.relative_to(finished)) for path in finished.rglob("*")}
    files = {"config.yaml", "metrics.jsonl", "summary.json", "positions.npz"}
    pictures = {"positions.png", "kernels.png", "curves.png"}
    assert files | pictures | {"checkpoints/last.pt", "checkpoints/best.pt"} <= written
    rows = rows_of(finished)
    assert [(row["epoch"], row["step"], row["images"], row["eval_images"]) for row in rows] == [
        (1, 4, 64, 20),
        (2, 8, 64, 20),
        (3, 12, 64, 20),
    ]
    assert rows[-1]["position_lr"] == pytest.approx(5 * rows[-1]["lr"])
    assert len(rows[-1]["positions"]) == 3
    assert all(stage["movement"] > 0.01 for stage in rows[-1]["positions"].values())
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["top1"] == rows[-1]["top1"]
    assert summary["top1_ema"] == rows[-1]["top1_ema"]
    assert summary["params"] == 143_316
    assert min(summary[name] for name in ("flops", "train_img_per_s", "eval_img_per_s", "peak_memory_bytes")) > 0
    with np.load(finished / "positions.npz") as arrays:
        assert len(arrays.files) == 3 * (EPOCHS + 1)


def stop_at(monkeypatch, *steps: int) -> None:
    """Ask to stop after so many steps of this start, one number a start."""
    left = iter(steps)
    state = {"until": next(left)}

    def agreed(self) -> bool:
        state["until"] -= 1
        if state["until"]:
            return False
        state["until"] = next(left, -1)
        return True

    monkeypatch.setattr(StopRequest, "agreed", agreed)


def test_a_run_stopped_anywhere_ends_with_the_same_bits(finished, image_tree, tmp_path, monkeypatch):
    """In mid-epoch, twice within one epoch, at the last step of an epoch; with other numbers of workers."""
    stop_at(monkeypatch, 5, 1, 2, 3)
    for workers in (0, 2, 1, 0):
        assert run(options(image_tree, tmp_path, f"data.workers={workers}")) == train.STOPPED
    assert load(tmp_path / "checkpoints" / "last.pt")["step"] == 11
    assert run(options(image_tree, tmp_path)) == 0
    assert_same_end(finished, tmp_path)


def test_a_run_that_is_killed_ends_with_the_same_bits(finished, image_tree, tmp_path):
    command = [sys.executable, "train.py", *options(image_tree, tmp_path, "run.save_minutes=0.00001")]
    with subprocess.Popen(command, cwd=ROOT) as process:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("checkpoints/step-5.*")):
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
    assert load(tmp_path / "checkpoints" / "last.pt")["step"] < STEPS
    assert run(options(image_tree, tmp_path)) == 0
    assert_same_end(finished, tmp_path)


def test_two_processes_give_the_curve_of_one(finished, image_tree, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run([*torchrun, "train.py", *options(image_tree, tmp_path)], cwd=ROOT, timeout=240)
    assert done.returncode == 0
    one, two = rows_of(finished), rows_of(tmp_path)
    assert [row["eval_images"] for row in two] == [20] * EPOCHS
    for name in ("train_loss", "eval_loss", "eval_loss_ema"):
        assert [row[name] for row in two] == pytest.approx([row[name] for row in one], rel=2e-3)


def test_starting_again_is_continuing(finished, image_tree, capsys):
    before = rows_of(finished)
    # auto stands for these on a machine without CUDA
    assert run(options(image_tree, finished, "runtime.device=cpu", "runtime.amp=off")) == 0
    assert rows_of(finished) == before
    assert "continuing step-12" in capsys.readouterr().out


def test_a_run_that_goes_on_elsewhere_says_so(image_tree, tmp_path, monkeypatch, capsys):
    stop_at(monkeypatch, 5)
    assert run(options(image_tree, tmp_path, "runtime.threads=1")) == train.STOPPED
    assert "bits may differ" not in capsys.readouterr().out
    assert run(options(image_tree, tmp_path, "runtime.threads=2")) == 0
    assert "threads 1 before, 2 now: from here on bits may differ" in capsys.readouterr().out
    assert threads_of(tmp_path) == [1, 2]
    assert run(options(image_tree, tmp_path, "runtime.threads=1")) == 0  # nothing is left to compute
    assert threads_of(tmp_path) == [1, 2]


def threads_of(folder: Path) -> list[int]:
    summary = json.loads((folder / "summary.json").read_text())
    return [each["threads"] for each in (*summary["machines_before"], summary["machine"])]


def test_convolutions_of_another_machine_are_another_run(finished, image_tree, capsys, monkeypatch):
    """Here they ran in generated code, there without llvmlite by torch's operators: other roundings."""
    monkeypatch.setattr(cpu, "unavailable", lambda: "llvmlite is not installed")
    assert run(options(image_tree, finished)) == 2
    error = capsys.readouterr().err
    assert "computed by cpu, torch, and this machine has torch" in error
    assert run(options(image_tree, finished, "runtime.conv_backend=cpu")) == 2
    assert "runtime.conv_backend=cpu cannot be used: llvmlite is not installed" in capsys.readouterr().err
    dispatch.set_backend("auto")


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("runtime.conv_backend=torch", "runtime.conv_backend (auto there, torch here)"),
        ("recipe.lr=1e-3", "recipe.lr (0.004 there, 0.001 here)"),
        ("seed=3", "seed (0 there, 3 here)"),
        ("surgery.kernel_count=7", "surgery.kernel_count"),
        ("recipe.epochs=5", "run.extend=true does so on purpose"),
    ],
)
def test_another_run_in_the_same_folder_is_refused(finished, image_tree, capsys, option, named):
    assert run(options(image_tree, finished, option)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "run.dir" in error
    assert named in error


def test_a_run_is_extended_on_purpose(image_tree, tmp_path):
    assert run(options(image_tree, tmp_path, "recipe.epochs=2")) == 0
    assert run(options(image_tree, tmp_path, "recipe.epochs=3", "run.extend=true")) == 0
    assert [row["epoch"] for row in rows_of(tmp_path)] == [1, 2, 3]


def test_a_run_is_not_extended_to_fewer_epochs_than_it_has_begun(image_tree, tmp_path, capsys, monkeypatch):
    stop_at(monkeypatch, 9)
    assert run(options(image_tree, tmp_path)) == train.STOPPED
    assert run(options(image_tree, tmp_path, "recipe.epochs=2", "run.extend=true")) == 2
    assert f"recipe.epochs=2: the run in run.dir={tmp_path} is amid epoch 3" in capsys.readouterr().err


def test_an_update_that_spoils_the_network_is_not_saved(tmp_path):
    """The loss before it was finite."""
    model = torch.nn.Linear(2, 2)
    state = SimpleNamespace(model=model, step=7, loss_sum=torch.ones(()), state_dict=lambda: {"step": 7})
    autosave = Autosave(Checkpoints(tmp_path), state, None, main=True, minutes=1)
    autosave.save()
    saved = set(tmp_path.iterdir())
    for value in (torch.inf, torch.nan):
        model.bias.data[1] = value
        with pytest.raises(FloatingPointError, match=f"the largest parameter is {value} at step 7: lower recipe.lr"):
            autosave.save()
    assert set(tmp_path.iterdir()) == saved


def test_a_run_that_diverges_keeps_its_last_finite_checkpoint(image_tree, tmp_path):
    wild = options(image_tree, tmp_path, "recipe.lr=1e30", "run.save_minutes=0.00001")
    with pytest.raises(FloatingPointError, match=r"lower recipe.lr"):
        run(wild)
    saved = load(tmp_path / "checkpoints" / "last.pt")
    assert np.isfinite(saved["running"]["loss_sum"])


def test_a_torn_checkpoint_costs_one_checkpoint(image_tree, tmp_path, monkeypatch, finished):
    stop_at(monkeypatch, 6)
    assert run(options(image_tree, tmp_path)) == train.STOPPED
    torn = (tmp_path / "checkpoints" / "last.pt").resolve()
    content = bytearray(torn.read_bytes())
    content[len(content) // 3] ^= 4
    torn.write_bytes(content)
    assert run(options(image_tree, tmp_path)) == 0  # from the end of the first epoch
    assert_same_end(finished, tmp_path)


def test_a_validation_split_that_changed_is_another_run(image_tree, tmp_path, capsys, monkeypatch):
    tree = tmp_path / "tree"
    subprocess.run(["cp", "-r", str(image_tree), str(tree)], check=True)
    stop_at(monkeypatch, 1)
    assert run(options(tree, tmp_path / "run")) == train.STOPPED
    sorted((tree / "val" / "class1").iterdir())[0].unlink()
    assert run(options(tree, tmp_path / "run")) == 2
    assert "other val images" in capsys.readouterr().err


# eval.py


def test_evaluation_repeats_the_run(finished, tmp_path, image_tree):
    last, best = (str(finished / "checkpoints" / name) for name in ("last.pt", "best.pt"))
    arguments = [f"checkpoint=[{last},{best}]", f"run.dir={tmp_path}", "data.workers=0"]
    assert reported(lambda: evaluation.main(arguments)) == 0
    rows = json.loads((tmp_path / "eval.json").read_text())
    assert [row["checkpoint"] for row in rows] == [last, best]
    end = rows_of(finished)[-1]
    assert rows[0]["top1"] == end["top1_ema"]
    assert rows[0]["loss"] == pytest.approx(end["eval_loss_ema"], rel=1e-5)
    assert rows[0]["images"] == 20
    assert (tmp_path / "eval.csv").read_text().startswith("model,top1,top1_err,top5,top5_err,param_count,img_size")


def test_fusing_changes_nothing_that_is_measured(finished, tmp_path):
    arguments = [f"checkpoint={finished / 'checkpoints' / 'last.pt'}", "data.workers=0", "weights=model"]

    def loss(fuse: str) -> float:
        assert reported(lambda: evaluation.main([*arguments, f"fuse={fuse}", f"run.dir={tmp_path / fuse}"])) == 0
        return json.loads((tmp_path / fuse / "eval.json").read_text())[0]["loss"]

    assert loss("false") == pytest.approx(loss("true"), rel=1e-5)
    assert loss("false") == pytest.approx(rows_of(finished)[-1]["eval_loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("model.name=resnet18", "model.name=resnet18 has no effect"),
        ("model.args={ls_init_value: 1}", "model.args="),
        ("surgery.dilated_kernel_size=17", "surgery.dilated_kernel_size=17 has no effect"),
        ("data.classes=3", "data.classes=3 has no effect"),
        ("data.train_split=test", "data.train_split=test has no effect"),
        ("data.eval_size=2", "data.eval_size=2"),
    ],
)
def test_an_evaluation_refuses_what_it_would_ignore(finished, tmp_path, capsys, option, named):
    arguments = [f"checkpoint={finished / 'checkpoints' / 'last.pt'}", f"run.dir={tmp_path}", "data.workers=0", option]
    assert reported(lambda: evaluation.main(arguments)) == 2
    assert named in capsys.readouterr().err


def test_a_fault_of_the_last_checkpoint_is_found_before_the_first_is_evaluated(finished, tmp_path, monkeypatch, capsys):
    """It has five outputs without names, and the images four classes."""
    good = load(finished / "checkpoints" / "last.pt")
    subjects = [
        evaluation.of_a_run("good", good, good["model"]),
        evaluation.of_timm("bad", models.create("test_resnet", num_classes=5)),
    ]
    monkeypatch.setattr(evaluation, "subjects", lambda config: subjects)
    monkeypatch.setattr(evaluation, "evaluate", lambda *_: pytest.fail("evaluated"))
    arguments = [f"checkpoint={finished}", "data=folder", f"data.root={good['config']['data']['root']}"]
    assert reported(lambda: evaluation.main([*arguments, f"run.dir={tmp_path}", "data.workers=0"])) == 2
    assert "bad has 5 outputs" in capsys.readouterr().err


def test_a_tree_with_fewer_classes_is_mapped_by_name_and_a_foreign_one_refused(finished, image_tree, tmp_path, capsys):
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "class2").symlink_to(image_tree / "val" / "class2")
    last = f"checkpoint={finished / 'checkpoints' / 'last.pt'}"
    arguments = [last, f"data.root={tmp_path}", f"run.dir={tmp_path}", "data.workers=0"]
    assert reported(lambda: evaluation.main(arguments)) == 0
    assert json.loads((tmp_path / "eval.json").read_text())[0]["images"] == 5
    (tmp_path / "val" / "zebra").symlink_to(image_tree / "val" / "class2")
    assert reported(lambda: evaluation.main(arguments)) == 2
    assert "zebra" in capsys.readouterr().err


def test_plain_timm_weights_are_evaluated_with_their_own_transform(image_tree, tmp_path, capsys):
    torch.manual_seed(0)
    model = models.create("test_resnet", num_classes=4)
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "weights.pth")
    arguments = [f"checkpoint={tmp_path / 'weights.pth'}", f"run.dir={tmp_path}", "data.workers=0"]
    assert reported(lambda: evaluation.main([*arguments, "data=folder", f"data.root={image_tree}"])) == 2
    assert "model.name=<timm name>" in capsys.readouterr().err
    arguments.append("model.name=test_resnet")
    assert reported(lambda: evaluation.main(arguments)) == 2
    assert "data" in capsys.readouterr().err
    assert reported(lambda: evaluation.main([*arguments, "data=folder", f"data.root={image_tree}"])) == 0
    row = json.loads((tmp_path / "eval.json").read_text())[0]
    assert (row["images"], row["params"]) == (20, sum(p.numel() for p in model.parameters()))
    assert (tmp_path / "eval.csv").read_text().splitlines()[1].endswith("160,0.95,bilinear")


# Other ways to run


def test_fine_tuning_starts_from_a_checkpoint_and_spares_lower_layers(finished, image_tree, tmp_path):
    source = finished / "checkpoints" / "last.pt"
    more = [f"model.init_from={source}", "recipe.layer_decay=0.5", "recipe.epochs=1", "recipe.warmup_epochs=0"]
    assert run(options(image_tree, tmp_path / "run", *more, "recipe.lr=1e-8", "recipe.lr_min=0", "ema.decay=0")) == 0
    tuned, before = load(tmp_path / "run" / "checkpoints" / "last.pt"), load(source)["ema"]
    for name, value in tuned["model"].items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-4)
    assert tuned["ema"] is None
    scales = {group["group_name"]: group["lr_scale"] for group in tuned["optimizer"]["param_groups"]}
    positions = {name: scale for name, scale in scales.items() if name.startswith("position")}
    assert len(positions) == 3
    assert all(scale == 5 * scales[name.replace("position", "decay")] for name, scale in positions.items())


def test_a_head_of_other_classes_starts_fresh(finished, image_tree, tmp_path, capsys):
    """As many, by other names."""
    shutil.copytree(image_tree, tmp_path / "tree")
    for split in ("train", "val"):
        (tmp_path / "tree" / split / "class3").rename(tmp_path / "tree" / split / "other")
    source = finished / "checkpoints" / "last.pt"
    more = [
        f"model.init_from={source}",
        "recipe.epochs=1",
        "recipe.warmup_epochs=0",
        "recipe.lr=1e-8",
        "recipe.lr_min=0",
    ]
    assert run(options(tmp_path / "tree", tmp_path / "run", *more, "seed=7", "ema.decay=0")) == 0
    assert "the head starts fresh: its classes have other names" in capsys.readouterr().out
    tuned, before = load(tmp_path / "run" / "checkpoints" / "last.pt")["model"], load(source)["ema"]
    torch.testing.assert_close(tuned["stem.0.weight"], before["stem.0.weight"], rtol=0, atol=1e-4)
    assert (tuned["head.fc.weight"] - before["head.fc.weight"]).abs().max() > 0.01


def test_a_checkpoint_that_contradicts_itself_is_one_line(finished, tmp_path, capsys):
    saved = load(finished / "checkpoints" / "last.pt")
    for change, said in (
        ({"class_names": ["one"]}, "its weights do not fit its configuration: 2 of another shape, as head.fc.weight"),
        ({"format": 99}, "found a checkpoint of format 99, expected 1"),
        ({"config": {}}, "its configuration is no run's of this framework (KeyError('data'))"),
    ):
        torch.save(saved | change, tmp_path / "changed.pt")
        assert reported(lambda: evaluation.main([f"checkpoint={tmp_path / 'changed.pt'}"])) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert f"checkpoint={tmp_path / 'changed.pt'}: {said}" in error


def test_a_network_of_grey_images_is_shown_such():
    shown = evaluation.of_timm("grey", timm.create_model("test_convnext", in_chans=1)).shown
    assert (shown["channels"], len(shown["mean"]), len(shown["std"])) == (1, 1, 1)


def test_debug_runs_a_little_of_everything(image_tree, tmp_path):
    assert run(options(image_tree, tmp_path, "debug=true", "profile=true", "logger.tensorboard=true")) == 0
    assert [(row["epoch"], row["step"]) for row in rows_of(tmp_path)] == [(1, 2), (2, 4)]
    assert list((tmp_path / "tensorboard").iterdir())
    assert "aten::" in (tmp_path / "profile.txt").read_text()
    assert (tmp_path / "positions.png").exists()


def test_a_batch_normalised_network_trains_plain_dilated_and_learned(image_tree, tmp_path):
    """ResNet: dense kernels, running statistics, binary cross-entropy, mixup."""
    network = [
        "model.name=resnet18",
        "model.args={channels: [8, 8, 16, 16]}",
        "data.image_size=32",
        "data.eval_size=32",
    ]
    recipe = ["recipe.loss=bce", "recipe.mixup=0.1", "recipe.cutmix=1", "recipe.epochs=1", "recipe.warmup_epochs=0"]
    for surgery in ("none", "dcls_resnet", "dilated", "large_kernel"):
        folder = tmp_path / surgery
        assert run(options(image_tree, folder, f"surgery={surgery}", *network, *recipe)) == 0
        assert rows_of(folder)[0]["train_loss"] > 0
        assert (rows_of(folder)[0]["position_lr"] is None) == (surgery != "dcls_resnet")
        saved = load(folder / "checkpoints" / "last.pt")["model"]
        assert saved["bn1.num_batches_tracked"] == 4


# Bad input: one line, exit code 2, before any work


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["recipe.epoch=3"], "recipe.epochs"),
        (["recipe.epochs=many"], "recipe.epochs"),
        (["recipe.epochs=0"], "recipe.epochs=0"),
        (["model.name=convnext_tinny"], "did you mean convnext_tiny"),
        (["recipe.global_batch=20"], "recipe.global_batch=20"),
        (["data.root=/nowhere"], "data.root=/nowhere"),
        (["surgery.kernel_count=0"], "kernel_count"),
        (["+experiment=quickstrat"], "quickstart"),
        (["model.init_from=/nowhere.pt"], "model.init_from=/nowhere.pt"),
        (["runtime.device=tpu"], "runtime.device=tpu"),
        (["runtime.conv_backend=mkl"], "runtime.conv_backend=mkl: choose one of auto, "),
        (["recipe.optimizer=adamx"], "recipe.optimizer=adamx"),
        (
            ["recipe.optimizer=adamx", "dry_run=true", "data.classes=4", "data.train_images=64"],
            "recipe.optimizer=adamx",
        ),
        (["recipe.optimizer=adahessian"], "recipe.optimizer=adahessian needs second derivatives"),
        (["data.eval_size=2"], "data.eval_size=2"),
        (["data.image_size=2"], "data.image_size=2"),
        (["recipe.opt_args={eps: -1}"], "recipe.opt_args"),
        (["model.args={num_classes: 5}"], "num_classes has an option of its own"),
        (["run.dir=/dev/null/run"], "run.dir=/dev/null/run: cannot be written"),
    ],
)
def test_bad_input_is_one_line(image_tree, tmp_path, capsys, arguments, expected):
    assert run([*options(image_tree, tmp_path / "run"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert expected in error
    assert not list(tmp_path.glob("run/checkpoints/*"))


def test_an_unreadable_image_is_named(image_tree, tmp_path, capsys):
    tree = tmp_path / "tree"
    subprocess.run(["cp", "-r", str(image_tree), str(tree)], check=True)
    broken = sorted((tree / "train" / "class1").iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:100])
    assert run(options(tree, tmp_path / "run")) == 2
    assert str(broken) in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["LAB", "F"])
def test_an_image_that_cannot_be_converted_is_named(image_tree, tmp_path, capsys, mode):
    tree = tmp_path / "tree"
    subprocess.run(["cp", "-r", str(image_tree), str(tree)], check=True)
    odd = sorted((tree / "train" / "class1").iterdir())[0]
    Image.new(mode, (28, 28)).save(odd, format="TIFF")
    assert run(options(tree, tmp_path / "run")) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"cannot use image '{odd}'" in error


def test_pictures_that_cannot_be_drawn_do_not_end_a_run(image_tree, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(pictures, "draw", lambda *_: 1 / 0)
    assert run(options(image_tree, tmp_path, "recipe.epochs=1", "recipe.warmup_epochs=0")) == 0
    assert "cannot be drawn: ZeroDivisionError" in caplog.text


def test_a_dry_run_of_fine_tuning_needs_no_more_than_it_asks_for(tmp_path, capsys):
    asked = ["data.classes=10", "data.train_images=1000"]
    assert run(["+experiment=finetune", "dry_run=true", f"run.dir={tmp_path}", *asked]) == 0
    assert "train 1,000" in capsys.readouterr().out


def test_dry_run_needs_no_data(tmp_path, capsys):
    assert run(["+experiment=convnext_dcls", "dry_run=true", f"run.dir={tmp_path}"]) == 0
    shown = capsys.readouterr().out
    assert "28,587,688" in shown
    assert "4.985" in shown
    resolved = json.loads((tmp_path / "dry_run.json").read_text())
    assert resolved["surgery"]["kernel_count"] == 34
    assert resolved["learning_rates"] == {"network": pytest.approx(4e-3), "position": pytest.approx(2e-2)}
    assert (resolved["total_steps"], resolved["slots"], resolved["images_an_epoch"]) == (93_600, 32, 312 * 4096)
