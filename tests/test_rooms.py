"""Who may import whom, what the library needs, and what a wheel holds."""

import ast
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("dcls", "models", "scripts", "train", "eval")

# What people put into their own projects, and all of ours that it may use.
LIBRARY = ("dcls", "dcls.errors", "dcls.layers", "dcls.ops", "dcls.surgery")
# Loaded inside functions alone, and only where the package is installed.
GENERATORS = {
    "llvmlite": ("dcls.layers.vector_taps", "dcls.ops.llvm", "dcls.ops.vector_code"),
    "triton": ("dcls.ops.triton_kernels", "dcls.ops.triton_band_kernels"),
}
CONFIGURATION = ("dcls.config", "hydra", "omegaconf")
ENTRIES = ("train", "eval", "scripts")


def within(module: str, rooms: tuple[str, ...]) -> bool:
    """Is it one of the rooms or inside one? `dcls` itself is its __init__ alone."""
    return any(module == room or (room != "dcls" and module.startswith(room + ".")) for room in rooms)


def forbidden(importer: str, imported: str) -> str | None:
    """Why `importer` may not import `imported`, or None."""
    top = imported.partition(".")[0]
    if importer in GENERATORS.get(top, ()):
        return None
    if within(importer, LIBRARY) and top not in (*sys.stdlib_module_names, "torch") and not within(imported, LIBRARY):
        return "layers, ops and surgery need torch alone"
    if importer.startswith("dcls") and top in ("models", *ENTRIES):
        return "the library knows neither models nor the entries"
    if importer.startswith("models") and top in ("dcls", *ENTRIES) and not within(imported, LIBRARY):
        return "models uses layers, ops and surgery"
    if within(imported, CONFIGURATION) and not within(importer, (*ENTRIES, *CONFIGURATION)):
        return "only train.py, eval.py and scripts/ see the configuration"
    return None


def imports(source: str, package: str) -> Iterator[str]:
    """Every module that a file of the package imports, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                path = ROOT.joinpath(*module.split("."), alias.name)
                is_module = path.is_dir() or path.with_suffix(".py").exists()
                yield f"{module}.{alias.name}" if is_module else module


def files() -> dict[str, Path]:
    """Our modules by dotted name."""
    found = [path for top in OURS for path in (*ROOT.glob(f"{top}.py"), *ROOT.glob(f"{top}/**/*.py"))]
    names = (path.relative_to(ROOT).with_suffix("").parts for path in found)
    return {".".join(part for part in parts if part != "__init__"): path for parts, path in zip(names, found)}


def test_every_import_keeps_the_rule():
    broken, seen = [], 0
    for name, path in files().items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for imported in imports(path.read_text(), package):
            seen += 1
            if reason := forbidden(name, imported):
                broken.append(f"{path.relative_to(ROOT)} imports {imported}: {reason}")
    assert not broken, "\n".join(broken)
    assert set(files()) >= {*LIBRARY, "dcls.layers.convolution", "dcls.engine.step", "dcls.data.sources", "models"}
    assert set(files()) >= {"train", "eval", *(room for room in CONFIGURATION if room.startswith("dcls"))}
    assert seen > 200


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("dcls.layers.fusion", "def later():\n    import timm"),
        ("dcls.layers.fusion", "import numpy.linalg"),
        ("dcls.ops.reference", "from dcls.engine import step"),
        ("dcls.surgery", "from dcls.runtime.randomness import key"),
        ("dcls", "from .data import order"),
        ("dcls.engine.step", "from models import family"),
        ("dcls.data.sources", "import models.factory as factory"),
        ("dcls.analysis.plots", "import train"),
        ("dcls.engine.loop", "from dcls.config.schema import Config"),
        ("dcls.engine.loop", "from ..config.schema import Config"),
        ("dcls.engine.optim", "from dcls.config import composition"),
        ("dcls.data.transforms", "from omegaconf import DictConfig"),
        ("models.factory", "import hydra"),
        ("models.factory", "from dcls.runtime.prepare import prepare"),
    ],
)
def test_the_rule_sees_what_breaks_it(importer, source):
    package = importer if importer == "dcls" else importer.rpartition(".")[0]
    assert any(forbidden(importer, imported) for imported in imports(source, package))


# Refuses every top-level package but ours, torch with what it requires, and the standard library.
ALONE = """
import sys
from importlib.machinery import PathFinder

allowed = set(sys.stdlib_module_names) | {
    "dcls", "torch", "torchgen", "functorch", "triton", "nvidia", "cuda", "typing_extensions", "filelock", "fsspec",
    "sympy", "mpmath", "networkx", "jinja2", "markupsafe",
}

class Here:
    def find_spec(name, path=None, target=None):
        # sysconfig, which triton asks, keeps its data in a module of the machine's own name.
        known = name.partition(".")[0] in allowed or name.startswith("_sysconfigdata")
        return PathFinder.find_spec(name, path, target) if known else None

sys.meta_path = [Here if finder is PathFinder else finder for finder in sys.meta_path]
import dcls, dcls.layers, dcls.ops, dcls.surgery
import torch
from torch import nn

model = nn.Sequential(nn.Conv2d(4, 4, 7, padding=3, groups=4), nn.Conv2d(4, 4, 7, padding=3, groups=4))
dcls.surgery.convert(model, mode="dcls", select=dcls.surgery.depthwise(), dilated_kernel_size=17)
(model(torch.randn(1, 4, 9, 9)).sum() + dcls.repulsive_loss(model)).backward()
dcls.clamp_positions(model)
assert type(dcls.fuse(model)[1]) is nn.Conv2d
others = {"numpy", "timm", "hydra", "omegaconf", "torchvision", "fvcore", "PIL", "yaml", "rich", "models"}
print(*sorted(others & {name.partition(".")[0] for name in sys.modules}))
"""


def test_the_library_works_with_torch_alone():
    done = subprocess.run([sys.executable, "-c", ALONE], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_a_wheel_holds_one_top_level_name(tmp_path):
    """Built without network from a copy, so that the checkout gets no build folder."""
    for name in ("pyproject.toml", "README.md", "LICENSE", "train.py", "eval.py"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("dcls", "models", "scripts", "configs", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (tmp_path / "dist").iterdir()
    # PyPI names are case-insensitive: a distribution called dcls would uninstall the reference package, DCLS.
    assert wheel.name.startswith("dcls_imagenet-")
    held = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in held if ".dist-info/" not in name} == {"dcls"}
    sources = {f"dcls/{path.relative_to(ROOT / 'dcls')}" for path in (ROOT / "dcls").rglob("*.py")}
    assert sources <= set(held)
