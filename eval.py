"""Evaluate checkpoints: ours, the papers', plain timm state dicts, or any timm name.

    python eval.py checkpoint=runs/quickstart-s0/checkpoints/best.pt
    python eval.py checkpoint=[A.pt,B.pt] data=imagenet data.root=/path/to/imagenet
    python eval.py checkpoint=convnext_dcls_tiny.paper data=imagenet data.root=/path/to/imagenet
    python eval.py checkpoint=weights.pth model.name=convnext_tiny data=imagenet data.root=/path/to/imagenet
    python eval.py checkpoint=A.pt data=imagenet_c data.root=/path/to/imagenet-c     or _a, _r, _sketch, _v2, _real
    torchrun --nproc_per_node=8 eval.py model.name=resnet50 model.pretrained=true data=imagenet data.root=...

Prints a table and writes eval.json and eval.csv (of a robustness set eval_imagenet_c.json ...) to `run.dir`. Every
image counts once at any number of processes.
"""

import copy
import csv
import io
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import timm.data
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import nn

import models
from dcls import data, ops
from dcls.analysis import complexity
from dcls.config import composition
from dcls.config.schema import DataConfig, EvalConfig
from dcls.data import robustness
from dcls.errors import ConfigError, about, reported
from dcls.evaluation import scoring
from dcls.files import checkpoints
from dcls.files.atomic import writable, write_text
from dcls.record import resolved
from dcls.runtime import processes
from dcls.runtime.prepare import precision
from train import build_eval_loader, choose_backend, is_a_run, network_of_a_run

FALLBACK_FOLDER = Path("runs/eval")


@dataclass(frozen=True)
class Subject:
    """A model to evaluate, the data options it brings along (`shown`) and, where it knows them, its classes."""

    name: str
    model: nn.Module
    shown: Mapping[str, Any]
    class_names: Sequence[str] | None


@dataclass(frozen=True)
class Trial:
    """A subject, the images it is shown, and what it costs.

    sources: by corruption and severity for ImageNet-C, else a single one. labels: of the images as the subject's
    outputs (None: one to one). outputs: those that are compared (None: all).
    """

    subject: Subject
    shown: DataConfig
    sources: Mapping[tuple[str, int], data.Source]
    labels: Any
    outputs: Any
    cost: complexity.Cost

    @property
    def source(self) -> data.Source:
        """The first of the sources, and the only one but for ImageNet-C; all have the same classes."""
        return next(iter(self.sources.values()))


def main(arguments: Sequence[str]) -> int:
    if (answer := composition.answer("eval", arguments)) is not None:
        print(answer)
        return 0
    cfg, overrides = composition.compose("eval", arguments)
    config = composition.typed_eval(cfg, overrides)
    with processes.join(config.runtime.device, config.runtime.threads) as world:
        folder = world.on_main(lambda: writable(folder_of(config), "run.dir"))
        choose_backend(config.runtime, world)
        # One of the processes fetches what has to be fetched.
        world.on_main(lambda: [models.located(path) for path in paths_of(config)])
        # All of them first: a fault of the last one must not cost the evaluation of the others.
        trials = [prepared(subject, config) for subject in subjects(config)]
        rows = [evaluate(trial, config, world) for trial in trials]
        if world.is_main:
            show(rows)
            write(rows, folder, config.data.get("kind", ""))
    return 0


# What is evaluated


def subjects(config: EvalConfig) -> list[Subject]:
    paths = paths_of(config)
    if paths:
        return [load(path, config) for path in paths]
    wanted = config.model
    name = wanted.name if wanted.pretrained else f"{wanted.name} (random weights)"
    return [of_timm(name, models.create(wanted.name, pretrained=wanted.pretrained, **wanted.args))]


def paths_of(config: EvalConfig) -> list[str]:
    given = config.checkpoint
    return [str(path) for path in ([given] if isinstance(given, str) else given) if path]


def load(path: str, config: EvalConfig) -> Subject:
    saved = checkpoints.load(models.located(path))
    with about("checkpoint", path):
        weights = models.weights_of(saved, config.weights)
    if is_a_run(saved):
        refuse_what_a_run_knows(path, config)
        with about("checkpoint", path):
            return of_a_run(path, saved, weights)
    with about("checkpoint", path):
        model = models.restore(weights, name=config.model.name, **asdict(config.surgery), **config.model.args)
    return of_timm(path, model)


def refuse_what_a_run_knows(path: str, config: EvalConfig) -> None:
    told = {"model.name": config.model.name, "model.args": config.model.args}
    told |= {f"surgery.{name}": value for name, value in asdict(config.surgery).items() if value != "auto"}
    for name, value in told.items():
        if value:
            raise ConfigError(f"{name}={value} has no effect: checkpoint={path} knows its network")


def of_a_run(path: str, saved: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> Subject:
    """One of our training checkpoints: it knows its network, its surgery, its data and its classes."""
    return Subject(path, network_of_a_run(saved, weights), saved["config"]["data"], saved["class_names"])


def of_timm(name: str, model: nn.Module) -> Subject:
    """A timm network, which knows how images are shown to it but not which."""
    timms = timm.data.resolve_model_data_config(model)
    side, channels = timms["input_size"][-1], models.colours(model) or timms["input_size"][0]
    shown = {"channels": channels, "image_size": side, "eval_size": side}
    shown |= {key: timms[key] for key in ("crop_pct", "interpolation", "crop_mode")}
    for key in ("mean", "std"):
        # timm knows those of its own weights' three colours.
        shown[key] = timms[key] if len(timms[key]) == channels else [fmean(timms[key])] * channels
    return Subject(name, model, shown, None)


# Evaluation


def prepared(subject: Subject, config: EvalConfig) -> Trial:
    """Everything that can be wrong is found here. Raises ConfigError."""
    chosen = config.data.get("kind")
    # ImageNet-C is stored as it is to be shown.
    stored = {**subject.shown, "crop_pct": 1.0} if chosen == "imagenet_c" else subject.shown
    shown = composition.complete_data(config.data, stored)
    whole = {("", 0): shown.val_split}
    splits = robustness.corrupted_splits(shown.root) if chosen == "imagenet_c" else whole
    images = config.data.get("val_images")
    sources = {name: data.open_eval(shown.kind, shown.root, split, None, images) for name, split in splits.items()}
    cost = complexity.count(subject.model, (shown.channels, shown.eval_size, shown.eval_size))
    labels = label_map(subject, next(iter(sources.values())), shown.kind)
    subset = shown.kind in robustness.SUBSETS
    return Trial(subject, shown, sources, None if subset else labels, labels if subset else None, cost)


def evaluate(trial: Trial, config: EvalConfig, world: processes.World) -> dict[str, Any]:
    """One row of eval.json, and beside it what eval.csv wants to know."""
    subject, shown, cost = trial.subject, trial.shown, trial.cost
    numeric = precision(world.device, amp=config.runtime.amp, channels_last=config.runtime.channels_last)
    # A copy, so that the device holds one model at a time.
    model = (
        scoring.fused(subject.model, channels_last=numeric.channels_last)
        if config.fuse
        else copy.deepcopy(subject.model).eval()
    ).to(world.device)
    if config.runtime.fast_depthwise:
        ops.adopt(model)
    if numeric.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if config.runtime.compile:
        model.compile()
    if trial.outputs is not None:
        model = scoring.Restricted(model, torch.from_numpy(trial.outputs).to(world.device))
    scores = {}
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not (world.is_main and console.is_terminal)) as bar:
        task = bar.add_task(short(subject.name), total=sum(map(len, trial.sources.values())))
        for name, source in trial.sources.items():
            loader = build_eval_loader(shown, source, world, batch=config.batch, label_map=trial.labels)
            batches = advancing(loader, lambda count: bar.advance(task, count * world.size))
            (scores[name],) = scoring.evaluate([model], batches, world, precision=numeric)
            loader.close()
            if bar.disable and len(trial.sources) > 1 and world.is_main:
                print(f"{name[0]}, severity {name[1]}: top-1 error {100 - scores[name].top1:.2f} %", flush=True)
    counted = [each for (corruption, _), each in scores.items() if corruption not in robustness.EXTRA]
    return {
        "checkpoint": subject.name,
        "top1": fmean(each.top1 for each in counted),
        "top5": fmean(each.top5 for each in counted),
        "loss": fmean(each.loss for each in counted),
        "params": cost.params,
        "flops": cost.flops,
        "img_per_s": fmean(each.img_per_s for each in counted),
        "images": sum(each.images for each in counted),
        **(of_corruptions(scores) if shown.kind == "imagenet_c" else {}),
        "img_size": shown.eval_size,
        "crop_pct": data.settled_crop(shown.eval_size, shown.crop_mode, shown.crop_pct)[1],
        "interpolation": shown.interpolation,
    }


def advancing(batches: Any, advance: Callable[[int], None]) -> Iterator[Any]:
    """The batches; each one's images are told to `advance` once it is done with."""
    for batch in batches:
        yield batch
        advance(len(batch[0]))


def of_corruptions(scores: Mapping[tuple[str, int], scoring.Scores]) -> dict[str, Any]:
    """The mCE, and the top-1 errors of each corruption by severity, percent."""
    errors: dict[str, list[float]] = {}
    for (corruption, _), each in scores.items():
        errors.setdefault(corruption, []).append(100 - each.top1)
    return {"mce": robustness.mean_corruption_error(errors), "errors": errors}


def label_map(subject: Subject, source: data.Source, kind: str) -> Any:
    """Labels of the data as the subject's outputs: by name, or one to one where it knows no names."""
    if subject.class_names is not None:
        return data.class_map(source, subject.class_names)
    outputs = subject.model.num_classes
    if kind in robustness.KINDS and outputs == len(robustness.SYNSETS):
        return data.class_map(source, robustness.SYNSETS)
    if len(source.class_names) != outputs:
        raise ConfigError(
            f"data.root has {len(source.class_names)} classes and {subject.name} has {outputs} outputs without names: "
            "evaluate it on a tree with the same classes"
        )
    return None


# Results


def folder_of(config: EvalConfig) -> Path:
    """`run.dir`; else the run's own folder for a single checkpoint of a run, else runs/eval."""
    if config.run.dir:
        return Path(config.run.dir)
    paths = paths_of(config)
    inside = Path(paths[0]).absolute().parent if len(paths) == 1 else Path()
    return inside.parent if inside.name == "checkpoints" else FALLBACK_FOLDER


COLUMNS = ("checkpoint", "top1", "top5", "loss", "params", "flops", "img_per_s", "images", "mce", "errors")


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(title="evaluation", title_justify="left")
    for name in ("checkpoint", "top-1 %", "top-5 %", "loss", "params", "FLOPs", "img/s", "images"):
        table.add_column(name, justify="left" if name == "checkpoint" else "right", overflow="fold")
    for row in rows:
        accuracy = f"{row['top1']:.2f}", f"{row['top5']:.2f}", f"{row['loss']:.4f}"
        cost = f"{row['params']:,}", resolved.flops_text(row["flops"]), f"{row['img_per_s']:,.0f}", f"{row['images']:,}"
        table.add_row(short(row["checkpoint"]), *accuracy, *cost)
    Console().print(table)
    for row in rows:
        if "errors" in row:
            Console().print(corruptions(row))


def short(checkpoint: str) -> str:
    return "/".join(Path(checkpoint).parts[-3:])


def corruptions(row: Mapping[str, Any]) -> Table:
    """Top-1 errors of ImageNet-C by corruption and severity, and each one's corruption error."""
    table = Table(title=f"{row['checkpoint']}: top-1 error %, mCE {row['mce']:.2f} %", title_justify="left")
    table.add_column("corruption")
    for name in (*(f"severity {each}" for each in robustness.SEVERITIES), "mean", "CE %"):
        table.add_column(name, justify="right")
    for name, errors in row["errors"].items():
        relative = f"{robustness.corruption_error(name, errors):.2f}" if name in robustness.ALEXNET else "-"
        table.add_row(name, *(f"{error:.2f}" for error in errors), f"{fmean(errors):.2f}", relative)
    return table


def write(rows: list[dict[str, Any]], folder: Path, kind: str) -> None:
    name = f"eval_{kind}" if kind in robustness.KINDS else "eval"
    brief = [{name: or_null(row[name]) for name in COLUMNS if name in row} for row in rows]
    write_text(folder / f"{name}.json", json.dumps(brief, indent=2) + "\n")
    write_text(folder / f"{name}.csv", as_csv(rows))
    print(f"wrote {folder / name}.json and {name}.csv")


def or_null(value: Any) -> Any:
    """JSON knows no infinity, and nothing that is no number."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_csv(rows: list[dict[str, Any]]) -> str:
    """The columns of timm's results files."""
    text = io.StringIO()
    names = ("model", "top1", "top1_err", "top5", "top5_err", "param_count", "img_size", "crop_pct", "interpolation")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        top1, top5 = round(row["top1"], 3), round(row["top5"], 3)
        accuracy = (top1, round(100 - top1, 3), top5, round(100 - top5, 3))
        count = round(row["params"] / 1e6, 2)
        writer.writerow([row["checkpoint"], *accuracy, count, row["img_size"], row["crop_pct"], row["interpolation"]])
    return text.getvalue()


if __name__ == "__main__":
    sys.exit(reported(lambda: main(sys.argv[1:])))
