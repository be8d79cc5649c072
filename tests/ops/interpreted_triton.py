"""The Triton kernels under Triton's interpreter, on the CPU: run by test_triton.py in a process of its own.

TRITON_INTERPRET must stand in the environment before anything imports triton. The interpreter does about 1700 taps a
second, so shapes are small; what is tried are the borders of blocks and images.
"""

import pytest
import torch

from dcls.ops import reference, triton_backend, triton_bands

# Differences over the largest true value: float32 sums, then one rounding (towards zero in the interpreted bfloat16).
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 5e-4}


def tensors(batch, channels, image, size, dtype, last):
    torch.manual_seed(0)
    x, kernel = torch.randn(batch, channels, *image), torch.randn(channels, 1, *size)
    x = x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    return [each.to(dtype) for each in (x, kernel, torch.randn(channels))]


def check(x, kernel, bias, stride, padding, backend=triton_backend):
    """Output and all gradients against torch's in float64."""
    leaves = [each.double().requires_grad_() for each in (x, kernel, bias)]
    output = reference.convolve(*leaves, stride, padding, x.shape[1])
    grad = torch.randn(output.shape).to(x)
    expected = [output, *torch.autograd.grad(output, leaves, grad.double())]
    ours = [
        backend.forward(x, kernel, bias, stride, padding),
        backend.input_gradient(grad, x, kernel, stride, padding),
        *backend.kernel_gradient(grad, x, kernel, stride, padding, True),
    ]
    for one, other in zip(ours, expected, strict=True):
        assert one.dtype == x.dtype
        assert one.shape == other.shape
        assert (one.double() - other).abs().max() <= TOLERANCES[x.dtype] * other.abs().max()


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_each_dtype_in_both_formats(dtype, last):
    check(*tensors(1, 33, (4, 5), (3, 2), dtype, last), (1, 1), (1, 1))


@pytest.mark.parametrize(
    ("batch", "channels", "image", "size", "stride", "padding", "last"),
    [
        (3, 3, (3, 4), (4, 3), (2, 1), (1, 2), False),
        (1, 3, (6, 7), (2, 3), (2, 2), (0, 1), True),
        (1, 2, (7, 6), (3, 2), (3, 2), (1, 3), False),
        (1, 6, (1, 37), (1, 4), (1, 2), (0, 1), True),
        (2, 3, (5, 1), (3, 1), (1, 1), (1, 0), False),
        (1, 2, (1, 1), (1, 1), (1, 1), (0, 0), True),
        (1, 4, (2, 3), (6, 7), (1, 1), (3, 4), True),
        (1, 3, (4, 5), (2, 2), (1, 1), (4, 3), False),
        (1, 66, (2, 35), (2, 3), (1, 1), (1, 1), True),
        (1, 34, (2, 67), (1, 3), (1, 1), (0, 1), False),
    ],
    ids=str,
)
def test_sizes_strides_paddings(batch, channels, image, size, stride, padding, last):
    check(*tensors(batch, channels, image, size, torch.float32, last), stride, padding)


@pytest.mark.parametrize(
    ("batch", "channels", "image", "size", "padding", "dtype"),
    [
        (3, 2, (6, 20), (5, 4), (1, 2), torch.float16),
        (2, 1, (5, 7), (17, 17), (8, 8), torch.float16),
        (1, 1, (5, 40), (3, 19), (0, 9), torch.bfloat16),
        (1, 3, (1, 33), (1, 4), (0, 1), torch.float16),
        (1, 2, (4, 3), (4, 5), (3, 4), torch.bfloat16),
        (1, 2, (9, 14), (6, 7), (0, 0), torch.float16),
        (70, 1, (6, 2), (3, 2), (1, 1), torch.float16),
    ],
    ids=str,
)
def test_bands(batch, channels, image, size, padding, dtype):
    """One tile and several, images narrower than kernels, more rows than a block; channels_last for bfloat16."""
    given = tensors(batch, channels, image, size, dtype, dtype == torch.bfloat16)
    check(*given, (1, 1), padding, triton_bands)


@pytest.mark.parametrize("strides", ["expanded", "every other", "turned"])
def test_views(strides):
    x, kernel, bias = tensors(2, 3, (4, 4), (3, 2), torch.float32, False)
    x = {"expanded": x[:1, :1].expand(2, 3, 4, 4), "every other": x[:, :, ::2], "turned": x.transpose(2, 3)}[strides]
    given = x, kernel.transpose(2, 3), bias[:1].expand(3)
    check(*given, (1, 1), (1, 1))
    check(*(each.half() for each in given), (1, 1), (1, 1), triton_bands)


def test_nothing_is_written_beside_the_results(monkeypatch):
    """Results and partial sums are born full of NaN, so every number was written, and written once."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *sizes, **options: empty(*sizes, **options).fill_(torch.nan))
    new_empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **options: new_empty(*a, **options).fill_(torch.nan))
    check(*tensors(2, 5, (4, 3), (3, 2), torch.float32, True), (1, 1), (1, 1))
    check(*tensors(2, 2, (5, 17), (3, 2), torch.float16, True), (1, 1), (1, 1), triton_bands)


def test_chunks_change_the_order_of_sums_alone(monkeypatch):
    """And their number follows from the shapes: two calls give the same bits."""
    x, kernel, _ = tensors(3, 8, (4, 4), (3, 3), torch.float32, True)
    grad = torch.randn_like(x)
    found = [triton_backend.kernel_gradient(grad, x, kernel, (1, 1), (1, 1), False)[0] for _ in range(2)]
    assert torch.equal(*found)
    monkeypatch.setattr(triton_backend, "GRADIENT_PROGRAMS", 1)
    whole, _ = triton_backend.kernel_gradient(grad, x, kernel, (1, 1), (1, 1), False)
    torch.testing.assert_close(whole, found[0], rtol=1e-5, atol=1e-5)
