"""Memory that is taken again rather than asked of the system, seen by the page faults of a process of its own."""

import subprocess
import sys

import pytest

from dcls.runtime import memory

if not (sys.platform == "linux" and memory.keep_freed()):
    pytest.skip("the C library is not glibc, or was set up otherwise", allow_module_level=True)


def faults(blocks, mib, world):
    """Page faults of filling `blocks` of `mib` MiB after as many were freed, inside a world of one or outside."""
    code = f"""
import contextlib, ctypes, resource
from dcls.runtime import processes
library, size = ctypes.CDLL(None), {mib} * 2**20
library.malloc.restype = ctypes.c_void_p
def fill():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [ctypes.c_void_p(library.malloc(ctypes.c_size_t(size))) for _ in range({blocks})]
    for each in held:
        ctypes.memset(each, 1, size)
    for each in held:
        library.free(each)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
with processes.join("cpu") if {world} else contextlib.nullcontext():
    fill()
    print(fill())
"""
    return int(subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout)


# Where pages are 2 MiB, a hundred MiB are fifty of them.
def test_a_run_on_the_cpu_takes_what_it_freed():
    assert faults(blocks=4, mib=24, world=False) > 40 > 20 > faults(blocks=4, mib=24, world=True)


def test_large_blocks_stay_with_the_system_since_the_gaps_of_tensors_are_not_filled():
    assert faults(blocks=2, mib=48, world=True) > 40


def test_what_the_user_has_set_up_is_left_alone(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not memory.keep_freed()
