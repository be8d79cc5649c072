import argparse
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dcls.errors import CheckpointError
from dcls.files.checkpoints import Checkpoints, intact, load


def state(step: int) -> dict:
    shared = torch.full((3,), float(step))
    return {"step": step, "model": {"a.P": shared, "b.P": shared}}


def test_the_two_newest_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in range(1, 6):
        checkpoints.save(state(step), step, best=step == 2)
    steps = sorted(load(path)["step"] for path in checkpoints.folder.glob("step-*.pt"))
    assert steps == [2, 4, 5]
    assert load(checkpoints.folder / "best.pt")["step"] == 2
    assert load(checkpoints.folder / "last.pt")["step"] == 5
    assert load(checkpoints.newest())["step"] == 5


def test_links_are_found_again_after_a_kill_between_a_file_and_its_links(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1), 1, best=True)
    newest = checkpoints.save(state(2), 2)
    checkpoints._link("last.pt", tmp_path / "step-1.gone.pt")
    checkpoints.link(newest, best_step=2)
    assert [load(tmp_path / name)["step"] for name in ("last.pt", "best.pt")] == [2, 2]
    checkpoints.link(newest, best_step=None)
    assert load(tmp_path / "best.pt")["step"] == 2


def test_sharing_survives(tmp_path):
    path = Checkpoints(tmp_path).save(state(1), 1)
    model = load(path)["model"]
    assert model["a.P"].data_ptr() == model["b.P"].data_ptr()


def test_one_flipped_bit_is_found_and_the_one_before_is_used(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1), 1)
    newest = checkpoints.save(state(2), 2)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    assert not intact(newest)
    with pytest.raises(CheckpointError, match=r"checkpoint=.*step-2.*is torn"):
        load(newest)
    assert load(checkpoints.newest())["step"] == 1
    assert "step-2" in caplog.text


def test_torn_files_of_later_steps_do_not_take_the_place_of_new_ones(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (90, 100):
        path = checkpoints.save(state(step), step)
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"run.dir=.*every checkpoint there is torn"):
        checkpoints.newest()
    saved = checkpoints.save(state(10), 10)
    assert saved.exists()
    assert checkpoints.newest() == saved


def test_the_command_line_that_other_trainers_leave_is_no_obstacle(tmp_path):
    args = argparse.Namespace(lr=4e-3, output_dir=Path("runs/x"), best=np.float64(82.5), epoch=np.int32(3))
    torch.save({"state_dict": {"a": torch.ones(1)}, "args": args, "epoch": 3}, tmp_path / "model_best.pth.tar")
    saved = load(tmp_path / "model_best.pth.tar")
    assert saved["state_dict"] == {"a": torch.ones(1)}
    save_file(saved["state_dict"], tmp_path / "model.safetensors")
    assert load(tmp_path / "model.safetensors") == saved["state_dict"]
    args = saved["args"]
    assert (args.lr, str(args.output_dir), args.best, args.epoch) == (4e-3, "runs/x", 82.5, 3)


def test_absent_foreign_and_unsafe_files_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"model.init_from=.*nowhere.pt: there is no such file"):
        load(tmp_path / "nowhere.pt", "model.init_from")
    with pytest.raises(CheckpointError, match=r"checkpoint=.* is a folder; expected .*, found no best.pt"):
        load(tmp_path)
    Checkpoints(tmp_path / "checkpoints").save(state(1), 1)
    with pytest.raises(CheckpointError, match=r"is a folder; .*, found .*/checkpoints/last.pt"):
        load(tmp_path)
    (tmp_path / "text.pt").write_text("not a checkpoint")
    with pytest.raises(CheckpointError, match=r"checkpoint=.*text.pt is not a .* it is neither a zip archive"):
        load(tmp_path / "text.pt")
    torch.save({"model": subprocess.Popen}, tmp_path / "code.pt")
    with pytest.raises(
        CheckpointError, match=r"checkpoint=.*code.pt is not a checkpoint.*: Unsupported global: GLOBAL .*Popen"
    ):
        load(tmp_path / "code.pt")
    torch.save({"args": argparse.Namespace(run=subprocess.Popen)}, tmp_path / "hidden.pt")
    with pytest.raises(CheckpointError, match=r"checkpoint=.*hidden.pt is not a checkpoint"):
        load(tmp_path / "hidden.pt")
    (tmp_path / "text.safetensors").write_text("not a checkpoint")
    with pytest.raises(CheckpointError, match=r"checkpoint=.*text.safetensors is not a checkpoint .*: Error while des"):
        load(tmp_path / "text.safetensors")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match=r"checkpoint=.*list.pt holds a list"):
        load(tmp_path / "list.pt")


def test_a_save_that_fails_leaves_the_ones_before_and_no_draft(tmp_path):
    """As on a full disk."""

    class Full:
        def __reduce__(self):
            raise OSError("no space left on device")

    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1), 1)
    (tmp_path / "step-7.unfinished").touch()
    with pytest.raises(OSError, match="no space"):
        checkpoints.save({"x": torch.zeros(1000), "full": Full()}, 2)
    assert load(checkpoints.newest())["step"] == 1
    assert not list(tmp_path.glob("*.unfinished"))


def test_a_process_killed_while_writing_leaves_the_last_one_whole(tmp_path):
    script = f"""
        import torch
        from pathlib import Path
        from dcls.files.checkpoints import Checkpoints
        checkpoints = Checkpoints(Path({str(tmp_path)!r}))
        step = 0
        while True:
            step += 1
            checkpoints.save({{"step": step, "x": torch.full((200_000,), float(step))}}, step)
            print(step, flush=True)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True)
    with process:
        done = 0
        while done < 5:
            done = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)
    found = load(Checkpoints(tmp_path).newest())
    assert found["step"] >= done
    assert torch.equal(found["x"], torch.full((200_000,), float(found["step"])))
