"""What a training shows of its progress."""

import re
import sys
from pathlib import Path

import pytest
from lightning.pytorch.callbacks import Timer

from metricloss_pl.cli import main, progress
from metricloss_pl.cli.progress import ProgressLines
from tests.callbacks.runs import fit

CONFIG = Path(__file__).parents[1] / "configs" / "digits_softmax.yaml"
SMALL = ("--trainer.callbacks=null", "--trainer.accelerator=cpu", "--data.samples_per_class=8", "--data.batch_size=16")
SMALL += ("--test_after_fit=false",)


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by so many seconds for each training batch."""

    class Clock:
        now, step = 100.0, 1.0

    start_batch = progress._Pace.start_batch

    def passing(pace, trainer, batch_idx):
        start_batch(pace, trainer, batch_idx)
        Clock.now += Clock.step

    monkeypatch.setattr(progress, "monotonic", lambda: Clock.now)
    monkeypatch.setattr(progress._Pace, "start_batch", passing)
    return Clock


def lines(capsys):
    """What follows a line's place, by that place."""
    found = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("epoch", "expected"))]
    return dict(re.split(r": |  about ", line, maxsplit=1) for line in found)


def test_a_file_has_lines_from_the_first_epoch_to_the_last(clock, tmp_path, capsys):
    main(["fit", f"--config={CONFIG}", f"--runs_dir={tmp_path}", "--trainer.max_epochs=3", *SMALL])
    found = lines(capsys)
    assert list(found) == ["expected", "epoch 1/3", "epoch 3/3"]
    numbers = r"loss \d\.\d{4}, val/accuracy \d\.\d{4}, "
    assert re.fullmatch(f"{numbers}0:00:04 elapsed, 0:00:08 left", found["epoch 1/3"])
    assert re.fullmatch(f"{numbers}0:00:12 elapsed, 0:00:00 left", found["epoch 3/3"])


def test_no_progress_where_it_is_switched_off(tmp_path, capsys):
    off = "--trainer.enable_progress_bar=false"
    main(["fit", f"--config={CONFIG}", f"--runs_dir={tmp_path}", "--trainer.max_epochs=1", off, *SMALL])
    assert not lines(capsys)


def test_short_epochs_have_lines_now_and_then(clock, tmp_path, capsys):
    """Each has 3 batches, here of a second."""
    fit(tmp_path, ProgressLines(), max_epochs=30, enable_progress_bar=True)
    found = lines(capsys)
    assert found["expected"] == "0:01:30"
    assert found["epoch 3/30"].endswith("0:00:09 elapsed, 0:01:21 left")
    assert found["epoch 30/30"].endswith("0:01:30 elapsed, 0:00:00 left")
    assert 10 <= len(found) <= 20
    assert not [place for place in found if "batch" in place]


def test_long_epochs_have_lines_within(clock, tmp_path, capsys):
    """Here of 3 batches of half an hour; the expected time is known after the first of them."""
    clock.step = 1800.0
    fit(tmp_path, ProgressLines(), max_epochs=2, enable_progress_bar=True)
    found = lines(capsys)
    batches = [f"epoch {epoch}/2{batch}" for epoch in (1, 2) for batch in (*(f", batch {n}/3" for n in (1, 2)), "")]
    assert list(found) == ["expected", *batches]
    assert found["expected"] == "3:00:00"
    assert found["epoch 1/2, batch 2/3"].endswith("1:00:00 elapsed, 2:00:00 left")


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"max_epochs": -1, "max_steps": 8}, "0:00:08"),
        ({"max_epochs": 5, "max_steps": 8}, "0:00:08"),
        ({"max_epochs": 2, "max_steps": 100}, "0:00:06"),
        ({"max_epochs": 5, "accumulate_grad_batches": 2, "max_steps": 4}, "0:00:06"),
    ],
)
def test_expected_time(limits, expected, clock, tmp_path, capsys):
    fit(tmp_path, ProgressLines(), enable_progress_bar=True, **limits)
    assert lines(capsys)["expected"] == expected


def test_an_endless_training_has_no_end(clock, tmp_path, capsys):
    fit(tmp_path, ProgressLines(), Timer({"seconds": 1}), max_epochs=-1, enable_progress_bar=True)
    found = lines(capsys)
    assert "expected" not in found
    assert re.search(r"elapsed$", found["epoch 1"])


def test_a_resumed_run_counts_its_own_time(clock, tmp_path, capsys):
    main(["fit", f"--config={CONFIG}", f"--runs_dir={tmp_path}", "--trainer.max_epochs=2", *SMALL])
    capsys.readouterr()
    clock.step = 10.0  # for each of the batches that are left
    run = tmp_path / "digits_softmax" / "version_0"
    main(["fit", f"--resume={run}", "--trainer.max_epochs=4"])
    found = lines(capsys)
    epochs = [place for place in found if "batch" not in place]
    assert epochs == ["expected", "epoch 3/4", "epoch 4/4"]
    elapsed, left = re.findall(r"0:(\d\d):(\d\d)", found["epoch 3/4"])
    assert elapsed == left


def test_other_processes_say_nothing(tmp_path, capsys, monkeypatch):
    """Lightning disables the displays of all but the first."""
    display = ProgressLines()
    display.disable()
    fit(tmp_path, display, max_epochs=1, enable_progress_bar=True)
    assert not lines(capsys)


def test_a_terminal_has_a_bar_on_one_line(tmp_path, capsys, monkeypatch):
    """Epochs count from 1, up to the last and no further."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for name, value in {"TERM": "xterm", "COLUMNS": "80", "LINES": "24", "FORCE_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    main(["fit", f"--config={CONFIG}", f"--runs_dir={tmp_path}", "--trainer.max_epochs=12", *SMALL])
    screen = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", capsys.readouterr().out)
    bars = [line for line in re.split(r"[\r\n]+", screen) if line.startswith("epoch")]
    assert {line.split("  ")[0] for line in bars} <= {f"epoch {epoch}/12" for epoch in range(1, 13)}
    assert any(re.fullmatch(r"epoch 12/12  4/4 \S+ 0:00:00 left loss: \S+ val/accuracy: \S+ *", line) for line in bars)
    assert "expected  about 0:00:" in screen
