"""The border of generated machine code: whether there can be any here, which numbers it is given, which threads run it.

Raw addresses are handed over, so every tensor is checked first. Threads are those of the OpenMP library that torch has
loaded, so that there is one pool, and as many as torch.get_num_threads() says at each call.
"""

import ctypes
import functools
import logging
import mmap
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from dcls.ops.llvm import Compiled, Machine

_log = logging.getLogger(__name__)

# Vectors shorter than the processor's are good too, where what lies side by side does not fill the longer ones.
SHORTEST_VECTOR = 8

# Other types of tensors may have no numbers of their own in memory: fake and distributed ones.
PLAIN = (Tensor, nn.Parameter)

# Bytes from which large pages are asked for: a few of them must fit.
LARGE = 8 * 2**20


@functools.cache
def unavailable() -> str | None:
    """Why this process cannot have generated code at all, if so. Told to the log once."""
    reason = _missing()
    if reason is not None:
        _log.info("kernels and depthwise convolutions run without generated code: %s", reason)
    return reason


def _missing() -> str | None:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"written for Linux on x86-64, not {sys.platform} on {platform.machine()}"
    try:
        from dcls.ops.llvm import this_machine
    except ImportError:
        return "llvmlite is not installed (pip install llvmlite)"
    if _parallel() is None:
        return "torch's OpenMP library has no GOMP_parallel"
    machine = this_machine()
    return machine if isinstance(machine, str) else None


@functools.cache
def _parallel() -> Callable[[int, int, int, int], None] | None:
    """GOMP_parallel(function, argument, threads, flags) of the OpenMP that torch is linked to."""
    # Asked of torch's library, whose dependencies the search goes through: another OpenMP in the process, of another
    # package, would be a second pool on the same cores.
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        function = library.GOMP_parallel
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    function.restype = None
    return function


@functools.cache
def machine_for(neighbours: int) -> "Machine":
    """This machine, with vectors that so many numbers side by side fill."""
    from dcls.ops.llvm import this_machine

    machine = this_machine()
    if isinstance(machine, str):
        raise RuntimeError(machine)
    return machine._replace(lanes=min(machine.lanes, 16 if neighbours % 16 == 0 else SHORTEST_VECTOR))


def address(tensor: Tensor, *shape: int) -> int:
    """Where a tensor's numbers are, once it is what the code was written for."""
    if not tensor.is_cpu or tensor.dtype != torch.float32 or not tensor.is_contiguous():
        raise RuntimeError(f"generated code needs contiguous float32 on the CPU, not {tensor.dtype} {tensor.stride()}")
    if tensor.shape != shape or 0 in shape:
        raise RuntimeError(f"generated code was written for {shape}, not {tuple(tensor.shape)}")
    found = tensor.data_ptr() if type(tensor) in PLAIN else 0
    if not found:
        raise RuntimeError(f"generated code needs a tensor with numbers in memory, not a {type(tensor).__name__}")
    return found


def in_large_pages(tensor: Tensor) -> Tensor:
    """The tensor, whose memory nothing was written to yet: Linux is asked to hand it out in pieces of 2 MiB, not 4 KiB.

    A dense kernel has tens of MiB, and taking them from the system costs more than building it. Advice that the system
    may refuse changes nothing.
    """
    if tensor.nbytes >= LARGE:
        page, first = mmap.PAGESIZE, tensor.data_ptr()
        begin, end = -(-first // page) * page, (first + tensor.nbytes) // page * page
        _madvise()(begin, end - begin, mmap.MADV_HUGEPAGE)
    return tensor


@functools.cache
def _madvise() -> Callable[[int, int, int], int]:
    function = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function


def run(code: "Compiled", *numbers_and_addresses: int) -> None:
    """Run the code in torch's threads, on numbers, of which the first is how many tasks there are, and addresses."""
    parallel = _parallel()
    assert parallel is not None, "unavailable() has found it"
    # Before them stands the next task that no thread has taken.
    arguments = (ctypes.c_int64 * (1 + len(numbers_and_addresses)))(0, *numbers_and_addresses)
    parallel(code.address, ctypes.addressof(arguments), torch.get_num_threads(), 0)
