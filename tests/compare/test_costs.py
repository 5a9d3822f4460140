"""Times, what would shorten them, and what else a folder holds, before anything runs."""

from __future__ import annotations

import functools
import json
from dataclasses import replace

import pytest
import torch

from metricloss_pl.cli import main
from metricloss_pl.compare import Tuning, run_comparison
from metricloss_pl.compare import run as running
from metricloss_pl.compare.costs import Cost, seconds_of, shorter, time_of
from metricloss_pl.compare.other_plans import earlier_plan, of_other_plans
from metricloss_pl.compare.plan import Plan
from metricloss_pl.compare.prepare import measure
from metricloss_pl.compare.results import Results
from metricloss_pl.compare.worker import Worker
from metricloss_pl.data import DigitsDataModule
from metricloss_pl.errors import UserError
from tests.compare.tiny import CONFIGS, RATES, tiny
from tests.helpers import make_folder

pytest.importorskip("optuna")
SETTINGS = {"softmax": {}, "cosine": {}, "center": {}}
COST = Cost(training=400.0, around=10.0, steps=200, epochs=20, val_fraction=0.4, gigabytes=0.1, accelerator=False)


@pytest.fixture
def measured(monkeypatch):
    """Instead of measuring; the threads with which it would have been done."""
    threads = []
    monkeypatch.setattr(Worker, "measure", lambda self, run: threads.append(torch.get_num_threads()) or COST)
    return threads


def planned(**changes):
    """On a GPU, so that cores don't matter."""
    comparison = tiny(("softmax", "cosine", "center"), **{"seeds": [0, 1, 2, 3, 4], "trials": 4, **changes}).checked()
    plan = Plan.of(comparison, SETTINGS, "images")
    return plan, dict.fromkeys(
        [(run.variant, run.samples_per_class) for run in plan.runs], replace(COST, accelerator=True)
    )


@pytest.mark.parametrize(
    ("changes", "trial"),
    [
        ({"epochs": 20}, 10 + 0.6 * 400),  # on what the validation part leaves
        ({"epochs": None, "steps": 200}, 410),
        ({"tuning": Tuning(4, space=RATES, epochs=5)}, 10 + 0.6 * 100),
    ],
)
def test_seconds(changes, trial):
    plan, costs = planned(**changes)
    assert seconds_of(plan.comparison, plan.runs, costs) == pytest.approx(12 * trial + 15 * 410)
    assert time_of(plan.comparison, plan.runs, costs, 3) == pytest.approx((12 * trial + 15 * 410) / 3)


@pytest.mark.parametrize(("of_tuning", "share"), [(None, DigitsDataModule().val_fraction), (0.3, 0.3)])
def test_what_a_run_takes(of_tuning, share):
    """Steps are those that its result counts, and a trial without a share of its own has the config's."""
    overrides = {"data.batch_size": 4, "trainer.accumulate_grad_batches": 4}
    tuning = Tuning(1, space=RATES, val_fraction=of_tuning)
    worker = Worker(tiny(("softmax",), tuning=tuning, epochs=2, overrides=overrides).checked())
    plan = Plan.of(worker.comparison, SETTINGS, "images")
    cost = worker.measure(plan.runs[-1])
    assert (cost.val_fraction, cost.epochs, cost.steps) == (share, 2, 6)  # 50 images: 12 batches an epoch
    if of_tuning is None:
        untuned = replace(worker.comparison, tuning=Tuning())
        line, _ = Worker(untuned).run(plan := Plan.of(untuned, SETTINGS, "images"), plan.runs[0], {})
        assert (line["status"], line["epochs"], line["steps"]) == ("ok", 2, 6)


def test_cores_that_are_not_there_shorten_nothing(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    plan, costs = planned()
    costs = {at: replace(cost, accelerator=False) for at, cost in costs.items()}
    assert time_of(plan.comparison, plan.runs, costs, 8) == seconds_of(plan.comparison, plan.runs, costs) / 2


def test_what_shortens_a_plan():
    plan, costs = planned(samples_per_class=[5, 10, 20], epochs=None, steps=200)
    # 3 variants x 3 sizes x (4 trials + 5 seeds) = 81 runs of 410 s, or 210 s with half the steps; two at a time
    assert shorter(plan, (), costs, 2, SETTINGS, "images") == [
        "about 2.4 h with --steps 100",  # 81 * 210 / 2
        'about 3.1 h with --only "[softmax,cosine]"',  # 54 * 410 / 2
        'about 3.1 h with --samples_per_class "[5,10]"',
        "about 3.6 h with --tuning.trials 2",  # 63
        'about 3.6 h with --seeds "[0,1,2]"',
        "about 35 min with all of these",  # 2 * 2 * (2 + 3) = 20 runs of 210 s
    ]


def test_what_shortens_a_plan_that_is_done_in_part():
    plan, costs = planned(epochs=20)
    done = {run.key for run in plan.runs if run.kind == "trial" or run.seed == 0}
    ways = shorter(plan, done, costs, 1, SETTINGS, "images")  # 12 runs of 410 s are left
    assert ways[0] == 'about 41 min with --seeds "[0,1,2]"'  # 6
    assert ways[1] == 'about 55 min with --only "[softmax,cosine]"'  # 8
    assert not any("trials" in way for way in ways[:-1])  # other finals, all of them anew
    assert shorter(plan, {run.key for run in plan.runs}, {}, 1, SETTINGS, "images") == []


def test_a_refusal_names_what_shortens_it(measured, tmp_path):
    message = (
        "max_hours is 0.25, and what is left of the plan takes about 15 min, but about 8 min with --epochs 10, "
        "about 11 min with --tuning.trials 1, about 6 min with all of these"
    )
    with pytest.raises(UserError, match=message):  # 2 * 250 + 410 s
        run_comparison(tiny(("softmax",), epochs=20), folder=str(tmp_path / "results"), max_hours=0.25)
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_a_run_is_measured_with_the_threads_of_a_job(measured, tmp_path, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    before = torch.get_num_threads()
    for jobs in (1, 2, 100):
        run_comparison(tiny(("softmax",), trials=2), folder=str(tmp_path), jobs=jobs, dry_run=True)
    assert measured == [before, 3, 2]  # no more jobs than runs
    assert torch.get_num_threads() == before


def test_memory_that_is_not_there(measured, tmp_path, monkeypatch):
    monkeypatch.setattr("metricloss_pl.compare.costs._free_gigabytes", lambda: 0.25)
    with pytest.raises(UserError, match="3 runs side by side need about"):
        run_comparison(tiny(("softmax",), trials=2), folder=str(tmp_path), jobs=100)


def finished(folder, comparison, monkeypatch, failing=lambda run: False, **settings):
    """Run it, each run ending at once."""

    def end(self, plan, run, done):
        place = {"variant": run.variant, "samples_per_class": run.samples_per_class, "split": run.split}
        metrics = {"val/accuracy": 0.5, "val/nll": 1.0}
        return {"key": run.key, "kind": run.kind, **place, "fold": run.fold, "seed": run.seed, "trial": run.trial} | {
            "status": "failed" if failing(run) else "ok", "reason": None, "metrics": metrics,
            "history": {}, "settings": {}, "predictions": None,
        }, None  # fmt: skip

    monkeypatch.setattr(Worker, "run", end)
    monkeypatch.setattr(running, "write_report", lambda place: place)
    run_comparison(comparison, folder=str(folder), **settings)
    return set(json.loads((folder / "plan.json").read_text())["keys"])


@pytest.mark.slow
def test_what_a_folder_holds_of_another_plan(measured, tmp_path, monkeypatch, capsys):
    first = finished(tmp_path, tiny(("softmax",)), monkeypatch)
    assert "also holds" not in capsys.readouterr().out

    more = finished(
        tmp_path, tiny(("softmax",), seeds=[0, 1], samples_per_class=[5, 10]), monkeypatch, command="python cli.py more"
    )
    out = capsys.readouterr().out
    assert first < more
    assert "done        3 of 8 runs" in out
    assert "also holds" not in out

    run_comparison(tiny(("softmax", "cosine"), epochs=2), folder=str(tmp_path), dry_run=True)
    assert set(json.loads((tmp_path / "plan.json").read_text())["keys"]) == more
    out = capsys.readouterr().out
    assert "done        0 of 6 runs" in out
    few, warning = [row for row in out.splitlines() if row.startswith("warning")]
    assert "20 validation images can't tell trials apart" in few
    assert 'also holds 8 results of another plan (variants ["softmax"], now ["softmax", "cosine"]; ' in warning
    assert "; samples_per_class [5, 10], now [5]; seeds [0, 1], now [0]; splits 2, now 1; trainer.max_e" in warning
    assert "; trainer.max_epochs 1, now 2): they stay" in warning
    assert "; --folder takes another place; the one on that plan comes back with: python cli.py more" in warning

    stored = (tmp_path / "results.jsonl").read_bytes()
    assert (
        finished(tmp_path, tiny(("softmax",)), monkeypatch, command="python cli.py fewer") == first
    )  # nothing is run; the report is on this one again
    out = capsys.readouterr().out
    assert "done        3 of 3 runs" in out
    assert "validation images can't" not in out  # which is said before runs are done
    assert "also holds 5 results of another plan (samples_per_class [5, 10], now [5]; seeds [0, 1], now [0]; spl" in out
    assert "they stay, and the report will be without them; --folder takes another place; the one on that" in out
    assert "the one on that plan comes back with: python cli.py more\n" in out
    run_comparison(tiny(("softmax",)), folder=str(tmp_path), command="python cli.py fewer")
    assert "also holds 5 results of another plan: they stay" in capsys.readouterr().out
    assert (tmp_path / "results.jsonl").read_bytes() == stored

    results = Results(tmp_path)
    results.read({key: {} for key in first})
    for text in ("no JSON", "[]", "{}", json.dumps({"keys": list(more)})):
        (tmp_path / "plan.json").write_text(text)
        assert "also holds 5 results of another plan: they stay" in of_other_plans(results, earlier_plan(results), {})


@pytest.mark.slow
def test_the_report_is_on_the_plan_that_was_asked_for(measured, tmp_path, monkeypatch, capsys):
    """Though another start in the same folder has been at another one meanwhile."""
    work = running._work

    def finish_another(*args):
        work(*args)
        monkeypatch.setattr(running, "_work", work)
        assert finished(tmp_path, tiny(("softmax",)), monkeypatch) < set(args[1].places)
        assert "note: plan.json" not in capsys.readouterr().out

    monkeypatch.setattr(running, "_work", finish_another)
    comparison = tiny(("softmax", "cosine"))
    assert len(finished(tmp_path, comparison, monkeypatch)) == 6
    out = capsys.readouterr().out
    assert out.startswith("note: plan.json was another plan's by now; it is written again, and the report is on this")


@pytest.mark.slow
def test_a_finished_folder_of_an_older_version_gets_its_parts(measured, tmp_path, monkeypatch):
    finished(tmp_path, tiny(("softmax",)), monkeypatch)
    stored = json.loads((tmp_path / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps({k: v for k, v in stored.items() if k != "parts"}))
    finished(tmp_path, tiny(("softmax",)), monkeypatch)
    assert json.loads((tmp_path / "plan.json").read_text()) == stored
    assert len(stored["parts"]) == 2


def test_a_mistake_names_its_variant_where_that_alone_is_left(monkeypatch):
    plan, _ = planned()
    worker = Worker(plan.comparison)

    def refuse(run):
        raise UserError("no room")

    monkeypatch.setattr(worker, "measure", refuse)
    for left, message in (("cosine", "variant cosine: no room"), (SETTINGS, "no room")):
        with pytest.raises(UserError) as refused:
            measure(worker, plan, [run for run in plan.runs if run.variant in left])
        assert str(refused.value) == message


@pytest.mark.slow
def test_failed_runs_are_done_again_where_asked_for(measured, tmp_path, monkeypatch, capsys):
    """A trial that failed is a result of the tuning, unless no other one has ended well."""

    def fails(run):
        return run.variant == "cosine" or (run.kind == "final" and run.seed == 1) or run.trial == 0

    def lines():
        return [json.loads(row) for row in (tmp_path / "results.jsonl").read_text().splitlines()]

    comparison = tiny(("softmax", "cosine"), seeds=[0, 1])
    finished(tmp_path, comparison, monkeypatch, fails)
    first = lines()
    assert [line["status"] for line in first].count("failed") == 6
    note = "note: the same command with --retry_failed true does 5 failed runs again"  # 4 of cosine, seed 1 of softmax
    assert note in capsys.readouterr().out
    finished(tmp_path, comparison, monkeypatch)
    finished(tmp_path, comparison, monkeypatch, retry_failed=True, dry_run=True)
    out = capsys.readouterr().out
    assert "done        8 of 8 runs" in out
    assert "done        3 of 8 runs" in out
    assert lines() == first

    finished(tmp_path, comparison, monkeypatch, retry_failed=True)
    kept = [line for line in first if line["variant"] == "softmax" and (line["kind"], line["seed"]) != ("final", 1)]
    assert lines()[:3] == kept
    assert [line["status"] for line in lines()[3:]] == ["ok"] * 5
    assert {line["key"] for line in lines()} == {line["key"] for line in first}
    out = capsys.readouterr().out
    assert "\nfailed: softmax, 5 images a class, trial 0: None\n" in out
    assert "--retry_failed" not in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("digits_center_weights", ["final runs  2,", "trials      none"]),
        ("folder_large", ["final runs  20,", "trials      48: 12 for each of 4", "shorter     about"]),
    ],
)
def test_shipped_plans(name, rows, measured, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = [f"--data_root={make_folder(tmp_path / 'my_images')}", "--overrides", "{data.batch_size: 4}"]
    flags = small if name == "folder_large" else ["--only=[center weight 0, center weight 1]"]
    main(["compare", f"--config={CONFIGS / 'compare' / f'{name}.yaml'}", *flags, "--dry_run=true"])
    out = capsys.readouterr().out
    for row in [*rows, "training    200 steps a run, 20 epochs"]:
        assert row in out
    assert not (tmp_path / "runs").exists()


def test_a_flag_changes_single_overrides_of_a_plan(monkeypatch):
    given = []

    @functools.wraps(run_comparison)  # the command line reads its arguments off the signature
    def remember(comparison, **rest):
        given.append(comparison)

    monkeypatch.setattr("metricloss_pl.compare.run_comparison", remember)
    flags = ["--data_root=my_images", "--overrides", "{data.batch_size: 4, data.image_size: 96}"]
    main(["compare", *flags])
    main(["compare", f"--config={CONFIGS / 'compare' / 'folder_large.yaml'}", *flags])
    sizes = {"data.batch_size": 4, "data.image_size": 96}
    assert [comparison.overrides for comparison in given] == [sizes, {**sizes, "data.resize": 144}]
    assert [comparison.name for comparison in given] == ["my_images", "my_images-folder_large"]
