"""`profile=true`: a window of the torch profiler over a few steps of the run."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity

WAIT, WARMUP, ACTIVE = 3, 2, 5
WINDOW_OF_DEBUG = 0, 1, 2


def window(
    folder: Path, *, enabled: bool, debug: bool = False
) -> AbstractContextManager[torch.profiler.profile | None]:
    """Steps 6 to 10 of this start, written to `folder` as profile.json (a Chrome trace) and profile.txt (by total
    time).
    """
    if not enabled:
        return nullcontext()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])

    def write(profiler: torch.profiler.profile) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(folder / "profile.json"))
        column = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        (folder / "profile.txt").write_text(profiler.key_averages().table(sort_by=column, row_limit=40))

    wait, warmup, active = WINDOW_OF_DEBUG if debug else (WAIT, WARMUP, ACTIVE)
    schedule = torch.profiler.schedule(wait=wait, warmup=warmup, active=active, repeat=1)
    return torch.profiler.profile(activities=activities, schedule=schedule, on_trace_ready=write)
