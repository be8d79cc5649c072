"""The resolved run: what a configuration comes to, beside the paper's figures, so that it can be checked before it
is paid.
"""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from dcls.engine.plan import Plan


def resolve(
    *,
    experiment: str,
    model: str,
    surgery: Mapping[str, Any],
    params: int,
    flops: int,
    paper: Mapping[str, Any] | None,
    input_size: tuple[int, int, int],
    plan: Plan,
    learning_rates: Mapping[str, float],
    images: Mapping[str, int],
) -> dict[str, Any]:
    """Plain numbers and text. `flops` are multiply-adds of one image of `input_size`; `learning_rates` the peaks by
    role.
    """
    return {
        "experiment": experiment,
        "model": model,
        "surgery": dict(surgery),
        "params": params,
        "flops": flops,
        "paper": dict(paper) if paper else None,
        "input_size": list(input_size),
        **plan.as_dict(),
        "learning_rates": dict(learning_rates),
        "images": dict(images),
    }


def show(resolved: Mapping[str, Any], lines: list[str], console: Console) -> None:
    """Print the surgery's `lines`, then the run as a table with the paper's figures where there are any."""
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    paper = resolved["paper"] or {}
    table = Table(title=f"{resolved['experiment']}: {resolved['model']}", title_justify="left")
    table.add_column("")
    table.add_column("this run", justify="right")
    table.add_column("paper", justify="right")
    size = "x".join(map(str, resolved["input_size"]))
    table.add_row("parameters", f"{resolved['params']:,}", _figure(paper.get("params"), 1e6, "M"))
    table.add_row(
        f"FLOPs ({size}, multiply-adds)", flops_text(resolved["flops"]), _figure(paper.get("flops"), 1e9, "G")
    )
    table.add_row("top-1", "-", f"{paper['top1']} %" if paper.get("top1") else "-")
    for name, value in _rows(resolved):
        table.add_row(name, value, "")
    console.print(table)
    if paper.get("source"):
        console.print(f"paper: {paper['source']}", markup=False, highlight=False)


def flops_text(flops: float) -> str:
    """For example 4.985 G or 3.1 M."""
    return f"{flops / 1e9:.3f} G" if flops >= 1e8 else f"{flops / 1e6:.1f} M"


def _figure(value: float | None, unit: float, symbol: str) -> str:
    return "-" if value is None else f"{value / unit:g} {symbol}"


def _rows(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    rates = ", ".join(f"{role} {rate:.3g}" for role, rate in run["learning_rates"].items())
    slots = f"{run['global_batch']:,} = {run['slots']} slots of {run['slot']}"
    share = f"{run['world_size']} x {run['slots_per_process']} slots a step"
    steps = f"{run['total_steps']:,} ({run['epochs']} x {run['steps_per_epoch']:,}), {run['warmup_steps']:,} warm-up"
    images = ", ".join(f"{name} {count:,}" for name, count in run["images"].items() if count is not None)
    return [
        ("global batch", slots),
        ("processes", share),
        ("steps", steps),
        ("images an epoch", f"{run['images_an_epoch']:,}"),
        ("data", images),
        ("peak learning rates", rates),
        ("final learning rate", f"{run['lr_min']:.3g} (times the same factors)"),
    ]
