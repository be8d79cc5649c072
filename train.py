"""Train an image classifier whose convolutions learn where their taps sit.

    python train.py +experiment=quickstart
    torchrun --nproc_per_node=8 train.py +experiment=convnext_dcls data.root=/path/to/imagenet
    python train.py +experiment=convnext_dcls dry_run=true        # what would run, beside the paper's figures

Started again in the same run folder, a run continues from its last checkpoint. `--help` lists every option.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

import models
from dcls import data, layers, ops
from dcls.analysis import complexity, positions
from dcls.config import composition
from dcls.config.schema import Config, DataConfig, DclsSurgery, EvalRuntimeConfig, SurgeryConfig
from dcls.engine import optim
from dcls.engine.ema import Ema
from dcls.engine.folder import RunFolder
from dcls.engine.loop import Autosave, Stopped, fit
from dcls.engine.plan import Plan, plan
from dcls.engine.state import FORMAT, TrainState
from dcls.engine.step import PositionRules, Step
from dcls.errors import CheckpointError, ConfigError, about, reported
from dcls.files import checkpoints
from dcls.files.atomic import writable, write_text
from dcls.record import mirrors, resolved, summary
from dcls.record.bar import Bar
from dcls.record.record import Record
from dcls.record.report import RunReport
from dcls.runtime import processes, profiling
from dcls.runtime.prepare import measured_choices, precision, prepare, settled_amp
from dcls.runtime.randomness import key, seed_all
from dcls.surgery import Report
from dcls.task import objective

STOPPED = 143  # what a shell reports after SIGTERM; schedulers requeue on it
DEBUG_BATCHES = DEBUG_EPOCHS = 2
EVAL_SLOTS = 4  # in a batch: without gradients they take less memory than one in training


def main(arguments: Sequence[str]) -> int:
    if (answer := composition.answer("train", arguments)) is not None:
        print(answer)
        return 0
    cfg, overrides = composition.compose("train", arguments)
    config = composition.typed(cfg, overrides)
    with processes.join(config.runtime.device, config.runtime.threads) as world:
        path = Path(world.on_main(lambda: run_folder(config, overrides)))
        settle(config, world)
        if config.dry_run:
            return dry_run(config, path, world)
        with RunFolder(path, world) as folder:
            return train(config, folder, world)


def train(config: Config, folder: RunFolder, world: processes.World) -> int:
    train_data, val_data = data.open_splits(**splits(config.data))
    classes = list(train_data.class_names)
    begins = folder.saved is None
    model, report = build_model(config, len(classes), begins=begins)
    started = start(config, model, world, classes) if begins else []
    schedule = build_plan(config, len(train_data), world)
    run = describe(config, model, report, schedule, {"train": len(train_data), "val": len(val_data)})
    step = build_step(config, model, schedule, world, len(classes))
    train_loader, val_loader = build_loaders(config, train_data, val_data, schedule, world)
    fingerprints = {"train": train_data.fingerprint(), "val": val_data.fingerprint()}
    identity = {
        "config": asdict(config),
        "class_names": classes,
        "fingerprints": fingerprints,
        "backends": ops.usable(config.runtime.conv_backend, world.device.type),
    }
    state = build_state(step, schedule, identity)
    folder.restore(state, differing=composition.differing, extend=config.run.extend)
    if world.device.type == "cuda" and config.runtime.conv_backend == "auto":
        if folder.saved is None:
            state.choices = measured_choices(model, world, step.precision, shapes_shown(config))
        ops.set_choices(state.choices)

    console = Console(quiet=not world.is_main, force_terminal=True if config.logger.progress == "bar" else None)
    resolved.show(run, [*report.lines(), *started], console)
    where = f"continuing {folder.saved.name} in" if folder.saved else "starting in"
    console.print(f"{where} {folder.path}", markup=False, highlight=False)
    if changed := state.goes_on(summary.machine(world)):
        console.print(f"{'; '.join(changed)}: from here on bits may differ from an uninterrupted run's", markup=False)
    with ExitStack() as stack:
        record = stack.enter_context(open_record(config, folder.path, state)) if world.is_main else None
        kind = config.logger.progress if world.is_main else "off"
        bar = stack.enter_context(Bar(kind, schedule.epochs, schedule.steps_per_epoch, state.step, console))
        stop = stack.enter_context(processes.StopRequest(world))
        wanted = config.profile and world.is_main
        profiler = stack.enter_context(profiling.window(folder.path, enabled=wanted, debug=config.debug))
        telling = RunReport(folder.path, state, bar, record)
        autosave = Autosave(folder.checkpoints, state, stop, main=world.is_main, minutes=config.run.save_minutes)
        limit = DEBUG_BATCHES if config.debug else None
        try:
            fit(step, state, train_loader, val_loader, autosave, bar, telling.epoch, profiler, limit)
        except Stopped as stopped:
            bar.message(f"{stopped} and saved; the same command continues it")
            return STOPPED
        facts = summary.summarise(state.history[-1], state.best, run, asdict(config), state.machines, world.device)
        for picture in telling.finish(facts):
            bar.message(f"wrote {picture}")
    return 0


# What each room is told of the configuration


def settle(config: Config, world: processes.World) -> None:
    """Put what `auto` stands for here in its place: it is part of what the run is."""
    config.runtime.device = world.device.type
    config.runtime.amp = settled_amp(world.device, config.runtime.amp)
    choose_backend(config.runtime, world)


def choose_backend(runtime: EvalRuntimeConfig, world: processes.World) -> None:
    """For the depthwise convolutions of this process. Raises ConfigError where it cannot be used here."""
    ops.usable(runtime.conv_backend, world.device.type, "runtime.conv_backend")
    ops.set_backend(runtime.conv_backend)


def pick(section: Any, *names: str) -> dict[str, Any]:
    """The named options of a section, for a function whose arguments are called the same."""
    return {name: getattr(section, name) for name in names}


def splits(config: DataConfig) -> dict[str, Any]:
    return pick(config, "kind", "root", "train_split", "val_split", "classes", "train_images", "val_images")


def build_model(config: Config, classes: int | None, *, begins: bool) -> tuple[nn.Module, Report]:
    """The network with its surgery done, and what that changed; with timm's weights where the run `begins` by them."""
    if classes is None:
        raise ConfigError("data.classes=null: a dry run does not open the data, so give the number of classes")
    if own := {"num_classes", "in_chans", "drop_path_rate", "pretrained"} & config.model.args.keys():
        raise ConfigError(f"model.args={config.model.args}: {min(own)} has an option of its own; use that")
    seed_all(key(config.seed, "init"))
    model = models.create(
        config.model.name,
        num_classes=classes,
        in_chans=config.data.channels,
        drop_path_rate=config.recipe.drop_path,
        pretrained=config.model.pretrained and begins,
        **config.model.args,
    )
    report = models.convert(model, **surgery_options(asdict(config.surgery)))
    return model, report


def start(config: Config, model: nn.Module, world: processes.World, classes: Sequence[str] | None = None) -> list[str]:
    """Put the weights of model.init_from into the model, where it is set; in words, what was taken and what was not.

    classes: their names, None where they are not known.
    """
    file, option = config.model.init_from, "model.init_from"
    if not file:
        return []
    # One of the processes fetches what has to be fetched.
    world.on_main(lambda: models.located(file, option))
    saved = checkpoints.load(models.located(file, option), option)
    # In no tensor: a file is taken to be what is trained here, and a published name is known.
    asked = {} if file in models.RELEASED else read_as(config.surgery)
    with about(option, file):
        weights = models.weights_of(saved)
        if is_a_run(saved):
            source, theirs = network_of_a_run(saved, weights), list(saved["class_names"])
        else:
            source, theirs = models.donor(weights, model, asked, **config.model.args), None
        same = classes is None or theirs is None or list(classes) == theirs
        return [f"weights from {file}", *models.transfer(model, source, same_classes=same)]


def read_as(config: SurgeryConfig) -> dict[str, Any]:
    return pick(config, "version", "dilated_kernel_size") if isinstance(config, DclsSurgery) else {}


def is_a_run(saved: Mapping[str, Any]) -> bool:
    """Whether a loaded file is a checkpoint of ours, which knows its network."""
    return {"format", "config", "class_names"} <= saved.keys()


def network_of_a_run(saved: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> nn.Module:
    """The network of one of our training checkpoints, with `weights` of it. CheckpointError where those do not fit."""
    if saved["format"] != FORMAT:
        raise CheckpointError(f"found a checkpoint of format {saved['format']}, expected {FORMAT}")
    try:
        model, _ = network_as_built(saved)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"its configuration is no run's of this framework ({error!r})") from error
    if problems := models.misfit(model.state_dict(), weights):
        raise CheckpointError(f"its weights do not fit its configuration: {problems}")
    model.load_state_dict(weights)
    return model


def network_as_built(saved: Mapping[str, Any]) -> tuple[nn.Module, Report]:
    """The network of one of our training checkpoints before it was trained, and what its surgery changed."""
    told = saved["config"]
    classes, channels = len(saved["class_names"]), told["data"]["channels"]
    model = models.create(told["model"]["name"], num_classes=classes, in_chans=channels, **told["model"]["args"])
    return model, models.convert(model, **surgery_options(told["surgery"]))


def surgery_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """What `models.convert` is told: the mode and, of the chosen mode's options, those that shape the layers."""
    shaping = ("mode", "version", "dilated_kernel_size", "kernel_count", "share", "position_init_std", "sigma_init")
    return {name: value for name, value in config.items() if name in (*shaping, "dilation")}


def build_plan(config: Config, train_images: int | None, world: processes.World) -> Plan:
    if train_images is None:
        raise ConfigError("data.train_images=null: a dry run does not open the data, so give the number of images")
    recipe = config.recipe
    length = pick(recipe, "epochs", "warmup_epochs")
    if config.debug:
        epochs = min(recipe.epochs, DEBUG_EPOCHS)
        length = {"epochs": epochs, "warmup_epochs": min(recipe.warmup_epochs, epochs / 2)}
    return plan(
        train_images=train_images,
        rank=world.rank,
        world_size=world.size,
        steps_limit=DEBUG_BATCHES if config.debug else None,
        **length,
        **pick(recipe, "global_batch", "slot", "lr", "lr_batch", "lr_min"),
    )


def describe(
    config: Config, model: nn.Module, report: Report, schedule: Plan, images: dict[str, Any]
) -> dict[str, Any]:
    """The resolved run; FLOPs are those of one evaluation image."""
    channels, shown = config.data.channels, config.data.eval_size
    input_size = (channels, shown, shown)
    cost = complexity.count(model, input_size)
    if (side := config.data.image_size) != shown:
        complexity.count(model, (channels, side, side), "data.image_size")
    learned = set(layers.roles(model).values())
    scales = {"network": 1.0} | {role: scale for role, scale in lr_scales(config.surgery).items() if role in learned}
    return resolved.resolve(
        experiment=config.experiment,
        model=config.model.name,
        surgery=report.as_dict(),
        params=cost.params,
        flops=cost.flops,
        paper=models.paper_figures(config.model.name, report.mode, report.version),
        input_size=input_size,
        plan=schedule,
        learning_rates={role: schedule.lr * scale for role, scale in scales.items()},
        images=images,
    )


def lr_scales(config: SurgeryConfig) -> dict[str, float]:
    if not isinstance(config, DclsSurgery):
        return {}
    return {"position": config.position_lr_scale, "sigma": config.sigma_lr_scale}


def position_rules(config: SurgeryConfig) -> PositionRules | None:
    if not isinstance(config, DclsSurgery):
        return None
    return PositionRules(**pick(config, "clamp", "repulsive_loss", "repulsive_after_epoch"))


def build_step(config: Config, model: nn.Module, schedule: Plan, world: processes.World, classes: int) -> Step:
    recipe, runtime = config.recipe, config.runtime
    preparing = ("channels_last", "fast_depthwise", "activation_checkpointing", "compile")
    forward = prepare(model, world, **pick(runtime, *preparing))
    groups = optim.parameter_groups(
        model,
        weight_decay=recipe.weight_decay,
        lr_scales=lr_scales(config.surgery),
        layer_decay=recipe.layer_decay,
        layer_ids=models.layer_ids(model) if recipe.layer_decay is not None else None,
    )
    optimizer = optim.build_optimizer(groups, name=recipe.optimizer, lr=schedule.lr, arguments=recipe.opt_args)
    steps = {"total_steps": schedule.total_steps, "warmup_steps": schedule.warmup_steps}
    mixing = ("mixup", "cutmix", "mixup_prob", "mixup_switch_prob", "mixup_mode", "mixup_off_epoch")
    numeric = precision(world.device, **pick(runtime, "amp", "channels_last"))
    return Step(
        model,
        forward,
        optimizer,
        optim.build_schedule(optimizer, **steps, **pick(recipe, "lr_min", "warmup_lr")),
        objective.build(classes=classes, **pick(recipe, "loss", "bce_threshold", "smoothing", *mixing)),
        world,
        schedule.slots,
        numeric,
        seed=config.seed,
        ema=Ema(model, config.ema.decay, config.ema.shared) if config.ema.decay else None,
        scaler=torch.amp.GradScaler(world.device.type, enabled=numeric.amp is torch.float16),
        clip_grad=recipe.clip_grad,
        positions=position_rules(config.surgery),
    )


def build_loaders(
    config: Config, train_data: data.Source, val_data: data.Source, schedule: Plan, world: processes.World
) -> tuple[data.TrainLoader, data.EvalLoader]:
    train_loader = data.TrainLoader(
        train_data,
        train_transform(config),
        seed=config.seed,
        global_batch=schedule.slots.global_batch,
        slot=schedule.slots.size,
        my_slots=schedule.slots.mine,
        repeats=config.recipe.repeats,
        workers=config.data.workers,
        pin_memory=world.device.type == "cuda",
    )
    return train_loader, build_eval_loader(config.data, val_data, world, batch=EVAL_SLOTS * schedule.slots.size)


def shapes_shown(config: Config) -> list[tuple[int, ...]]:
    """[B, C, H, W] of a batch in training, and of one in evaluation."""
    channels, slot = config.data.channels, config.recipe.slot
    shown, evaluated = config.data.image_size, config.data.eval_size
    return [(slot, channels, shown, shown), (EVAL_SLOTS * slot, channels, evaluated, evaluated)]


def train_transform(config: Config) -> data.Transform:
    augmentation = ("scale", "ratio", "hflip", "auto_augment", "color_jitter", "erasing", "erasing_mode")
    return data.train_transform(
        interpolation=config.recipe.train_interpolation,
        **pick(config.data, "image_size", "channels", "mean", "std"),
        **pick(config.recipe, *augmentation),
    )


def build_eval_loader(
    config: DataConfig, source: data.Source, world: processes.World, *, batch: int, label_map: Any = None
) -> data.EvalLoader:
    shown = pick(config, "channels", "mean", "std", "crop_pct", "interpolation", "crop_mode")
    return data.EvalLoader(
        source,
        data.eval_transform(image_size=config.eval_size, **shown),
        batch=batch,
        rank=world.rank,
        world_size=world.size,
        workers=config.workers,
        label_map=label_map,
        pin_memory=world.device.type == "cuda",
    )


def build_state(step: Step, schedule: Plan, identity: dict[str, Any]) -> TrainState:
    state = TrainState(
        step.model,
        step.optimizer,
        ema=step.ema,
        scaler=step.scaler,
        positions=positions.History(positions.limits(step.model)),
        steps_per_epoch=schedule.steps_per_epoch,
        epochs=schedule.epochs,
        identity=identity,
    )
    state.positions.add(0, positions.snapshot(step.model))
    return state


# Files


def run_folder(config: Config, overrides: Sequence[str]) -> str:
    return config.run.dir or str(Path(config.run.root) / composition.run_name(config, overrides))


def open_record(config: Config, folder: Path, state: TrainState) -> Record:
    values = asdict(config)
    mirrored = mirrors.open_mirrors(
        folder,
        folder.name,
        values,
        entity=config.logger.entity or None,
        **pick(config.logger, "wandb", "project", "tensorboard"),
    )
    record = Record(folder, mirrored)
    record.begin(values, state.history)
    return record


def dry_run(config: Config, folder: Path, world: processes.World) -> int:
    """Everything but data and training: show the resolved run and write it to `folder`/dry_run.json."""
    model, report = build_model(config, config.data.classes, begins=True)
    started = start(config, model, world)
    schedule = build_plan(config, config.data.train_images, world)
    images = {"train": config.data.train_images, "val": config.data.val_images}
    run = describe(config, model, report, schedule, images)
    build_step(config, model, schedule, world, config.data.classes or 0)
    train_transform(config)
    if world.is_main:
        writable(folder, "run.dir")
        resolved.show(run, [*report.lines(), *started], Console())
        write_text(folder / "dry_run.json", json.dumps(run | {"config": asdict(config)}, indent=2) + "\n")
        print(f"wrote {folder / 'dry_run.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(reported(lambda: main(sys.argv[1:])))
