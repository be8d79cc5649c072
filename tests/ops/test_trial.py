import logging

import pytest
import torch
from torch import nn

from dcls import Dcls2d, ops
from dcls.ops import dispatch, torch_backend, trial
from dcls.ops.case import Case

CASE = Case("cpu", torch.bfloat16, 2, 8, (9, 7), (5, 5), (1, 1), (2, 2))


class Candidate:
    """torch's backend under another name, with a mistake on demand."""

    NAME = "candidate"
    forward = staticmethod(torch_backend.forward)
    input_gradient = staticmethod(torch_backend.input_gradient)

    def __init__(self, mistake=None, reason=None):
        self.mistake, self.reason = mistake, reason

    def supports(self, case):
        return self.reason

    def kernel_gradient(self, *arguments):
        gradient, bias = torch_backend.kernel_gradient(*arguments)
        return (gradient, bias) if self.mistake is None else (self.mistake(gradient), bias)


def fails(gradient):
    raise RuntimeError("out of shared memory")


@pytest.fixture
def offered(monkeypatch):
    def offer(candidate):
        monkeypatch.setattr(dispatch, "BACKENDS", (*dispatch.BACKENDS, candidate))
        monkeypatch.setattr(dispatch, "NAMES", (*dispatch.NAMES, "candidate"))
        dispatch._choose.cache_clear()

    yield offer
    dispatch._choose.cache_clear()


def chosen(*times):
    return trial.choose([CASE, CASE], lambda runs: [[each(), time][1] for each, time in zip(runs, times, strict=True)],
                        ["candidate"])  # fmt: skip


@pytest.mark.parametrize(
    ("candidate", "ours", "winner"), [(1.0, 0.9, "candidate"), (1.0, 1.0, "reference"), (1.0, 0.97, "reference")]
)
def test_the_faster_wins_and_a_tie_stays(offered, candidate, ours, winner):
    offered(Candidate())
    assert chosen(candidate, ours) == {str(CASE): winner}


@pytest.mark.parametrize(
    ("candidate", "told"),
    [
        (Candidate(mistake=lambda gradient: gradient * 1.1), "backend candidate is wrong by"),
        (Candidate(mistake=lambda gradient: gradient * torch.nan), "backend candidate is wrong by"),
        (Candidate(mistake=fails), "backend candidate fails: out of shared memory"),
        (Candidate(reason="cannot"), None),
    ],
)
def test_a_wrong_or_failing_candidate_never_wins(offered, caplog, candidate, told):
    """Nor is anything timed."""
    offered(candidate)
    assert chosen() == {str(CASE): "reference"}
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (told is not None)
    assert all(told in message and "9x7" in message for message in messages)


def test_a_failure_while_timing_means_the_reference(offered, caplog):
    offered(Candidate())

    def timer(runs):
        raise RuntimeError("out of memory")

    assert trial.choose([CASE], timer, ["candidate"]) == {str(CASE): "reference"}
    assert "not measured, F.conv2d runs it: out of memory" in caplog.text


def test_the_random_state_is_left_alone(offered):
    offered(Candidate())
    before = torch.get_rng_state()
    chosen(1.0, 0.5)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_cases_of_a_model(caplog):
    """Every depthwise convolution once, and the model as it was."""
    layers = [Dcls2d(8, 8, 3, 1, 2, 5, 8), nn.BatchNorm2d(8), Dcls2d(8, 8, 3, 1, 2, 5, 8), Dcls2d(8, 8, 3, 2, 3, 7, 8)]
    model = nn.Sequential(*layers).train()
    model[1].eval()
    found = trial.cases(model, torch.randn(2, 8, 9, 7))
    expected = Case("cpu", torch.float32, 2, 8, (9, 7), (5, 5), (1, 1), (2, 2))
    assert found == [expected, expected._replace(size=(7, 7), stride=(2, 2), padding=(3, 3))]
    assert [module.training for module in model] == [True, False, True, True]
    assert model[1].num_batches_tracked == 0


@pytest.mark.gpu
def test_on_a_gpu_the_slower_never_wins(caplog):
    """Measured again, what was chosen is not slower, within the noise of two measurements."""
    shapes = ((8, 96, 28), (1, 768, 7), (8, 16, 14))
    cases = [Case("cuda", torch.bfloat16, n, c, (p, p), (17, 17), (1, 1), (8, 8)) for n, c, p in shapes]
    with caplog.at_level(logging.INFO):
        table = trial.choose(cases)
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
    for case in cases:
        tensors = trial._tensors(case, True)
        reference, ours = trial.on_cuda([trial._run(case, name, tensors) for name in ("reference", table[str(case)])])
        assert ours < 1.1 * reference
    ops.dispatch.set_choices(table)
    assert ops.dispatch.choices() == table
    ops.dispatch.set_choices({})
