"""An exponential moving average that knows that one position may serve many blocks."""

from copy import deepcopy

import torch
from torch import nn

from dcls.errors import ConfigError

SHARED = ("unique", "per_block")


class Ema:
    """Averages every distinct parameter and floating buffer once a step, after the clamp; counters are copied.

    `shared="per_block"` gives a parameter held by b modules the decay `decay ** b`, which is what timm's averages (all
    versions) do to the shared positions because they walk `state_dict()`, and so what the published weights went
    through.
    """

    def __init__(self, model: nn.Module, decay: float, shared: str = "unique") -> None:
        if not 0.0 < decay < 1.0:
            raise ConfigError(f"ema.decay={decay}: give a number between 0 and 1 (0.9999 in the paper), or 0 for none")
        if shared not in SHARED:
            raise ConfigError(f"ema.shared={shared}: choose one of {', '.join(SHARED)}")
        self.decay = decay
        self._names = {name: id(tensor) for name, tensor in _tensors(model).items()}
        sources = {id(tensor): tensor for tensor in _tensors(model).values()}
        self._averages = {key: tensor.detach().clone() for key, tensor in sources.items()}
        holders = {
            key: sum(held == key for held in self._names.values()) if shared == "per_block" else 1 for key in sources
        }
        # Grouped by exponent, so that an update is a few fused calls whatever the number of tensors.
        self._floating: dict[int, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        self._counters: list[tuple[torch.Tensor, torch.Tensor]] = []
        for key, source in sources.items():
            if source.is_floating_point():
                averages, originals = self._floating.setdefault(holders[key], ([], []))
                averages.append(self._averages[key])
                originals.append(source.detach())
            else:
                self._counters.append((self._averages[key], source))

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages towards the model this was made from."""
        for holders, (averages, sources) in self._floating.items():
            torch._foreach_lerp_(averages, sources, 1.0 - self.decay**holders)
        for average, source in self._counters:
            average.copy_(source)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The averages under the model's own names; a shared parameter is one tensor under all its names."""
        return {name: self._averages[key] for name, key in self._names.items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        for name, average in self.state_dict().items():
            average.copy_(state[name])

    def averaged(self, model: nn.Module) -> nn.Module:
        """A copy of `model` that holds the averages."""
        copy = deepcopy(model)
        copy.load_state_dict(self.state_dict())
        return copy


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Everything `state_dict()` names, as the live objects (state_dict itself detaches, which hides sharing)."""
    return dict(model.state_dict(keep_vars=True))
