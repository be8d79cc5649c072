import pytest
import torch

from dcls import Dcls2d, fuse
from dcls.errors import ConfigError
from dcls.layers import INTERPOLATIONS, Interpolation
from dcls.layers.interpolation import resolve
from dcls.ops import set_backend


@pytest.mark.parametrize(
    ("given", "short"), [("v0", "v0"), ("bilinear", "v0"), ("v1", "v1"), ("triangle", "v1"), ("max", "max")]
)
def test_versions_by_both_names(given, short):
    assert resolve(given) == short
    assert Dcls2d(1, 1, 1, version=given).version == short


@pytest.mark.parametrize("version", ["v2", "", "V0"])
def test_an_unknown_version_is_refused_at_construction(version):
    with pytest.raises(ConfigError, match=f"version='{version}'.*v0 \\(bilinear\\), v1 \\(triangle\\), max, gauss"):
        Dcls2d(1, 1, 1, version=version)


@pytest.mark.parametrize("version", INTERPOLATIONS)
def test_slopes_at_integers(version):
    """v0 has the slope of the interval to the right; the triangles have none on an integer; the Gaussian is smooth."""
    row = INTERPOLATIONS[version]
    position = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    sigma = torch.zeros((), dtype=torch.float64) if row.has_sigma else None
    cells = row.weights(torch.arange(5) - position, sigma)
    slopes = [torch.autograd.grad(cell, position, retain_graph=True)[0].item() for cell in cells]
    assert cells[2] == 1
    if version == "v0":
        assert slopes == [0, 0, -1, 1, 0]
    elif version in ("v1", "max"):
        assert slopes == [0, 0, 0, 0, 0]
    else:
        assert slopes[1] < 0 == slopes[2] < slopes[3]


@pytest.mark.parametrize("version", INTERPOLATIONS)
def test_a_nan_position_is_seen_in_the_kernel(version):
    layer = Dcls2d(1, 1, 2, dilated_kernel_size=5, version=version)
    with torch.no_grad():
        layer.P[0, 0, 0, 1] = torch.nan
    assert layer.construct_kernel().isnan().any()


def test_a_new_interpolation_is_one_entry(monkeypatch):
    monkeypatch.setitem(
        INTERPOLATIONS,
        "cosine",
        Interpolation(lambda x, s: torch.where(x.abs() < s, 1 + torch.cos(x / s * torch.pi), 0), sigma_floor=0.5,
                      sigma_init=1.0),
    )  # fmt: skip
    layer = Dcls2d(4, 4, 3, padding=3, dilated_kernel_size=7, groups=4, version="cosine")
    x = torch.randn(1, 4, 8, 8)
    output = layer(x)
    output.sum().backward()
    assert set(layer.parameter_roles) == {"P", "SIG"}
    assert all(parameter.grad.abs().max() > 0 for parameter in layer.parameters())
    torch.testing.assert_close(fuse(layer)(x), output)


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_no_gaussian_kernel_holds_numbers_too_small_to_be_normal(backend):
    """A convolution with them is ten times slower on many processors."""
    torch.manual_seed(0)
    layer = Dcls2d(64, 64, 26, padding=11, dilated_kernel_size=23, groups=64, version="gauss")
    set_backend(backend)
    try:
        kernel = layer.construct_kernel().detach().abs()
    finally:
        set_backend("auto")
    tiny = torch.finfo(torch.float32).tiny
    assert not ((kernel > 0) & (kernel < tiny)).any()
    assert (kernel == 0).any()
