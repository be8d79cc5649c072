"""The layer around its kernel: every way torch may run, place, copy and store it."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from dcls import Dcls1d, Dcls2d, Dcls3d
from dcls.errors import ConfigError
from dcls.layers import INTERPOLATIONS
from dcls.layers.drop_in import CONVOLUTIONS

VERSIONS = tuple(INTERPOLATIONS)
LAYERS = {1: Dcls1d, 2: Dcls2d, 3: Dcls3d}
MODES = ("zeros", "reflect", "replicate", "circular")


def torch_convolution(layer, padding):
    """nn.Conv with the layer's constructed kernel and bias."""
    conv = CONVOLUTIONS[layer.dimensions](
        layer.in_channels, layer.out_channels, layer.dilated_kernel_size, layer.stride, padding,
        groups=layer.groups, bias=layer.bias is not None, padding_mode=layer.padding_mode, dtype=layer.weight.dtype,
    )  # fmt: skip
    conv.weight = nn.Parameter(layer.construct_kernel().to(layer.weight.dtype))
    conv.bias = layer.bias
    return conv


def depthwise(version="v0", **options):
    return Dcls2d(8, 8, 5, padding=3, dilated_kernel_size=7, groups=8, version=version, **options)


@settings(deadline=None, max_examples=80)
@given(data=st.data(), n=st.integers(1, 3), version=st.sampled_from(VERSIONS), mode=st.sampled_from(MODES))
def test_convolves_with_its_kernel_as_torch_does(data, n, version, mode):
    """All padding modes, strides, groups, sizes and learned axes; batch of any size, none, and no batch axis."""
    sizes = data.draw(st.tuples(*[st.integers(1, 4)] * n), label="sizes")
    axes = data.draw(st.lists(st.integers(0, n - 1), min_size=1, unique=True), label="learned axes")
    padding = data.draw(st.tuples(*[st.integers(0, 2)] * n) | st.just("same") | st.just("valid"), label="padding")
    stride = (1,) * n if padding == "same" else data.draw(st.tuples(*[st.integers(1, 3)] * n), label="stride")
    groups, ins, outs = data.draw(st.tuples(*[st.integers(1, 2)] * 3), label="groups, in, out per group")
    batch = data.draw(st.sampled_from([(), (0,), (2,)]), label="batch")
    bias = data.draw(st.booleans(), label="bias")
    layer = LAYERS[n](
        groups * ins, groups * outs, 2, stride, padding, sizes, groups, bias, mode, version,
        learned_axes=axes, position_init_std=1.5, dtype=torch.float64,
    )  # fmt: skip
    x = torch.randn(*batch, groups * ins, *[5] * n, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using padding='same' with even kernel lengths")
        expected = torch_convolution(layer, padding)(x)
    torch.testing.assert_close(layer(x), expected)


def test_same_padding_keeps_the_size_and_refuses_a_stride():
    assert Dcls2d(1, 1, 2, padding="same", dilated_kernel_size=(4, 7))(torch.zeros(1, 1, 9, 8)).shape == (1, 1, 9, 8)
    with pytest.raises(ConfigError, match="padding='same'"):
        Dcls2d(1, 1, 2, stride=2, padding="same", dilated_kernel_size=4)


def test_the_partial_family():
    """Dense axes have taps of their own in every cell; an axis of size 1 is flat; P follows the learned axes."""
    dense = Dcls3d(2, 4, 3, dilated_kernel_size=(2, 3, 7), learned_axes=(2,))
    assert dense.weight.shape == (4, 2, 2, 3, 3)
    assert dense.P.shape == (1, 4, 2, 2, 3, 3)
    assert dense.position_limits == (3,)
    flat = Dcls2d(2, 4, 3, dilated_kernel_size=(7, 1), learned_axes=(0,), version="gauss")
    assert flat.weight.shape == (4, 2, 3)
    assert flat.P.shape == flat.SIG.shape == (1, 4, 2, 3)
    middle = Dcls3d(1, 1, 1, dilated_kernel_size=(3, 2, 5), learned_axes=(0, 2))
    with torch.no_grad():
        middle.weight.fill_(1)
        middle.P[:, 0, 0, 1, 0] = torch.tensor([1.0, -2.0])
        middle.P[:, 0, 0, 0, 0] = 0
    assert middle.construct_kernel()[0, 0].nonzero().tolist() == [[1, 0, 2], [2, 1, 0]]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_rounds_the_kernel_and_never_the_positions(dtype, version):
    layer, x = depthwise(version), torch.randn(2, 8, 10, 10)
    expected = layer.construct_kernel()
    with torch.autocast("cpu", dtype):
        kernel, output = layer.construct_kernel(), layer(x)
        output.float().square().sum().backward()
    assert kernel.dtype == torch.float32
    assert torch.equal(kernel, expected)
    assert output.dtype == dtype
    torch.testing.assert_close(output, layer(x).to(dtype), rtol=0.02, atol=0.02)
    assert all(parameter.grad.dtype == torch.float32 for parameter in layer.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_parameters_of_other_types(dtype):
    layer = depthwise("gauss", dtype=dtype)
    assert layer.construct_kernel().dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    output = layer(torch.randn(1, 8, 9, 9, dtype=dtype))
    output.sum().backward()
    assert output.dtype == layer.P.grad.dtype == dtype


@pytest.mark.parametrize("learned_axes", [None, 1])
def test_a_memory_format_is_not_for_parameters(learned_axes):
    """Neither are copied at each forward, nor is a memory format of four axes refused by the five of some."""
    model = nn.Sequential(Dcls2d(4, 6, 3, dilated_kernel_size=(3, 5), learned_axes=learned_axes), nn.Conv2d(6, 4, 3))
    before = [each.detach().clone() for each in model.parameters()]
    model.to(memory_format=torch.channels_last)
    assert all(each.is_contiguous() for each in model[0].parameters())
    assert not model[1].weight.is_contiguous()
    torch.testing.assert_close(list(model.parameters()), before, rtol=0, atol=0)
    assert model.double()[0].P.dtype == torch.float64


@pytest.mark.parametrize("version", VERSIONS)
def test_channels_last_in_is_channels_last_out(version):
    layer, x = depthwise(version), torch.randn(2, 8, 10, 10)
    expected = layer(x)
    layer.to(memory_format=torch.channels_last)
    output = layer(x.to(memory_format=torch.channels_last))
    assert output.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("version", VERSIONS)
def test_compiles_in_one_graph(version):
    layer, x = depthwise(version, padding_mode="circular"), torch.randn(2, 8, 10, 10)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    found = torch.autograd.grad(compiled(x).square().sum(), list(layer.parameters()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.parametrize("version", VERSIONS)
def test_exports_for_any_batch(version):
    layer = Dcls3d(2, 4, 3, dilated_kernel_size=(2, 1, 3), learned_axes=(1, 2), padding=1, version=version)
    program = torch.export.export(layer, (torch.randn(2, 2, 3, 4, 5),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    x = torch.randn(5, 2, 3, 4, 5)
    torch.testing.assert_close(program.module()(x), layer(x))


def test_a_dense_layer_exports_for_images_of_any_size():
    """Smaller than the kernel, too."""
    layer, size = Dcls2d(4, 4, 3, padding=3, dilated_kernel_size=7), torch.export.Dim.DYNAMIC
    program = torch.export.export(layer, (torch.randn(2, 4, 20, 20),), dynamic_shapes=({0: size, 2: size, 3: size},))
    x = torch.randn(5, 4, 3, 2)
    torch.testing.assert_close(program.module()(x), layer(x))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("version", VERSIONS)
def test_who_traces_or_transforms_sees_plain_operations(version, groups):
    """Fake tensors have no numbers that generated code could read, and graphs none that it could write."""
    layer = Dcls2d(8, 8, 3, padding=2, dilated_kernel_size=5, groups=groups, version=version)
    x, other = torch.randn(2, 8, 9, 9), torch.randn(2, 8, 9, 9)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert isinstance(layer(torch.randn(2, 8, 9, 9)), FakeTensor)
        fake = copy.deepcopy(layer)
        fake(torch.randn(2, 8, 9, 9)).sum().backward()
        assert fake.P.grad.shape == layer.P.shape
    with torch.no_grad():
        graphs = make_fx(layer)(x), torch.jit.trace(layer, x)
    for graph in graphs:
        torch.testing.assert_close(graph(other), layer(other))
    torch.testing.assert_close(torch.func.vmap(layer)(torch.stack([x, other])), torch.stack([layer(x), layer(other)]))
    tangents = {name: torch.randn_like(value) for name, value in layer.named_parameters()}
    values = {name: value.detach() for name, value in layer.named_parameters()}
    _, expected = torch.func.jvp(lambda each: torch.func.functional_call(layer, each, (x,)), (values,), (tangents,))
    with forward_ad.dual_level():
        duals = {name: forward_ad.make_dual(value, tangents[name]) for name, value in values.items()}
        found = forward_ad.unpack_dual(torch.func.functional_call(layer, duals, (x,))).tangent
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("version", VERSIONS)
def test_copies_and_stored_layers_compute_the_same(version):
    layer, x = depthwise(version), torch.randn(1, 8, 9, 9)
    layer(x)
    stored = io.BytesIO()
    torch.save(layer.state_dict(), stored)
    stored.seek(0)
    loaded = depthwise(version)
    loaded.load_state_dict(torch.load(stored, weights_only=True))
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        assert torch.equal(other(x), layer(x))


@pytest.mark.parametrize("version", VERSIONS)
def test_meta_layers_know_their_shapes_and_are_drawn_later(version):
    with torch.device("meta"):
        layer = depthwise(version)
    assert layer(torch.empty(2, 8, 10, 9, device="meta")).shape == (2, 8, 10, 9)
    layer.to_empty(device="cpu")
    for parameter in layer.parameters():
        nn.init.constant_(parameter, torch.nan)
    torch.manual_seed(0)
    layer.reset_parameters()
    torch.manual_seed(0)
    drawn = depthwise(version).state_dict()
    assert all(torch.equal(value, drawn[name]) for name, value in layer.state_dict().items())


def test_initial_values():
    torch.manual_seed(0)
    layer = Dcls2d(8, 64, 20, dilated_kernel_size=(17, 1), groups=2, version="gauss", position_init_std=2.0)
    bound = (4 * 20) ** -0.5
    assert 0.95 * bound < layer.weight.abs().max() <= bound
    assert 0.8 * bound < layer.bias.abs().max() <= bound
    assert 1.9 < layer.P[0].std() < 2.1
    assert not layer.P[1].any()
    assert (layer.SIG == 0.23).all()
    assert (depthwise("max").SIG == 0).all()
    assert (depthwise("max", sigma_init=0.1).SIG == 0.1).all()
    assert depthwise(position_init_std=100.0).P.abs().max() == 3


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"in_channels": 3}, "in_channels=3 .* groups=2"),
        ({"out_channels": 5}, "out_channels=5 .* groups=2"),
        ({"out_channels": 0}, "out_channels=0"),
        ({"groups": 0}, "groups=0"),
        ({"kernel_count": 0}, "kernel_count=0"),
        ({"stride": 0}, "stride=0"),
        ({"padding": -1}, "padding=-1"),
        ({"padding": "full"}, "padding='full'"),
        ({"padding_mode": "wrap"}, "padding_mode='wrap' .* circular"),
        ({"dilated_kernel_size": (3, 3, 3)}, "dilated_kernel_size=\\(3, 3, 3\\)"),
        ({"learned_axes": (2,)}, "learned_axes=\\(2,\\)"),
        ({"position_init_std": -1}, "position_init_std=-1"),
        ({"position_init_std": float("nan")}, "position_init_std=nan"),
        ({"sigma_init": 0.3}, "sigma_init=0.3 has no effect with version='v0'"),
    ],
)
def test_arguments_that_cannot_be_are_refused_by_name(options, match):
    with pytest.raises(ConfigError, match=match):
        Dcls2d(**{"in_channels": 4, "out_channels": 4, "kernel_count": 3, "groups": 2} | options)


def test_the_printed_layer_names_what_is_unusual():
    assert repr(Dcls1d(2, 4, 3, dilated_kernel_size=5)) == (
        "Dcls1d(2, 4, kernel_count=3, dilated_kernel_size=(5,), version=v0)"
    )
    layer = Dcls2d(2, 4, 3, 2, 1, (1, 5), 2, False, "reflect", "gauss", learned_axes=(1,))
    assert repr(layer) == (
        "Dcls2d(2, 4, kernel_count=3, dilated_kernel_size=(1, 5), version=gauss, stride=(2, 2), padding=(1, 1), "
        "groups=2, padding_mode=reflect, learned_axes=(1,), bias=False)"
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_kernels_built_side_by_side_change_no_bit(version, monkeypatch):
    """With generated code the layer's kernels lie as the convolution reads them; weight and P may be in any format."""
    layer = Dcls2d(16, 16, 5, padding=3, dilated_kernel_size=(7, 6), groups=16, version=version, position_init_std=2.0)
    layer = layer.to(memory_format=torch.channels_last)
    x = torch.randn(2, 16, 9, 9).to(memory_format=torch.channels_last)
    results = []
    for _ in range(2):
        layer.zero_grad()
        output = layer(x)
        output.square().sum().backward()
        results.append([output.detach(), *(each.grad for each in layer.parameters())])
        monkeypatch.setattr("dcls.ops.side_by_side", lambda *_: 1)
    torch.testing.assert_close(*results, rtol=0, atol=0)
