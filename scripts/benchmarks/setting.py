"""What was asked for on the command line, as the benchmarks see it."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers import has_reference
from dcls.ops import dispatch, trial


@dataclass(frozen=True)
class Setting:
    """device: cpu or cuda. batch: images. only: the cases whose name holds this text. tiny: shapes for tests alone.

    dtype: of images and convolutions; parameters stay in float32 and are lowered by autocast. compile: networks are
    run through torch.compile. reference: is the reference package, which takes its time, a peer?
    """

    device: str = "cpu"
    batch: int = 8
    only: str = ""
    tiny: bool = False
    dtype: torch.dtype = torch.float32
    compile: bool = False
    reference: bool = field(default_factory=has_reference)

    def wants(self, case: str) -> bool:
        return self.only in case

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device, dtype=self.dtype)

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32)

    def tolerance(self, float32: float, rounded: float) -> float:
        """The first as it is on a CPU; a GPU sums in orders of its own. The second where the dtype has fewer digits."""
        if self.dtype != torch.float32:
            return rounded
        return float32 if self.device == "cpu" else 10 * float32

    def prove(self, model: nn.Module, *inputs: Tensor) -> None:
        """On a GPU, measure which backend runs the model's convolutions, as training does before it starts."""
        if self.device != "cpu":
            with self.autocast():
                cases = trial.cases(model, *inputs)
            known = dispatch.choices()
            dispatch.set_choices(known | trial.choose(case for case in cases if str(case) not in known))
