import pytest
import torch

from dcls.ops import torch_backend


@pytest.mark.parametrize("large", [0, 1 << 40])
@pytest.mark.parametrize(("size", "padding"), [((3, 3), (1, 1)), ((4, 5), (0, 6))])
def test_both_forms_of_the_kernel_gradient(monkeypatch, large, size, padding):
    """Image by image and the batch as channels: the batch's size decides, never the numbers."""
    torch.manual_seed(0)
    monkeypatch.setattr(torch_backend, "LARGE_BATCH", large)
    x, kernel = torch.randn(3, 4, 6, 7).double(), torch.randn(4, 1, *size).double()
    output = torch_backend.forward(x, kernel, None, (1, 1), padding)
    grad = torch.randn_like(output)
    _, expected, of_bias = torch.ops.aten.convolution_backward(
        grad, x, kernel, [4], [1, 1], padding, [1, 1], False, [0, 0], 4, [False, True, True]
    )
    ours, bias = torch_backend.kernel_gradient(grad, x, kernel, (1, 1), padding, True)
    torch.testing.assert_close((ours, bias), (expected, of_bias))
