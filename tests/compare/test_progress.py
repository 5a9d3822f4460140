"""What is shown while runs are done, by this process or another one."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from metricloss_pl.compare.costs import Cost
from metricloss_pl.compare.plan import Plan
from metricloss_pl.compare.progress import PlanProgress
from metricloss_pl.compare.results import Results
from tests.compare.tiny import tiny

COST = Cost(training=400.0, around=10.0, steps=200, epochs=20, val_fraction=0.4, gigabytes=0.1, accelerator=False)


@pytest.fixture
def plan():
    """A run of softmax, then one of cosine."""
    return Plan.of(tiny(trials=0).checked(), {"softmax": {}, "cosine": {}}, "images")


@pytest.fixture
def results(tmp_path):
    made = Results(tmp_path)
    made.make()
    return made


def ended(plan, number):
    run = plan.runs[number]
    more = {"reason": None, "metrics": {"test/accuracy": 0.5}, "history": {}, "settings": {}}
    return {"key": run.key, **plan.places[run.key], "status": "ok", **more}


def test_a_result_that_goes_while_others_are_done(plan, results, capsys):
    results.append(ended(plan, 0), {"labels": np.zeros(2)})
    with PlanProgress(plan, results, {("cosine", 5): COST}) as progress:
        (results.folder / "predictions" / f"{plan.runs[0].key}.npz").unlink()
        progress.look()
        results.append(ended(plan, 1))
        progress.look()
    assert capsys.readouterr().out == "cosine, 5 images a class, seed 0: test/accuracy 0.5000 (1 of 2 runs)\n"


@pytest.mark.parametrize(("out", "err"), [(True, True), (True, False), (False, True), (False, False)])
def test_a_bar_for_a_terminal_and_lines_for_a_file(out, err, plan, results, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in many a CI
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: out)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: err)
    with PlanProgress(plan, results, dict.fromkeys([("softmax", 5), ("cosine", 5)], COST)) as progress:
        results.append(ended(plan, 0))
        progress.look()
    screen = capsys.readouterr()
    assert ("1/2" in screen.err) == err
    assert screen.out.startswith("softmax, 5 images a class, seed 0: test/accuracy 0.5000 (1 of 2 ") != (out and err)


@pytest.mark.parametrize("closed", [True, False])
def test_nobody_who_reads_ends_no_runs(closed, plan, results, monkeypatch):
    """With standard output closed, or piped into what has ended."""

    class Gone:
        def isatty(self):
            return False

        def write(self, text):
            if text:
                raise BrokenPipeError

        def flush(self):
            pass

    monkeypatch.setattr(sys, "stdout", None if closed else Gone())
    with PlanProgress(plan, results, dict.fromkeys([("softmax", 5), ("cosine", 5)], COST)) as progress:
        results.append(ended(plan, 0))
        progress.look()
