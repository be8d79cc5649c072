"""Replace convolutions of an existing model, in place, by layers with learnable spacings or by their controls.

    report = convert(model, mode="dcls", select=depthwise(kernel_above=3), dilated_kernel_size=17)

finds the convolutions that a rule selects, solves the number of taps for equal parameters, shares positions and says
what changed. It needs torch alone and works on anybody's model; everything is checked before anything is replaced.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from dcls.errors import ConfigError
from dcls.layers import INTERPOLATIONS, Dcls1d, Dcls2d, Dcls3d, DclsNd, layers
from dcls.layers.drop_in import options_of
from dcls.layers.geometry import per_axis, whole
from dcls.layers.interpolation import resolve

MODES = ("none", "dcls", "dilated", "large_kernel")

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Layer = Convolution | DclsNd
Found = Sequence[tuple[str, Convolution]]
DCLS_LAYERS: Mapping[int, type[DclsNd]] = {1: Dcls1d, 2: Dcls2d, 3: Dcls3d}


# Which convolutions


@dataclass(frozen=True)
class Rule:
    """A named test of (qualified name, convolution). Rules combine with `&`; `text` is what error messages print."""

    text: str
    test: Callable[[str, Convolution], bool] = field(repr=False)

    def __call__(self, name: str, conv: Convolution) -> bool:
        return self.test(name, conv)

    def __and__(self, other: "Rule") -> "Rule":
        return Rule(f"{self} & {other}", lambda name, conv: self(name, conv) and other(name, conv))

    def __str__(self) -> str:
        return self.text


Predicate = Callable[[str, Convolution], bool]


def depthwise(kernel_above: int = 3, same_channels: bool = True) -> Rule:
    """One group per input channel and a kernel longer than `kernel_above` on some axis.

    same_channels: as many output as input channels, which leaves patch embeddings that widen alone.
    """

    def test(name: str, conv: Convolution) -> bool:
        per_channel = conv.groups == conv.in_channels > 1
        widens = conv.out_channels != conv.in_channels
        return per_channel and max(conv.kernel_size) > kernel_above and not (same_channels and widens)

    return Rule(f"depthwise(kernel_above={kernel_above}, same_channels={same_channels})", test)


def dense(kernel: int = 3) -> Rule:
    """One group, and `kernel` cells on every axis."""
    return Rule(f"dense(kernel={kernel})", lambda name, conv: conv.groups == 1 and set(conv.kernel_size) == {kernel})


def named(pattern: str) -> Rule:
    """The regular expression `pattern` is found in the qualified name."""
    expression = re.compile(pattern)
    return Rule(f"named({pattern!r})", lambda name, conv: expression.search(name) is not None)


def find(model: nn.Module, select: Predicate) -> list[tuple[str, Convolution]]:
    """The convolutions that `select` accepts, each once, with their names, in the order of `named_modules()`."""
    convs = ((name, module) for name, module in model.named_modules() if isinstance(module, Convolution))
    return [(name, conv) for name, conv in convs if select(name, conv)]


def _selected(model: nn.Module, select: Predicate) -> Found:
    """What `find` finds, or a ConfigError where that cannot be converted."""
    found = find(model, select)
    if not found:
        done = sum(1 for _ in layers(model))
        has = f"it has {done} DCLS layers already" if done else "look at its names with find(model, named(''))"
        raise ConfigError(f"select={select} matches no convolution of this {type(model).__name__}: {has}")
    if found[0][1] is model:
        raise ConfigError(f"select={select} matches the model itself: make its replacement with Dcls2d.like(model, ..)")
    if len({conv.weight.dim() for _, conv in found}) > 1:
        raise ConfigError(f"select={select} matches convolutions of different dimensions: convert one kind at a time")
    return found


# How many taps, and who shares their positions


def sharing_groups(convs: Iterable[Convolution]) -> list[int]:
    """The number of the group of each convolution: the members of a group have one P (and one SIG).

    In the order given, a group lasts until the number of input channels grows: one group a stage in ConvNeXt,
    ResNet-50, ConvFormer, CAFormer and FastViT. It also ends where P would not fit.
    """
    numbers: list[int] = []
    leader: Convolution | None = None
    for conv in convs:
        if leader is None or conv.in_channels > leader.in_channels or conv.weight.shape[:2] != leader.weight.shape[:2]:
            leader = conv
            numbers.append(numbers[-1] + 1 if numbers else 0)
        else:
            numbers.append(numbers[-1])
    return numbers


def solve_kernel_count(
    convs: Sequence[Convolution], groups: Sequence[int], axes: int, has_sigma: bool, share: bool = True
) -> int:
    """The largest number of taps K with which weights, positions and sigmas fit in the parameters replaced.

        K = floor( sum_b weights_b / (sum_b C_b + a sum_s C_s) )

    over layers b and sharing groups s (layers again without `share`), C = O * I/g kernels, a = `axes` positions a tap,
    twice that with sigmas. Biases stay, so they do not count. ConfigError where not even one tap fits.
    """
    kernels = [math.prod(conv.weight.shape[:2]) for conv in convs]
    owners = list(dict(zip(groups, kernels)).values()) if share else kernels
    one_tap = sum(kernels) + axes * (1 + has_sigma) * sum(owners)
    budget = sum(conv.weight.numel() for conv in convs)
    if budget < one_tap:
        raise ConfigError(
            f"kernel_count='auto' finds no count: the selected convolutions have {budget:,} weights and one tap "
            f"of each takes {one_tap:,} parameters; give kernel_count a number, or select larger kernels"
        )
    return budget // one_tap


# The report


@dataclass(frozen=True)
class Row:
    """One replaced layer. Layers of equal `group` share one P, counted at the first of them; None: there is no P."""

    name: str
    group: int | None
    old: str
    new: str
    params_before: int
    params_after: int


@dataclass(frozen=True)
class Report:
    """What `convert` did: a row a layer, and the distinct parameters of the whole model before and after.

    version and kernel_count are None outside mode dcls; rows are empty in mode none.
    """

    mode: str
    version: str | None
    kernel_count: int | None
    rows: tuple[Row, ...]
    params_before: int
    params_after: int

    def as_dict(self) -> dict[str, Any]:
        """The report in plain types, for JSON or YAML."""
        return {**asdict(self), "rows": [asdict(row) for row in self.rows]}

    def lines(self) -> list[str]:
        """The report as a plain-text table, one line a layer, the totals last."""
        change = self.params_after - self.params_before
        totals = f"parameters {self.params_before:,} -> {self.params_after:,} ({change:+,})"
        return [self.title, *(_table(self.rows) if self.rows else []), totals]

    @property
    def title(self) -> str:
        """What was replaced, in a line."""
        version = f" {self.version}, {self.kernel_count} taps a kernel" if self.version else ""
        groups = {row.group for row in self.rows if row.group is not None}
        shared = f", which share {len(groups)} sets of positions" if 0 < len(groups) < len(self.rows) else ""
        return f"surgery {self.mode}{version}: {len(self.rows)} layers replaced{shared}"


def _table(rows: Iterable[Row]) -> list[str]:
    cells = [("layer", "group", "old", "new", "before", "after")]
    for row in rows:
        group = "-" if row.group is None else str(row.group)
        cells.append((row.name, group, row.old, row.new, f"{row.params_before:,}", f"{row.params_after:,}"))
    widths = [max(map(len, column)) for column in zip(*cells)]
    justify = [str.ljust] * 4 + [str.rjust] * 2
    return ["  " + "  ".join(just(cell, width) for just, cell, width in zip(justify, line, widths)) for line in cells]


def _rows(found: Found, new: Sequence[Layer]) -> tuple[Row, ...]:
    groups: dict[nn.Parameter, int] = {}
    counted: set[nn.Parameter] = set()
    rows = []
    for (name, conv), layer in zip(found, new):
        group = groups.setdefault(layer.P, len(groups)) if isinstance(layer, DclsNd) else None
        own = set(layer.parameters()) - counted
        counted |= own
        after = sum(parameter.numel() for parameter in own)
        rows.append(Row(name, group, _describe(conv), _describe(layer), count_parameters(conv), after))
    return tuple(rows)


def _describe(layer: Layer) -> str:
    """For example '7x7 depthwise 96', '7x7 dilation 2 depthwise 96' or '17x17 of 34 taps'."""
    if isinstance(layer, DclsNd):
        return f"{_times(layer.dilated_kernel_size)} of {layer.kernel_count} taps"
    spread = f" dilation {max(layer.dilation)}" if max(layer.dilation) > 1 else ""
    kinds = {1: "dense", layer.in_channels: "depthwise"}
    return f"{_times(layer.kernel_size)}{spread} {kinds.get(layer.groups, 'grouped')} {layer.in_channels}"


def _times(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


def count_parameters(module: nn.Module) -> int:
    """Elements of the distinct parameters: a shared one counts once."""
    return sum(parameter.numel() for parameter in module.parameters())


# The conversion


def convert(
    model: nn.Module,
    *,
    mode: str,
    select: Predicate,
    dilated_kernel_size: int | Sequence[int] | None = None,
    kernel_count: int | str = "auto",
    version: str = "v0",
    share: bool = True,
    dilation: int = 2,
    weight_std: float | None = None,
    position_init_std: float = 0.5,
    sigma_init: float | None = None,
) -> Report:
    """Replace the convolutions of `model` that `select` accepts, in place; channels, stride and output size stay.

    mode: none; dcls (kernels of `dilated_kernel_size` cells made of `kernel_count` taps); dilated (kernels as they are,
        their cells `dilation` apart); large_kernel (dense kernels of `dilated_kernel_size`).
    select: a rule such as `depthwise()`, or any function of (qualified name, convolution).
    kernel_count: "auto" means equal parameters, by `solve_kernel_count`.
    share: layers of one group of `sharing_groups` hold the same P and SIG, as one Parameter object.
    weight_std: new weights are normal(0, weight_std) and biases 0. None: the layer's own initialisation, and in mode
        dilated, whose shapes stay, the weights that are there.
    version, position_init_std (cells), sigma_init: as of the DCLS layers.

    Raises ConfigError, and leaves the model as it was, for an unknown mode or version, a rule that matches nothing, a
    count that does not fit, a convolution that has no drop-in of that size.
    """
    if mode not in MODES:
        raise ConfigError(f"mode={mode!r} is unknown: choose one of {', '.join(MODES)}")
    before = count_parameters(model)
    if mode == "none":
        return Report(mode, None, None, (), before, before)
    found = _selected(model, select)
    new: Sequence[Layer]
    if mode == "dilated":
        new = [_spread(name, conv, whole("dilation", dilation, 1)) for name, conv in found]
    elif mode == "large_kernel":
        size = _cells(dilated_kernel_size, found, mode)
        new = [_convolution(name, conv, size) for name, conv in found]
    else:
        options = {"version": resolve(version), "position_init_std": position_init_std, "sigma_init": sigma_init}
        new = _learned(found, _cells(dilated_kernel_size, found, mode), kernel_count, share, **options)
    if weight_std is not None:
        _initialise(new, weight_std)
    rows = _rows(found, new)
    _replace(model, {conv: layer for (_, conv), layer in zip(found, new)})
    first = new[0]
    short, count = (first.version, first.kernel_count) if isinstance(first, DclsNd) else (None, None)
    return Report(mode, short, count, rows, before, count_parameters(model))


def _cells(size: int | Sequence[int] | None, found: Found, mode: str) -> tuple[int, ...]:
    """The size along each axis, or a ConfigError."""
    if size is None:
        raise ConfigError(f"dilated_kernel_size=None, but mode={mode!r} needs the size of the new kernels, e.g. 17")
    return per_axis("dilated_kernel_size", size, len(found[0][1].kernel_size), 1)


def _learned(
    found: Found, size: tuple[int, ...], kernel_count: int | str, share: bool, **options: Any
) -> Sequence[DclsNd]:
    """A DCLS layer for each convolution."""
    groups = sharing_groups([conv for _, conv in found]) if share else list(range(len(found)))
    count = _taps(kernel_count, found, groups, size, options["version"])
    kind = DCLS_LAYERS[len(size)]
    new = []
    for name, conv in found:
        with _naming(name):
            new.append(kind.like(conv, kernel_count=count, dilated_kernel_size=size, **options))
    _share(new, groups)
    return new


def _taps(asked: int | str, found: Found, groups: Sequence[int], size: tuple[int, ...], version: str) -> int:
    """The number of taps: the one asked for, or the one for equal parameters."""
    if asked == "auto":
        has_sigma = INTERPOLATIONS[version].has_sigma
        count = solve_kernel_count([conv for _, conv in found], groups, len(size), has_sigma)
    else:
        count = whole("kernel_count", asked, 1)
    if count > math.prod(size):
        raise ConfigError(
            f"kernel_count={asked!r} gives {count} taps, but dilated_kernel_size={_times(size)} has "
            f"{math.prod(size)} cells: take fewer taps or a larger kernel"
        )
    return count


def _share(new: Sequence[DclsNd], groups: Sequence[int]) -> None:
    """Give the layers of a group the first one's positions and sigmas."""
    leaders: dict[int, DclsNd] = {}
    for layer, group in zip(new, groups):
        leader = leaders.setdefault(group, layer)
        layer.P, layer.SIG = leader.P, leader.SIG


def _spread(name: str, conv: Convolution, dilation: int) -> Convolution:
    """The convolution with its cells `dilation` apart and its weights as they are."""
    new = _convolution(name, conv, conv.kernel_size, dilation)
    new.load_state_dict(conv.state_dict())
    for mine, theirs in zip(new.parameters(), conv.parameters(), strict=True):
        mine.requires_grad_(theirs.requires_grad)
    return new


def _convolution(name: str, conv: Convolution, size: tuple[int, ...], dilation: int = 1) -> Convolution:
    """A convolution of `size` cells, `dilation` apart, that otherwise does what conv does."""
    extent = tuple(dilation * (cells - 1) + 1 for cells in size)
    kind: Any = type(conv)
    with _naming(name):
        new: Convolution = kind(kernel_size=size, dilation=dilation, **options_of(conv, len(size), extent))
    return new.train(conv.training)


@contextmanager
def _naming(layer: str) -> Iterator[None]:
    """Put the layer's name in front of what is wrong with it."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{layer}: {error}") from None


def _initialise(new: Iterable[Layer], weight_std: float) -> None:
    if weight_std < 0:
        raise ConfigError(f"weight_std={weight_std} must not be negative")
    for layer in new:
        nn.init.normal_(layer.weight, 0, weight_std)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _replace(model: nn.Module, replacements: Mapping[Convolution, Layer]) -> None:
    """By identity, wherever a convolution is held: one used in two places stays one layer."""
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if isinstance(child, Convolution) and child in replacements:
                parent._modules[key] = replacements[child]
