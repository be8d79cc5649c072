"""Generated code against the separable form in float64, in buffers whose surroundings tell what was touched there."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcls import Dcls2d, ops
from dcls.layers import INTERPOLATIONS, construct, generated
from dcls.layers.generated import Shape
from dcls.layers.interpolation import Interpolation
from dcls.layers.separable import separable
from dcls.ops import dispatch, native

pytest.importorskip("llvmlite")
if native.unavailable():
    pytest.skip(str(native.unavailable()), allow_module_level=True)

from dcls.layers.interpolation import LOWEST
from dcls.layers.vector_taps import exponential
from dcls.ops.llvm import Machine, Writer, compiled

VERSIONS = tuple(INTERPOLATIONS)
LAST = torch.channels_last
CANARY = 64
HERE = native.machine_for(16)
# The second is of processors without AVX-512, which this one can run too; the third writes what AVX-512 would run.
MACHINES = [HERE, Machine("haswell", "", 8, 16), HERE._replace(lanes=16, registers=32)]
# Taps at random places, at integers, on the border, and outside.
PLACES = {
    "random": lambda shape, size: torch.randn(shape) * size / 4,
    "integer": lambda shape, size: (torch.randn(shape) * size / 4).round(),
    "border": lambda shape, size: torch.randn(shape).sign() * (size // 2),
    "outside": lambda shape, size: torch.randn(shape) * size * 2,
}


def draw(version, shape, sizes, place="random"):
    """Weights [*shape], positions and, where the version has them, sigmas [N, *shape]; leaves that want gradients."""
    tensors = [torch.randn(shape), torch.stack([PLACES[place](shape, size) for size in sizes])]
    if INTERPOLATIONS[version].has_sigma:
        tensors.append(torch.randn(len(sizes), *shape) * 0.5)
    # So few bits that float32 centres them without rounding: otherwise a tap that a kernel hardly has, divided by next
    # to nothing, would differ from float64 by more than all that is tested here.
    return [tensor.mul_(4096).round_().div_(4096).requires_grad_() for tensor in tensors]


def build(how, version, inputs, sizes, **options):
    sigmas = inputs[2] if len(inputs) == 3 else None
    return how(*inputs[:2], sigmas, sizes, INTERPOLATIONS[version], **options)


def autograd(version, inputs, sizes, cotangent, dtype=torch.float64):
    """The kernel and every gradient by the separable form."""
    inputs = [each.detach().to(dtype).requires_grad_() for each in inputs]
    kernel = build(separable, version, inputs, sizes)
    return [kernel.detach(), *torch.autograd.grad(kernel, inputs, cotangent.to(dtype))]


def assert_close(found, expected, lost=None):
    """1e-5 of the largest value, or of 1 where taps outside leave nothing, and a few times what float32 loses anyway.

    That is much where the slopes of a tap are next to those of what it is divided by.
    """
    for ours, right, other in zip(found, expected, lost or expected, strict=True):
        bound = 1e-5 * max(1.0, float(right.abs().max())) + 16 * float((other - right).abs().max())
        torch.testing.assert_close(ours.double(), right, rtol=0, atol=bound)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("taps", [1, 5, 34])
@pytest.mark.parametrize("sizes", [(7,), (4,), (17, 17), (4, 6), (3, 31)])
@pytest.mark.parametrize("shape", [(32, 1), (5, 8)])
@pytest.mark.parametrize("version", VERSIONS)
def test_kernels_and_gradients(version, shape, sizes, taps, place):
    torch.manual_seed(taps)
    inputs = draw(version, (*shape, taps), sizes, place)
    kernel = build(construct, version, inputs, sizes)
    assert type(kernel.grad_fn).__name__ == "GeneratedBackward"
    cotangent = torch.randn_like(kernel)
    expected, lost = (autograd(version, inputs, sizes, cotangent, dtype) for dtype in (torch.float64, torch.float32))
    assert_close([kernel, *torch.autograd.grad(kernel, inputs, cotangent)], expected, lost)


@settings(deadline=None, max_examples=60)
@given(
    version=st.sampled_from(VERSIONS), machine=st.sampled_from(MACHINES), threads=st.integers(1, 2),
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=2), taps=st.integers(1, 12),
    outs=st.integers(1, 3), ins=st.sampled_from([16, 32, 48, 64]), last=st.booleans(),
    place=st.sampled_from(sorted(PLACES)),
)  # fmt: skip
def test_nothing_is_touched_around(version, machine, threads, sizes, taps, outs, ins, last, place):
    """Outside are NaN: reading there shows in the result."""
    torch.manual_seed(0)
    last = last and len(sizes) == 2
    inputs = draw(version, (outs, ins, taps), sizes, place)
    cotangent = torch.randn(outs, ins, *sizes)
    expected, lost = (autograd(version, inputs, sizes, cotangent, dtype) for dtype in (torch.float64, torch.float32))
    row, shape = INTERPOLATIONS[version], Shape(tuple(sizes), taps, ins if last else 0)
    buffers = []

    def guarded(values):
        buffers.append(torch.full((values.numel() + 2 * CANARY,), torch.nan))
        return buffers[-1][CANARY:-CANARY].view(values.shape).copy_(values.detach())

    def as_kernel(values):
        return guarded(values.movedim(1, -1)).movedim(-1, 1) if last else guarded(values)

    nothing = [None] * (3 - len(inputs))
    given_inputs = [*map(guarded, inputs), *nothing]
    results = [guarded(torch.full_like(each, torch.nan)) for each in inputs]
    kernel = as_kernel(torch.full_like(cotangent, torch.nan))
    torch.set_num_threads(threads)
    generated.call("construction", row, shape, kernel, *given_inputs, machine=machine)
    generated.call("gradients", row, shape, as_kernel(cotangent), *given_inputs, *results, *nothing, machine=machine)
    torch.set_num_threads(1)
    assert all(bool(each[:CANARY].isnan().all() and each[-CANARY:].isnan().all()) for each in buffers)
    assert_close([kernel, *results], expected, lost)


def test_what_the_code_was_not_written_for_is_refused():
    row, shape = INTERPOLATIONS["v0"], Shape((5, 5), 2, 0)
    weight, positions = torch.zeros(12, 1, 2), torch.zeros(2, 12, 1, 2)
    for wrong, match in (
        ((torch.zeros(12, 1, 5, 5), weight, positions), "lanes do not divide"),
        ((torch.zeros(16, 1, 5, 5), weight, positions), "written for \\(16, 1, 2\\)"),
        ((torch.zeros(16, 1, 5, 5), torch.zeros(16, 1, 2), positions), "written for \\(2, 16, 1, 2\\)"),
        ((torch.zeros(16, 1, 5, 4), torch.zeros(16, 1, 2), positions), "written for \\(16, 1, 5, 5\\)"),
    ):
        with pytest.raises(RuntimeError, match=match):
            generated.call("construction", row, shape, *wrong, None)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("shape", "last"), [((48, 1, 7), False), ((5, 32, 3), True)])
def test_every_thread_count_and_memory_format_gives_the_same_bits(version, shape, last):
    inputs, results = draw(version, shape, (9, 9)), []
    cotangent = torch.randn(*shape[:2], 9, 9)
    for threads, form in product((1, 2), (torch.contiguous_format, LAST) if last else (torch.contiguous_format,)):
        torch.set_num_threads(threads)
        kernel = build(construct, version, inputs, (9, 9), memory_format=form)
        assert kernel.is_contiguous(memory_format=form)
        gradients = torch.autograd.grad(kernel, inputs, cotangent.contiguous(memory_format=form))
        results.append([kernel, *gradients])
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_the_exponential_is_as_good_as_float32():
    """1e-7 of e^a, for all a that have one in a kernel; 0 below, and no number stays none."""
    code = Writer("exponentials", 8, ("next", "tasks"), ("values",))
    with code.tasks("next", "tasks") as task:
        place = code.step(code.argument("values"), (task, code.lanes))
        code.store(exponential(code, code.load(place)), place)
    exponents = torch.cat([torch.linspace(LOWEST, 0, 80_000), -torch.logspace(-30, 0, 8_000)])
    values = exponents.clone()
    native.run(compiled(MACHINES[1], code.done()), len(values) // 8, values.data_ptr())
    torch.testing.assert_close(values.double(), exponents.double().exp(), rtol=1.2e-7, atol=0)


@pytest.mark.parametrize("version", VERSIONS)
def test_no_number_is_never_an_empty_kernel(version):
    inputs = draw(version, (16, 1, 2), (5, 5))
    with torch.no_grad():
        inputs[1][0, 3, 0, 1] = math.nan
    kernel = build(construct, version, inputs, (5, 5))
    assert kernel[3].isnan().any()
    assert kernel.isnan().any((1, 2, 3)).sum() == 1


def test_sigmas_of_zero_have_no_gradient():
    inputs = draw("max", (16, 1, 2), (5, 5))
    with torch.no_grad():
        inputs[1].fill_(0.25)
        inputs[2][:, :8] = 0
    gradient = torch.autograd.grad(build(construct, "max", inputs, (5, 5)).square().sum(), inputs[2])[0]
    assert not gradient[:, :8].any()
    assert gradient[:, 8:].all()


@pytest.mark.parametrize("view", ["expanded", "turned", "restrided"])
def test_views(view):
    torch.manual_seed(0)
    inputs = draw("gauss", (16, 8, 3), (5, 4))
    if view == "restrided":
        inputs = [inputs[0], *(each.detach().to(memory_format=LAST).requires_grad_() for each in inputs[1:])]
    kernel = build(construct, "gauss", inputs, (5, 4))
    cotangent = {
        "expanded": torch.ones(()).expand(kernel.shape),
        "turned": torch.randn(16, 8, 4, 5).mT,
        "restrided": torch.randn(kernel.shape),
    }[view]
    expected, lost = (autograd("gauss", inputs, (5, 4), cotangent, dtype) for dtype in (torch.float64, torch.float32))
    assert_close([kernel, *torch.autograd.grad(kernel, inputs, cotangent)], expected, lost)


def test_defaults_of_the_process_do_not_matter():
    inputs = draw("gauss", (16, 1, 2), (3, 3))
    expected = build(construct, "gauss", inputs, (3, 3))
    with torch.device("meta"):
        kernel = build(construct, "gauss", inputs, (3, 3))
        gradients = torch.autograd.grad(kernel, inputs, expected)
    assert torch.equal(kernel, expected)
    assert all(each.device.type == "cpu" for each in gradients)


def test_second_derivatives():
    inputs = draw("gauss", (8, 1, 2), (3, 3))
    kernel = build(construct, "gauss", inputs, (3, 3))
    (first,) = torch.autograd.grad(kernel.square().sum(), inputs[1], create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), inputs[1])
    wide = [each.detach().double().requires_grad_() for each in inputs]
    (first,) = torch.autograd.grad(build(separable, "gauss", wide, (3, 3)).square().sum(), wide[1], create_graph=True)
    assert_close([second], torch.autograd.grad(first.square().sum(), wide[1]))


def reason(shape=(16, 1, 3), sizes=(5, 5), dtype=torch.float32, device="cpu", row=INTERPOLATIONS["v1"]):
    return generated.supports(torch.empty(shape, dtype=dtype, device=device), sizes, row)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"dtype": torch.float64}, "only float32"),
        ({"device": "meta"}, "only float32 on the CPU"),
        ({"sizes": (3, 3, 3)}, "at most two axes of 51"),
        ({"sizes": (52,)}, "at most two axes of 51"),
        ({"shape": (4, 1, 3)}, "4 kernels do not divide by 8"),
        ({"row": Interpolation(torch.cos)}, "cos has no vector code"),
    ],
)
def test_reasons(change, match):
    assert reason() is None
    assert match in reason(**change)


@pytest.mark.parametrize(("name", "generates"), [("auto", True), ("cpu", True), ("torch", False), ("reference", False)])
def test_the_backend_of_the_process_decides(name, generates, monkeypatch):
    monkeypatch.setattr(dispatch, "_chosen", "auto")
    ops.set_backend(name)
    kernel = build(construct, "gauss", draw("gauss", (16, 1, 2), (3, 3)), (3, 3))
    assert (type(kernel.grad_fn).__name__ == "GeneratedBackward") == generates


def test_without_llvmlite_torch_takes_over(monkeypatch):
    monkeypatch.setattr(generated, "unavailable", lambda: "llvmlite is not installed")
    kernel = build(construct, "gauss", draw("gauss", (16, 1, 2), (3, 3)), (3, 3))
    assert type(kernel.grad_fn).__name__ == "FactoredBackward"


def test_a_dense_kernel_is_built_as_its_convolution_reads_it(monkeypatch):
    """And the output lies as the input does."""
    layer, formats = Dcls2d(8, 16, 3, padding=2, dilated_kernel_size=5), []
    right = ops.convolve

    def seen(x, kernel, *arguments):
        formats.append(kernel.is_contiguous(memory_format=LAST))
        return right(x, kernel, *arguments)

    monkeypatch.setattr(ops, "convolve", seen)
    for shape, form in (((2, 8, 6, 6), torch.contiguous_format), ((2, 8, 6, 6), LAST), ((2, 8, 1, 1), LAST)):
        x = torch.randn(shape).contiguous(memory_format=form)
        output = layer(x)
        assert output.is_contiguous(memory_format=form)
    assert formats == [False, True, False]
