"""The operator pair: right in every shape, and seen by torch's tools as one node."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

import models
from dcls import ops
from dcls.errors import ConfigError
from dcls.ops import reference
from dcls.ops.operator import depthwise, depthwise_gradients


def tensors(channels=8, image=(9, 7), size=(5, 4), batch=2, dtype=torch.float32, last=True):
    torch.manual_seed(0)
    x = torch.randn(batch, channels, *image, dtype=dtype)
    if last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    kernel, bias = torch.randn(channels, 1, *size, dtype=dtype), torch.randn(channels, dtype=dtype)
    return [each.requires_grad_() for each in (x, kernel, bias)]


def with_gradients(convolve, tensors, seed=1):
    """The output of convolve(*tensors) and its gradients for a fixed random weighting."""
    output = convolve(*tensors)
    generator = torch.Generator().manual_seed(seed)
    weighting = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output.dtype)
    return [output, *torch.autograd.grad(output, tensors, weighting)]


@settings(deadline=None, max_examples=100)
@given(data=st.data(), n=st.sampled_from([1, 2]), last=st.booleans())
def test_agrees_with_the_reference(data, n, last):
    """Odd and even sizes, strides, paddings beyond the kernel, axes of one pixel, no image; in float64."""
    size, stride = (data.draw(st.tuples(*[st.integers(1, 5 - m)] * n)) for m in (0, 2))
    padding = data.draw(st.tuples(*[st.integers(0, 6)] * n), label="padding")
    image = [data.draw(st.integers(max(1, s - 2 * p), 9)) for s, p in zip(size, padding, strict=True)]
    channels, batch = data.draw(st.integers(1, 5)), data.draw(st.integers(0, 3))
    given_tensors = tensors(channels, image, size, batch, torch.float64, last)
    ours = with_gradients(lambda *each: depthwise(*each, stride, padding), given_tensors)
    expected = with_gradients(lambda *each: reference.convolve(*each, stride, padding, channels), given_tensors)
    torch.testing.assert_close(ours, expected)
    if last and batch and channels > 1:
        assert ours[0].stride(1) == ours[1].stride(1) == 1


@pytest.mark.parametrize("strides", ["expanded", "every other", "turned"])
def test_views(strides):
    x, kernel, bias = tensors(8, (6, 6), (3, 3))
    x, kernel, bias = (each.detach() for each in (x, kernel, bias))
    x = {"expanded": x[:1, :1].expand(2, 8, 6, 6), "every other": x[:, :, ::2], "turned": x.transpose(2, 3)}[strides]
    expected = reference.convolve(x.double(), kernel.double(), bias.double(), (1, 1), (1, 1), 8)
    torch.testing.assert_close(depthwise(x, kernel, bias, [1, 1], [1, 1]).double(), expected, rtol=1e-5, atol=1e-5)
    summed = x.clone().requires_grad_()
    depthwise(summed, kernel, bias, [1, 1], [1, 1]).sum().backward()
    assert torch.isfinite(summed.grad).all()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize(("image", "size", "how"), [((9, 7), (5, 4), ([2, 1], [1, 2])), ((9,), (4,), ([1], [2]))])
def test_torch_finds_nothing_wrong(image, size, how, last):
    given_tensors = tensors(8, image, size, last=last)
    torch.library.opcheck(depthwise, (*given_tensors, *how))
    torch.library.opcheck(depthwise, (*given_tensors[:2], None, *how))
    x, kernel, bias = (each.detach() for each in given_tensors)
    grad = torch.randn_like(depthwise(x, kernel, bias, *how))
    for wanted in ([True, True, True], [True, False, False], [False, False, True], [False, True, False]):
        torch.library.opcheck(depthwise_gradients, (grad, x, kernel, *how, wanted))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
def test_kernels_of_neighbouring_channels_may_lie_together(backend):
    """To the bit what the same kernels do one by one, gradients and their order in memory included."""
    x, kernel, bias = tensors(16, (9, 7), (5, 4), last=True)
    together = kernel.detach().reshape(2, 8, 5, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    how = {"stride": (2, 1), "padding": (1, 2), "groups": 16, "backend": backend}
    alone = ops.convolve(x, kernel, bias, **how)
    output = ops.convolve(x, together, bias, **how)
    torch.testing.assert_close(output, alone, rtol=0, atol=0)
    cotangent = torch.randn_like(alone)
    expected = torch.autograd.grad(alone, (x, kernel, bias), cotangent)
    found = torch.autograd.grad(output, (x, together, bias), cotangent)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.reshape(other.shape), other, rtol=0, atol=0)
    if backend == "auto":
        torch.library.opcheck(depthwise, (x, together, bias, [1, 1], [1, 1]))
        detached = [each.detach() for each in (x, together)]
        torch.library.opcheck(depthwise_gradients, (cotangent, *detached, [2, 1], [1, 2], [True, True, True]))


class Convolution(nn.Module):
    def forward(self, x, kernel, bias):
        return ops.convolve(x, kernel, bias, (1,), (2,), 8)


@pytest.mark.parametrize("last", [True, False])
def test_compiles_as_one_graph(last):
    given_tensors = tensors(last=last)
    compiled = torch.compile(Convolution(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(with_gradients(compiled, given_tensors), with_gradients(Convolution(), given_tensors))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(compiled(*given_tensors), Convolution()(*given_tensors))


@pytest.mark.soak
def test_a_network_compiled_by_inductor_has_the_same_loss_and_gradients():
    """With generated C++ around the operator and the construction in it: a compiler's time, a minute or two."""
    torch.manual_seed(0)
    model = models.create("convnext_quickstart", num_classes=4, in_chans=1)
    models.convert(model, mode="dcls", dilated_kernel_size=13)
    model, images = model.to(memory_format=torch.channels_last), torch.randn(4, 1, 56, 56)

    def step(forward):
        loss = forward(images).square().mean()
        return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]

    for one, other in zip(step(torch.compile(model, fullgraph=True)), step(model), strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()


def test_exports_as_one_node_for_any_batch():
    given_tensors = tuple(each.detach() for each in tensors())
    shapes = ({0: torch.export.Dim.DYNAMIC}, None, None)
    program = torch.export.export(Convolution(), given_tensors, dynamic_shapes=shapes)
    assert [node.target for node in program.graph.nodes if node.op == "call_function"] == [
        torch.ops.dcls.depthwise.default
    ]
    given_tensors = (torch.randn(5, 8, 9, 7), *given_tensors[1:])
    torch.testing.assert_close(program.module()(*given_tensors), Convolution()(*given_tensors))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_lowers_the_tensors_and_leaves_the_backends_alone(dtype):
    """Gradients are the parameters' own type; a backward pass inside the region computes in the tensors' type."""
    given_tensors = tensors()
    expected = with_gradients(Convolution(), [each.detach().to(dtype).requires_grad_() for each in given_tensors])
    with torch.autocast("cpu", dtype):
        lowered = with_gradients(Convolution(), given_tensors)
    assert lowered[0].dtype == dtype
    assert all(torch.equal(ours.to(dtype), each) for ours, each in zip(lowered, expected, strict=True))
    assert all(each.dtype == torch.float32 for each in lowered[1:])
    output = Convolution()(*given_tensors)
    plain = torch.autograd.grad(output, given_tensors, torch.ones_like(output), retain_graph=True)
    with torch.autocast("cpu", dtype):
        inside = torch.autograd.grad(output, given_tensors, torch.ones_like(output))
    torch.testing.assert_close(inside, plain, rtol=0.02, atol=0.3)


def test_whoever_looks_on_sees_the_operator():
    """Alone, autograd takes a shorter way, to the bit the same, layouts included."""
    x, kernel, bias = tensors()

    def node(**how):
        return ops.convolve(x, kernel, bias, (1,), (2,), 8, **how).grad_fn.name()

    assert node() == "DepthwiseBackward"
    with torch.autocast("cpu", torch.bfloat16):
        assert "dcls_depthwise" in node()
    with FlopCounterMode(display=False):
        assert "dcls_depthwise" in node()
    for last in (True, False):
        given_tensors = tensors(last=last)
        short = with_gradients(Convolution(), given_tensors)
        whole = with_gradients(lambda *each: depthwise(*each, [1, 1], [2, 2]), given_tensors)
        assert all(torch.equal(*pair) for pair in zip(short, whole, strict=True))
        assert [each.stride() for each in short] == [each.stride() for each in whole]


def test_operations_are_counted():
    """The forward as torch counts its convolution; the gradients as much each."""
    given_tensors = tensors(size=(5, 5))
    forward = 2 * given_tensors[0].numel() * 25
    for backend in ("auto", "reference"):
        with FlopCounterMode(display=False) as counter:
            ops.convolve(*given_tensors, (1,), (2,), 8, backend)
        assert counter.get_total_flops() == forward
    with FlopCounterMode(display=False) as counter:
        ops.convolve(*given_tensors, (1,), (2,), 8).sum().backward()
    assert counter.get_total_flops() == 3 * forward
    output = ops.convolve(*given_tensors, (1,), (2,), 8)
    with FlopCounterMode(display=False) as counter:
        output.sum().backward()
    assert counter.get_total_flops() == 2 * forward
    with FlopCounterMode(display=False) as counter:
        x, kernel, bias = given_tensors
        ops.convolve(x, kernel.detach(), bias, (1,), (2,), 8).sum().backward()
    assert counter.get_total_flops() == 2 * forward


def test_a_second_derivative_is_refused_with_the_remedy():
    x, kernel, bias = tensors()

    def twice(backend):
        output = ops.convolve(x, kernel, bias, (1,), (2,), 8, backend)
        (gradient,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
        gradient.square().sum().backward()

    with pytest.raises(RuntimeError, match="set_backend\\('reference'\\)"):
        twice(None)
    twice("reference")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"x": torch.zeros(2, 8, 3, 7)}, "kernel size 5 is larger than the input of 3 pixels padded by 0"),
        ({"x": torch.zeros(2, 8, 9, 7).double()}, "one floating dtype"),
        ({"x": torch.zeros(2, 6, 9, 7)}, "kernel \\(8, 1, 5, 4\\) is not a depthwise one"),
        ({"kernel": torch.zeros(8, 1, 5)}, "kernel \\(8, 1, 5\\)"),
        ({"bias": torch.zeros(4)}, "bias \\(4,\\)"),
        ({"stride": [0, 1]}, "stride=\\[0, 1\\]"),
        ({"padding": [1]}, "padding=\\[1\\]"),
        ({"backend": "cudnn"}, "backend='cudnn' must be one of auto"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change, match):
    x, kernel, bias = (each.detach() for each in tensors())
    arguments = {"x": x, "kernel": kernel, "bias": bias, "stride": [1, 1], "padding": [0, 0]}
    with pytest.raises(ConfigError, match=match):
        depthwise(**arguments | change)


def test_gradients_refuse_a_gradient_of_another_shape():
    x, kernel, _ = (each.detach() for each in tensors())
    with pytest.raises(ConfigError, match="grad \\(2, 8, 9, 7\\)"):
        depthwise_gradients(torch.zeros(2, 8, 9, 7), x, kernel, [1, 1], [0, 0], [True, True, True])


def test_function_transforms_and_forward_mode_are_the_references():
    """A custom operator would drop the tangents without a word."""
    x, kernel, bias = (each.detach() for each in tensors())

    def loss(x):
        return Convolution()(x, kernel, bias).square().sum()

    tangent = torch.ones_like(x)
    gradient = torch.func.grad(loss)(x)
    by_image = torch.func.vmap(torch.func.grad(lambda image: loss(image[None])))(x)
    torch.testing.assert_close(by_image, gradient)
    expected = (gradient * tangent).sum()
    torch.testing.assert_close(torch.func.jvp(loss, (x,), (tangent,))[1], expected)
    with forward_ad.dual_level():
        torch.testing.assert_close(forward_ad.unpack_dual(loss(forward_ad.make_dual(x, tangent))).tangent, expected)
