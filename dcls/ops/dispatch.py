"""Which backend runs a depthwise convolution: the first of an ordered tuple that has no reason not to."""

import contextlib
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from dcls.errors import ConfigError
from dcls.ops import cpu, torch_backend, triton_backend, triton_bands
from dcls.ops.case import Case

_log = logging.getLogger(__name__)


class Backend(Protocol):
    """What a backend's file offers. Tensors are 4-D and of any strides; results may have any strides too."""

    NAME: str

    def supports(self, case: Case) -> str | None:
        """None, or the reason why it cannot run the case."""

    def forward(
        self, x: Tensor, kernel: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]
    ) -> Tensor: ...

    def input_gradient(
        self, grad: Tensor, x: Tensor, kernel: Tensor, stride: Sequence[int], padding: Sequence[int]
    ) -> Tensor: ...

    def kernel_gradient(
        self,
        grad: Tensor,
        x: Tensor,
        kernel: Tensor,
        stride: Sequence[int],
        padding: Sequence[int],
        with_bias: bool,
    ) -> tuple[Tensor, Tensor | None]: ...


# The fastest first; but one that has to prove itself in each case runs only where it is named: by an argument, by
# set_backend(), or by set_choices().
BACKENDS: tuple[Backend, ...] = (triton_bands, triton_backend, cpu, torch_backend)
UNPROVEN = (triton_bands.NAME, triton_backend.NAME)

# Not one of them: torch's convolution under autograd, in place of the operator.
REFERENCE = "reference"
NAMES = ("auto", *(backend.NAME for backend in BACKENDS), REFERENCE)

_chosen = "auto"
_picked: dict[str, str] = {}
_choices: dict[str, str] = {}
_recorder: dict[Case, None] | None = None


def set_backend(name: str) -> None:
    """Choose for the process: 'auto', the name of one backend, or 'reference' (F.conv2d under plain autograd).

    ConfigError for unknown names. A backend chosen by name refuses, with its reason, what it cannot run. Convolutions
    that are not depthwise, or not 1-D or 2-D, are always the reference's. Generated code builds kernels with 'auto' and
    'cpu' alone.
    """
    global _chosen
    _chosen = known(name)


def get_backend() -> str:
    """What set_backend chose; 'auto' at first."""
    return _chosen


def known(name: str) -> str:
    if name not in NAMES:
        raise ConfigError(f"backend={name!r} must be one of {', '.join(NAMES)}")
    return name


def set_choices(table: Mapping[str, str]) -> None:
    """Which backend 'auto' takes away from the CPU, by the text of a case: what trial.choose() returned.

    Cases that are not in the table run F.conv2d under autograd. Where triton cannot run in this process its choices are
    dropped, with a warning. ConfigError for names that are no backend's.
    """
    global _choices
    for case, name in table.items():
        if name == "auto" or name not in NAMES:
            raise ConfigError(f"choices[{case!r}]={name!r} must be one of {', '.join(NAMES[1:])}")
    missing = triton_backend.unavailable() if set(UNPROVEN) & set(table.values()) else None
    if missing is not None:
        _log.warning("depthwise convolutions chosen for triton run F.conv2d: %s", missing)
        table = {case: name for case, name in table.items() if name not in UNPROVEN}
    _choices = dict(table)


def choices() -> dict[str, str]:
    """The table of set_choices; empty at first."""
    return dict(_choices)


def choice(case: Case) -> str:
    """What 'auto' takes: on the CPU the first backend that can, elsewhere what has been measured to be good."""
    if case.device == "cpu":
        return "auto"
    return _choices.get(str(case), REFERENCE) if _choices else REFERENCE


@contextlib.contextmanager
def recording() -> Iterator[dict[Case, None]]:
    """The keys of the dictionary become the cases that convolve() meets inside, each once, in their order."""
    global _recorder
    before, _recorder = _recorder, {}
    try:
        yield _recorder
    finally:
        _recorder = before


def is_recording() -> bool:
    return _recorder is not None


def record(case: Case) -> None:
    if _recorder is not None:
        _recorder[case] = None


def reasons(case: Case) -> dict[str, str | None]:
    """By the name of each backend, in order: None, or the reason why it cannot run the case."""
    return {backend.NAME: backend.supports(case) for backend in BACKENDS}


def choose(case: Case, name: str | None = None) -> Backend:
    """The backend for a case. name None: what set_backend chose. ConfigError where the one named cannot run it.

    Names that are no backend's ('auto', 'reference') stand for the first that is proven and can.
    """
    return _choose(case, _chosen if name is None else known(name))


@functools.lru_cache(maxsize=4096)
def _choose(case: Case, name: str) -> Backend:
    named = [backend for backend in BACKENDS if name == backend.NAME]
    candidates = named or [backend for backend in BACKENDS if backend.NAME not in UNPROVEN]
    for backend in candidates:
        reason = backend.supports(case)
        if reason is None:
            _record(case, backend)
            return backend
    raise ConfigError(f"backend={name!r} cannot convolve {case}: {reason}; backend='auto' can")


def usable(name: str, device: str, option: str = "backend") -> list[str]:
    """The backends that may run convolutions on a device ("cpu", "cuda") when `name` is chosen, the fastest first.

    Which one runs a convolution depends on its shape, too, and for 'auto' away from the CPU on set_choices().
    ConfigError naming `option`, with the reason, where `name` is one of them and cannot run here at all.
    """
    if known(name) == REFERENCE:
        return [name]
    simple = Case(device, torch.float32, 1, 16, (8, 8), (3, 3), (1, 1), (1, 1))
    found, lower = reasons(simple), reasons(simple._replace(dtype=torch.bfloat16))
    found = {each: reason if lower[each] else None for each, reason in found.items()}
    if name != "auto" and found[name] is not None:
        raise ConfigError(f"{option}={name} cannot be used: {found[name]}")
    if name == "auto" and device != "cpu":
        return [*(each for each in UNPROVEN if found[each] is None), REFERENCE]
    return [each for each, reason in found.items() if reason is None and name in ("auto", each)]


def picked() -> dict[str, str]:
    """The backend of every convolution this process has run, by the shape of one image and its kernel."""
    return dict(_picked)


def _record(case: Case, backend: Backend) -> None:
    shape = str(case).partition("x")[2]
    if _picked.get(shape) != backend.NAME:
        _picked[shape] = backend.NAME
        _log.info("depthwise convolution %s: backend %s", shape, backend.NAME)
