"""One self-contained HTML page about a run: nothing is fetched, so it can be mailed or opened from a disk.

    python scripts/report.py run.dir=runs/quickstart/dcls-s0
    python scripts/report.py run.dir=runs/quickstart/dcls-s0 against=runs/quickstart/plain-s0 out=report.html

Curves, the surgery report, positions over training, kernels, the effective receptive field, Grad-CAM and
Threshold-Grad-CAM, throughput and memory; beside another run (against) also the classes whose accuracy changed most,
for which both are evaluated here. The weights are those of the last checkpoint, averaged where the run averages.

Options: run.dir, against (run folders), out (report.html in run.dir), data.root (where the images are now), batch (128
images), device (auto, cpu, cuda), threads (of a CPU; 0: torch's choice).
"""

import checkout

import base64
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

import models
from dcls import data
from dcls.analysis import classes, heatmaps, panels, plots, positions, receptive_field
from dcls.config.schema import DataConfig, EvalConfig
from dcls.errors import ConfigError, reported
from dcls.evaluation import scoring
from dcls.files import checkpoints
from dcls.files.atomic import writable, write_text
from dcls.record import resolved
from dcls.runtime import processes
from dcls.runtime.prepare import Precision, precision
from dcls.surgery import Report
from eval import Trial, of_a_run, prepared
from train import build_eval_loader, network_as_built, pick

OPTIONS = {"run.dir": "", "against": "", "out": "", "data.root": "", "batch": "128", "device": "auto", "threads": "0"}
TOLD = {"format", "config", "class_names", "history", "positions"}  # of a run, by its checkpoints
FIELD_IMAGES = 32
HEAT_IMAGES = 6
MOST_THREADS = 1024
CLASSES_SHOWN = 12
UNKNOWN = "-"


@dataclass(frozen=True)
class Run:
    """A run folder opened: what its last checkpoint knows, its network on its images, and its summary.json if any."""

    name: str
    saved: Mapping[str, Any]
    trial: Trial
    surgery: Report
    summary: Mapping[str, Any]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Those of metrics.jsonl."""
        return self.saved["history"]

    @cached_property
    def network(self) -> nn.Module:
        """For inference, on the CPU."""
        return scoring.fused(self.trial.subject.model).requires_grad_(False)


def main(arguments: Sequence[str]) -> int:
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    asked = parsed(arguments)
    threads = number(asked, "threads", most=MOST_THREADS)
    with processes.join(asked["device"], threads or None) as world:
        runs = opened(asked)
        out = Path(asked["out"] or Path(asked["run.dir"]) / "report.html")
        if out.is_dir():
            raise ConfigError(f"out={out}: found a folder, expected the name of a file, such as {out / 'report.html'}")
        writable(out.parent, "out")
        write_text(out, page(runs, precision(world.device), world, number(asked, "batch", least=1)))
    print(f"wrote {out}")
    return 0


# What is asked


def parsed(arguments: Sequence[str]) -> dict[str, str]:
    """Raises ConfigError, one line, for what is no option."""
    asked = dict(OPTIONS)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals or name not in OPTIONS:
            raise ConfigError(f"{argument}: no such option; write name=value, of {', '.join(OPTIONS)}")
        asked[name] = value
    if not asked["run.dir"]:
        raise ConfigError("run.dir is not set: give the folder of a run, such as run.dir=runs/quickstart/dcls-s0")
    return asked


def number(asked: Mapping[str, str], name: str, least: int = 0, most: float = math.inf) -> int:
    if not asked[name].isdecimal() or not least <= int(asked[name]) <= most:
        raise ConfigError(
            f"{name}={asked[name]}: must be a number from {least} {'on' if most == math.inf else f'to {most}'}"
        )
    return int(asked[name])


def opened(asked: Mapping[str, str]) -> list[Run]:
    """The run and, where it is asked for, the one it is compared to; on the same images. Raises ConfigError."""
    wanted = [(option, Path(asked[option])) for option in ("run.dir", "against") if asked[option]]
    names = told_apart([folder.resolve() for _, folder in wanted])
    if len(set(names)) < len(wanted):
        raise ConfigError(f"against={asked['against']}: that is run.dir itself; give another run's folder")
    config = EvalConfig(data={"root": asked["data.root"]} if asked["data.root"] else {})
    runs = [open_run(name, option, folder, config) for name, (option, folder) in zip(names, wanted, strict=True)]
    run, *others = (each.trial for each in runs)
    for other in others:
        if other.source.fingerprint() != run.source.fingerprint():
            found, expected = (f"{each.shown.val_split} of {each.shown.name}" for each in (other, run))
            raise ConfigError(
                f"against={asked['against']}: its images ({found}) are not those of run.dir={asked['run.dir']} "
                f"({expected}); expected a run that is evaluated on the same ones"
            )
    return runs


def told_apart(folders: Sequence[Path]) -> list[str]:
    """The folders' own names; where those are equal, their paths from where they part."""
    names = [folder.name for folder in folders]
    common = os.path.commonpath(folders)
    return names if len(set(names)) == len(names) else [os.path.relpath(folder, common) for folder in folders]


def open_run(name: str, option: str, folder: Path, config: EvalConfig) -> Run:
    path = folder / "checkpoints" / "last.pt"
    if not path.is_file():
        found = sorted(each.name for each in folder.iterdir())[:8] if folder.is_dir() else []
        raise ConfigError(
            f"{option}={folder}: {path} is missing; found {', '.join(found) or 'nothing'}, expected a run's folder, "
            "with checkpoints/last.pt in it"
        )
    saved = checkpoints.load(path, option)
    if missing := TOLD - saved.keys():
        raise ConfigError(
            f"{option}={folder}: {path} holds {', '.join(sorted(saved)[:8])}; expected a checkpoint of train.py, which "
            f"holds {', '.join(sorted(missing))} too"
        )
    if not saved["history"]:
        raise ConfigError(f"{option}={folder}: {path} is from before the end of the first epoch; expected a later one")
    trial = prepared(of_a_run(str(path), saved, models.weights_of(saved)), config)
    _, surgery = network_as_built(saved)
    return Run(name, saved, trial, surgery, summary_of(option, folder))


def summary_of(option: str, folder: Path) -> Mapping[str, Any]:
    path = folder / "summary.json"
    try:
        recorded = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError:
        recorded = None
    if not isinstance(recorded, dict):
        raise ConfigError(f"{option}={folder}: {path} is torn, expected what train.py writes there; remove it")
    return recorded


# The page


def page(runs: Sequence[Run], numeric: Precision, world: processes.World, batch: int) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "pages"), autoescape=True, undefined=StrictUndefined
    )
    run, *others = runs
    return environment.get_template("report.html.j2").render(
        run=run,
        against=others[0] if others else None,
        facts=facts(runs),
        curves=figures(panels.curves({each.name: each.rows for each in runs}), "curve over the epochs"),
        stages=stages(run),
        groups=len(positions.limits(run.trial.subject.model)),
        kernels={each.name: kernel_figures(each) for each in runs},
        fields=fields(runs, numeric),
        field_images=min(FIELD_IMAGES, len(run.trial.source)),
        heat=heat(runs, numeric),
        comparison=compared(runs, numeric, world, batch),
        costs=costs(runs),
    )


def figures(pictures: Mapping[str, bytes], of: str) -> list[dict[str, str]]:
    """What the template's figures are made of: the picture's name; what all of them are pictures of, and the name."""
    return [{"name": name, "alt": f"{of}: {name}", "src": embedded(png)} for name, png in pictures.items()]


def embedded(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def facts(runs: Sequence[Run]) -> list[dict[str, str]]:
    """What one wants to know first; beside it the same of the other run."""
    lines = [
        ("top-1, weights", [f"{run.rows[-1]['top1']:.2f} %" for run in runs]),
        ("top-1, average", [percent(run.rows[-1]["top1_ema"]) for run in runs]),
        ("parameters", [f"{run.trial.cost.params:,}" for run in runs]),
        ("multiply-adds an image", [resolved.flops_text(run.trial.cost.flops) for run in runs]),
        ("training, images a second", [median_of(run, "train_img_per_s", "{:,.0f}") for run in runs]),
        ("epochs done", [f"{len(run.rows)} of {run.saved['config']['recipe']['epochs']}" for run in runs]),
    ]
    return [{"name": name, "value": values[0], "against": "".join(values[1:])} for name, values in lines]


def percent(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.2f} %"


def stages(run: Run) -> list[dict[str, Any]]:
    """The groups that share positions: how far their taps moved, and where they sat over the epochs."""
    history = positions.History(positions.limits(run.trial.subject.model))
    history.load_state_dict(run.saved["positions"])
    labels = plots.short_labels(plots.evenly(list(history.limits), plots.GROUPS_SHOWN))
    moved = run.rows[-1].get("positions") or {}
    return [
        {
            "name": label,
            "moved": moved.get(group),
            "figures": figures(panels.positions(history, group), f"taps of {label}"),
        }
        for group, label in labels.items()
    ]


def kernel_figures(run: Run) -> list[dict[str, str]]:
    return figures(panels.kernels(run.trial.subject.model), f"kernels of {run.name}")


def fields(runs: Sequence[Run], numeric: Precision) -> list[dict[str, str]]:
    """The effective receptive field of each network whose stages have maps."""
    count = min(FIELD_IMAGES, len(runs[0].trial.source))
    pictures = {}
    for run in runs:
        images = numeric.place(images_of(run.trial, plots.evenly(range(len(run.trial.source)), count)))
        network = run.network.to(numeric.device)
        if stage := receptive_field.last_stage(network, images):
            field = receptive_field.effective_receptive_field(network, images, stage)
            radii = [f"{share:.0%} within {receptive_field.radius(field, share):.1f} px" for share in panels.SHARES]
            pictures[f"{run.name}: {', '.join(radii)}"] = panels.effective_receptive_field(field)
    return figures(pictures, "effective receptive field")


def heat(runs: Sequence[Run], numeric: Precision) -> list[dict[str, str]]:
    """The first image of some classes, and under each network what in it speaks for its class."""
    source = runs[0].trial.source
    labels, first = np.unique(source.labels, return_index=True)
    chosen = plots.evenly(range(len(labels)), HEAT_IMAGES)
    rows = {run.name: heat_rows(run, first[chosen].tolist(), numeric) for run in runs}
    names = [source.class_names[labels[each]] for each in chosen]
    found = {name: shown for name, shown in rows.items() if shown}
    pictures = {name: panels.heat_maps({run: found[run][i] for run in found}) for i, name in enumerate(names) if found}
    return figures(pictures, "heat maps of an image")


def heat_rows(run: Run, indices: Sequence[int], numeric: Precision) -> list[panels.Heat]:
    """Of each image its pixels and its maps; nothing where no stage of the network has a map."""
    trial, network = run.trial, run.network.to(numeric.device)
    images = images_of(trial, indices)
    shown = numeric.place(images)
    if (stage := receptive_field.last_stage(network, shown)) is None:
        return []
    outputs = torch.from_numpy(trial.labels[trial.source.labels[indices]]).to(numeric.device)
    kinds = {
        kind: heatmaps.heat_maps(network, shown, outputs, stage, threshold=threshold, size=trial.shown.eval_size)
        for kind, threshold in (("Grad-CAM", False), ("Threshold-Grad-CAM", True))
    }
    pixels = denormalised(images, trial.shown)
    return [
        (image, {kind: maps[i].cpu().numpy() for kind, maps in kinds.items()}) for i, image in enumerate(pixels.numpy())
    ]


def denormalised(images: Tensor, shown: DataConfig) -> Tensor:
    """[B, H, W, C] in [0, 1]."""
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (shown.mean, shown.std))
    return (images * std + mean).clamp(0, 1).permute(0, 2, 3, 1)


def images_of(trial: Trial, indices: Sequence[int]) -> Tensor:
    """[B, C, H, W], as evaluation shows them."""
    shown = pick(trial.shown, "channels", "mean", "std", "crop_pct", "interpolation", "crop_mode")
    transform = data.eval_transform(image_size=trial.shown.eval_size, **shown)
    return torch.stack([transform(trial.source.load(index)) for index in indices])


def compared(runs: Sequence[Run], numeric: Precision, world: processes.World, batch: int) -> dict[str, Any] | None:
    """Both runs evaluated on every image, and the classes that changed most."""
    if len(runs) < 2:
        return None
    after, before = (evaluated(run, numeric, world, batch) for run in runs)
    source = runs[0].trial.source
    found = classes.changes(before, after, torch.from_numpy(source.labels), source.class_names)
    widest = max(abs(each.change) for each in found)
    return {
        "top1": [100 * right.double().mean().item() for right in (after, before)],
        "images": len(source),
        "classes": len(found),
        "rows": [(each, 50 * abs(each.change) / widest if widest else 0.0) for each in found[:CLASSES_SHOWN]],
    }


def evaluated(run: Run, numeric: Precision, world: processes.World, batch: int) -> Tensor:
    """Which images it has right, bool [N]."""
    trial = run.trial
    loader = build_eval_loader(trial.shown, trial.source, world, batch=batch, label_map=trial.labels)
    right = scoring.hits(run.network.to(numeric.device), progress(loader, run.name), numeric)
    loader.close()
    return right


def progress(loader: data.EvalLoader, name: str) -> Iterator[Any]:
    console = Console()
    yield from track(loader, f"evaluating {name}", total=len(loader), console=console, disable=not console.is_terminal)


def costs(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Lines of the table of throughput and memory, a cell a run."""
    machines = [run.summary.get("machine", {}) for run in runs]
    memory = [run.summary.get("peak_memory_bytes") for run in runs]
    return [
        ("training, images a second", [median_of(run, "train_img_per_s", "{:,.0f}") for run in runs]),
        ("evaluation, images a second", [median_of(run, "eval_img_per_s", "{:,.0f}") for run in runs]),
        ("waiting for data", [median_of(run, "data_wait", "{:.0%}") for run in runs]),
        ("training, seconds in all", [f"{sum(row['seconds'] for row in run.rows):,.0f}" for run in runs]),
        ("peak memory of the process", [f"{each / 2**20:,.0f} MiB" if each else UNKNOWN for each in memory]),
        ("device", [str(each.get("device", UNKNOWN)) for each in machines]),
        ("processes x threads", [f"{each['processes']} x {each['threads']}" if each else UNKNOWN for each in machines]),
        ("torch", [str(each.get("torch", UNKNOWN)) for each in machines]),
    ]


def median_of(run: Run, name: str, form: str) -> str:
    return form.format(median(row[name] for row in run.rows))


if __name__ == "__main__":
    sys.exit(reported(lambda: main(sys.argv[1:])))
