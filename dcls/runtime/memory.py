"""Memory of a process on a CPU: what a step frees, the next one takes again."""

import ctypes
import os
import sys

# Of <malloc.h>: how much freed memory at the heap's end goes back to the system, and blocks of which size do at once.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
LARGEST_INT = 2**31 - 1
# The size up to which glibc comes to keep blocks by itself. Larger ones stay with the system: before glibc 2.38 an
# aligned block does not fit into the gap that its like has left, and a heap of such gaps may grow without an end.
LARGEST_KEPT = 32 * 2**20


def keep_freed() -> bool:
    """Let the C library keep what is freed for the next allocation. Were both thresholds set?

    The system hands out memory in cleared pages of 4 KiB, one fault each: a training step of ConvNeXt-T-dcls at N=8
    takes about 85,000 of them, a tenth of its time, and 25,000 after this. Blocks of more than 32 MiB are not kept.
    Does nothing where the library is not glibc, or its user has set it up in the environment.
    """
    own = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)
    mallopt = None if own or sys.platform != "linux" else getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return 0 not in [mallopt(MMAP_THRESHOLD, LARGEST_KEPT), mallopt(TRIM_THRESHOLD, LARGEST_INT)]
