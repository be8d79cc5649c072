"""summary.json: what a run reached, what it cost, and what was run."""

import platform
import resource
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch

from dcls import ops
from dcls.runtime.processes import World


def summarise(
    row: Mapping[str, Any],
    best: float | None,
    resolved: Mapping[str, Any],
    config: Mapping[str, Any],
    machines: Sequence[Mapping[str, Any]],
    device: torch.device,
) -> dict[str, Any]:
    """`row` is the last epoch's; peak_memory_bytes is this process's, on the GPU where there is one. The last of
    `machines`, where the run was computed, is where it ended.
    """
    taken = ("top1", "top5", "top1_ema", "top5_ema", "eval_loss", "train_img_per_s", "eval_img_per_s", "data_wait")
    return {
        **{name: row[name] for name in taken},
        "best_top1": best,
        "params": resolved["params"],
        "flops": resolved["flops"],
        "peak_memory_bytes": peak_memory(device),
        "epochs": row["epoch"],
        "steps": row["step"],
        "run": dict(resolved),
        "machine": machines[-1],
        "machines_before": list(machines[:-1]),
        "conv_backends": {str(shape): name for shape, name in ops.picked().items()},
        "config": dict(config),
    }


def peak_memory(device: torch.device) -> int:
    """The most memory this process has held so far, bytes: on the GPU, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def machine(world: World) -> dict[str, Any]:
    """Where it ran, with which versions."""
    cuda = world.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(world.device) if cuda else platform.processor() or platform.machine(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "processes": world.size,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # of a class of its own, which no checkpoint may hold
        "timm": timm.__version__,
    }
