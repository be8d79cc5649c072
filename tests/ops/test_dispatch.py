import logging

import pytest
import torch

from dcls import ops
from dcls.errors import ConfigError
from dcls.ops import dispatch
from dcls.ops.case import Case

CASE = Case("cpu", torch.float32, 2, 8, (9, 7), (5, 5), (1, 1), (2, 2))


class Refuses:
    NAME = "refuses"

    def supports(self, case):
        return f"no {case.dtype}"


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    monkeypatch.setattr(dispatch, "_picked", {})
    monkeypatch.setattr(dispatch, "_choices", {})
    dispatch._choose.cache_clear()
    yield
    dispatch._choose.cache_clear()
    ops.set_backend("auto")


def test_the_first_backend_without_a_reason_is_taken(monkeypatch):
    monkeypatch.setattr(dispatch, "BACKENDS", (Refuses(), *dispatch.BACKENDS))
    monkeypatch.setattr(dispatch, "NAMES", ("refuses", *dispatch.NAMES))
    assert dispatch.choose(CASE).NAME in dispatch.NAMES[2:]
    assert dispatch.reasons(CASE)["refuses"] == "no torch.float32"
    with pytest.raises(ConfigError, match="backend='refuses' cannot convolve 2x8x9x7 float32 .*: no torch.float32"):
        dispatch.choose(CASE, "refuses")


def test_the_choice_for_the_process_and_for_one_call():
    ops.set_backend("torch")
    assert ops.get_backend() == "torch"
    assert dispatch.choose(CASE).NAME == "torch"
    with pytest.raises(ConfigError, match="backend='cudnn' must be one of auto"):
        ops.set_backend("cudnn")
    with pytest.raises(ConfigError, match="backend='cudnn'"):
        ops.convolve(torch.zeros(1, 2, 3), torch.zeros(2, 1, 1), groups=2, backend="cudnn")


def test_a_pick_is_logged_once_and_recorded(caplog):
    x, kernel = torch.randn(2, 8, 9, 7), torch.randn(8, 1, 5, 5)
    with caplog.at_level(logging.INFO):
        for batch in (2, 1, 2):
            ops.convolve(x[:batch], kernel, None, (1,), (2,), 8, "torch")
    assert len(caplog.records) == 1
    assert ops.picked() == {"8x9x7 float32 on cpu, kernel 5x5, stride 1x1, padding 2x2": "torch"}


def on_meta(batch, backend=None):
    """Whether the operator runs."""
    x, kernel = torch.zeros(batch, 8, 9, 7, device="meta"), torch.zeros(8, 1, 5, 5, device="meta", requires_grad=True)
    return "depthwise" in ops.convolve(x, kernel, None, (1,), (2,), 8, backend).grad_fn.name().lower()


def test_away_from_the_cpu_only_a_choice_or_a_name_leads_to_the_operator():
    assert not on_meta(2)
    dispatch.set_choices({str(CASE._replace(device="meta")): "torch"})
    assert on_meta(2)
    assert not on_meta(3)
    assert on_meta(3, "torch")
    ops.set_backend("reference")
    assert not on_meta(2)


@pytest.mark.parametrize("chosen", ["torch", "reference"])
def test_a_compiled_graph_follows_the_choice(chosen):
    """The table is looked up while torch.compile traces: nothing of that may break the graph."""
    dispatch.set_choices({str(CASE._replace(device="meta")): chosen})
    x, kernel = torch.zeros(2, 8, 9, 7, device="meta"), torch.zeros(8, 1, 5, 5, device="meta")
    called = []

    def keep(graph, inputs):
        called.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    torch._dynamo.reset()
    torch.compile(lambda: ops.convolve(x, kernel, None, (1,), (2,), 8), fullgraph=True, backend=keep)()
    assert ["dcls.depthwise" in each for each in called] == [chosen == "torch"]


def test_choices_are_plain_and_checked(monkeypatch, caplog):
    table = {"a case": "triton", "another": "reference"}
    monkeypatch.setattr(dispatch.triton_backend, "unavailable", lambda: None)
    dispatch.set_choices(table)
    assert dispatch.choices() == table
    with pytest.raises(ConfigError, match="choices\\['a case'\\]='auto' must be one of triton_bands, triton, cpu"):
        dispatch.set_choices({"a case": "auto"})
    monkeypatch.setattr(dispatch.triton_backend, "unavailable", lambda: "no NVIDIA GPU")
    dispatch.set_choices(table)
    assert dispatch.choices() == {"another": "reference"}
    assert [record.getMessage() for record in caplog.records] == [
        "depthwise convolutions chosen for triton run F.conv2d: no NVIDIA GPU"
    ]


def test_an_unproven_backend_runs_only_by_name(monkeypatch):
    monkeypatch.setattr(dispatch.triton_backend, "unavailable", lambda: None)
    case = CASE._replace(device="cuda")
    chosen = {name: dispatch.choose(case, name).NAME for name in ("auto", "reference", "triton")}
    assert chosen == {"auto": "torch", "reference": "torch", "triton": "triton"}
    assert dispatch.usable("auto", "cuda") == ["triton_bands", "triton", "reference"]
    assert dispatch.usable("triton_bands", "cuda") == ["triton_bands"]
    assert "triton" not in dispatch.usable("auto", "cpu")


def test_cases_are_recorded_once_as_the_operator_meets_them():
    x, kernel = torch.randn(2, 8, 9, 7), torch.randn(8, 1, 5, 5)
    with dispatch.recording() as cases:
        for _ in range(2):
            ops.convolve(x, kernel, None, (1,), (2,), 8)
        ops.convolve(x, torch.randn(4, 8, 5, 5))
        with torch.autocast("cpu", torch.bfloat16):
            ops.convolve(x, kernel, None, (1,), (2,), 8)
    ops.convolve(x[:1], kernel, None, (1,), (2,), 8)
    assert list(cases) == [CASE, CASE._replace(dtype=torch.bfloat16)]


def test_explain_prints_every_reason(capsys):
    assert ops.explain(torch.zeros(1, 8, 6, 6), torch.zeros(4, 8, 3, 3)) == "reference"
    assert "only depthwise" in capsys.readouterr().out
    assert ops.explain(torch.zeros(1, 8, 6, 6), torch.zeros(8, 1, 3, 3), groups=8) in dispatch.NAMES
    printed = capsys.readouterr().out
    assert all(f"\n{backend.NAME}: " in printed for backend in dispatch.BACKENDS)
    ops.set_backend("reference")
    assert ops.explain(torch.zeros(1, 8, 6), torch.zeros(8, 1, 3), groups=8) == "reference"


@pytest.mark.parametrize(
    ("x", "kernel", "groups"),
    [
        (torch.zeros(1, 4, 6, 6), torch.zeros(4, 1, 3, 3).double(), 1),
        (torch.zeros(4, 6, 6), torch.zeros(4, 1, 3, 3), 4),
        (torch.zeros(1, 4, 6, 6, 6), torch.zeros(4, 1, 3, 3, 3), 4),
        (torch.zeros(1, 4, 6, 6), torch.zeros(8, 1, 3, 3), 4),
        (torch.zeros(1, 4, 6, 6).double(), torch.zeros(4, 1, 3, 3).double(), 4),
    ],
)
def test_the_rest_is_the_references(x, kernel, groups):
    from dcls.ops.convolution import unfit

    assert unfit(x, kernel.shape, groups) is not None
