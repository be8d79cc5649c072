import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcls import ops
from dcls.layers import INTERPOLATIONS, construct, factoring
from dcls.layers.separable import separable

VERSIONS = tuple(INTERPOLATIONS)


@pytest.fixture(autouse=True, scope="module")
def torch_alone():
    """Generated code has tests of its own."""
    ops.set_backend("torch")
    yield
    ops.set_backend("auto")


def phi(version, index, size, position, sigma):
    """The weight of one tap on one cell of one axis, from the papers' formulas, in plain numbers."""
    centred = position + size // 2
    x = index - centred
    if version == "v0":
        low = math.floor(centred)
        return {low: 1 - (centred - low), low + 1: centred - low}.get(index, 0.0)
    if version == "v1":
        return max(0.0, 1 - abs(x))
    if version == "max":
        return max(0.0, 1 + abs(sigma) - abs(x))
    return math.exp(-(x**2) / (2 * (0.27 + abs(sigma)) ** 2))


def naive(weight, positions, sigmas, sizes, version):
    """The double sum over cells and taps, one number at a time."""
    kernel = torch.zeros(*weight.shape[:-1], *sizes, dtype=torch.float64)
    for where in product(*(range(size) for size in weight.shape)):
        taps = {
            cell: math.prod(
                phi(version, cell[d], sizes[d], positions[(d, *where)].item(),
                    0.0 if sigmas is None else sigmas[(d, *where)].item())
                for d in range(len(sizes))
            )
            for cell in product(*(range(size) for size in sizes))
        }  # fmt: skip
        total = 1.0 if version == "v0" else sum(taps.values()) + 1e-7
        for cell, value in taps.items():
            kernel[where[:-1] + cell] += weight[where].item() * value / total
    return kernel


@settings(deadline=None, max_examples=60)
@given(
    version=st.sampled_from(VERSIONS),
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    dense=st.lists(st.integers(1, 2), max_size=2),
    channels=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    taps=st.integers(1, 3),
    seed=st.integers(0, 2**31),
    snap=st.sampled_from([None, 1.0, 0.5]),
)
def test_the_separable_form_is_the_double_sum(version, sizes, dense, channels, taps, seed, snap):
    generator = torch.Generator().manual_seed(seed)
    shape = (*channels, *dense, taps)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    weight, positions = draw(*shape), draw(len(sizes), *shape) * 2
    if snap:
        positions = (positions / snap).round() * snap
    sigmas = draw(len(sizes), *shape) if INTERPOLATIONS[version].has_sigma else None
    kernel = construct(weight, positions, sigmas, sizes, INTERPOLATIONS[version])
    torch.testing.assert_close(kernel, naive(weight, positions, sigmas, sizes, version), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("sizes", [(5,), (4, 3), (3, 2, 3)])
def test_gradients_to_second_order(sizes, version):
    torch.manual_seed(0)
    shape = (2, 1, 2)
    tensors = [torch.randn(shape), torch.rand(len(sizes), *shape) - 0.5]
    if INTERPOLATIONS[version].has_sigma:
        tensors.append(torch.rand(len(sizes), *shape) + 0.1)
    tensors = [tensor.double().requires_grad_() for tensor in tensors]

    def kernel(weight, positions, sigmas=None):
        return construct(weight, positions, sigmas, sizes, INTERPOLATIONS[version])

    assert torch.autograd.gradcheck(kernel, tensors)
    assert torch.autograd.gradgradcheck(kernel, tensors)


def test_bilinear_floors_after_centring_in_float32():
    """2.9999998 + 8 is 11 in float32: the whole tap is on cell 11, with the slopes of an integer position."""
    position = torch.full((1, 1, 1, 1), 2.9999998, requires_grad=True)
    kernel = construct(torch.ones(1, 1, 1), position, None, (17,), INTERPOLATIONS["v0"])[0, 0]
    assert position.item() < 3
    assert kernel.tolist() == [1.0 if cell == 11 else 0.0 for cell in range(17)]
    assert torch.autograd.grad(kernel[12], position)[0].item() == 1


@pytest.mark.parametrize("version", ["v0", "v1", "max"])
def test_taps_one_past_the_last_cell_of_an_even_size_are_dead(version):
    weight = torch.ones(1, 1, 1, requires_grad=True)
    position = torch.full((1, 1, 1, 1), 3.0, requires_grad=True)
    row = INTERPOLATIONS[version]
    kernel = construct(weight, position, torch.zeros(1, 1, 1, 1) if row.has_sigma else None, (6,), row)
    kernel.sum().backward()
    assert not kernel.any()
    assert not weight.grad.any()
    assert not position.grad.any()


@pytest.mark.parametrize("version", VERSIONS)
def test_positions_outside_the_kernel_are_accepted(version):
    row = INTERPOLATIONS[version]
    sigmas = torch.zeros(2, 1, 1, 1) if row.has_sigma else None
    for distance in (3.2, -3.2, 100.0):
        kernel = construct(torch.ones(1, 1, 1), torch.full((2, 1, 1, 1), distance), sigmas, (7, 7), row)
        assert kernel.isfinite().all()


def draw(version, shape, n, *, dtype=torch.float64, snap=None, restride=False):
    """Weights [*shape], positions and, where the version has them, sigmas [n, *shape], leaves that want gradients."""
    tensors = [torch.randn(shape), torch.randn(n, *shape) * 2]
    if INTERPOLATIONS[version].has_sigma:
        tensors.append(torch.randn(n, *shape) * 0.3)
    if snap:
        tensors[1] = (tensors[1] / snap).round() * snap
    if restride:
        tensors[1:] = [tensor.to(memory_format=torch.channels_last) for tensor in tensors[1:]]
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


def with_gradients(build, version, inputs, sizes, cotangent=None, **options):
    sigmas = inputs[2] if len(inputs) == 3 else None
    kernel = build(*inputs[:2], sigmas, sizes, INTERPOLATIONS[version], **options)
    cotangent = torch.randn_like(kernel) if cotangent is None else cotangent
    return kernel, cotangent, torch.autograd.grad(kernel, [each for each in inputs if each.requires_grad], cotangent)


@pytest.mark.parametrize("snap", [None, 1.0])
@pytest.mark.parametrize("taps", [3, 12])
@pytest.mark.parametrize(("sizes", "dense"), [((7,), ()), ((5,), (2, 1)), ((5, 5), ()), ((4, 6), ()), ((3, 5), (2,))])
@pytest.mark.parametrize("version", VERSIONS)
def test_gradients_of_our_own_are_autograds(version, sizes, dense, taps, snap, monkeypatch):
    """With few and many taps, in several blocks, at integers and outside the kernel too."""
    monkeypatch.setattr(factoring, "BLOCK", 4)
    torch.manual_seed(taps)
    inputs = draw(version, (5, 2, *dense, taps), len(sizes), snap=snap, restride=not dense)
    kernel, cotangent, found = with_gradients(construct, version, inputs, sizes)
    expected_kernel, _, expected = with_gradients(separable, version, inputs, sizes, cotangent)
    torch.testing.assert_close(kernel, expected_kernel, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    for frozen in inputs[1:]:
        frozen.requires_grad_(False)
    torch.testing.assert_close(with_gradients(construct, version, inputs, sizes, cotangent)[2], expected[:1])


@pytest.mark.parametrize("taps", [3, 12])
@pytest.mark.parametrize("version", VERSIONS)
def test_the_kernel_lies_in_memory_as_asked(version, taps):
    """And its gradient may lie in either order."""
    inputs = draw(version, (6, 4, taps), 2, dtype=torch.float32)
    last = torch.channels_last
    kernel, cotangent, found = with_gradients(construct, version, inputs, (5, 3), memory_format=last)
    assert kernel.is_contiguous(memory_format=last)
    other, _, same = with_gradients(construct, version, inputs, (5, 3), cotangent.contiguous())
    assert other.is_contiguous()
    assert torch.equal(kernel, other)
    torch.testing.assert_close(found, same)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_ensemble_of_kernels_by_vmap(version):
    inputs = [torch.stack([each.detach()] * 2) for each in draw(version, (2, 1, 3), 2)]

    def energy(*inputs):
        sigmas = inputs[2] if len(inputs) == 3 else None
        return construct(*inputs[:2], sigmas, (5, 5), INTERPOLATIONS[version]).square().sum()

    gradients = torch.func.vmap(torch.func.grad(energy, argnums=tuple(range(len(inputs)))))(*inputs)
    single = [each[0].clone().requires_grad_() for each in inputs]
    expected = torch.autograd.grad(energy(*single), single)
    torch.testing.assert_close([gradient[1] for gradient in gradients], list(expected))


@pytest.mark.parametrize("version", VERSIONS)
def test_every_thread_count_gives_the_same_bits(version):
    inputs = draw(version, (64, 2, 12), 2, dtype=torch.float32)
    kernel, cotangent, one = with_gradients(construct, version, inputs, (9, 9))
    torch.set_num_threads(2)
    again, _, two = with_gradients(construct, version, inputs, (9, 9), cotangent)
    assert torch.equal(kernel, again)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("taps", [3, 12])
@pytest.mark.parametrize("version", VERSIONS)
def test_cuda_agrees_with_the_cpu_and_repeats_itself(version, taps):
    inputs = draw(version, (64, 2, taps), 2, dtype=torch.float32)
    kernel, cotangent, found = with_gradients(construct, version, inputs, (9, 9))
    moved = [each.detach().cuda().requires_grad_() for each in inputs]
    first, second = (with_gradients(construct, version, moved, (9, 9), cotangent.cuda()) for _ in range(2))
    torch.testing.assert_close(first[0].cpu(), kernel, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close([each.cpu() for each in first[2]], list(found), rtol=1e-3, atol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip((first[0], *first[2]), (second[0], *second[2]), strict=True))
