"""How much a network's features say about the classes: k nearest neighbours and a linear probe.

Shapes: N training images, M test images, D features, C classes. Features are float [N, D] or [M, D], labels int64;
everything is computed where the features are, and nothing is drawn.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dcls.errors import DataError

SIMILARITIES = 2**26
"""Numbers of an [m, N] matrix that are held at once."""

PENALTIES = tuple(10.0**power for power in range(1, -8, -1))
"""What is swept, from the strongest on: each solution is the next one's start."""
HELD_OUT = 5
"""One of so many training images of a class chooses the penalty."""
ITERATIONS = 300

Tracked = Callable[[Sequence[float]], Iterable[float]]


# k nearest neighbours


def neighbours(train: Tensor, test: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosine similarities [M, k] of each test image's nearest training images, falling, and their indices [M, k]."""
    train, test = F.normalize(train, dim=1), F.normalize(test, dim=1)
    parts = [(part @ train.T).topk(k, dim=1) for part in test.split(max(1, SIMILARITIES // len(train)))]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def votes(similarities: Tensor, labels: Tensor, classes: int, temperature: float | None) -> Tensor:
    """Votes for each class [M, C] by neighbours of these similarities and labels [M, k].

    A neighbour's vote is exp(similarity / temperature), as in DINO (arXiv 2104.14294), or 1 where temperature is None.
    """
    # Over the first neighbour's: a common factor changes no order, and exp(1 / 0.01) is no float32.
    weights = ((similarities - similarities[:, :1]) / temperature).exp() if temperature else similarities.new_ones(())
    empty = similarities.new_zeros(len(similarities), classes)
    return empty.scatter_add_(1, labels, weights.expand_as(similarities))


# Linear probe


@dataclass(frozen=True)
class Probe:
    """A linear classifier: weight [C, D + 1], the last column the bias, of features standardised by mean and scale [D].

    held_out_top1: percent right, with this penalty, of the images that chose it while the others were fitted.
    """

    weight: Tensor
    mean: Tensor
    scale: Tensor
    penalty: float
    held_out_top1: float

    def logits(self, features: Tensor) -> Tensor:
        """[M, D] -> [M, C]."""
        return _logits((features - self.mean) / self.scale, self.weight)


def linear_probe(train: Tensor, labels: Tensor, classes: int, *, tracked: Tracked = iter) -> Probe:
    """Logistic regression with the L2 penalty, of PENALTIES, that is best for held-out training images.

    Every HELD_OUT-th image of a class is held out; the penalty chosen (the strongest of equals) then fits all of them.
    `tracked` hands the penalties on, and may show how far it is. Raises DataError where no class has HELD_OUT images.
    """
    held_out = _every(HELD_OUT, labels)
    if not held_out.any():
        raise DataError(f"data.train_split: a linear probe needs {HELD_OUT} images of a class, to choose its penalty")
    mean, scale = train.mean(0), train.std(0)
    scale = scale.where(scale > 0, 1.0)
    standard = (train - mean) / scale
    weight = train.new_zeros(classes, train.shape[1] + 1)
    scores, weights = {}, {}
    for penalty in tracked(PENALTIES):
        weight = weights[penalty] = _fitted(standard[~held_out], labels[~held_out], weight, penalty)
        scores[penalty] = top1(_logits(standard[held_out], weight), labels[held_out])
    best = max(scores, key=lambda penalty: scores[penalty])
    # From the solution that was chosen: from zeros, a weak penalty takes more steps than there are.
    return Probe(_fitted(standard, labels, weights[best], best), mean, scale, best, scores[best])


def top1(scores: Tensor, labels: Tensor) -> float:
    """Percent of the rows of scores [M, C] that are largest at their label; the first of equal ones counts."""
    return 100 * (scores.argmax(1) == labels).double().mean().item()


def _every(n: int, labels: Tensor) -> Tensor:
    """bool [N]: the n-th, 2n-th, ... image of each class."""
    chosen = torch.zeros_like(labels, dtype=torch.bool)
    for label in labels.unique():
        chosen[(labels == label).nonzero()[n - 1 :: n]] = True
    return chosen


def _fitted(features: Tensor, labels: Tensor, begin: Tensor, penalty: float) -> Tensor:
    """The weight that minimises mean cross-entropy + penalty / 2 x the sum of squares of all but the bias.

    As near to it as ITERATIONS steps from `begin` come.
    """
    weight = begin.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight], max_iter=ITERATIONS, tolerance_grad=1e-6, history_size=10, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(_logits(features, weight), labels) + penalty / 2 * weight[:, :-1].square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weight.detach()


def _logits(standard: Tensor, weight: Tensor) -> Tensor:
    return F.linear(standard, weight[:, :-1], weight[:, -1])
