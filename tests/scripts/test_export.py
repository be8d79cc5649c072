"""Exports of a network of quickstart size, trained for an epoch on a tree of real images."""

import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import onnxruntime
import pytest
import timm.models
import torch
from safetensors import safe_open
from timm.data import create_dataset, create_loader, resolve_input_data_config
from timm.models import load_checkpoint, resolve_model_input_args
from timm.utils import AverageMeter, accuracy
from torch import nn

import eval as evaluation
import models
import train
from dcls.config.schema import EvalConfig, EvalModelConfig
from dcls.errors import reported
from scripts import export

ROOT = Path(__file__).parents[2]
VALIDATE = os.environ.get("TIMM_VALIDATE")
CLASSES = [f"class{label}" for label in range(4)]


def trained(tree: Path, folder: Path) -> Path:
    data = ["data=folder", f"data.root={tree}", "data.channels=1", "data.mean=[0.286]", "data.std=[0.353]"]
    data += ["data.crop_pct=0.9", "data.workers=0"]
    recipe = ["recipe.epochs=1", "recipe.warmup_epochs=0", "recipe.global_batch=16", "recipe.slot=16"]
    more = [f"run.dir={folder}", "logger.progress=off", "runtime.threads=1"]
    assert train.main(["+experiment=quickstart", *data, *recipe, *more]) == 0
    return folder / "checkpoints" / "last.pt"


@pytest.fixture(scope="module")
def checkpoint(image_tree, tmp_path_factory) -> Path:
    return trained(image_tree, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(3, 1, 56, 56, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory) -> Path:
    """The checkpoint in every format."""
    folder = tmp_path_factory.mktemp("exported")
    assert export.main([str(checkpoint), "--out", str(folder), "--formats", ",".join(export.FORMATS)]) == 0
    return folder


def original(checkpoint: Path, weights: str = "auto") -> nn.Module:
    config = EvalConfig(weights=weights, model=EvalModelConfig(name=""))
    return evaluation.load(str(checkpoint), config).model.eval()


@torch.no_grad()
def assert_same(logits: torch.Tensor, checkpoint: Path, images: torch.Tensor, weights: str = "auto") -> None:
    expected = original(checkpoint, weights)(images)
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()


def ran(arguments: list[str]) -> str:
    """What Python says to it, in a process of its own."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def small_resnet() -> nn.Module:
    """Dense 7x7 kernels, which timm's ResNet cannot be told of."""
    torch.manual_seed(0)
    model = models.create("resnet50", num_classes=4, layers=(1, 1, 1, 1), channels=(8, 8, 16, 16), zero_init_last=False)
    models.convert(model, mode="dcls")
    return model.eval()


# The files


def test_every_format_gives_the_logits_of_the_checkpoint_at_another_batch_size(folder, checkpoint, images):
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "model.pt2",
        "model.onnx",
    }
    assert_same(torch.export.load(folder / "model.pt2").module()(images), checkpoint, images)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    assert_same(torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0]), checkpoint, images)
    with safe_open(folder / "model.safetensors", "pt") as held:
        assert not [name for name in held.keys() if name.endswith(".P")]  # noqa: SIM118  # it is no dictionary
        assert held.get_tensor("stages.0.blocks.1.conv_dw.weight").shape == (16, 1, 13, 13)


def test_what_is_printed_loads_the_folder_where_nothing_of_ours_is(checkpoint, images, tmp_path, monkeypatch, capsys):
    """A network whose kernels timm's constructor takes, and one whose it does not, in a process of their own."""
    monkeypatch.chdir(tmp_path)
    resnet = small_resnet()
    shown = evaluation.of_timm("", resnet).shown
    known = ran([str(ROOT / "scripts" / "export.py"), str(checkpoint), "--out", "ours", "--weights", "model"])
    monkeypatch.setattr(export, "load", lambda *_: evaluation.Subject("", resnet, shown | {"eval_size": 64}, CLASSES))
    assert export.main(["", "--out", "odd"]) == 0
    odd = capsys.readouterr().out
    codes = [text[text.index("import") :] for text in (known, odd)]
    assert codes[0].count("\n") < 5 < codes[1].count("\n")
    colours = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    torch.save([images, colours], "images.pt")
    program = f"""
import sys, torch
images, logits, names = torch.load("images.pt"), [], []
for code, batch in zip({codes!r}, images):
    scope = {{}}
    exec(code, scope)
    logits.append(scope["model"].eval()(batch).detach())
    names.append(scope["model"].pretrained_cfg["label_names"])
torch.save(logits, "logits.pt")
assert not {{"dcls", "models"}} & set(sys.modules)
print(*names)
"""
    assert ran(["-c", program]) == f"{CLASSES} {CLASSES}\n"
    logits = torch.load("logits.pt")
    assert_same(logits[0], checkpoint, images, weights="model")
    torch.testing.assert_close(logits[1], resnet(colours).detach(), rtol=1e-4, atol=1e-5)


def test_config_says_how_images_are_shown_and_nothing_of_timms_own_weights(tmp_path):
    model = models.create("convnext_atto", num_classes=4)
    shown = {"channels": 3, "eval_size": 384, "crop_mode": "auto", "crop_pct": 0.9, "interpolation": "bilinear"}
    shown |= {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    fused = export.fused(evaluation.Subject("", model, shown, CLASSES))
    export.write_folder(fused, tmp_path)
    cfg = json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]
    assert (cfg["input_size"], cfg["crop_mode"], cfg["crop_pct"]) == ([3, 384, 384], "squash", 1.0)
    assert (cfg["mean"], cfg["std"], cfg["interpolation"]) == (shown["mean"], shown["std"], "bilinear")
    assert not export.FOREIGN & cfg.keys()


@pytest.mark.parametrize("scale", [1.02, torch.nan])
def test_a_wrong_network_leaves_no_file(checkpoint, tmp_path, monkeypatch, capsys, scale):
    right = export.layers.fuse

    def wrong(model: nn.Module) -> nn.Module:
        fused = right(model)
        fused.stages[1].blocks[0].conv_dw.weight.data[0] *= scale
        return fused

    monkeypatch.setattr(export.layers, "fuse", wrong)
    assert export.main([str(checkpoint), "--out", str(tmp_path / "out")]) == 1
    assert "nothing is written: safetensors: logits differ" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


# The hub


class Hub:
    """huggingface_hub.HfApi, for a hub that is a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, **options):
        return self

    def create_repo(self, name, **options):
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{name}")

    def file_exists(self, **options):
        return False

    def upload_folder(self, *, repo_id, folder_path, **options):
        Path(folder_path).rename(self.root / "hub")
        Path(folder_path).mkdir()  # its owner removes it
        return f"https://huggingface.co/{repo_id}/commit/0"


def test_what_is_pushed_is_what_was_written(checkpoint, tmp_path, monkeypatch, capsys, images):
    monkeypatch.setattr(timm.models._hub, "HfApi", Hub(tmp_path))
    assert export.main([str(checkpoint), "--out", str(tmp_path / "out"), "--push", "user/net"]) == 0
    assert "pushed to https://huggingface.co/user/net" in capsys.readouterr().out
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "hub" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    card = (tmp_path / "hub" / "README.md").read_text()
    assert 'timm.create_model("hf-hub:user/net", pretrained=True)' in card
    assert "license: unknown" in card
    model = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    assert_same(model(images), checkpoint, images)


@pytest.mark.parametrize(
    "error", [huggingface_hub.errors.LocalTokenNotFoundError("no token"), export.HUB_ERRORS[2]("no route")]
)
def test_a_hub_that_refuses_is_one_line(checkpoint, tmp_path, monkeypatch, capsys, error):
    def refuse(*arguments, **options):
        raise error

    monkeypatch.setattr(Hub, "create_repo", refuse)
    monkeypatch.setattr(timm.models._hub, "HfApi", Hub(tmp_path))
    asked = [str(checkpoint), "--out", str(tmp_path / "out"), "--push", "user/net"]
    assert reported(lambda: export.main(asked)) == 2
    assert (
        capsys.readouterr().err
        == f"error: --push=user/net: the hub does not take it ({error}); the files are written\n"
    )
    assert (tmp_path / "out" / "model.safetensors").exists()


# timm's validate


def timms_scores(model: nn.Module, tree: Path, asked: dict) -> tuple[float, float, float]:
    """Top-1, top-5 and loss as timm's validate.py composes them, with its defaults."""
    shown = resolve_input_data_config(model, asked, use_test_size=True)
    keys = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
    loader = create_loader(
        create_dataset(root=str(tree), name="", split="validation", input_img_mode="L"),
        batch_size=8,
        use_prefetcher=True,
        num_workers=0,
        pin_memory=False,
        device=torch.device("cpu"),
        **{key: shown[key] for key in keys},
    )
    top1, top5, losses = AverageMeter(), AverageMeter(), AverageMeter()
    with torch.inference_mode():
        for batch, target in loader:
            output = model.eval()(batch)
            acc1, acc5 = accuracy(output, target, topk=(1, 5))
            for meter, value in ((top1, acc1), (top5, acc5), (losses, nn.functional.cross_entropy(output, target))):
                meter.update(value.item(), len(target))
    return top1.avg, top5.avg, losses.avg


def our_scores(checkpoint: Path, weights: str, folder: Path) -> tuple[float, float, float]:
    arguments = [f"checkpoint={checkpoint}", f"weights={weights}", f"run.dir={folder}", "data.workers=0"]
    assert evaluation.main(arguments) == 0
    (row,) = json.loads((folder / "eval.json").read_text())
    return row["top1"], row["top5"], row["loss"]


# timm's reader leaves closing its files to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_timms_evaluation_gives_the_scores_of_ours(folder, checkpoint, image_tree, tmp_path):
    """validate.py is in no package: here its own pieces are put together as it does; the test below runs it."""
    exported = timm.create_model(f"local-dir:{folder}", pretrained=True)
    expected = our_scores(checkpoint, "ema", tmp_path)
    assert timms_scores(exported, image_tree, {}) == pytest.approx(expected, rel=1e-5)
    asked = {"in_chans": 1, "crop_pct": 0.9}
    name = "convnext_quickstart_dcls"
    registered = timm.create_model(**resolve_model_input_args(name, asked, num_classes=len(CLASSES)))
    load_checkpoint(registered, checkpoint, use_ema=False)
    expected = our_scores(checkpoint, "model", tmp_path)
    assert timms_scores(registered, image_tree, asked) == pytest.approx(expected, rel=1e-5)


@pytest.mark.soak
@pytest.mark.skipif(not VALIDATE, reason="TIMM_VALIDATE does not say where timm's validate.py is; no package holds it")
@pytest.mark.parametrize("which", ["exported", "registered"])
def test_timms_validate_gives_the_top1_of_ours(which, folder, checkpoint, image_tree, tmp_path, monkeypatch):
    """As a program, which is timm's own: TIMM_VALIDATE is the path of validate.py in a checkout of timm."""
    differing = ["--num-classes", "4", "--in-chans", "1", "--crop-pct", "0.9"]
    weights, model = {
        "exported": ("ema", [f"local-dir:{folder}", "--pretrained"]),
        "registered": ("model", ["convnext_quickstart_dcls", "--checkpoint", str(checkpoint), *differing]),
    }[which]
    asked = ["--data-dir", str(image_tree), "--device", "cpu", "--workers", "0", "--batch-size", "8"]
    command = [VALIDATE, *asked, "--model", *model]
    program = f"import models, runpy, sys; sys.argv = {command!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    result = json.loads(ran(["-c", program]).partition("--result\n")[2])
    top1, top5, _ = our_scores(checkpoint, weights, tmp_path)
    assert (result["top1"], result["top5"]) == (top1, top5)


# Bad input


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["/nowhere.pt"], "checkpoint=/nowhere.pt: there is no such file"),
        (["{tmp}/foreign.pt"], "the file holds none of"),
        (["{tmp}/text.pt"], "text.pt is not a checkpoint"),
        (
            ["{run}", "--formats", "torch,tflite"],
            "--formats=torch,tflite: 'tflite' is unknown; use some of safetensors",
        ),
        (["{run}", "--formats", "torch", "--push", "user/net"], "--push sends the files of safetensors"),
        (["{run}", "--weights", "best"], "--weights"),
        (["{run}", "--model.name", "resnet18"], "model.name=resnet18 has no effect"),
        (["{run}", "--surgery.version", "v1"], "surgery.version=v1 has no effect"),
        (["{run}", "--surgery.dilated_kernel_size", "17,13"], "surgery.dilated_kernel_size=[17, 13] has no effect"),
        (["{run}", "--surgery.dilated_kernel_size", "large"], "invalid size value: 'large'"),
        (["{run}", "--out", "/dev/null/x"], "--out=/dev/null/x: cannot be written"),
        (["{run}", "--out", "{tmp}/older"], "older holds model.onnx of an earlier export"),
    ],
)
def test_bad_input_is_one_line(checkpoint, tmp_path, capsys, arguments, expected):
    torch.save({"weights": {"a": torch.zeros(1)}}, tmp_path / "foreign.pt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    (tmp_path / "older").mkdir()
    (tmp_path / "older" / "model.onnx").touch()
    given = [each.format(tmp=tmp_path, run=checkpoint) for each in arguments]
    out = [] if "--out" in given else ["--out", str(tmp_path / "out")]
    assert reported(lambda: export.main([*given, *out])) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert expected in error
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named(checkpoint, tmp_path, monkeypatch, capsys):
    found = export.importlib.util.find_spec
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None if name == "onnx" else found(name))
    assert reported(lambda: export.main([str(checkpoint), "--out", str(tmp_path), "--formats", "onnx"])) == 2
    assert "onnx needs onnx: pip install dcls-imagenet[export]" in capsys.readouterr().err
