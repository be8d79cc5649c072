import copy

import pytest
import timm
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import models  # noqa: F401  registers the names
from dcls import ops, surgery
from dcls.analysis.complexity import count
from dcls.layers import fuse, positions

# Multiply-adds at 224 pixels in units of 1e9, by fvcore on plain dense convolutions, and parameters.
REFERENCE = {
    "convnext_tiny": (4.470, 28_589_128),
    "convnext_tiny_dcls": (4.985, 28_587_688),
    "convnext_tiny_dcls_gauss": (5.500, 28_586_536),
    "convnext_small_dcls": (9.545, 50_217_064),
    "convnext_base_dcls": (16.504, 88_582_632),
    "resnet50": (4.112, 25_557_032),
    "resnet50_dcls": (12.33, 24_008_744),
    "convformer_s18": (3.959, 26_774_448),
    "convformer_s18_dcls": (4.700, 26_763_952),
    "caformer_s18_dcls": (4.330, 26_340_888),
    "fastvit_sa24_dcls": (3.362, 21_548_456),
}
# What the papers round to.
PUBLISHED = {"convnext_tiny_dcls": 5.0, "convnext_small_dcls": 9.5, "convnext_base_dcls": 16.5, "resnet50_dcls": 12.3}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", REFERENCE)
def test_costs_are_those_of_the_literature(name):
    with torch.device("meta"):
        cost = count(timm.create_model(name), (3, 224, 224))
    flops, params = REFERENCE[name]
    assert cost.params == cost.trainable == params
    # Those figures leave the products of attention out.
    assert cost.flops - cost.by_operator.get("attention", 0) == pytest.approx(flops * 1e9, rel=1e-3)
    if name in PUBLISHED:
        assert round(cost.flops / 1e9, 1) == PUBLISHED[name]


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("convnext_quickstart_dcls", {}, (1, 56, 56)),
        ("resnet26_dcls", {"channels": (8, 16, 32, 64)}, (3, 64, 64)),
        ("caformer_s18_dcls_gauss", {}, (3, 64, 64)),
    ],
)
def test_products_are_those_of_torchs_counter(name, options, size):
    model = timm.create_model(name, **options)
    cost = count(model, size)
    # Attention in its mathematical form is two products that the counter sees; fused it sees none.
    fused = fuse(copy.deepcopy(model)).eval()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        fused(torch.zeros(1, *size))
    assert cost.products == counter.get_total_flops() // 2
    assert ("attention" in cost.by_operator) == name.startswith("caformer")


def test_a_dcls_layer_costs_its_dense_kernel():
    model = nn.Sequential(nn.Conv2d(4, 4, 7, padding=3, groups=4, bias=False))
    surgery.convert(model, mode="dcls", select=surgery.depthwise(), dilated_kernel_size=(13, 9), kernel_count=5)
    cost = count(model, (4, 10, 12))
    assert cost.flops == cost.by_operator["conv"] == 4 * 10 * 12 * 13 * 9
    assert cost.params == 4 * 5 * 3


def test_the_model_is_left_as_it_was():
    model = timm.create_model("convnext_quickstart_dcls").train()
    model.head.fc.bias.requires_grad_(False)
    model(torch.randn(2, 1, 56, 56)).sum().backward()
    gradients = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    text, random = str(model), torch.get_rng_state()
    cost = count(model, (1, 56, 56))
    assert cost.params - cost.trainable == 10
    assert str(model) == text
    assert model.training
    assert positions(model)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled()
    for name, gradient in gradients.items():
        assert torch.equal(model.get_parameter(name).grad, gradient)


def test_shared_parameters_count_once_and_frozen_ones_are_not_trained():
    model = timm.create_model("convnext_quickstart_dcls")
    for position in positions(model).values():
        position.requires_grad_(False)
    cost = count(model, (1, 56, 56))
    assert (cost.params, cost.params - cost.trainable) == (144_090, 2 * 24 * (16 + 32 + 64))


def test_plain_convolutions_that_run_as_our_operator_cost_the_same():
    model = timm.create_model("convnext_quickstart")
    assert count(ops.adopt(copy.deepcopy(model)), (1, 56, 56)) == count(model, (1, 56, 56))


def test_what_counts_as_nothing_is_said():
    assert count(timm.create_model("convnext_quickstart"), (1, 56, 56)).uncounted["aten::gelu"] == 6
