import dataclasses
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import MISSING

from dcls.config import help
from dcls.config import schema as config
from dcls.config.schema import CONFIGS, GROUPS, SURGERIES, Config, EvalConfig, choices_of, options
from dcls.data import transforms
from dcls.engine import ema
from dcls.record import bar
from dcls.runtime import processes
from dcls.task import objective

SCRIPT = CONFIGS.parent / "scripts" / "option_map.py"
FILES = sorted(CONFIGS.rglob("*.yaml"))


def flat(values: dict[str, Any], known: set[str], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        dotted = f"{above}{name}"
        found |= (
            flat(value, known, f"{dotted}.") if isinstance(value, dict) and dotted not in known else {dotted: value}
        )
    return found


def values_in(file: Path) -> dict[str, Any]:
    """The options a file sets, by their dotted names."""
    text = file.read_text()
    values = yaml.safe_load(text)
    values.pop("defaults", None)
    whole = "# @package _global_" in text or file.parent == CONFIGS
    return flat(values if whole else {file.parent.name: values}, set(options(Config)))


def test_all_files_are_found_and_belong_to_a_group():
    assert len(FILES) == 48
    assert {file.parent.name for file in FILES if file.parent != CONFIGS} == set(GROUPS["train"])
    assert sorted(file.name for file in CONFIGS.glob("*.yaml")) == ["eval.yaml", "train.yaml"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONFIGS)))
def test_a_value_stands_in_yaml_only_where_the_dataclass_has_none(file):
    known = options(Config)
    both = [name for name in values_in(file) if known[name].default != MISSING]
    assert both == []


def test_every_option_without_a_default_stands_in_yaml():
    missing = {name for name, option in options(Config).items() if option.default == MISSING}
    assert missing == {name for file in FILES for name in values_in(file)}


def test_every_recipe_is_complete_by_itself_or_over_its_parent():
    recipe = {name for name in options(Config) if name.startswith("recipe.")}
    complete = [file.stem for file in FILES if file.parent.name == "recipe" and recipe <= values_in(file).keys()]
    assert complete == ["convnext", "finetune", "quickstart", "resnet_a3"]


@pytest.mark.parametrize("schema", [Config, EvalConfig])
def test_every_option_says_what_it_is(schema):
    for option in options(schema).values():
        assert len(option.doc) > 10, option
        assert option.type_words, option
        assert not option.doc.endswith("."), option


def test_an_option_shared_by_several_modes_of_surgery_is_the_same_in_all():
    shared: dict[str, list[dataclasses.Field]] = {}
    for cls in SURGERIES.values():
        for field in dataclasses.fields(cls):
            shared.setdefault(field.name, []).append(field)
    assert {name for name, found in shared.items() if len(found) > 1} == {"mode", "dilated_kernel_size"}
    first, second = shared["dilated_kernel_size"]
    assert first.metadata == second.metadata


def test_modes_name_their_classes():
    assert {mode: cls.__dataclass_fields__["mode"].default for mode, cls in SURGERIES.items()} == {
        m: m for m in SURGERIES
    }


def test_names_that_scripts_of_others_rely_on():
    relied_on = """run.dir dry_run data.root data.workers model.name recipe.epochs recipe.warmup_epochs
    recipe.global_batch recipe.slot seed surgery.mode surgery.kernel_count surgery.version model.init_from logger.wandb
    logger.tensorboard run.save_minutes profile debug data.train_images data.classes ema.shared recipe.lr_batch"""
    assert set(relied_on.split()) <= options(Config).keys()
    assert {"checkpoint", "fuse", "data.root", "model.name", "model.pretrained", "run.dir"} <= options(
        EvalConfig
    ).keys()


def test_what_may_change_when_a_run_continues():
    free = {name for name, option in options(Config).items() if not option.changes_result}
    mirrored = {name for name in options(Config) if name.startswith(("run.", "logger."))}
    others = "experiment dry_run profile data.name data.root data.workers recipe.needs_weights runtime.threads"
    assert free == mirrored | set(others.split())


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("runtime.device", processes.DEVICES),
        ("logger.progress", bar.KINDS),
        ("ema.shared", ema.SHARED),
        ("recipe.loss", tuple(objective.LOSSES)),
        ("recipe.erasing_mode", transforms.ERASING_MODES),
        ("recipe.train_interpolation", (*transforms.INTERPOLATIONS, "random")),
        ("data.interpolation", transforms.INTERPOLATIONS),
    ],
)
def test_choices_are_those_of_the_library(name, wanted):
    assert set(options(Config)[name].choices) == set(wanted)


def test_surgery_classes_are_all_reachable():
    subclasses = {cls.__name__ for cls in config.SurgeryConfig.__subclasses__()}
    assert subclasses == {cls.__name__ for cls in SURGERIES.values()}
    assert set(SURGERIES) < set(choices_of("surgery"))


# The option map


def test_the_help_page_names_every_choice_and_every_option():
    page = help.page("train")
    for name in options(Config):
        assert f"\n  {name} " in page
    for group in GROUPS["train"]:
        for choice in choices_of(group):
            assert f"\n  {choice} " in page
    assert max(map(len, page.splitlines())) < 200
    assert "[0]" in next(line for line in page.splitlines() if line.startswith("  seed "))
    assert "\n  checkpoint " in help.page("eval")


def test_the_table_has_a_row_for_every_option_and_no_broken_cell():
    rows = help.table().splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == list(options(Config))
    assert all(row.count("|") == 4 and "<" not in row for row in rows)


def test_the_readme_is_up_to_date():
    assert runpy.run_path(str(SCRIPT))["main"](["--check"]) == 0, "run python scripts/option_map.py"


def test_the_script_makes_the_map_and_notices_a_stale_one(tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{help.START}\nstale row\n{help.END}\nafter\n")
    script = runpy.run_path(str(SCRIPT))["main"]
    assert script([str(readme), "--check"]) == 1
    assert "is stale" in capsys.readouterr().out
    assert script([str(readme)]) == 0
    assert script([str(readme), "--check"]) == 0
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "`recipe.epochs`" in text
    assert "stale row" not in text


def test_the_map_needs_its_markers():
    with pytest.raises(ValueError, match="<!-- options -->"):
        help.renewed("no markers here")
