from itertools import product

import pytest
import torch

from dcls.ops import convolve
from dcls.ops.case import reached


def test_by_the_definition():
    """One output pixel at a time: strides, paddings and groups on both axes."""
    torch.manual_seed(0)
    x, kernel, bias = torch.randn(2, 4, 5, 6).double(), torch.randn(6, 2, 3, 2).double(), torch.randn(6).double()
    output = convolve(x, kernel, bias, stride=(2, 1), padding=(1, 0), groups=2)
    assert output.shape == (2, 6, 3, 5)
    padded = torch.zeros(2, 4, 7, 6).double()
    padded[:, :, 1:6] = x
    for o, i, j in product(range(6), range(3), range(5)):
        group = slice(2 * (o // 3), 2 * (o // 3) + 2)
        window = padded[:, group, 2 * i : 2 * i + 3, j : j + 2]
        torch.testing.assert_close(output[:, o, i, j], (window * kernel[o]).sum((1, 2, 3)) + bias[o])


@pytest.mark.parametrize("n", [1, 2, 3])
def test_gradients_in_every_dimension(n):
    torch.manual_seed(0)
    tensors = [torch.randn(*shape).double().requires_grad_() for shape in ((1, 2, *[3] * n), (2, 1, *[2] * n), (2,))]
    assert torch.autograd.gradcheck(lambda *each: convolve(*each, [2] * n, [1] * n, groups=2), tensors)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(("image", "size", "padding"), [((2, 3), (7, 6), (3, 3)), ((1, 8), (7, 17), (4, 8))])
def test_cells_that_meet_only_the_border_are_left_out(image, size, padding, groups):
    """Those whose gradient is zero, no fewer: outputs and gradients are those of torch's own convolution."""
    torch.manual_seed(0)
    x, kernel = torch.randn(2, 4, *image).double(), torch.randn(4, 4 // groups, *size).double()
    found, expected = ([x.clone().requires_grad_(), kernel.clone().requires_grad_()] for _ in range(2))
    ours = convolve(*found, padding=padding, groups=groups)
    theirs = torch.nn.functional.conv2d(*expected, padding=padding, groups=groups)
    torch.testing.assert_close(ours, theirs)
    grad = torch.randn_like(ours)
    gradients = torch.autograd.grad(theirs, expected, grad)
    torch.testing.assert_close(torch.autograd.grad(ours, found, grad), gradients)
    least, kept = reached(kernel, image, (1, 1), padding)
    assert least.shape[2:].numel() == (gradients[1] != 0).any(0).any(0).sum() < kernel.shape[2:].numel()
    assert kept != list(padding)
    assert reached(kernel, image, (2, 2), padding) == (kernel, list(padding))


def test_keeps_the_memory_format_and_empty_batches():
    kernel = torch.randn(8, 1, 3, 3)
    x = torch.randn(2, 8, 6, 6).to(memory_format=torch.channels_last)
    assert convolve(x, kernel, padding=(1, 1), groups=8).is_contiguous(memory_format=torch.channels_last)
    assert convolve(x[:0], kernel, padding=(1, 1), groups=8).shape == (0, 8, 6, 6)
