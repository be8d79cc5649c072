"""The ClickMe score: how much a network's heat maps agree with what people marked in the images (arXiv 2408.03164).

    python scripts/gradcam.py checkpoint=convnext_dcls_tiny.paper clickme=/path/to/click-me
    python scripts/gradcam.py model.name=resnet50 model.pretrained=true clickme=/path/to/click-me method=threshold
    python scripts/gradcam.py checkpoint=best.pt clickme=/path/to/click-me limit=100 out=runs/look

Options: clickme (folder of the validation shards, TFRecord files with val in their names), method (gradcam, threshold,
both), limit (images from the first on, 0: all), batch (32), device (auto, cpu, cuda), out (folder of the results; else
that of the run, or runs/eval); checkpoint, weights, model.*, surgery.* and what data.* says of the transform are
eval.py's.

Writes gradcam.json: the scores (mean rank correlation with the human maps over the human ceiling, with its standard
error), how many images counted and how many were skipped for a constant map, of each shard too. And gradcam.png: a few
images under their maps. One process, one device.
"""

import checkout

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

import models
from dcls import data
from dcls.analysis import complexity, heatmaps, plots
from dcls.analysis.alignment import HUMAN_CEILING, SIDE, alignment, human_maps, rank_correlation
from dcls.config import composition
from dcls.config.schema import EvalConfig
from dcls.data import robustness
from dcls.data.clickme import CLASSES
from dcls.errors import ConfigError, reported
from dcls.evaluation import scoring
from dcls.files.atomic import writable, write_text
from dcls.runtime import processes
from eval import Subject, folder_of, subjects

METHODS: Mapping[str, Callable[[Tensor, int], Tensor]] = {
    "gradcam": heatmaps.grad_cam,
    "threshold": heatmaps.threshold_grad_cam,
}
EXAMPLES = 6
OF_EVAL = ("checkpoint", "weights", *(f"data.{name}" for name in composition.TRANSFORM))


@dataclass(frozen=True)
class Asked:
    """The options that are not eval.py's."""

    clickme: str = ""
    method: str = "both"
    limit: int = 0

    @property
    def methods(self) -> dict[str, Callable[[Tensor, int], Tensor]]:
        return {name: method for name, method in METHODS.items() if self.method in (name, "both")}


def main(arguments: Sequence[str]) -> int:
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    asked, config = parsed(arguments)
    folder = writable(folder_of(config), "out")
    with processes.join(config.runtime.device) as world:
        subject = wanted(config)
        shown = {**subject.shown, **config.data}
        # Images that the network cannot take are found here, before the shards are opened.
        complexity.count(subject.model, (shown["channels"], shown["eval_size"], shown["eval_size"]))
        clickme = data.ClickMe(asked.clickme, transform(subject, config))
        count = min(asked.limit or len(clickme), len(clickme))
        network = Network(subject.model, asked.methods, world.device)
        scores = correlations(network, clickme, count, config.batch)
        write_text(folder / "gradcam.json", json.dumps(summary(subject, asked, clickme, scores), indent=2) + "\n")
        draw(network, clickme, count, folder / "gradcam.png", title=subject.name)
    for name, each in scores.items():
        found = alignment(each)
        print(
            f"{name:9}  score {_number(found.score)} ± {_number(found.standard_error)}  ({found.images:,} images, "
            f"{found.skipped:,} skipped)"
        )
    print(f"wrote {folder / 'gradcam.json'} and gradcam.png")
    return 0


# What is asked


def parsed(arguments: Sequence[str]) -> tuple[Asked, EvalConfig]:
    """Raises ConfigError, one line, for an unknown choice or an ill-typed value."""
    given = {"batch": "32"}
    rest = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if equals and name in ("clickme", "method", "limit", "batch", "device", "out"):
            given[name] = value
        elif name in OF_EVAL or name.startswith(("model.", "surgery.")):
            rest.append(argument)
        else:
            raise ConfigError(f"{argument}: no such option here; see --help")
    renamed = {"batch": "batch", "device": "runtime.device", "out": "run.dir"}
    rest += [f"{ours}={given[name]}" for name, ours in renamed.items() if name in given]
    config = composition.typed_eval(*composition.compose("eval", rest))
    asked = Asked(given.get("clickme", ""), given.get("method", "both"), _whole("limit", given.get("limit", "0")))
    if not asked.methods:
        raise ConfigError(f"method={asked.method}: choose one of {', '.join((*METHODS, 'both'))}")
    if not asked.clickme:
        raise ConfigError("clickme= is not set: give the folder of ClickMe's validation shards")
    return asked, config


def _whole(name: str, value: str) -> int:
    if not value.isdecimal():
        raise ConfigError(f"{name}={value}: must be a whole number from 0 on")
    return int(value)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def wanted(config: EvalConfig) -> Subject:
    """The one model. ConfigError for several, or for one whose outputs are not ImageNet's classes."""
    found = subjects(config)
    if len(found) != 1:
        raise ConfigError(f"checkpoint={config.checkpoint}: give one")
    outputs = found[0].model.num_classes
    if outputs != CLASSES:
        raise ConfigError(f"{found[0].name} has {outputs} outputs: ClickMe's labels are ImageNet's {CLASSES:,} classes")
    if found[0].class_names is not None and tuple(found[0].class_names) != robustness.SYNSETS:
        raise ConfigError(f"{found[0].name} has other classes than ImageNet's synsets in their order: ClickMe's labels")
    return found[0]


def transform(subject: Subject, config: EvalConfig) -> data.Transform:
    """What evaluates the model; an image of 224 x 224 takes the place of a photograph."""
    shown = {**subject.shown, **config.data}
    names = ("mean", "std", "channels", "crop_pct", "interpolation", "crop_mode")
    return data.eval_transform(image_size=shown["eval_size"], **{name: shown[name] for name in names if name in shown})


# The scores


class Network:
    """A fused network on its device, and the methods asked of it."""

    def __init__(
        self, model: nn.Module, methods: Mapping[str, Callable[[Tensor, int], Tensor]], device: torch.device
    ) -> None:
        self.model, self.methods, self.device = scoring.fused(model).to(device), methods, device
        self.layer = models.target_layer(self.model)

    def maps(self, images: Tensor, classes: Tensor) -> dict[str, Tensor]:
        """By method, heat maps [N, 224, 224] for images [N, C, S, S] and classes [N]."""
        images = images.to(self.device, memory_format=torch.channels_last)
        weighted = heatmaps.weighted_activations(self.model, images, classes.to(self.device), self.layer)
        return {name: method(weighted, SIDE) for name, method in self.methods.items()}


def correlations(network: Network, clickme: data.ClickMe, count: int, batch: int) -> dict[str, Tensor]:
    """By method, the rank correlation [count] of each image's maps."""
    found: dict[str, list[Tensor]] = {name: [] for name in network.methods}
    chosen = list(batches(range(count), batch))
    for indices in track(chosen, f"{count:,} images", console=Console(stderr=True)):
        images, stored, classes = stacked([clickme[index] for index in indices])
        human = human_maps(stored.to(network.device))
        for name, maps in network.maps(images, classes).items():
            found[name].append(rank_correlation(maps, human).cpu())
    return {name: torch.cat(each) for name, each in found.items()}


def batches(indices: range, size: int) -> Iterator[range]:
    return (indices[start : start + size] for start in range(0, len(indices), size))


def stacked(items: Sequence[tuple[Tensor, Tensor, int]]) -> tuple[Tensor, Tensor, Tensor]:
    images, stored, classes = zip(*items)
    return torch.stack(images), torch.stack(stored), torch.tensor(classes)


# The results


def summary(subject: Subject, asked: Asked, clickme: data.ClickMe, scores: Mapping[str, Tensor]) -> dict[str, Any]:
    return {
        "checkpoint": subject.name,
        "clickme": asked.clickme,
        "human_ceiling": HUMAN_CEILING,
        "methods": {name: described(each) | {"shards": by_shard(each, clickme)} for name, each in scores.items()},
    }


def by_shard(scores: Tensor, clickme: data.ClickMe) -> dict[str, Any]:
    shard_of = torch.from_numpy(clickme.shard_of[: len(scores)])
    return {clickme.shards[number].path.name: described(scores[shard_of == number]) for number in shard_of.unique()}


def described(scores: Tensor) -> dict[str, Any]:
    """JSON has no NaN."""
    values = asdict(alignment(scores))
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def draw(network: Network, clickme: data.ClickMe, count: int, path: Path, *, title: str) -> None:
    """Evenly chosen images under their maps."""
    chosen = sorted({round(place) for place in np.linspace(0, count - 1, EXAMPLES)})
    pictures = np.stack([np.asarray(clickme.load(index)[0]) for index in chosen])
    images, stored, classes = stacked([clickme[index] for index in chosen])
    plots.heat_maps_png(pictures, {"people": human_maps(stored), **network.maps(images, classes)}, path, title=title)


if __name__ == "__main__":
    sys.exit(reported(lambda: main(sys.argv[1:])))
