"""Memory that is taken again rather than asked of the system, seen by the page faults of a process of its own."""

import subprocess
import sys

import pytest

from dcls.engine import memory

if not (sys.platform == "linux" and memory.keep_freed()):
    pytest.skip("the C library is not glibc, or was set up otherwise", allow_module_level=True)

# More than the library ever keeps by itself. Where pages are 2 MiB, 64 of them.
BYTES = 128 * 2**20


def faults(world):
    """Page faults of a tensor after one of its size was freed, inside a world of one or outside."""
    code = f"""
import contextlib, resource, torch
from dcls.engine import processes
def fill():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones({BYTES // 4})
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
with processes.join("cpu") if {world} else contextlib.nullcontext():
    fill()
    print(min(fill() for _ in range(3)))
"""
    return int(subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout)


def test_a_run_on_the_cpu_takes_what_it_freed():
    assert faults(world=False) > 40 > 20 > faults(world=True)


def test_what_the_user_has_set_up_is_left_alone(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not memory.keep_freed()
