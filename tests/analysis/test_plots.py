import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dcls import Dcls1d, Dcls2d, Dcls3d
from dcls.analysis import plots, positions


def size(path) -> tuple[int, int]:
    with Image.open(path) as image:
        image.load()
        return image.size


def test_the_density_shows_a_tap_where_it_sits_rows_down_columns_right(drawn, tmp_path):
    start = {"stage": torch.zeros(2, 1, 1, 1)}
    end = {"stage": torch.tensor([-2.0, 5.0]).view(2, 1, 1, 1)}  # two rows up, five columns right
    plots.positions_png(start, end, {"stage": (3, 6)}, tmp_path / "positions.png")
    assert min(size(tmp_path / "positions.png")) > 200
    picture = drawn[0].axes[1].images[0]
    density = np.asarray(picture.get_array())
    assert density.sum() == pytest.approx(1)
    left, right, bottom, top = picture.get_extent()
    row, column = (index + 0.5 for index in np.unravel_index(density.argmax(), density.shape))
    assert left + column / density.shape[1] * (right - left) == pytest.approx(5, abs=0.13)
    assert top + row / density.shape[0] * (bottom - top) == pytest.approx(-2, abs=0.13)


@pytest.mark.parametrize(
    ("layer", "panels"),
    [
        (Dcls1d(3, 3, 2, groups=3, dilated_kernel_size=9), 1),
        (Dcls2d(3, 3, 2, groups=3, dilated_kernel_size=9, learned_axes=(1,)), 1),
        (Dcls3d(3, 3, 2, groups=3, dilated_kernel_size=(3, 5, 9)), 3),
    ],
)
def test_one_and_three_axes_have_pictures_too(drawn, tmp_path, layer, panels):
    model = nn.Sequential(layer)
    now = positions.snapshot(model)
    plots.positions_png(now, now, positions.limits(model), tmp_path / "positions.png")
    plots.kernels_png(model, tmp_path / "kernels.png")
    assert len(drawn[0].axes) == panels
    size(tmp_path / "kernels.png")


def test_groups_of_one_and_of_two_axes_share_a_picture(tmp_path):
    layers = (Dcls1d(2, 2, 2, groups=2, dilated_kernel_size=9), Dcls2d(2, 2, 2, groups=2, dilated_kernel_size=9))
    model = nn.Sequential(*layers)
    now = positions.snapshot(model)
    plots.positions_png(now, now, positions.limits(model), tmp_path / "positions.png")
    size(tmp_path / "positions.png")


def test_a_model_without_positions_has_no_picture_of_them(tmp_path):
    plots.positions_png({}, {}, {}, tmp_path / "positions.png")
    assert list(tmp_path.iterdir()) == []


def test_kernels_are_those_of_the_layer_on_a_scale_symmetric_about_zero(drawn, tmp_path):
    layer = Dcls2d(4, 4, 3, groups=4, dilated_kernel_size=5)
    plots.kernels_png(nn.Sequential(nn.Conv2d(1, 4, 3), layer), tmp_path / "kernels.png")
    *kernels, _bar = drawn[0].axes
    pictures = [axis.images[0] for axis in kernels]
    expected = layer.construct_kernel().detach().squeeze(1)
    assert torch.equal(torch.stack([torch.tensor(np.asarray(picture.get_array())) for picture in pictures]), expected)
    largest = expected.abs().max().item()
    assert {picture.get_clim() for picture in pictures} == {(-largest, largest)}


def test_a_plain_model_shows_its_depthwise_kernels_a_dilated_one_with_gaps(drawn, tmp_path):
    dilated = nn.Conv2d(2, 2, 3, groups=2, dilation=2)
    plots.kernels_png(nn.Sequential(nn.Conv2d(1, 2, 3), dilated), tmp_path / "kernels.png")
    shown = np.asarray(drawn[0].axes[0].images[0].get_array())
    assert shown.shape == (5, 5)
    np.testing.assert_array_equal(shown[::2, ::2], dilated.weight[0, 0].detach().numpy())
    assert np.count_nonzero(shown) == 9
    plots.kernels_png(nn.Linear(2, 2), tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def row(epoch: int, **values) -> dict:
    stage = {"movement": 0.1 * epoch, "spread": 0.5, "border": 0.0}
    known = {"train_loss": 2.0 / epoch, "eval_loss": 2.1 / epoch, "top1": 10.0 * epoch, "top1_ema": None, "lr": 0.1}
    return {"epoch": epoch, "position_lr": 0.5, "positions": {"stages.0.dw": stage}, **known, **values}


def test_curves_leave_out_what_a_row_lacks(drawn, tmp_path):
    plots.curves_png([row(1), row(2, train_loss=None), row(3)], tmp_path / "curves.png")
    loss, accuracy, rate, movement = drawn[0].axes
    assert [line.get_xdata().tolist() for line in loss.lines] == [[1, 3], [1, 2, 3]]
    assert [line.get_label() for line in accuracy.lines] == ["weights"]
    assert [line.get_label() for line in rate.lines] == ["weights", "positions"]
    assert movement.lines[0].get_ydata().tolist() == [0.1, 0.2, pytest.approx(0.3)]
    plots.curves_png([row(1, positions={}, position_lr=None)], tmp_path / "plain.png")
    assert len(drawn[1].axes) == 3
    plots.curves_png([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_names_of_runs_are_no_formulas_and_never_left_out(drawn, tmp_path):
    names = ["_a$\\x$-s0", "b$\\y$-s0"]
    plots.curves_png([row(1)], tmp_path / "curves.png", title=names[0])
    assert drawn[0].get_suptitle() == names[0]
    figure = plots._figure(5, 3, "")
    plots.curve_panels({name: [row(1)] for name in names})["loss"](axis := figure.subplots())
    plots._save(figure, tmp_path / "loss.png")
    shown = [text.get_text().strip() for text in axis.get_legend().get_texts()]
    assert shown == [f"{name}: {label}" for name in names for label in ("train", "validation")]


def test_runs_side_by_side_show_the_mean_over_seeds_and_every_seed(drawn, tmp_path):
    seeds = [[row(1), row(2, top1=top1)] for top1 in (30.0, 40.0)]
    plots.comparison_png({"plain": seeds, "dcls": seeds[:1]}, tmp_path / "comparison.png")
    _, accuracy, last = drawn[0].axes
    assert [line.get_ydata()[-1] for line in accuracy.lines] == [35.0, 30.0]
    assert sorted(last.collections[0].get_offsets()[:, 1].tolist()) == [30.0, 40.0]
    plots.comparison_png({"plain": [[row(1)]], "dcls": [[row(1, top1=10.1)]]}, tmp_path / "close.png")
    low, high = drawn[1].axes[2].get_ylim()
    assert high - low == pytest.approx(3)  # a tenth of a point does not fill the panel


def test_group_labels_drop_what_all_have_in_common():
    names = [f"stages.{stage}.blocks.0.conv_dw" for stage in range(3)]
    assert list(plots.short_labels(names).values()) == ["stages.0", "stages.1", "stages.2"]
    assert list(plots.short_labels(["conv"]).values()) == ["conv"]
    assert all(len(label) <= 24 for label in plots.short_labels(["a." * 20 + "b", "c." * 20 + "d"]).values())


def test_drawing_leaves_matplotlib_as_it_was(tmp_path):
    before = dict(matplotlib.rcParams)
    plots.curves_png([row(1)], tmp_path / "curves.png")
    assert dict(matplotlib.rcParams) == before
