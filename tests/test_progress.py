"""Progress of a training: lines in a file, Lightning's bar on a terminal."""

import re
import sys
from pathlib import Path

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import RichProgressBar
from torch import nn

from metricloss_pl.backbones import TinyConvNet
from metricloss_pl.cli import main, progress
from metricloss_pl.cli.progress import ExpectedTime, ProgressLines
from metricloss_pl.regimes import CenterSoftmaxClassifier
from tests.callbacks.runs import fit

CONFIG = Path(__file__).parents[1] / "configs" / "digits_softmax.yaml"
SMALL = ("--trainer.callbacks=null", "--trainer.accelerator=cpu", "--data.samples_per_class=8", "--data.batch_size=16")
SMALL += ("--test_after_fit=false",)


class Grouped(TinyConvNet):
    def __init__(self) -> None:
        super().__init__(width=4)
        self.maps.append(nn.Conv2d(8, 8, 1, groups=2))


class Clock(Callback):
    """A clock that goes on by so many seconds for each training batch, of which an epoch has 3."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 100.0, step

    def on_train_batch_start(self, *args):
        self.now += self.step


def lines(capsys) -> dict[str, str]:
    """Return the values of each line by its epoch and batch."""
    found = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    return dict(line.split(": ", maxsplit=1) for line in found)


def fit_timed(folder, monkeypatch, step, *callbacks, **options):
    clock = Clock(step)
    monkeypatch.setattr(progress, "monotonic", lambda: clock.now)
    fit(folder, clock, *(callbacks or (ProgressLines(),)), enable_progress_bar=True, **options)


def test_a_file_has_lines_from_the_first_epoch_to_the_last(tmp_path, capsys):
    main(["fit", f"--config={CONFIG}", f"--runs_dir={tmp_path}", "--trainer.max_epochs=3", *SMALL])
    found = lines(capsys)
    assert list(found) == ["epoch 1/3", "epoch 3/3"]
    for line in found.values():
        assert re.fullmatch(r"loss \d\.\d{4}, val/accuracy \d\.\d{4}, 0:00:\d\d elapsed, 0:00:\d\d left", line)


def test_no_progress_where_it_is_switched_off(tmp_path, capsys):
    off = "--trainer.enable_progress_bar=false"
    main(["fit", f"--config={CONFIG}", f"--runs_dir={tmp_path}", "--trainer.max_epochs=1", off, *SMALL])
    assert not lines(capsys)


def test_short_epochs_share_lines(tmp_path, monkeypatch, capsys):
    fit_timed(tmp_path, monkeypatch, 1.0, max_epochs=30)
    found = lines(capsys)
    assert list(found) == [f"epoch {epoch}/30" for epoch in (1, 5, 9, 13, 17, 21, 25, 29, 30)]
    assert found["epoch 5/30"].endswith("0:00:15 elapsed, 0:01:15 left")
    assert found["epoch 30/30"].endswith("0:01:30 elapsed, 0:00:00 left")


def test_long_epochs_have_lines_within(tmp_path, monkeypatch, capsys):
    fit_timed(tmp_path, monkeypatch, 1800.0, max_epochs=2)
    found = lines(capsys)
    assert list(found) == [f"epoch {n}/2{batch}" for n in (1, 2) for batch in (", batch 1/3", ", batch 2/3", "")]
    assert found["epoch 1/2, batch 2/3"].endswith("1:00:00 elapsed, 2:00:00 left")


def test_an_endless_training_has_no_end(tmp_path, monkeypatch, capsys):
    fit_timed(tmp_path, monkeypatch, 1.0, max_epochs=-1, max_time={"seconds": 1})
    assert re.search(r"elapsed$", lines(capsys)["epoch 1"])


def test_a_resumed_run_counts_its_own_time(tmp_path, monkeypatch, capsys):
    main(["fit", f"--config={CONFIG}", f"--runs_dir={tmp_path}", "--trainer.max_epochs=2", *SMALL])
    capsys.readouterr()
    times = iter(range(0, 10**6, 20))
    monkeypatch.setattr(progress, "monotonic", lambda: next(times))
    main(["fit", f"--resume={tmp_path / 'digits_softmax' / 'version_0'}", "--trainer.max_epochs=4"])
    found = lines(capsys)
    assert list(found) == ["epoch 3/4", "epoch 4/4"]
    elapsed, left = re.findall(r"0:\d\d:\d\d", found["epoch 3/4"])
    assert elapsed == left


def test_other_processes_say_nothing(tmp_path, monkeypatch, capsys):
    """Lightning disables the displays of all but the first."""
    display = ProgressLines()
    display.disable()
    fit_timed(tmp_path, monkeypatch, 1.0, display, max_epochs=1)
    assert not lines(capsys)


def test_a_terminal_has_lightnings_bar(tmp_path, capsys, monkeypatch):
    drawn = []
    monkeypatch.setattr(RichProgressBar, "on_train_start", lambda self, *args: drawn.append(self))
    monkeypatch.setattr(RichProgressBar, "on_train_epoch_end", lambda self, *args: None)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    main(["fit", f"--config={CONFIG}", f"--runs_dir={tmp_path}", "--trainer.max_epochs=1", *SMALL])
    assert drawn
    assert not lines(capsys)


@pytest.mark.parametrize(
    ("step", "options", "expected"),
    [
        (1.0, {"max_epochs": 30}, ["0:01:30 for 90 steps"]),  # in its second epoch, with 5 steps of a second
        (40.0, {"max_epochs": 2}, ["0:04:00 for 6 steps"]),  # in its first
        (1.0, {"max_epochs": 1}, []),  # it is over before
        (1.0, {"max_epochs": -1, "max_time": {"seconds": 1}}, []),
    ],
)
def test_the_expected_time_is_told_once(step, options, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "multiplies_bfloat16", lambda: False)
    fit_timed(tmp_path, monkeypatch, step, ExpectedTime(), **options)
    found = [line for line in capsys.readouterr().out.splitlines() if line.startswith("expected")]
    assert [line.split(maxsplit=2)[2] for line in found] == expected


@pytest.mark.parametrize(
    ("step", "options", "network", "able", "told"),
    [
        (30.0, {}, TinyConvNet(width=4), True, True),
        (6.0, {}, TinyConvNet(width=4), True, False),  # less than a minute
        (30.0, {}, TinyConvNet(width=4), False, False),
        (30.0, {"precision": "bf16-mixed"}, TinyConvNet(width=4), True, False),
        (30.0, {}, Grouped(), True, False),
    ],
)
def test_a_long_training_is_told_of_mixed_precision(step, options, network, able, told, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "multiplies_bfloat16", lambda: able)
    model = CenterSoftmaxClassifier(10, network, [f"digit {k}" for k in range(10)])
    fit_timed(tmp_path, monkeypatch, step, ExpectedTime(), model=model, **options)
    assert ("bf16-mixed" in capsys.readouterr().out) == told
