import io

import pytest
from rich.console import Console

from dcls.errors import ConfigError
from dcls.record import bar
from dcls.record.bar import Bar, clock


@pytest.fixture
def now(monkeypatch):
    """A clock that stands still until moved."""
    hands = [0.0]
    monkeypatch.setattr(bar.time, "monotonic", lambda: hands[0])
    return hands


def console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=80)


def text(bar: Bar) -> str:
    return bar.console.file.getvalue()


def test_auto_is_lines_away_from_a_terminal_with_what_the_step_knows(now):
    with Bar("auto", epochs=3, steps_per_epoch=10, start_step=10, console=console(terminal=False)) as bar:
        now[0] = 20.0
        bar.update(step=15, epoch=1, loss=1.23456, lr=4e-3, position_lr=2e-2, img_per_s=1234.5, data_wait=0.07)
        bar.message("[evaluated] top-1 81.5 %")
    line, message = text(bar).splitlines()
    assert line == (
        "epoch 2/3  step 15/30  loss 1.235  lr 4.00e-03  position lr 2.00e-02  1,234 img/s  data wait 7%  left 1:00"
    )
    assert message == "[evaluated] top-1 81.5 %"  # brackets are not markup


def test_a_plain_model_has_no_position_rate_and_a_first_step_no_estimate(now):
    bar = Bar("plain", epochs=1, steps_per_epoch=4, start_step=1, console=console(terminal=False))
    bar.update(step=1, epoch=0, loss=float("nan"), lr=0.0)
    assert text(bar) == "epoch 1/1  step 1/4  loss nan  lr 0.00e+00  left -:--\n"


def test_auto_is_a_live_bar_on_a_terminal(now):
    with Bar("auto", epochs=2, steps_per_epoch=5, console=console(terminal=True)) as bar:
        assert bar.kind == "bar"
        bar.update(step=5, epoch=0, loss=0.5, lr=1e-3, position_lr=5e-3, img_per_s=123456, data_wait=0.01)
        bar.message("wrote a checkpoint")
    assert "50 %" in text(bar)
    assert "loss 0.500" in text(bar)
    assert "wrote a checkpoint" in text(bar)


def test_the_bar_reaches_its_end_without_an_update_being_due(now):
    with Bar("bar", epochs=1, steps_per_epoch=5, console=console(terminal=True)) as bar:
        bar.advance(5)
    assert "100 %" in text(bar)


def test_lines_come_every_few_seconds_at_first_and_every_minute_later(now):
    bar = Bar("plain", epochs=1, steps_per_epoch=10**6, console=console(terminal=False))
    times = []
    for second in range(3600):
        now[0] = float(second)
        if bar.due():
            bar.update(step=second, epoch=0, loss=1.0, lr=1.0)
            times.append(second)
    gaps = [after - before for before, after in zip([0, *times], times, strict=False)]
    assert gaps[:5] == [5] * 5
    assert gaps[-5:] == [60] * 5
    assert gaps == sorted(gaps)


def test_off_asks_for_nothing_but_prints_messages(now):
    bar = Bar("off", epochs=1, steps_per_epoch=1, console=console(terminal=True))
    now[0] = 1e6
    assert not bar.due()
    bar.update(step=1, epoch=0, loss=1.0, lr=1.0)
    bar.message("done")
    assert text(bar) == "done\n"


def test_an_unknown_kind_is_refused():
    with pytest.raises(ConfigError, match=r"logger\.progress=tqdm is unknown.*plain"):
        Bar("tqdm", epochs=1, steps_per_epoch=1)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(None, "-:--"), (59.6, "1:00"), (3723, "1:02:03"), (2 * 86400 + 3 * 3600 + 240, "2d 03:04")]
)
def test_clock(seconds, shown):
    assert clock(seconds) == shown
