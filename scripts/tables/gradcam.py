"""The table of ClickMe scores: eight networks of arXiv 2408.03164, plain and DCLS, as scripts/gradcam.py left them."""

import csv
import io
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm.data

import models
from dcls.analysis import complexity
from dcls.errors import ConfigError
from dcls.record import resolved

TITLE = "Heat maps against people's: the ClickMe score (arXiv 2408.03164)"
METHODS = {"gradcam": "Grad-CAM", "threshold": "Threshold-Grad-CAM"}
HEADER = (
    "model",
    "parameters",
    "FLOPs",
    *(column for name in METHODS.values() for column in (name, f"paper: {name}")),
    "images",
)
NOT_RUN = "-"
NOTES = (
    "score: mean rank correlation with the human maps over the human ceiling 0.65753, with its standard error over "
    "images, of which those with a constant map are skipped",
    "paper: its scores could not be read from here, so that its columns are dashes; its abstract says that DCLS raises "
    "the score of seven of the eight, and Threshold-Grad-CAM nearly all scores",
    "plain networks: timm's weights, trained on ImageNet-1k alone; which ones the paper took is not known here",
    "paper: the images that fill no batch of 32 are left out; ours count all of them",
)


@dataclass(frozen=True)
class Subject:
    """A row. name: of its folder, and of the network in its gradcam.json. network: timm's or our name of it, for its
    costs. options: of scripts/gradcam.py.
    """

    label: str
    name: str
    network: str
    options: tuple[str, ...]


def _pair(label: str, plain: str, released: str, *options: str) -> tuple[Subject, Subject]:
    ours = f"{plain.partition('.')[0]}_dcls.paper"
    return (
        Subject(label, plain, plain, (f"model.name={plain}", "model.pretrained=true", *options)),
        Subject(f"{label}-dcls", released, ours, (f"checkpoint={released}", *options)),
    )


# The paper's code shows ConvNeXts 87.5 % of an image and FastViTs all of it, timm's own configurations say 95 and 90.
CROP, WHOLE = "data.crop_pct=0.875", "data.crop_pct=1"
SUBJECTS = (
    *_pair("ResNet-50", "resnet50.a1_in1k", "resnet_dcls50.paper"),
    *_pair("ConvNeXt-T", "convnext_tiny.fb_in1k", "convnext_dcls_tiny.paper", CROP),
    *_pair("ConvNeXt-S", "convnext_small.fb_in1k", "convnext_dcls_small.paper", CROP),
    *_pair("ConvNeXt-B", "convnext_base.fb_in1k", "convnext_dcls_base.paper", CROP),
    *_pair("CAFormer-S18", "caformer_s18.sail_in1k", "caformer_dcls_s18.paper"),
    *_pair("ConvFormer-S18", "convformer_s18.sail_in1k", "convformer_dcls_s18.paper"),
    *_pair("FastViT-SA24", "fastvit_sa24.apple_in1k", "fastvit_dcls_sa24.paper", WHOLE),
    *_pair("FastViT-SA36", "fastvit_sa36.apple_in1k", "fastvit_dcls_sa36.paper", WHOLE),
)

Scores = Mapping[str, Any]  # of one network, by method


def measured(root: Path) -> dict[Subject, Scores]:
    """The scores of each network, {} where <root>/<name>/gradcam.json is absent. Raises ConfigError for another's."""
    return {subject: _measured(subject, root / subject.name / "gradcam.json") for subject in SUBJECTS}


def _measured(subject: Subject, path: Path) -> Scores:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text())
        name, methods = found["checkpoint"], found["methods"]
    except (ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"root: {path} is not what scripts/gradcam.py writes: evaluate again") from error
    if name != subject.name:
        raise ConfigError(f"root: {path} has the scores of {name}, expected those of {subject.name}")
    return methods


def cost(subject: Subject) -> complexity.Cost:
    """At the resolution of its evaluation."""
    model = models.create(subject.network)
    return complexity.count(model, timm.data.resolve_model_data_config(model)["input_size"])


def cells(subject: Subject, scores: Scores, cost: complexity.Cost) -> list[str]:
    counts = {f"{each['images'] + each['skipped']:,}" for each in scores.values()}
    columns = (part for method in METHODS for part in (_text(scores.get(method)), NOT_RUN))
    costs = f"{cost.params:,}", resolved.flops_text(cost.flops)
    return [subject.label, *costs, *columns, ", ".join(sorted(counts)) or NOT_RUN]


def _text(found: Mapping[str, Any] | None) -> str:
    if found is None or found["score"] is None:
        return NOT_RUN
    return f"{found['score']:.3f}" + (f" ± {found['standard_error']:.3f}" if found["standard_error"] else "")


def commands(scores: Mapping[Subject, Scores], where: Sequence[str], root: Path) -> list[str]:
    """What fills the dashes. where: the option clickme, if it was given."""
    clickme = where or ("clickme=/path/to/click-me",)
    return [
        shlex.join(["python", "scripts/gradcam.py", *subject.options, *clickme, f"out={root / subject.name}"])
        for subject, each in scores.items()
        if not METHODS.keys() <= each.keys()
    ]


def as_csv(scores: Mapping[Subject, Scores], costs: Mapping[Subject, complexity.Cost]) -> str:
    """A line a network and method."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ("score", "standard_error", "images", "skipped")
    writer.writerow(("model", "params", "flops", "method", "paper", *names))
    for subject, found in scores.items():
        for method in METHODS:
            each = found.get(method, {})
            cost = costs[subject]
            writer.writerow([subject.label, cost.params, cost.flops, method, None, *(each.get(name) for name in names)])
    return text.getvalue()
