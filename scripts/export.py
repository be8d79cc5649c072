"""Export a checkpoint: DCLS layers become plain convolutions, in a folder that timm opens, a torch program, ONNX.

python scripts/export.py runs/convnext_dcls-s0/checkpoints/best.pt --out exports/tiny
python scripts/export.py best.pt --out exports/tiny --formats safetensors,torch,onnx
python scripts/export.py best.pt --out exports/tiny --push user/convnext_tiny_dcls

    safetensors   model.safetensors and config.json, the layout of timm's hub
    torch         model.pt2, a program of torch.export for any batch size
    onnx          model.onnx, the same for ONNX (needs dcls-imagenet[export])

Every file is opened again and compared with the unfused network on random images; where the logits differ by more than
1e-4 of the largest, no file is left and the exit code is 1.
"""

import checkout

import argparse
import importlib.util
import inspect
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
import torch
from command_line import OneLine
from huggingface_hub.errors import HfHubHTTPError
from safetensors.torch import load_file
from torch import Tensor, nn

import models
from dcls import layers
from dcls.config.schema import VERSIONS, EvalConfig, EvalModelConfig, EvalSurgeryConfig
from dcls.data import settled_crop
from dcls.errors import ConfigError, reported
from dcls.files.atomic import replacing, writable
from eval import Subject, load

TOLERANCE = 1e-4
# Traced with one number of images, compared with another: the batch is free.
TRACED, COMPARED = 2, 5
# What timm knows of its own weights, which these are not.
FOREIGN = {"tag", "license", "description", "origin_url", "paper_name", "paper_ids", "notes"}
FOREIGN |= {"url", "file", "hf_hub_id", "hf_hub_filename", "source", "test_input_size", "test_crop_pct"}
# A base of the hub's own is that of its HTTP library, whichever it is: connections fail with those.
HUB_ERRORS: tuple[type[Exception], ...] = (OSError, ValueError, *HfHubHTTPError.__bases__)


class Mismatch(Exception):
    """A file whose logits are not the checkpoint's."""


@dataclass(frozen=True)
class Export:
    """A fused network in eval mode, how timm builds it, and what its config.json says besides."""

    model: nn.Module
    blueprint: models.Blueprint
    input_size: tuple[int, int, int]
    described: Mapping[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parsed(arguments)
    formats = chosen(asked.formats, asked.push)
    layers_asked = EvalSurgeryConfig(version=asked.version, dilated_kernel_size=asked.size)
    named = EvalModelConfig(name=asked.model)
    subject = load(asked.checkpoint, EvalConfig(weights=asked.weights, model=named, surgery=layers_asked))
    folder = empty_of_others(writable(asked.out, "--out"), formats)
    export = fused(subject)
    try:
        written = write(export, subject.model.eval(), formats, folder)
    except Mismatch as mismatch:
        print(f"nothing is written: {mismatch}", file=sys.stderr)
        return 1
    print(*written, sep="\n")
    if "safetensors" in formats:
        print("", usage(export, f"local-dir:{folder}", f'"{folder}"'), sep="\n")
    if asked.push:
        print(f"pushed to {push(export, asked.push)}")
    return 0


# What is asked


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLine(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="of a run; or weights alone, with --model.name")
    parser.add_argument("--out", required=True, help="folder of the files")
    parser.add_argument("--formats", default="safetensors", help=f"comma-separated, of {','.join(FORMATS)}")
    parser.add_argument("--weights", default="auto", choices=("auto", "ema", "model"), help="auto: the average if any")
    parser.add_argument("--model.name", dest="model", default="", help="timm's or our name of the network of weights")
    parser.add_argument(
        "--surgery.version", dest="version", default="auto", choices=("auto", *VERSIONS), help="of a published file"
    )
    parser.add_argument(
        "--surgery.dilated_kernel_size", dest="size", type=size, default="auto", help="of the same, as 17 or 17,13"
    )
    parser.add_argument(
        "--push", default="", metavar="USER/NAME", help="also to this repository of the Hugging Face hub"
    )
    return parser.parse_args(arguments)


def size(text: str) -> str | int | list[int]:
    numbers = [] if text == "auto" else [int(each) for each in text.split(",")]
    return numbers[0] if len(numbers) == 1 else numbers or text


def chosen(names: str, push: str) -> list[str]:
    """The formats, with their packages there. Raises ConfigError."""
    formats = names.split(",")
    for name in formats:
        if name not in FORMATS:
            raise ConfigError(f"--formats={names}: {name!r} is unknown; use some of {', '.join(FORMATS)}")
        missing = [each for each in FORMATS[name].packages if importlib.util.find_spec(each) is None]
        if missing:
            raise ConfigError(f"--formats={names}: {name} needs {missing[0]}: pip install dcls-imagenet[export]")
    if push and "safetensors" not in formats:
        raise ConfigError(f"--formats={names}: --push sends the files of safetensors, which must be among them")
    return formats


def empty_of_others(folder: Path, formats: Sequence[str]) -> Path:
    """The folder; ConfigError where it holds an earlier export's file that this one would not replace."""
    others = [file for name, each in FORMATS.items() if name not in formats for file in each.files]
    for file in others:
        if (folder / file).exists():
            raise ConfigError(f"--out={folder} holds {file} of an earlier export; choose another folder, or remove it")
    return folder


# What is written


def fused(subject: Subject) -> Export:
    """The network as plain convolutions; the subject's own stays as it is."""
    model = layers.fuse(deepcopy(subject.model)).eval()
    blueprint = models.blueprint(model)
    cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    kept = {key: value for key, value in cfg.items() if key not in FOREIGN}
    model.pretrained_cfg = kept | {"architecture": blueprint.architecture}  # type: ignore[assignment]
    shown = subject.shown
    size = (shown["channels"], shown["eval_size"], shown["eval_size"])
    crop_mode, crop_pct = settled_crop(shown["eval_size"], shown["crop_mode"], shown["crop_pct"])
    described = {
        "model_args": dict(blueprint.arguments),
        "data_config": {
            "input_size": size,
            "crop_mode": crop_mode,
            "crop_pct": crop_pct,
            **{key: shown[key] for key in ("mean", "std", "interpolation")},
        },
        # timm writes no empty list of names, and everything it does not know as it is.
        "model_config": {"label_names": list(subject.class_names or ()), "convolutions": blueprint.convolutions},
    }
    return Export(model, blueprint, size, described)


@torch.no_grad()
def write(export: Export, original: nn.Module, formats: Sequence[str], folder: Path) -> list[str]:
    """A line for each format, once the files of all are in place. Raises Mismatch, and leaves none, for a wrong one."""
    images = torch.randn(COMPARED, *export.input_size, generator=torch.Generator().manual_seed(0))
    expected = original(images)
    lines = []
    with TemporaryDirectory() as draft:
        for name in formats:
            FORMATS[name].write(export, Path(draft))
            lines.append(f"{name:11}  {compared(name, FORMATS[name].logits(Path(draft), images), expected)}")
        for path in Path(draft).iterdir():
            with path.open("rb") as source, replacing(folder / path.name) as target:
                shutil.copyfileobj(source, target)
    return lines


def compared(name: str, logits: Tensor, expected: Tensor) -> str:
    """How far the logits are off, in words. Raises Mismatch."""
    worst, largest = (each.abs().max().item() for each in (logits - expected, expected))
    text = f"logits differ from the checkpoint's by at most {worst:.1e}, the largest is {largest:.3g}"
    if not worst <= TOLERANCE * largest:
        raise Mismatch(f"{name}: {text}")
    return text


def write_folder(export: Export, folder: Path) -> None:
    timm.models.save_for_hf(export.model, str(folder), safe_serialization=True, **export.described)


def logits_of_folder(folder: Path, images: Tensor) -> Tensor:
    """By timm alone where it can, as `usage` says."""
    odd = json.loads((folder / "config.json").read_text())["convolutions"]
    model = load_exported(str(folder)) if odd else timm.create_model(f"local-dir:{folder}", pretrained=True)
    return model.eval()(images)


def write_program(export: Export, folder: Path) -> None:
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    program = torch.export.export(export.model, traced_with(export), dynamic_shapes=shapes)
    torch.export.save(program, folder / "model.pt2")


def logits_of_program(folder: Path, images: Tensor) -> Tensor:
    return torch.export.load(folder / "model.pt2").module()(images)


def write_onnx(export: Export, folder: Path) -> None:
    torch.onnx.export(
        export.model,
        traced_with(export),
        folder / "model.onnx",
        dynamo=True,
        dynamic_shapes=({0: "batch"},),
        input_names=["images"],
        output_names=["logits"],
        external_data=False,
        verbose=False,
    )


def logits_of_onnx(folder: Path, images: Tensor) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def traced_with(export: Export) -> tuple[Tensor]:
    return (torch.zeros(TRACED, *export.input_size),)


@dataclass(frozen=True)
class Format:
    """files: what `write` leaves in a folder. logits: of images [B, C, H, W], by those files."""

    files: tuple[str, ...]
    packages: tuple[str, ...]
    write: Callable[[Export, Path], None]
    logits: Callable[[Path, Tensor], Tensor]


FORMATS = {
    "safetensors": Format(("model.safetensors", "config.json"), (), write_folder, logits_of_folder),
    "torch": Format(("model.pt2",), (), write_program, logits_of_program),
    "onnx": Format(("model.onnx",), ("onnx", "onnxscript", "onnxruntime"), write_onnx, logits_of_onnx),
}


# How it is loaded


def usage(export: Export, source: str, folder: str) -> str:
    """What loads it. source: in timm's terms; folder: an expression, where timm does not know such kernels."""
    if not export.blueprint.convolutions:
        return f'import timm\n\nmodel = timm.create_model("{source}", pretrained=True)'
    return f"{IMPORTS}\n\n{inspect.getsource(load_exported)}\n\nmodel = load_exported({folder})"


IMPORTS = """import json
from pathlib import Path

import timm
from safetensors.torch import load_file
from torch import nn
"""


# Printed for who has nothing of ours: it needs no more than IMPORTS.
def load_exported(folder: str) -> nn.Module:
    model = timm.create_model(f"local-dir:{folder}")
    weights = load_file(f"{folder}/model.safetensors")
    for name, geometry in json.loads(Path(folder, "config.json").read_text())["convolutions"].items():
        conv = model.get_submodule(name)
        vars(conv).update(geometry)
        conv.weight = nn.Parameter(weights[f"{name}.weight"])
    model.load_state_dict(weights)
    return model


def push(export: Export, name: str) -> Any:
    """Where it can be seen. Raises ConfigError where the hub refuses or cannot be reached."""
    code = usage(export, f"hf-hub:{name}", f'snapshot_download("{name}")')
    if export.blueprint.convolutions:
        code = f"from huggingface_hub import snapshot_download\n{code}"
    # timm would put its own licence on weights that say nothing.
    card = {"tags": ["image-classification", "timm"], "license": "unknown", "usage": f"```python\n{code}\n```"}
    try:
        return timm.models.push_to_hf_hub(
            export.model, name, safe_serialization=True, model_card=card, **export.described
        )
    except HUB_ERRORS as error:
        raise ConfigError(f"--push={name}: the hub does not take it ({error}); the files are written") from error


if __name__ == "__main__":
    sys.exit(reported(main))
