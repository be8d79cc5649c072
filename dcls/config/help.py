"""Every option as a page of text (`--help`) and as the table of the README, made from the schema."""

from collections.abc import Iterator

from omegaconf import MISSING

from dcls.config.schema import CONFIGS, GROUPS, SCHEMAS, Config, Option, choices_of, options

START, END = "<!-- options -->", "<!-- /options -->"

USAGE = {
    "train": """\
Train an ImageNet classifier.

  python train.py +experiment=quickstart
  torchrun --nproc_per_node=8 train.py +experiment=convnext_dcls data.root=/path/to/imagenet

Arguments are name=value in any order: +experiment=<name> chooses a complete run, <group>=<choice> replaces one part of
it, <option>=<value> one number. surgery.mode=<mode> is short for surgery=<mode>. null unsets, [a, b] is a list.
Starting again in the same folder (run.dir) continues the run.

  --help       this page
  --cfg job    print the composed configuration and stop
  dry_run=true print the resolved run (parameters, FLOPs, batches, learning rates) and stop; needs no data""",
    "eval": """\
Evaluate checkpoints: top-1, top-5, loss, parameters, FLOPs and images a second.

  python eval.py checkpoint=runs/quickstart-s0/checkpoints/best.pt
  python eval.py checkpoint=[A.pt,B.pt] data.root=/path/to/imagenet
  python eval.py model.name=resnet50 model.pretrained=true data=imagenet data.root=/path/to/imagenet

Arguments are name=value in any order. The data and its transform are the checkpoint's unless an option says otherwise.

  --help       this page
  --cfg job    print the composed configuration and stop""",
}


def page(config_name: str) -> str:
    """The answer to `--help` of "train" or "eval"."""
    known = options(SCHEMAS[config_name])
    width = max(map(len, known))
    lines = [USAGE[config_name]]
    for group in GROUPS[config_name]:
        lines += ["", f"{group}="] + [f"  {choice:{width}}  {title(group, choice)}" for choice in choices_of(group)]
    lines += ["", "options"]
    lines += [f"  {name:{width}}  {_meaning(option)} [{_default(option)}]" for name, option in known.items()]
    return "\n".join(lines)


def title(group: str, choice: str) -> str:
    """The first line of the choice's file that says something."""
    lines = (CONFIGS / group / f"{choice}.yaml").read_text().splitlines()
    return next(line[2:] for line in lines if line.startswith("# ") and not line.startswith("# @"))


def table() -> str:
    """The options of train.py as a Markdown table."""
    rows = ["| option | default | meaning |", "|---|---|---|"]
    rows += [f"| `{name}` | {_default(option)} | {_meaning(option)} |" for name, option in options(Config).items()]
    return "\n".join(rows).replace("<", "&lt;")


def renewed(text: str) -> str:
    """`text` with the table between its two markers made anew. Raises ValueError where the markers are missing."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"the option map needs the markers {START} and {END}")
    return f"{before}{START}\n{table()}\n{END}{after}"


def _meaning(option: Option) -> str:
    return "; ".join([option.doc, *_limits(option)])


def _limits(option: Option) -> Iterator[str]:
    if option.choices:
        yield " / ".join(option.choices)
    if option.within:
        yield f"in {option.within}"


def _default(option: Option) -> str:
    if option.default == MISSING:
        return "in configs/"
    if option.default is None or isinstance(option.default, bool):
        return {None: "null", True: "true", False: "false"}[option.default]
    return str(option.default) or "empty"
