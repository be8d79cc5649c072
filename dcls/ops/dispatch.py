"""Which backend runs a depthwise convolution: the first of an ordered tuple that has no reason not to."""

import functools
import logging
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from dcls.errors import ConfigError
from dcls.ops import cpu, torch_backend
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


# The fastest first.
BACKENDS: tuple[Backend, ...] = (cpu, torch_backend)

# Not one of them: torch's convolution under autograd, in place of the operator.
REFERENCE = "reference"
NAMES = ("auto", *(backend.NAME for backend in BACKENDS), REFERENCE)

_chosen = "auto"
_picked: dict[str, str] = {}


def set_backend(name: str) -> None:
    """Choose for the process: 'auto', the name of one backend, or 'reference' (F.conv2d under plain autograd).

    ConfigError for unknown names. A backend chosen by name refuses, with its reason, what it cannot run. Convolutions
    that are not depthwise, or not 1-D or 2-D, are always the reference's.
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


def reasons(case: Case) -> dict[str, str | None]:
    """By the name of each backend, in order: None, or the reason why it cannot run the case."""
    return {backend.NAME: backend.supports(case) for backend in BACKENDS}


def choose(case: Case, name: str | None = None) -> Backend:
    """The backend for a case. name None: what set_backend chose. ConfigError where the one named cannot run it."""
    return _choose(case, _chosen if name is None else known(name))


@functools.lru_cache(maxsize=4096)
def _choose(case: Case, name: str) -> Backend:
    candidates = [backend for backend in BACKENDS if name in ("auto", REFERENCE, backend.NAME)]
    for backend in candidates:
        reason = backend.supports(case)
        if reason is None:
            _record(case, backend)
            return backend
    raise ConfigError(f"backend={name!r} cannot convolve {case}: {reason}; backend='auto' can")


def usable(name: str, device: str, option: str = "backend") -> list[str]:
    """The backends that may run convolutions on a device ("cpu", "cuda") when `name` is chosen, the fastest first.

    Which one runs a convolution depends on its shape, too. ConfigError naming `option`, with the reason, where `name`
    is one of them and cannot run here at all.
    """
    if known(name) == REFERENCE:
        return [name]
    simple = Case(device, torch.float32, 1, 16, (8, 8), (3, 3), (1, 1), (1, 1))
    found = reasons(simple)
    if name != "auto" and found[name] is not None:
        raise ConfigError(f"{option}={name} cannot be used: {found[name]}")
    return [each for each, reason in found.items() if reason is None and name in ("auto", each)]


def picked() -> dict[str, str]:
    """The backend of every convolution this process has run, by the shape of one image and its kernel."""
    return dict(_picked)


def _record(case: Case, backend: Backend) -> None:
    shape = str(case).partition("x")[2]
    if _picked.get(shape) != backend.NAME:
        _picked[shape] = backend.NAME
        _log.info("depthwise convolution %s: backend %s", shape, backend.NAME)
