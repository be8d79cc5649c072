import math

import pytest
import torch

from dcls.analysis import probes
from dcls.errors import DataError


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("held", [1, 2**26])
@pytest.mark.parametrize("temperature", [None, 0.07])
def test_votes_are_those_of_the_formula(monkeypatch, held, temperature):
    """Against loops over Python's floats; however few similarities are held at once."""
    monkeypatch.setattr(probes, "SIMILARITIES", held)
    train, test, labels, k = random(31, 4), random(7, 4, seed=1), torch.arange(31) % 3, 5
    similarities, indices = probes.neighbours(train, test, k)
    votes = probes.votes(similarities, labels[indices], 3, temperature)
    for query, row, largest in zip(test.tolist(), votes.tolist(), similarities[:, 0].tolist()):
        cosines = [
            sum(a * b for a, b in zip(query, each)) / math.hypot(*query) / math.hypot(*each) for each in train.tolist()
        ]
        nearest = sorted(range(31), key=lambda i: -cosines[i])[:k]
        expected = [0.0] * 3
        for i in nearest:
            expected[i % 3] += 1.0 if temperature is None else math.exp(cosines[i] / temperature)
        factor = 1.0 if temperature is None else math.exp(largest / temperature)
        assert [vote * factor for vote in row] == pytest.approx(expected, rel=1e-9)


def test_a_cold_vote_is_a_number_in_float32():
    similarities = torch.tensor([[1.0, 0.99]])
    votes = probes.votes(similarities, torch.tensor([[2, 0]]), 3, 0.001)
    assert votes.isfinite().all()
    assert votes.argmax().item() == 2


def separable(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three well separated classes in two of four features of very different size, of which one is constant."""
    labels = torch.arange(count) % 3
    angle = 2 * math.pi * labels / 3
    features = 0.1 * random(count, 4, seed=seed)
    features[:, 0] += angle.cos()
    features[:, 1] = 1e4 * (features[:, 1] + angle.sin())
    features[:, 3] = 7.0
    return features, labels


def test_a_linear_probe_separates_what_is_separable_and_is_the_optimum():
    train, labels = separable(60, seed=0)
    probe = probes.linear_probe(train, labels, 3)
    assert probe.held_out_top1 == 100
    other, expected = separable(40, seed=1)
    assert probes.top1(probe.logits(other), expected) == 100
    assert torch.equal(probes.linear_probe(train, labels, 3).weight, probe.weight)
    # The gradient of the convex objective, by hand.
    standard = (train - train.mean(0)) / train.std(0).where(train.std(0) > 0, torch.tensor(1.0))
    error = (probe.logits(train).softmax(1) - torch.eye(3, dtype=torch.float64)[labels]) / 60
    gradient = error.T @ standard + probe.penalty * probe.weight[:, :-1]
    assert gradient.abs().max() < 2e-5
    assert error.sum(0).abs().max() < 2e-5


def test_the_penalty_is_chosen_on_images_that_were_not_fitted():
    """These lie among the next class, and features that they alone have would tell whoever had fitted them."""
    train, labels = separable(300, seed=0)
    for label in range(3):
        images = (labels == label).nonzero().flatten()
        held_out = images[probes.HELD_OUT - 1 :: probes.HELD_OUT]
        train[held_out] = train[((labels == (label + 1) % 3).nonzero().flatten())[: len(held_out)]]
    telling = torch.zeros(300, 3, dtype=torch.float64)
    alone = torch.arange(300) // 3 % probes.HELD_OUT == probes.HELD_OUT - 1
    telling[alone, labels[alone]] = 1.0
    probe = probes.linear_probe(torch.cat([train, telling], 1), labels, 3)
    assert probe.held_out_top1 == 0


def test_a_penalty_needs_images_to_be_chosen_on():
    with pytest.raises(DataError, match="data.train_split: a linear probe needs 5 images of a class"):
        probes.linear_probe(random(8, 2), torch.arange(8) % 4, 4)


def test_progress_sees_every_penalty():
    seen: list[float] = []

    def tracked(penalties):
        for penalty in penalties:
            seen.append(penalty)
            yield penalty

    probes.linear_probe(*separable(30, seed=0), 3, tracked=tracked)
    assert tuple(seen) == probes.PENALTIES
