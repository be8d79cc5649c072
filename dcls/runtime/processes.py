"""The processes of a run: who I am, what we agree on, and how we are asked to stop.

torchrun starts them (`torchrun --nproc_per_node=8 train.py ...`); a plain `python train.py` is a world of one.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TypeVar

import torch
import torch.distributed as dist

from dcls.errors import ConfigError
from dcls.runtime.memory import keep_freed

T = TypeVar("T")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class World:
    """This process among its peers. `device` is where its model and batches live."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum `tensor` over all processes, in place; the order of the sum is the same in every process."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def on_main(self, work: Callable[[], T]) -> T:
        """Run `work` on rank 0 alone and give everybody its result; a ConfigError is raised in every process."""
        if self.size == 1:
            return work()
        box: list[object] = [None, None]
        if self.is_main:
            try:
                box[0] = work()
            except ConfigError as error:
                box[1] = error
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        if isinstance(box[1], ConfigError):
            raise box[1]
        return box[0]  # type: ignore[return-value]  # what rank 0's `work` returned, pickled


@contextmanager
def join(device: str = "auto", threads: int | None = None) -> Iterator[World]:
    """Join the processes torchrun started, nccl on CUDA and gloo on CPU, and leave them at the end.

    On a CPU the process keeps the memory it frees from then on (keep_freed).

    `device` is auto, cpu or cuda; `threads` the CPU threads of this process (None: torch's own choice).
    Raises ConfigError when CUDA is asked for and absent.
    """
    chosen = _device(device)
    if chosen.type == "cpu":
        keep_freed()
    if threads is not None:
        torch.set_num_threads(threads)
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield World(0, 1, chosen)
        return
    # CPU tensors always travel by gloo, so that flags and file names never wait for the GPU's queue.
    dist.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")
    yield World(dist.get_rank(), size, chosen)
    # Only after a good end: with peers waiting in a collective, closing nccl would wait for them instead of failing.
    dist.destroy_process_group()


def _device(device: str) -> torch.device:
    if device not in DEVICES:
        raise ConfigError(f"runtime.device={device}: choose one of {', '.join(DEVICES)}")
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise ConfigError("runtime.device=cuda: no CUDA device is visible; use runtime.device=cpu or auto")
    if device == "cpu" or not available:
        return torch.device("cpu")
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if processes > torch.cuda.device_count():
        raise ConfigError(
            f"--nproc_per_node={processes}: this machine has {torch.cuda.device_count()} GPUs; "
            "start as many processes, or use runtime.device=cpu"
        )
    local = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(local)
    return local


class StopRequest:
    """SIGTERM (what a scheduler sends), SIGUSR1 or a first Ctrl-C ask the run to save and stop at the same step
    everywhere.

    The processes agree by summing their flags while the next step is computed: a request is honoured one step later,
    and no step waits for the exchange. A second Ctrl-C, two seconds on, stops at once.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self, world: World) -> None:
        self._world = world
        self._asked_at: float | None = None
        self._pending: tuple[dist.Work, torch.Tensor] | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        self._previous = {number: signal.signal(number, self._ask) for number in self.SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal returned above

    def _ask(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        # torchrun forwards the terminal's Ctrl-C, so the first one arrives twice.
        if number == signal.SIGINT and self._asked_at is not None and now - self._asked_at > 2:
            raise KeyboardInterrupt
        if self._asked_at is None:
            self._asked_at = now

    def agreed(self) -> bool:
        """Whether everybody stops here. Call it once a step, in every process."""
        if self._world.size == 1:
            return self._asked_at is not None
        decided = False
        if self._pending is not None:
            earlier, asked = self._pending
            earlier.wait()
            decided = bool(asked.item())
        flag = torch.tensor([float(self._asked_at is not None)])
        work = dist.all_reduce(flag, async_op=True)
        assert work is not None
        self._pending = (work, flag)
        return decided
