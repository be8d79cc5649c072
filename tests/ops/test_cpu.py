"""Generated code against float64, in buffers whose surroundings tell what was read or written there."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcls import ops
from dcls.ops import cpu, native, reference
from dcls.ops.case import Case
from dcls.ops.operator import depthwise

pytest.importorskip("llvmlite")
if native.unavailable():
    pytest.skip(str(native.unavailable()), allow_module_level=True)

from dcls.ops.llvm import Machine
from dcls.ops.vector_code import NUMBERS, Axis, pieces, tiles

CANARY = 64
HERE = native.machine_for(16)
# The instructions and the registers of processors without AVX-512; this one can run them too.
AVX2 = Machine("haswell", "", 8, 16)
# The loops for AVX-512, by this machine's instructions.
AVX512 = HERE._replace(lanes=16, registers=32)
MACHINES = [HERE._replace(lanes=8), AVX2, AVX512]


class Guarded:
    """A contiguous copy of a tensor with NaN on both sides: reading there shows in the result, writing shows here."""

    def __init__(self, values):
        self.buffer = torch.full((values.numel() + 2 * CANARY,), torch.nan)
        self.tensor = self.buffer[CANARY:-CANARY].view(values.shape).copy_(values)

    def intact(self):
        return bool(self.buffer[:CANARY].isnan().all() and self.buffer[-CANARY:].isnan().all())


def last(tensor):
    return tensor.permute(0, 2, 3, 1)


def case(data):
    """Tensors and how they are convolved: any sizes that fit, small."""
    channels, batch = 16 * data.draw(st.integers(1, 2), label="channels / 16"), data.draw(st.integers(1, 3))
    size = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 31)), label="kernel")
    stride = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)), label="stride")
    padding = tuple(data.draw(st.integers(0, s + 1)) for s in size)
    image = [data.draw(st.integers(max(1, s - 2 * p), s + 20)) for s, p in zip(size, padding, strict=True)]
    x, kernel = torch.randn(batch, channels, *image), torch.randn(channels, 1, *size)
    return x, kernel, torch.randn(channels), stride, padding


def expected(x, kernel, bias, stride, padding):
    """Output, a random gradient of it, and the gradients of x, kernel and bias, in float64."""
    wide = [each.double().requires_grad_() for each in (x, kernel, bias)]
    output = reference.convolve(*wide, stride, padding, x.shape[1])
    grad = torch.randn(output.shape)
    return [output.detach(), grad, *torch.autograd.grad(output, wide, grad.double())]


def assert_close(ours, wide):
    """1e-5 of the largest value: sums of products of both signs cancel."""
    torch.testing.assert_close(ours.double(), wide, rtol=0, atol=1e-5 * max(1.0, float(wide.abs().max())))


@settings(deadline=None, max_examples=60)
@given(data=st.data(), machine=st.sampled_from(MACHINES), threads=st.sampled_from([1, 2, 5]))
def test_right_numbers_and_nothing_touched_around_them(data, machine, threads):
    torch.manual_seed(0)
    x, kernel, bias, stride, padding = case(data)
    output, grad, of_x, of_kernel, of_bias = expected(x, kernel, bias, stride, padding)
    rows, columns = cpu._axes(x.shape[2:], kernel.shape[2:], stride, padding)
    packed = cpu._packed(kernel, machine.lanes)
    inputs = [Guarded(each) for each in (last(x), last(grad), packed, bias, torch.zeros_like(bias))]
    shapes = last(output).shape, last(of_x).shape, packed.shape, bias.shape
    results = [Guarded(torch.full(shape, torch.nan)) for shape in shapes]
    image, gradient, taps, offset, none = (each.tensor for each in inputs)
    torch.set_num_threads(threads)
    cpu.convolve_into(results[0].tensor, image, taps, offset, machine, rows, columns)
    turned_axes = [cpu._turned(axis) for axis in (rows, columns)]
    cpu.convolve_into(results[1].tensor, gradient, taps, none, machine, *turned_axes, turned=True)
    cpu.gradients_into(results[2].tensor, results[3].tensor, gradient, image, machine, rows, columns)
    torch.set_num_threads(1)
    assert all(each.intact() for each in (*inputs, *results))
    assert_close(results[0].tensor, last(output))
    assert_close(results[1].tensor, last(of_x))
    assert_close(results[2].tensor, cpu._packed(of_kernel, machine.lanes))
    assert_close(results[3].tensor, of_bias)


@settings(deadline=None, max_examples=40)
@given(
    taps=st.integers(1, 20), stride=st.integers(1, 3), padding=st.integers(-3, 20), spread=st.integers(1, 3),
    inputs=st.integers(1, 40), outputs=st.integers(1, 60), limit=st.integers(1, 14),
)  # fmt: skip
def test_tiles_read_what_every_output_needs(taps, stride, padding, spread, inputs, outputs, limit):
    axis = Axis(inputs, outputs, taps, stride, padding, spread)
    found = [
        (run.start + n * run.width + t, source + n * run.shift, tap)
        for run in tiles(axis, limit)
        for n in range(run.repeats)
        for source, pairs in run.reads.items()
        for t, tap in pairs
    ]
    needed = [(o, axis.source(o, s), s) for o in range(outputs) for s in range(taps) if axis.source(o, s) is not None]
    assert sorted(found) == needed
    assert all(run.width <= max(limit, spread) + spread for run in tiles(axis, limit))


def test_a_row_in_pieces():
    assert [list(piece) for piece in pieces(7, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert pieces(3, 17) == [range(3)]


@pytest.mark.parametrize(("channels", "size", "pixels"), [(16, 13, 14), (32, 7, 7), (64, 7, 3), (24, 17, 28)])
def test_one_thread_and_two_give_the_same(channels, size, pixels):
    torch.manual_seed(0)
    x, kernel, bias = (
        torch.randn(4, channels, pixels, pixels),
        torch.randn(channels, 1, size, size),
        torch.ones(channels),
    )
    given_tensors = [each.requires_grad_() for each in (x, kernel, bias)]
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        output = ops.convolve(*given_tensors, (1,), (size // 2,), channels, backend="cpu")
        results.append([output, *torch.autograd.grad(output.square().sum(), given_tensors)])
    torch.set_num_threads(1)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_parts_of_a_task_do_not_undo_one_another():
    """Few channels and many threads: many parts, of which one has the bias. A race shows in some of many calls."""
    x, grad, kernel = torch.ones(1, 16, 4, 4), torch.ones(1, 16, 4, 4), torch.zeros(16, 1, 31, 1)
    torch.set_num_threads(8)
    sums = [cpu.kernel_gradient(grad, x, kernel, (1, 1), (15, 0), True)[1] for _ in range(3000)]
    torch.set_num_threads(1)
    assert torch.stack(sums).eq(16).all()


@pytest.mark.parametrize("threads", [1, 2])
def test_tasks_of_many_small_images_are_taken_together(threads, monkeypatch):
    torch.manual_seed(0)
    dealt, run = [], cpu.run

    def noted(code, *numbers):
        dealt.append(dict(zip(NUMBERS[1:], numbers, strict=False)))
        run(code, *numbers)

    monkeypatch.setattr(cpu, "run", noted)
    given_tensors = torch.randn(37, 48, 3, 3), torch.randn(48, 1, 5, 5), torch.randn(48)
    wide = expected(*given_tensors, (1, 1), (2, 2))
    given_tensors = [each.requires_grad_() for each in given_tensors]
    torch.set_num_threads(threads)
    output = depthwise(*given_tensors, [1, 1], [2, 2], "cpu")
    gradients = torch.autograd.grad(output, given_tensors, wide[1])
    torch.set_num_threads(1)
    for ours, right in zip((output, *gradients), (wide[0], *wide[2:]), strict=True):
        assert_close(ours, right)
    assert dealt[0]["at_once"] > 1
    assert dealt[0]["tasks"] % dealt[0]["at_once"], "the last ones taken are fewer"


def test_calls_of_several_threads_at_once():
    torch.manual_seed(0)
    images, kernel = torch.randn(16, 2, 16, 14, 14), torch.randn(16, 1, 7, 7)
    alone = [depthwise(x, kernel, None, [1, 1], [3, 3], "cpu") for x in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda x: depthwise(x, kernel, None, [1, 1], [3, 3], "cpu"), images))
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


@pytest.mark.parametrize("view", ["expanded", "every other", "turned", "sliced channels", "flat"])
def test_views_and_one_dimension(view):
    torch.manual_seed(0)
    x = torch.randn(2, 32, 8, 8)
    x = {
        "expanded": x[:1, :1].expand(2, 16, 8, 8),
        "every other": x[:, ::2, ::2],
        "turned": x[:, :16].transpose(2, 3),
        "sliced channels": x.contiguous(memory_format=torch.channels_last)[:, 16:],
        "flat": x[:, :16, 0],
    }[view]
    n = x.dim() - 2
    kernel, bias = torch.randn(16, 1, *[3] * n), torch.randn(16)
    wide = expected(x, kernel, bias, (1,) * n, (1,) * n)
    given_tensors = [each.detach().requires_grad_() for each in (x, kernel, bias)]
    output = depthwise(*given_tensors, [1] * n, [1] * n, "cpu")
    gradients = torch.autograd.grad(output, given_tensors, wide[1].to(memory_format=torch.preserve_format))
    for ours, right in zip((output, *gradients), (wide[0], *wide[2:]), strict=True):
        assert_close(ours, right)


def test_products_too_small_for_float32_are_zeros_in_the_code_alone():
    tiny = torch.full((1, 16, 9, 9), 1e-20).to(memory_format=torch.channels_last)
    kernel = torch.full((16, 1, 3, 3), 1e-20)
    assert not cpu.forward(tiny, kernel, None, (1, 1), (1, 1)).any()
    assert not cpu.kernel_gradient(tiny, tiny, kernel, (1, 1), (1, 1), True)[0].any()
    assert tiny.mul(kernel[0, 0, 0, 0]).all(), "torch goes on as before"


def test_a_long_sum_keeps_its_precision():
    """All of one sign, many images: one running sum would be several times further off."""
    x, grad = torch.rand(32, 16, 28, 28), torch.rand(32, 16, 28, 28)
    ours, bias = cpu.kernel_gradient(grad, x, torch.zeros(16, 1, 3, 3), (1, 1), (1, 1), True)
    wide = torch.ops.aten.convolution_backward(
        grad.double(), x.double(), torch.zeros(16, 1, 3, 3).double(), [16], [1, 1], [1, 1], [1, 1], False, [0, 0], 16,
        [False, True, True],
    )  # fmt: skip
    torch.testing.assert_close(ours.double(), wide[1], rtol=5e-6, atol=0)
    torch.testing.assert_close(bias.double(), wide[2], rtol=5e-6, atol=0)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"dtype": torch.bfloat16}, "only float32"),
        ({"device": "cuda"}, "only float32 on the CPU"),
        ({"channels": 20}, "20 channels do not divide by 8"),
        ({"image": (1, 16_000)}, "16,000 pixels along an axis: only up to 4,096"),
    ],
)
def test_reasons(change, match):
    usual = Case("cpu", torch.float32, 2, 16, (9, 7), (5, 5), (1, 1), (2, 2))
    assert cpu.supports(usual) is None
    assert match in cpu.supports(usual._replace(**change))
