"""Evaluate checkpoints: ours, the papers', plain timm state dicts, or any timm name.

    python eval.py checkpoint=runs/quickstart-s0/checkpoints/best.pt
    python eval.py checkpoint=[A.pt,B.pt] data=imagenet data.root=/path/to/imagenet
    python eval.py checkpoint=convnext_dcls_tiny.paper data=imagenet data.root=/path/to/imagenet
    python eval.py checkpoint=weights.pth model.name=convnext_tiny data=imagenet data.root=/path/to/imagenet
    torchrun --nproc_per_node=8 eval.py model.name=resnet50 model.pretrained=true data=imagenet data.root=...

Prints a table and writes eval.json and eval.csv to `run.dir`. Every image counts once at any number of processes.
"""

import copy
import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm.data
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import models
from dcls import composition, data, ops
from dcls.analysis import complexity
from dcls.atomic import writable, write_text
from dcls.config import DataConfig, EvalConfig
from dcls.engine import checkpoints, evaluation, processes, resolved
from dcls.engine.prepare import precision
from dcls.errors import ConfigError, about, reported
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
    """A subject, the images it is shown, their labels as its outputs (None: one to one), and what it costs."""

    subject: Subject
    shown: DataConfig
    source: data.Source
    labels: Any
    cost: complexity.Cost


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
            write(rows, folder)
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
    channels, *_, side = timms["input_size"]
    shown = {"channels": channels, "image_size": side, "eval_size": side}
    shown |= {key: timms[key] for key in ("mean", "std", "crop_pct", "interpolation", "crop_mode")}
    return Subject(name, model, shown, None)


# Evaluation


def prepared(subject: Subject, config: EvalConfig) -> Trial:
    """Everything that can be wrong is found here. Raises ConfigError."""
    shown = composition.complete_data(config.data, subject.shown)
    source = data.open_eval(shown.kind, shown.root, shown.val_split, None, config.data.get("val_images"))
    cost = complexity.count(subject.model, (shown.channels, shown.eval_size, shown.eval_size))
    return Trial(subject, shown, source, label_map(subject, source), cost)


def evaluate(trial: Trial, config: EvalConfig, world: processes.World) -> dict[str, Any]:
    """One row of eval.json, and beside it what eval.csv wants to know."""
    subject, shown, cost = trial.subject, trial.shown, trial.cost
    numeric = precision(world.device, amp=config.runtime.amp, channels_last=config.runtime.channels_last)
    # A copy, so that the device holds one model at a time.
    model = (
        evaluation.fused(subject.model, channels_last=numeric.channels_last)
        if config.fuse
        else copy.deepcopy(subject.model).eval()
    ).to(world.device)
    if config.runtime.fast_depthwise:
        ops.adopt(model)
    if numeric.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if config.runtime.compile:
        model.compile()
    batches = build_eval_loader(shown, trial.source, world, batch=config.batch, label_map=trial.labels)
    (scores,) = evaluation.evaluate([model], batches, world, precision=numeric)
    batches.close()
    return {
        "checkpoint": subject.name,
        "top1": scores.top1,
        "top5": scores.top5,
        "loss": scores.loss,
        "params": cost.params,
        "flops": cost.flops,
        "img_per_s": scores.img_per_s,
        "images": scores.images,
        "img_size": shown.eval_size,
        "crop_pct": shown.crop_pct,
        "interpolation": shown.interpolation,
    }


def label_map(subject: Subject, source: data.Source) -> Any:
    """Labels of the data as the subject's outputs: by name, or one to one where it knows no names."""
    if subject.class_names is not None:
        return data.class_map(source, subject.class_names)
    outputs = subject.model.num_classes
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


COLUMNS = ("checkpoint", "top1", "top5", "loss", "params", "flops", "img_per_s", "images")


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(title="evaluation", title_justify="left")
    for name in ("checkpoint", "top-1 %", "top-5 %", "loss", "params", "FLOPs", "img/s", "images"):
        table.add_column(name, justify="left" if name == "checkpoint" else "right", overflow="fold")
    for row in rows:
        accuracy = f"{row['top1']:.2f}", f"{row['top5']:.2f}", f"{row['loss']:.4f}"
        cost = f"{row['params']:,}", resolved.flops_text(row["flops"]), f"{row['img_per_s']:,.0f}", f"{row['images']:,}"
        table.add_row("/".join(Path(row["checkpoint"]).parts[-3:]), *accuracy, *cost)
    Console().print(table)


def write(rows: list[dict[str, Any]], folder: Path) -> None:
    short = [{name: row[name] for name in COLUMNS} for row in rows]
    write_text(folder / "eval.json", json.dumps(short, indent=2) + "\n")
    write_text(folder / "eval.csv", as_csv(rows))
    print(f"wrote {folder / 'eval.json'} and eval.csv")


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
