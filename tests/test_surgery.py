import json
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dcls import Dcls2d, layers, surgery
from dcls.errors import ConfigError


def backbone() -> nn.Sequential:
    """Two stages of depthwise 7x7 (two convolutions each) behind a stem, a widening depthwise embedding and a 1x1."""
    return nn.Sequential(
        OrderedDict(
            stem=nn.Conv2d(3, 8, 4, 4),
            a=nn.Conv2d(8, 8, 7, padding=3, groups=8),
            b=nn.Conv2d(8, 8, 7, padding=3, groups=8),
            embed=nn.Conv2d(8, 16, 7, 2, 3, groups=8),
            mix=nn.Conv2d(16, 16, 3, padding=1),
            c=nn.Conv2d(16, 16, 7, padding=3, groups=16, bias=False),
            d=nn.Conv2d(16, 16, 7, padding=3, groups=16),
            head=nn.Conv2d(16, 4, 1),
        )
    )


def depthwise_layers(channels: list[int]) -> list[nn.Conv2d]:
    return [nn.Conv2d(c, c, 7, padding=3, groups=c, device="meta") for c in channels]


@pytest.mark.parametrize(
    ("rule", "names"),
    [
        (surgery.depthwise(), ["a", "b", "c", "d"]),
        (surgery.depthwise(same_channels=False), ["a", "b", "embed", "c", "d"]),
        (surgery.depthwise(kernel_above=7), []),
        (surgery.dense(kernel=3), ["mix"]),
        (surgery.dense(kernel=4), ["stem"]),
        (surgery.named("^[ab]$"), ["a", "b"]),
        (surgery.depthwise() & surgery.named("[bd]"), ["b", "d"]),
        pytest.param(lambda name, conv: conv.bias is None, ["c"], id="a function"),
    ],
    ids=str,
)
def test_rules_find_their_convolutions_in_module_order(rule, names):
    assert [name for name, _ in surgery.find(backbone(), rule)] == names


# Channels of the replaced 7x7 layers, stage by stage, and the counts: sum C_b and sum C_s stand in the comments.
DEPTHWISE_STAGES = {
    "convnext_tiny": ([(96, 3), (192, 3), (384, 9), (768, 3)], 34, 26),  # 6,624 1,440
    "convnext_small": ([(96, 3), (192, 3), (384, 27), (768, 3)], 40, 34),  # 13,536 1,440
    "convnext_base": ([(128, 3), (256, 3), (512, 27), (1024, 3)], 40, 34),  # 18,048 1,920
    "convformer_s18": ([(128, 3), (256, 3), (640, 9), (1024, 3)], 34, 26),  # 9,984 2,048
    "caformer_s18": ([(128, 3), (256, 3)], 29, 21),  # 1,152 384
    "fastvit_sa24": ([(64, 4), (128, 4), (256, 12), (512, 5)], 37, 30),  # 6,400 960
    "fastvit_sa36": ([(64, 6), (128, 6), (256, 18), (512, 7)], 40, 34),  # 9,344 960
    "quickstart": ([(16, 2), (32, 2), (64, 2)], 24, 16),
}


@pytest.mark.parametrize("name", DEPTHWISE_STAGES)
def test_equal_parameters_give_the_published_counts(name):
    stages, positions_only, with_sigmas = DEPTHWISE_STAGES[name]
    convs = depthwise_layers([channels for channels, depth in stages for _ in range(depth)])
    groups = surgery.sharing_groups(convs)
    assert groups == [stage for stage, (_, depth) in enumerate(stages) for _ in range(depth)]
    assert surgery.solve_kernel_count(convs, groups, axes=2, has_sigma=False) == positions_only
    assert surgery.solve_kernel_count(convs, groups, axes=2, has_sigma=True) == with_sigmas


@pytest.mark.parametrize(("has_sigma", "share", "count"), [(False, True, 5), (False, False, 3), (True, True, 4)])
def test_equal_parameters_of_resnet50(has_sigma, share, count):
    convs = [
        nn.Conv2d(c, c, 3, padding=1, bias=False, device="meta")
        for c, depth in [(64, 3), (128, 4), (256, 6), (512, 3)]
        for _ in range(depth)
    ]
    assert surgery.solve_kernel_count(convs, surgery.sharing_groups(convs), 2, has_sigma, share) == count


def test_a_group_ends_where_channels_grow_or_positions_do_not_fit():
    channels = [(4, 4), (4, 4), (4, 8), (8, 8), (4, 4)]
    convs = [nn.Conv2d(i, o, 3) for i, o in channels]
    assert surgery.sharing_groups(convs) == [0, 0, 1, 2, 3]


@pytest.mark.parametrize("options", [{"dilation": 2}, {"dilation": 3}], ids=str)
def test_dilated_keeps_weights_and_output_size(options):
    model = backbone()
    weight, x = model.a.weight.detach().clone(), torch.randn(2, 8, 9, 11)
    report = surgery.convert(model, mode="dilated", select=surgery.depthwise(), **options)
    step = options["dilation"]
    expected = F.conv2d(x, weight, model.a.bias, padding=3 * step, dilation=step, groups=8)
    assert torch.equal(model.a(x), expected)
    assert expected.shape == x.shape
    assert report.params_before == report.params_after
    assert report.rows[0].new == f"7x7 dilation {step} depthwise 8"


@pytest.mark.parametrize("mode", ["dcls", "dilated", "large_kernel"])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_every_mode_keeps_the_output_size_also_with_a_stride(mode, dimensions):
    kind = [nn.Conv1d, nn.Conv2d, nn.Conv3d][dimensions - 1]
    model = nn.Sequential(kind(4, 4, 3, stride=2, padding=1, bias=False), kind(4, 4, 3, padding=1))
    x = torch.randn(1, 4, *[9, 10, 8][:dimensions])
    before = model(x).shape
    surgery.convert(model, mode=mode, select=surgery.dense(), dilated_kernel_size=5, kernel_count=2)
    assert model(x).shape == before
    assert model[0].stride == (2,) * dimensions
    assert model[0].bias is None


def test_the_report_accounts_for_every_parameter():
    model = backbone()
    before = sum(p.numel() for p in model.parameters())
    report = surgery.convert(model, mode="dcls", select=surgery.depthwise(), dilated_kernel_size=17, version="gauss")
    # 49 * 48 / (48 + 4 * 24)
    assert (report.version, report.kernel_count) == ("gauss", 16)
    assert [row.name for row in report.rows] == ["a", "b", "c", "d"]
    assert [row.group for row in report.rows] == [0, 0, 1, 1]
    taps = 16
    assert [row.params_before for row in report.rows] == [400, 400, 784, 800]
    assert [row.params_after for row in report.rows] == [8 * taps * 5 + 8, 8 * taps + 8, 16 * taps * 5, 16 * taps + 16]
    assert report.params_before == before
    assert report.params_after == sum(p.numel() for p in model.parameters()) <= before
    change = sum(row.params_after - row.params_before for row in report.rows)
    assert report.params_after - report.params_before == change

    assert json.loads(json.dumps(report.as_dict()))["rows"][2]["new"] == "17x17 of 16 taps"
    lines = report.lines()
    assert lines[0] == "surgery dcls gauss, 16 taps a kernel: 4 layers replaced, which share 2 sets of positions"
    assert lines[2].split() == ["a", "0", "7x7", "depthwise", "8", "17x17", "of", "16", "taps", "400", "648"]
    assert lines[-1] == f"parameters {before:,} -> {report.params_after:,} ({change:+,})"


def test_sharing_is_one_parameter_a_group_and_can_be_left_out():
    shared, apart = backbone(), backbone()
    options = {"mode": "dcls", "select": surgery.depthwise(), "dilated_kernel_size": 9, "version": "max"}
    surgery.convert(shared, **options)
    assert shared.a.P is shared.b.P
    assert shared.c.SIG is shared.d.SIG
    assert shared.a.P is not shared.c.P
    report = surgery.convert(apart, **options, share=False)
    assert len(layers.positions(apart)) == 4
    assert report.kernel_count == 49 // 5
    assert "share" not in report.lines()[0]


def test_large_kernel_prints_its_extra_parameters():
    report = surgery.convert(backbone(), mode="large_kernel", select=surgery.depthwise(), dilated_kernel_size=17)
    assert report.params_after - report.params_before == 48 * (17**2 - 7**2)
    assert report.lines()[-1].endswith("(+11,520)")


def test_mode_none_changes_nothing():
    model = backbone()
    text = str(model)
    report = surgery.convert(model, mode="none", select=surgery.depthwise())
    assert str(model) == text
    assert (report.rows, report.version, report.kernel_count) == ((), None, None)
    assert report.params_before == report.params_after


@pytest.mark.parametrize("mode", ["dcls", "large_kernel"])
def test_new_weights_follow_weight_std(mode):
    options = {"mode": mode, "select": surgery.depthwise(), "dilated_kernel_size": 9, "kernel_count": 40}
    given, own = backbone(), backbone()
    surgery.convert(given, **options, weight_std=0.02)
    weights = torch.cat([layer.weight.flatten() for layer in (given.a, given.b, given.c, given.d)])
    assert 0.018 < weights.std() < 0.022
    assert given.a.bias.abs().max() == 0
    surgery.convert(own, **options)
    assert own.a.bias.abs().max() > 0
    # kaiming_uniform(sqrt 5): uniform on +-1 / sqrt(fan in)
    assert own.a.weight.abs().max() <= own.a.weight[0].numel() ** -0.5


def test_layers_stay_on_the_device_dtype_and_mode_of_what_they_replace():
    with torch.device("meta"):
        model = backbone().double().eval()
    surgery.convert(model, mode="dcls", select=surgery.named("^a$"), dilated_kernel_size=9)
    surgery.convert(model, mode="dilated", select=surgery.named("^b$"))
    assert isinstance(model.a, Dcls2d)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert not model.a.training
    assert not model.b.training


def test_a_convolution_used_twice_stays_one_layer():
    conv = nn.Conv2d(4, 4, 7, padding=3, groups=4)
    model = nn.Sequential(conv, nn.ReLU(), nn.Sequential(conv))
    report = surgery.convert(model, mode="dcls", select=surgery.depthwise(), dilated_kernel_size=9)
    assert len(report.rows) == 1
    assert model[0] is model[2][0]
    assert isinstance(model[0], Dcls2d)


class NormedConv2d(nn.Conv2d):
    pass


def with_bad_convolution(conv: nn.Module) -> nn.Sequential:
    model = backbone()
    model.d = conv
    return model


WHOLE = {"mode": "dcls", "select": surgery.depthwise(), "dilated_kernel_size": 17}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"mode": "dlcs"}, "mode='dlcs' is unknown: choose one of none, dcls, dilated, large_kernel"),
        ({"version": "v7"}, "version='v7'"),
        ({"select": surgery.depthwise(kernel_above=9)}, r"select=depthwise\(kernel_above=9.* matches no convolution"),
        ({"kernel_count": 290}, "kernel_count=290 gives 290 taps, but dilated_kernel_size=17x17 has 289 cells"),
        ({"dilated_kernel_size": 3}, "kernel_count='auto' gives 24 taps, but dilated_kernel_size=3x3 has 9 cells"),
        ({"kernel_count": 0}, "kernel_count=0"),
        ({"kernel_count": "many"}, "kernel_count='many'"),
        ({"dilated_kernel_size": None}, "dilated_kernel_size=None, but mode='dcls'"),
        ({"dilated_kernel_size": 16}, r"a: dilated_kernel_size=\(16, 16\) .*nearest"),
        ({"dilated_kernel_size": (9, 9, 9)}, "dilated_kernel_size"),
        ({"mode": "dilated", "dilation": 0}, "dilation=0"),
        ({"position_init_std": -1.0}, "position_init_std=-1.0"),
        ({"sigma_init": 0.1}, "sigma_init=0.1"),
        ({"weight_std": -0.1}, "weight_std=-0.1"),
        ({"select": surgery.named("head"), "kernel_count": "auto"}, "kernel_count='auto' finds no count"),
    ],
    ids=str,
)
def test_what_cannot_run_is_refused_before_anything_changes(options, match):
    model = backbone()
    text, state = str(model), {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ConfigError, match=match):
        surgery.convert(model, **(WHOLE | options))
    assert str(model) == text
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("mode", ["dcls", "dilated", "large_kernel"])
@pytest.mark.parametrize(
    ("last", "match"),
    [
        (NormedConv2d(16, 16, 7, padding=3, groups=16), "d: conv is a NormedConv2d"),
        (nn.Conv2d(16, 16, 7, padding="same", groups=16), "d: conv has padding='same'"),
        (nn.Conv1d(16, 16, 7, padding=3, groups=16), "select=.* different dimensions"),
    ],
)
def test_one_convolution_that_cannot_be_replaced_stops_all(mode, last, match):
    model = with_bad_convolution(last)
    text = str(model)
    with pytest.raises(ConfigError, match=match):
        surgery.convert(model, **(WHOLE | {"mode": mode}))
    assert str(model) == text


def test_a_second_conversion_says_that_there_are_layers_already():
    model = backbone()
    surgery.convert(model, **WHOLE)
    with pytest.raises(ConfigError, match="select=.* it has 4 DCLS layers already"):
        surgery.convert(model, **WHOLE)


def test_a_bare_convolution_has_nowhere_to_put_its_replacement():
    with pytest.raises(ConfigError, match=r"select=.* matches the model itself: .*Dcls2d.like"):
        surgery.convert(nn.Conv2d(4, 4, 7, padding=3, groups=4), **WHOLE)
