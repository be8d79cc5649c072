"""The page about a run: a DCLS network beside a plain one, each trained for an epoch on a tree of real images."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

import train
from dcls.errors import reported
from scripts import report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
SECTIONS = ["curves", "surgery", "positions", "kernels", "field", "heat", "classes", "cost"]
WIDTHS = (390, 1280)


def trained(tree: Path, folder: Path, surgery: str) -> Path:
    data = ["data=folder", f"data.root={tree}", "data.channels=1", "data.mean=[0.286]", "data.std=[0.353]"]
    recipe = ["recipe.epochs=1", "recipe.warmup_epochs=0", "recipe.global_batch=16", "recipe.slot=16"]
    more = [f"surgery={surgery}", f"run.dir={folder}", "logger.progress=off", "runtime.threads=1", "data.workers=0"]
    assert train.main(["+experiment=quickstart", *data, *recipe, *more]) == 0
    return folder


@pytest.fixture(scope="module")
def runs(image_tree, tmp_path_factory) -> Path:
    """A folder of the runs dcls and plain."""
    root = tmp_path_factory.mktemp("runs")
    for name, surgery in (("dcls", "dcls_quickstart"), ("plain", "none")):
        trained(image_tree, root / name, surgery)
    return root


@pytest.fixture(scope="module")
def page(runs) -> Path:
    out = runs / "report.html"
    assert report.main([f"run.dir={runs / 'dcls'}", f"against={runs / 'plain'}", f"out={out}", "threads=1"]) == 0
    return out


class Elements(HTMLParser):
    """Every element with its attributes, and the text of all of them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def test_the_page_has_every_section_and_fetches_nothing(page):
    text = page.read_text()
    elements = Elements(text)
    assert [heading["id"] for heading in elements.all("h2")] == SECTIONS
    assert [link["href"] for link in elements.all("a")][: len(SECTIONS)] == [f"#{name}" for name in SECTIONS]
    images = elements.all("img")
    assert len(images) >= 4 + 3 * 3 + 2 * 3 + 2 + 4  # curves, positions, kernels, fields, heat maps
    assert all(image["alt"] and image["src"].startswith("data:image/png;base64,") for image in images)
    assert len({image["alt"] for image in images}) == len(images)
    assert not re.search(r"https?://|<script|<link|url\(|@import", text)
    assert "default-src 'none'" in text
    assert len(text) < 5_000_000
    assert "{{" not in text


def test_the_page_says_what_the_runs_recorded(page, runs):
    text = " ".join(Elements(page.read_text()).text.split())
    rows = {name: json.loads((runs / name / "metrics.jsonl").read_text()) for name in ("dcls", "plain")}
    for name, row in rows.items():
        assert f"{row['top1']:.2f} %" in text
        assert f"{row['top1_ema']:.2f} % of {name}" in text  # evaluated anew, of the averaged weights
    assert "6 layers replaced, which share 3 sets of positions" in text
    moved = rows["dcls"]["positions"]["stages.0.blocks.0.conv_dw"]["movement"]
    assert f"At the end: moved {moved:.2f} px" in text
    for label in range(4):
        assert f"class{label}" in text
    memory = json.loads((runs / "plain" / "summary.json").read_text())["peak_memory_bytes"]
    assert f"{memory / 2**20:,.0f} MiB" in text


def test_a_plain_run_alone_has_a_page_too(runs):
    assert report.main([f"run.dir={runs / 'plain'}"]) == 0
    text = (runs / "plain" / "report.html").read_text()
    assert "This network learns no positions." in text
    assert "another run's folder fills this section" in text


MEASURE = """
<script>
onload = () => {
  const seen = [...document.querySelectorAll("iframe")].map((frame) => {
    const page = frame.contentDocument, root = page.documentElement
    const images = [...page.images]
    return {
      width: frame.contentWindow.innerWidth, content: root.scrollWidth,
      images: images.length, drawn: images.filter((image) => image.naturalWidth > 0).length,
      widest: Math.max(...images.map((image) => image.getBoundingClientRect().right)),
      curves: new Set([...page.querySelectorAll("#curves ~ .panels img")].map((image) => image.offsetLeft)).size,
      font: parseFloat(frame.contentWindow.getComputedStyle(page.querySelector("p")).fontSize),
    }
  })
  document.body.textContent = JSON.stringify(seen)
}
</script>
"""


@pytest.mark.skipif(BROWSER is None, reason="no browser: install chromium (apt-get install chromium)")
def test_a_browser_draws_it_on_a_phone_and_on_a_desk(page, tmp_path):
    """In frames of these widths, because a window of the browser itself is at least 500 pixels wide."""
    frame = '<iframe width="{}" height="800" style="border: 0" srcdoc="{}"></iframe>'
    around = tmp_path / "around.html"
    frames = (frame.format(width, html.escape(page.read_text())) for width in WIDTHS)
    around.write_text(f"<!DOCTYPE html><meta charset=utf-8><body>{MEASURE}{''.join(frames)}")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", f"--user-data-dir={tmp_path / 'user'}"]
    command = [BROWSER, *options, *QUIET, "--dump-dom", around.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    seen = re.search(r"<body>(\[.*\])</body>", done.stdout)
    assert seen, done.stderr
    phone, desk = json.loads(seen[1])
    for seen, width in zip((phone, desk), WIDTHS, strict=True):
        assert seen["width"] == width
        assert seen["content"] <= width  # nothing to scroll sideways
        assert seen["widest"] <= width
        assert seen["drawn"] == seen["images"] > 20
        assert seen["font"] >= 16
    assert (phone["curves"], desk["curves"]) == (1, 4)  # below each other, beside each other


def test_runs_of_one_name_are_told_apart():
    assert report.told_apart([Path("/runs/dcls-s0"), Path("/runs/plain-s0")]) == ["dcls-s0", "plain-s0"]
    assert report.told_apart([Path("/runs/a/x/s0"), Path("/runs/b/x/s0")]) == ["a/x/s0", "b/x/s0"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "run.dir is not set"),
        (["run.dri=x"], "run.dri=x: no such option; write name=value, of run.dir, against"),
        (["run.dir={root}/none"], "none/checkpoints/last.pt is missing; found nothing, expected a run's folder"),
        (["run.dir={root}/torn"], "torn/checkpoints/last.pt is missing; found config.yaml, expected a run's folder"),
        (["run.dir={root}/other"], "last.pt holds model; expected a checkpoint of train.py, which holds class_names"),
        (["run.dir={root}/young"], "last.pt is from before the end of the first epoch"),
        (["run.dir={root}/dcls", "against={root}/none"], "against="),
        (["run.dir={root}/dcls", "against={root}/plain/../dcls"], "that is run.dir itself"),
        (["run.dir={root}/dcls", "batch=0"], "batch=0: must be a number from 1 on"),
        (["run.dir={root}/dcls", "threads=two"], "threads=two: must be a number from 0 to 1024"),
        (["run.dir={root}/dcls", "threads=5000"], "threads=5000: must be a number from 0 to 1024"),
        (["run.dir={root}/dcls", "out={root}"], "found a folder, expected the name of a file"),
        (["run.dir={root}/half"], "half/summary.json is torn"),
        (["run.dir={root}/dcls", "device=tpu"], "device=tpu: choose one of"),
        (["run.dir={root}/dcls", "data.root={root}/none"], "data.root"),
    ],
)
def test_bad_input_is_one_line(runs, capsys, arguments, expected):
    (runs / "torn").mkdir(exist_ok=True)
    (runs / "torn" / "config.yaml").touch()
    begun = torch.load(runs / "dcls" / "checkpoints" / "last.pt") | {"history": []}
    for name, saved in (("other", {"model": {"weight": torch.zeros(1)}}), ("young", begun)):
        (runs / name / "checkpoints").mkdir(parents=True, exist_ok=True)
        torch.save(saved, runs / name / "checkpoints" / "last.pt")
    (runs / "half").mkdir(exist_ok=True)
    (runs / "half" / "summary.json").write_text('{"top1": ')
    shutil.copytree(runs / "dcls" / "checkpoints", runs / "half" / "checkpoints", dirs_exist_ok=True)
    given = [argument.format(root=runs) for argument in arguments]
    assert reported(lambda: report.main(given or ["out=x.html"])) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert expected in message


def test_runs_of_other_images_are_not_compared(runs, image_tree, tmp_path, capsys):
    tree = tmp_path / "tree"
    shutil.copytree(image_tree, tree)
    next((tree / "val" / "class0").iterdir()).unlink()
    other = trained(tree, tmp_path / "plain", "none")
    assert reported(lambda: report.main([f"run.dir={runs / 'dcls'}", f"against={other}"])) == 2
    assert "its images (val of" in capsys.readouterr().err
