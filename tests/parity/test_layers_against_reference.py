"""Our layers against the reference package, PyPI `DCLS` 0.1.1: outputs, every gradient, and where it is inconsistent.

The reference's P[i] does not always move taps along axis i, and is centred by its own size: `from_reference` converts,
and the first tests here pin that conversion by measuring where the reference puts a tap.
"""

import logging
from itertools import cycle

import pytest
import torch
from DCLS.construct import modules as reference

from dcls import Dcls1d, Dcls2d, Dcls3d, clamp_positions, repulsive_loss
from dcls.layers import from_reference, to_reference
from dcls.layers.reference_layout import reference_axes

VERSIONS = ("v0", "v1", "max", "gauss")
OURS = {1: Dcls1d, 2: Dcls2d, 3: Dcls3d}
THEIRS = {1: reference.Dcls1d, 2: reference.Dcls2d, 3: reference.Dcls3d}


@pytest.fixture(autouse=True)
def _quiet_constructor(monkeypatch):
    # Dcls2d logs to the root logger at every construction where CUDA or an extension is missing.
    monkeypatch.setattr(logging, "warning", lambda *args, **kwargs: None)


@pytest.fixture(autouse=True)
def _one_thread():
    """The tensors are tiny: a second thread only waits for the first."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def reference_kernel(layer):
    return layer.DCK(layer.weight, layer.P, layer.SIG)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_which_axis_the_references_positions_move_taps_along(n, version):
    layer = THEIRS[n](1, 1, 1, dilated_kernel_size=5, version=version)
    measured = []
    for i in range(n):
        with torch.no_grad():
            layer.weight.fill_(1)
            layer.P.zero_()[i] = 1
        cell = torch.unravel_index(reference_kernel(layer).argmax(), (5,) * n)
        measured.append([int(index) for index in cell].index(3))
    assert tuple(measured) == reference_axes(version, n)


@pytest.mark.parametrize(("version", "n"), [("v0", 3), ("v1", 2), ("gauss", 3)])
def test_the_reference_centres_by_the_size_of_the_wrong_axis(version, n):
    sizes = (5, 7, 11)[:n]
    layer = THEIRS[n](1, 1, 1, dilated_kernel_size=sizes, version=version)
    centred, _ = to_reference(torch.zeros(n, 1, 1, 1), version=version, dilated_kernel_size=sizes)
    assert centred.abs().max() > 0
    with torch.no_grad():
        layer.weight.fill_(1)
        layer.P.copy_(centred)
    cell = torch.unravel_index(reference_kernel(layer).argmax(), sizes)
    assert [int(index) for index in cell] == [size // 2 for size in sizes]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("sizes", [(7,), (5, 11), (4, 7, 10)])
def test_the_conversion_is_inverted_exactly(sizes, version):
    P, SIG = (torch.randn(len(sizes), 3, 2, 4, dtype=torch.float64) for _ in range(2))
    there = to_reference(P, SIG, version=version, dilated_kernel_size=sizes)
    back, sigmas = from_reference(*there, version=version, dilated_kernel_size=sizes)
    torch.testing.assert_close(back, P)
    assert torch.equal(sigmas, SIG)


def test_the_conversion_refuses_sizes_that_are_not_the_positions_own():
    with pytest.raises(ValueError, match="dilated_kernel_size"):
        from_reference(torch.zeros(2, 1, 1, 1), version="v1", dilated_kernel_size=(5, 5, 5))
    with pytest.raises(ValueError, match="dimensions"):
        reference_axes("v1", 4)


def place(layer, kind):
    """Positions of one kind, in our layout, on every learned axis."""
    with torch.no_grad():
        for position, limit in zip(layer.P, layer.position_limits, strict=True):
            if kind == "random":
                position.uniform_(-0.9 * limit, 0.9 * limit)
            elif kind == "integer":
                position.copy_(torch.randint(-limit, limit + 1, position.shape))
            elif kind == "border":
                position.copy_(limit * torch.randint(-1, 2, position.shape).sign())
            elif kind == "outside":
                # Every other tap inside: a normalised triangle beyond the border is constant, and both gradients noise.
                position.uniform_(-0.9 * limit, 0.9 * limit)
                position[..., ::2] = (limit + 0.2) * torch.randint(0, 2, position[..., ::2].shape).mul(2).sub(1)
        if layer.SIG is not None:
            layer.SIG.normal_(0, 0.5)


def copy_to_reference(ours, theirs):
    """Give the reference layer our parameters, in its layout."""
    P, SIG = to_reference(ours.P, ours.SIG, version=ours.version, dilated_kernel_size=ours.learned_sizes)
    with torch.no_grad():
        theirs.weight.copy_(ours.weight.reshape(theirs.weight.shape))
        theirs.P.copy_(P.reshape(theirs.P.shape))
        if SIG is not None:
            theirs.SIG.copy_(SIG.reshape(theirs.SIG.shape))
        if ours.bias is not None:
            theirs.bias.copy_(ours.bias)


def assert_equal_relative(ours, theirs, name):
    error = ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30)).detach().item()
    assert error <= 1e-5, f"{name}: {error}"


def assert_parity(ours, theirs, kind, pixels):
    """Output and the gradients of input, weight, P, SIG and bias agree to 1e-5 of the largest value."""
    place(ours, kind)
    copy_to_reference(ours, theirs)
    inputs = [torch.randn(2, ours.in_channels, *pixels).requires_grad_() for _ in range(2)]
    inputs[1].data.copy_(inputs[0].data)
    outputs = [layer(x) for layer, x in zip((ours, theirs), inputs, strict=True)]
    assert_equal_relative(outputs[0], outputs[1], "output")
    cotangent = torch.randn_like(outputs[1])
    for output in outputs:
        output.backward(cotangent)
    axes = list(reference_axes(ours.version, len(ours.learned_axes)))
    assert_equal_relative(inputs[0].grad, inputs[1].grad, "input")
    assert_equal_relative(ours.weight.grad.reshape(theirs.weight.shape), theirs.weight.grad, "weight")
    for name in ours.parameter_roles:
        gradient = getattr(ours, name).grad[axes]
        assert_equal_relative(gradient.reshape(theirs.P.shape), getattr(theirs, name).grad, name)
    if ours.bias is not None:
        assert_equal_relative(ours.bias.grad, theirs.bias.grad, "bias")


SIZES = [(7,), (6,), (5, 5), (5, 11), (8, 3), (4, 6), (3, 5, 7), (4, 3, 2), (3, 3, 3)]
KINDS = ("random", "integer", "border", "outside")
LAYOUTS = [
    {"in_channels": 2, "out_channels": 3},
    {"in_channels": 3, "out_channels": 3, "groups": 3, "stride": 2},
    {"in_channels": 4, "out_channels": 6, "groups": 2, "bias": False},
    {"in_channels": 2, "out_channels": 4, "groups": 2, "padding_mode": "circular"},
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("sizes", SIZES)
def test_equals_the_reference(sizes, version, kind):
    torch.manual_seed(VERSIONS.index(version))
    turn = SIZES.index(sizes) + VERSIONS.index(version) + KINDS.index(kind)
    n = len(sizes)
    options = dict(LAYOUTS[turn % len(LAYOUTS)], kernel_count=2 + turn % 4, version=version)
    options.update(dilated_kernel_size=sizes, padding=tuple(size // 2 for size in sizes))
    if "stride" in options:
        options["stride"] = (2, 1, 3)[:n]
    pixels = [size + extra for size, extra in zip(sizes, cycle((2, 3)))]
    assert_parity(OURS[n](**options), THEIRS[n](**options), kind, pixels)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("flat_dim", "sizes"), [(0, (7, 1)), (1, (1, 6))])
def test_a_flat_axis_equals_the_references_dcls2dk1d(flat_dim, sizes, version, kind):
    torch.manual_seed(KINDS.index(kind))
    common = {"groups": 2, "stride": (1, 2), "version": version, "padding": (1, 2)}
    ours = Dcls2d(2, 4, 3, dilated_kernel_size=sizes, learned_axes=(flat_dim,), **common)
    theirs = reference.Dcls2dK1d(2, 4, 3, dilated_kernel_size=max(sizes), flat_dim=flat_dim, **common)
    assert_parity(ours, theirs, kind, (9, 10))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", VERSIONS[1:])
@pytest.mark.parametrize("dense", [(2, 3), (1, 3), (1, 1)])
def test_dense_axes_equal_the_references_dcls3_1d(dense, version, kind):
    torch.manual_seed(KINDS.index(kind))
    common = {"groups": 2, "stride": (1, 2, 1), "version": version, "padding": (0, 1, 2)}
    ours = Dcls3d(2, 4, 3, dilated_kernel_size=(*dense, 5), learned_axes=(2,), **common)
    theirs = reference.Dcls3_1d(2, 4, 3, dense_kernel_size=dense, dilated_kernel_size=5, **common)
    assert_parity(ours, theirs, kind, (4, 5, 6))


@pytest.mark.parametrize("version", VERSIONS)
def test_equal_seeds_give_the_references_initial_layer_and_names(version):
    layers = []
    for layer in (Dcls2d, reference.Dcls2d):
        torch.manual_seed(0)
        layers.append(layer(4, 6, 5, dilated_kernel_size=(3, 7), groups=2, version=version))
    ours, theirs = (layer.state_dict() for layer in layers)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_clamp_is_the_references():
    ours, theirs = (layer(2, 2, 50, dilated_kernel_size=(4, 7), version="v0") for layer in (Dcls2d, reference.Dcls2d))
    with torch.no_grad():
        theirs.P.copy_(ours.P.normal_(0, 5))
    clamp_positions(ours)
    theirs.clamp_parameters()
    assert torch.equal(ours.P, theirs.P)


def test_the_authors_repulsive_loss():
    layer = Dcls2d(96, 96, 40, dilated_kernel_size=17, groups=96)
    # The authors' loop over taps, written as the sum over ordered pairs.
    distances = torch.cdist(*[layer.P.squeeze(2).permute(1, 2, 0)] * 2)
    pairs = torch.relu(1 - distances).sum((1, 2)) - 40
    torch.testing.assert_close(repulsive_loss(layer), (pairs / (40 * 39)).mean())
