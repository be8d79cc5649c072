"""What generated code is given, and what happens where there can be none."""

import logging
from pathlib import Path

import pytest
import torch

from dcls.ops import dispatch, native
from dcls.ops.case import Case


def test_what_the_code_was_not_written_for_is_refused():
    right = torch.zeros(2, 4)
    assert native.address(right, 2, 4) == right.data_ptr()
    for wrong, match in (
        (right.double(), "float64"),
        (right.to("meta"), "contiguous float32 on the CPU"),
        (torch.zeros(4, 2).T, "contiguous"),
        (torch.zeros(2, 5), "written for \\(2, 4\\)"),
    ):
        with pytest.raises(RuntimeError, match=match):
            native.address(wrong, 2, 4)


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").is_dir(), reason="this kernel has no transparent huge pages"
)
def test_large_pages_are_asked_for():
    kernel = native.in_large_pages(torch.empty(16 * 2**20 // 4))
    middle, flags = kernel.data_ptr() + kernel.nbytes // 2, {}
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if not line.split()[0].endswith(":"):
            begin, end = (int(each, 16) for each in line.split()[0].split("-"))
        elif line.startswith("VmFlags") and begin <= middle < end:
            flags = set(line.split()[1:])
    assert "hg" in flags


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("_parallel", lambda: None, "no GOMP_parallel"),
        ("sys", type("Mac", (), {"platform": "darwin"}), "not darwin"),
    ],
)
def test_without_what_it_needs_torch_takes_over_with_one_line(monkeypatch, caplog, name, value, match):
    monkeypatch.setattr(native, name, value)
    native.unavailable.cache_clear()
    dispatch._choose.cache_clear()
    usual = Case("cpu", torch.float32, 2, 16, (9, 7), (5, 5), (1, 1), (2, 2))
    with caplog.at_level(logging.INFO, native.__name__):
        assert [dispatch.choose(usual._replace(batch=n)).NAME for n in (2, 3)] == ["torch", "torch"]
    assert [match in record.getMessage() for record in caplog.records if record.name == native.__name__] == [True]
    monkeypatch.undo()
    native.unavailable.cache_clear()
    dispatch._choose.cache_clear()
