"""The machine and the versions that a table's numbers belong to."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "timm", "DCLS", "llvmlite", "triton")


def describe(device: str) -> list[str]:
    """Lines: processor and threads, the GPU if it is one, versions, revision of the checkout."""
    capability = torch.backends.cpu.get_cpu_capability()
    lines = [f"{processor()}, {capability}, {torch.get_num_threads()} threads, {platform.system()}"]
    if device == "cuda":
        lines.insert(0, torch.cuda.get_device_name())
    lines.append(", ".join(f"{name} {version}" for name in PACKAGES if (version := installed(name))))
    return [*lines, f"revision {revision()}"]


def processor() -> str:
    """The model's name; the kind of machine where the system does not tell."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def revision() -> str:
    """The commit's short hash, with a + where files differ from it."""
    command = ["git", "describe", "--always", "--abbrev=10", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
