"""Whole comparisons, of a second or two each."""

from __future__ import annotations

import functools
import json
import multiprocessing
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from metricloss_pl.cli import main
from metricloss_pl.compare import Range, Tuning, Variant, run_comparison
from metricloss_pl.compare import run as running
from metricloss_pl.compare.costs import Cost
from metricloss_pl.compare.prepare import prepare
from metricloss_pl.compare.settings import RunFiles, for_each
from metricloss_pl.compare.worker import Worker
from metricloss_pl.data import DigitsDataModule, ImageFolderDataModule, file_checks, store
from metricloss_pl.data.dataset import ImageDataset
from metricloss_pl.data.samples import concatenate
from metricloss_pl.data.splits import assign_folds
from metricloss_pl.errors import UserError
from tests.compare.tiny import CONFIGS, RATES, THREADS, note_start_method, run_and_die, tiny
from tests.helpers import make_folder, make_image
from tests.processes import START_METHOD
from tests.systems import needs_signals

pytestmark = pytest.mark.slow  # whole comparisons

pytest.importorskip("optuna")


@pytest.fixture(autouse=True)
def without_report(monkeypatch):
    monkeypatch.setattr(running, "write_report", lambda place: place)


def lines(folder: Path) -> list[dict]:
    return [json.loads(row) for row in (folder / "results.jsonl").read_text().splitlines()]


def found(folder: Path) -> dict[str, dict]:
    """Everything but times, by key."""
    by_key = {line["key"]: line for line in lines(folder)}
    for line in by_key.values():
        for name in ("seconds", "date"):
            del line[name]
    return by_key


@pytest.fixture(scope="module", autouse=True)
def as_many_threads_as_a_job_of_two():
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of the tiny comparison, done in one go."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "write_report", lambda place: place)
        return run_comparison(tiny(), folder=str(tmp_path_factory.mktemp("whole")))


def test_results_are_complete(whole):
    plan = json.loads((whole / "plan.json").read_text())
    by_key = found(whole)
    assert set(by_key) == set(plan["keys"])
    for key, line in by_key.items():
        planned = plan["keys"][key]
        assert planned == {name: line[name] for name in planned}
        assert (line["status"], line["reason"], line["epochs"]) == ("ok", None, 1)
        assert line["history"]["epoch"] == [1]
        assert 0 < line["settings"]["model.optimizer.lr"] < 1
        assert set(line["versions"]) >= {"python", "torch", "lightning", "metricloss_pl"}
        is_trial = line["kind"] == "trial"
        assert ({"val/accuracy", "val/nll"} <= set(line["metrics"])) == is_trial
        assert ("val/accuracy" in line["history"]) == is_trial  # a final run trains on the validation images too
        assert ("test/accuracy" in line["metrics"]) == (not is_trial)
    assert plan["class_names"] == [str(digit) for digit in range(10)]
    assert (plan["baseline"], plan["trials"], plan["splits"], plan["folds"]) == ("softmax", 2, 1, None)
    place = {"samples_per_class": 5, "split": 0, "fold": None}
    assert plan["parts"] == [
        {"kind": "trial", **place, "train": 30, "val": 20, "val_classes": 10, "val_rarest": 2},
        {"kind": "final", **place, "train": 50, "val": 0},
    ]


def test_the_final_run_takes_the_best_trial_and_keeps_its_probabilities(whole):
    for variant in ("softmax", "cosine"):
        of_variant = [line for line in lines(whole) if line["variant"] == variant]
        *trials, final = of_variant
        best = max(trials, key=lambda line: (line["metrics"]["val/accuracy"], -line["metrics"]["val/nll"]))
        assert final["settings"]["model.optimizer.lr"] == best["settings"]["model.optimizer.lr"]
        assert final["metrics"]["temperature"] == best["metrics"]["val/temperature"]
        with np.load(whole / final["predictions"]) as stored:
            probabilities, labels, names = stored["probabilities"], stored["labels"], stored["names"]
            assert stored["embeddings"].shape == (len(labels), 32 if variant == "softmax" else 10)
        data = DigitsDataModule()
        data.setup("test")
        assert names.tolist() == data.samples("test").names
        assert labels.tolist() == data.samples("test").labels.tolist()
        assert probabilities.shape == (len(labels), 10)
        assert np.allclose(probabilities.sum(1), 1, atol=1e-5)
        assert np.isclose((probabilities.argmax(1) == labels).mean(), final["metrics"]["test/accuracy"], atol=1e-6)


def test_a_second_start_runs_nothing_and_describes_what_is_asked_for(whole, tmp_path, monkeypatch, capsys):
    before = (whole / "results.jsonl").read_bytes()
    monkeypatch.setattr(Worker, "run", None)
    plan = (whole / "plan.json").stat().st_mtime_ns
    run_comparison(tiny(), folder=str(whole))
    assert (whole / "results.jsonl").read_bytes() == before
    assert "6 of 6 runs" in capsys.readouterr().out
    assert (whole / "plan.json").stat().st_mtime_ns == plan

    other = shutil.copytree(whole, tmp_path / "copy")
    described = json.loads((other / "plan.json").read_text())
    file = other / "plan.json"
    file.write_text(json.dumps({**described, "warnings": ["an image stands twice"]}))
    run_comparison(tiny(baseline="cosine", name="other"), folder=str(other))
    changed = {"baseline": "cosine", "name": "other", "warnings": ["an image stands twice"]}
    assert json.loads(file.read_text()) == {**described, **changed}


@needs_signals
def test_killed_at_any_moment_it_ends_as_if_it_had_not_been(whole, tmp_path):
    context = multiprocessing.get_context(START_METHOD)
    for after, moment in ((0, "torn"), (2, "before"), (4, "between")):
        process = context.Process(target=run_and_die, args=(str(tmp_path), moment, after))
        process.start()
        process.join()
        assert process.exitcode == -9
    run_comparison(tiny(), folder=str(tmp_path))
    assert found_soundly(tmp_path) == found(whole)
    for line in lines_soundly(tmp_path):
        if line["predictions"]:
            with np.load(tmp_path / line["predictions"]) as mine, np.load(whole / line["predictions"]) as theirs:
                assert all(np.array_equal(mine[name], theirs[name]) for name in theirs)


def lines_soundly(folder: Path) -> list[dict]:
    rows = []
    for row in (folder / "results.jsonl").read_text().splitlines():
        try:
            rows.append(json.loads(row))
        except ValueError:
            assert row.startswith('{"key"')
    assert len({line["key"] for line in rows}) == len(rows)  # nothing run twice
    return rows


def found_soundly(folder: Path) -> dict[str, dict]:
    return {
        line["key"]: {k: v for k, v in line.items() if k not in ("seconds", "date")} for line in lines_soundly(folder)
    }


def test_a_line_that_was_deleted_is_run_again(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    monkeypatch.setenv("TERM", "xterm")
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    shutil.copytree(whole, tmp_path / "copy")
    file = tmp_path / "copy" / "results.jsonl"
    first, *others = file.read_text().splitlines(keepends=True)
    assert json.loads(first)["kind"] == "trial"
    file.write_text("".join(others))
    run_comparison(tiny(), folder=str(tmp_path / "copy"))
    assert file.read_text().startswith("".join(others))
    assert found_soundly(tmp_path / "copy") == found(whole)
    screen = capsys.readouterr()
    assert "6/6" in screen.err
    assert "val/accuracy" not in screen.out


def test_side_by_side_gives_the_same_and_tells_of_each_run(whole, tmp_path, capsys):
    run_comparison(tiny(), folder=str(tmp_path), jobs=2)
    assert found_soundly(tmp_path) == found(whole)
    told = [row for row in capsys.readouterr().out.splitlines() if row.startswith(("softmax, 5", "cosine, 5"))]
    for number, (row, line) in enumerate(zip(told, lines(tmp_path), strict=True), start=1):
        part, which = ("val", f"trial {line['trial']}") if line["kind"] == "trial" else ("test", "seed 0")
        score = f"{part}/accuracy {line['metrics'][f'{part}/accuracy']:.4f}"
        assert row.startswith(f"{line['variant']}, 5 images a class, {which}: {score} ({number} of 6 runs")
    assert told[0].endswith(" left)")
    assert told[-1].endswith(" runs)")


def test_a_job_starts_loaders_as_a_run_alone_does(tmp_path):
    """Those of a server of their own would outlive a killed comparison."""
    job = running._context().Process(target=note_start_method, args=(tmp_path / "method",))
    job.start()
    job.join()
    assert (tmp_path / "method").read_text() == multiprocessing.get_context().get_start_method()


def test_variants_are_tried_at_the_same_places_on_the_same_images(whole):
    trials = [line for line in lines(whole) if line["kind"] == "trial"]
    settings = {v: [line["settings"] for line in trials if line["variant"] == v] for v in ("softmax", "cosine")}
    assert settings["softmax"] == settings["cosine"]
    assert len(settings["softmax"]) == 2


@pytest.mark.parametrize(("metric", "status"), [("accuracy", "ok"), ("balanced_accuracy", "pruned")])
def test_a_trial_is_ended_by_the_metric_of_the_plan(metric, status, tmp_path):
    """All images are the same and nine of ten of one class, which all are taken for: 0.5 is the balanced accuracy."""
    for name, images in (("common", 54), ("rare", 6)):
        for image in range(images):
            make_image(tmp_path / "images" / name / f"{image}.png", 8, seed=0)
    config = tmp_path / "noise.yaml"
    data = {"class_path": "ImageFolderDataModule", "init_args": {"root": str(tmp_path / "images"), "batch_size": 4}}
    model = str(CONFIGS / "model" / "softmax_tiny.yaml")
    config.write_text(json.dumps({"data": data, "model": model, "trainer": {"accumulate_grad_batches": 1}}))
    tuning = Tuning(4, space={"model.optimizer.lr": Range(0.02, 0.03)}, val_fraction=0.4)
    comparison = tiny(variants={"softmax": Variant(str(config))}, epochs=4, samples_per_class=[None], overrides={})
    with running.silence_lightning():
        worker = Worker(replace(comparison, tuning=tuning, metric=metric).checked())
        plan, _ = prepare(worker)
        *before, trial = plan.runs[:4]
        seen = dict.fromkeys(("val/accuracy", "val/balanced_accuracy"), 0.7)
        past = {
            "status": "ok",
            "settings": {"model.optimizer.lr": 0.025, "trainer.max_epochs": 4},
            "metrics": seen,
            "history": {"epoch": [1, 2, 3, 4], **{name: [value] * 4 for name, value in seen.items()}},
        }
        line, _ = worker.run(plan, trial, {run.key: past for run in before})
    assert line["status"] == status, line["reason"]
    assert line["history"]["val/accuracy"][-1] > 0.7
    assert line["history"]["val/balanced_accuracy"][-1] == 0.5
    assert (line["reason"] or "").startswith("val/balanced_accuracy 0." if status == "pruned" else "")


@pytest.mark.parametrize("folds", [None, 2])
def test_trials_see_no_test_image(folds, monkeypatch):
    comparison = tiny(("softmax",), folds=folds).checked()
    with running.silence_lightning():
        worker = Worker(comparison)
        plan, _ = prepare(worker)
        tested = set(worker.build(plan.runs[-1]).data.read("test").names)
        trial = plan.runs[0] if folds is None else next(run for run in plan.runs if run.fold == plan.runs[-1].fold)
        seen: set[str] = set()
        embed = ImageDataset.__getitems__

        def look(self, items):
            seen.update(self.names[item[0] if isinstance(item, tuple) else item] for item in items)
            return embed(self, items)

        monkeypatch.setattr(ImageDataset, "__getitems__", look)
        if folds is None:  # not even listed
            read = DigitsDataModule.read
            parts = {"train": "train", "val": "val"}
            monkeypatch.setattr(DigitsDataModule, "read", lambda self, part: read(self, parts[part]))
        line, arrays = worker.run(plan, trial, {})
    assert (line["status"], arrays) == ("ok", None), line["reason"]
    assert seen
    assert not seen & tested


def test_folds_test_every_image_once(tmp_path):
    run_comparison(tiny(("softmax",), trials=0, folds=3, samples_per_class=[None], steps=3, epochs=None), str(tmp_path))
    names: list[str] = []
    for line in lines(tmp_path):
        assert line["settings"]["trainer.max_epochs"] == line["epochs"] == 1  # 48 steps: not less than one epoch
        with np.load(tmp_path / line["predictions"]) as stored:
            names += stored["names"].tolist()
    assert len(names) == len(set(names)) == 1797


def test_half_precision_scores_like_the_test(tmp_path):
    overrides = {"trainer.precision": "bf16-mixed", "trainer.accelerator": "cpu"}
    run_comparison(tiny(("softmax",), trials=0, steps=20, epochs=None, overrides=overrides), str(tmp_path))
    (line,) = lines(tmp_path)
    with np.load(tmp_path / line["predictions"]) as stored:
        accuracy = (stored["probabilities"].argmax(1) == stored["labels"]).mean()
    assert (line["status"], line["steps"], line["epochs"]) == ("ok", 20, 20)
    assert np.isclose(accuracy, line["metrics"]["test/accuracy"], atol=1e-6)


def test_the_history_is_of_the_averaged_weights_that_are_scored(tmp_path):
    averaging = {"class_path": "EMAWeightAveraging", "init_args": {"decay": 0.99}}
    overrides = {"trainer.callbacks": [averaging], "data.batch_size": 25}
    run_comparison(tiny(("softmax",), trials=1, epochs=4, samples_per_class=[20], overrides=overrides), str(tmp_path))
    trial, final = lines(tmp_path)
    assert (trial["status"], final["status"]) == ("ok", "ok"), (trial["reason"], final["reason"])
    assert trial["history"]["val/accuracy"][-1] == pytest.approx(trial["metrics"]["val/accuracy"], abs=1e-6)
    assert max(final["history"]["train/accuracy"]) < 0.5  # so slow an average is hardly off the beginning


def test_a_run_that_diverges_is_recorded_and_the_others_go_on(tmp_path, capsys):
    diverging = Variant(str(CONFIGS / "digits_cosine.yaml"), {"model.optimizer.lr": 1e30})
    comparison = tiny(("softmax",), tuning=Tuning())
    comparison = replace(comparison, variants={"diverging": diverging, **comparison.variants})
    run_comparison(comparison, folder=str(tmp_path))
    status = {line["variant"]: (line["status"], line["metrics"] == {}) for line in lines(tmp_path)}
    assert status == {"diverging": ("failed", True), "softmax": ("ok", False)}
    out = capsys.readouterr().out
    assert "\ndiverging, 5 images a class, seed 0: failed: " in out
    assert "\nfailed: diverging, 5 images a class, seed 0: " in out
    assert "not finite" in next(line["reason"] for line in lines(tmp_path) if line["variant"] == "diverging")


def test_a_study_without_a_good_trial_fails_by_name(tmp_path):
    tuning = Tuning(1, space={"model.optimizer.lr": Range(1e29, 1e30)}, val_fraction=0.4)
    run_comparison(tiny(("softmax",), tuning=tuning, epochs=2), folder=str(tmp_path))
    trial, final = lines(tmp_path)
    assert (trial["status"], final["status"], final["predictions"]) == ("failed", "failed", None)
    assert final["reason"].startswith("none of 1 trial has ended well: ")


REFUSALS = {
    "unknown setting": ({"model.optimizer.rate": 1}, "variant cosine: .*rate"),
    "linked setting": ({"model.num_classes": 7}, "model.num_classes comes from the data: leave it out"),
    "no batches": (
        {"trainer.accumulate_grad_batches": 0},
        "trainer.accumulate_grad_batches is 0: it must be at least 1",
    ),
    "missing hierarchy": (
        {"model.class_embeddings": "no/such.txt"},
        "variant cosine: class_embeddings is 'no/such.txt'",
    ),
    "several processes": (
        {"trainer.devices": 2, "trainer.accelerator": "cpu"},
        "variant cosine: trainer.devices asks for 2",
    ),
    "other images": ({"data.test_fraction": 0.5}, "variant cosine has other images or classes than softmax"),
    "early stopping": (
        {"trainer.callbacks": [{"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss"}}]},
        "EarlyStopping would end runs before others",
    ),
    "steps": (
        {"trainer.max_steps": 5},
        r'trainer.max_steps is 5: .*; give --overrides "\{trainer.max_steps: -1\}"',
    ),
    "no epochs": ({"trainer.max_epochs": -1}, "trainer.max_epochs is -1: .*; give --epochs"),
    "early stopping by training": (
        {"trainer.callbacks": [{"class_path": "EarlyStopping", "init_args": {"monitor": "train/loss"}}]},
        "EarlyStopping would end runs before others",
    ),
    "timer": (
        {"trainer.callbacks": [{"class_path": "Timer", "init_args": {"duration": "00:00:01:00", "interval": "epoch"}}]},
        "Timer would end runs before others",
    ),
    "a part of the test": ({"trainer.limit_test_batches": 1}, "trainer.limit_test_batches is 1: runs"),
    "none of the validation": (
        {"trainer.limit_val_batches": 0},
        "trainer.limit_val_batches is 0: runs",
    ),
    "a part of the training": (
        {"trainer.limit_train_batches": 0.5},
        "trainer.limit_train_batches is 0.5: runs",
    ),
    "some batches": ({"trainer.overfit_batches": 2}, "trainer.overfit_batches is 2"),
    "a try": ({"trainer.fast_dev_run": True}, "trainer.fast_dev_run is True"),
    "the clock": ({"trainer.max_time": "00:00:01:00"}, "trainer.max_time is 00:00:01:00: runs"),
    "a checkpoint": ({"ckpt_path": "last.ckpt"}, ".*digits_cosine.yaml starts from a checkpoint"),
    "resuming": ({"resume": "runs/cosine"}, ".*digits_cosine.yaml starts from a checkpoint"),
    "a part in a block": ({"trainer": {"limit_test_batches": 3}}, "trainer.limit_test_batches is 3"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_variant_is_refused_before_anything_runs(case, tmp_path):
    """By its name, where there is another one."""
    overrides, message = REFUSALS[case]
    comparison = tiny(("softmax", "cosine") if message.startswith("variant") else ("cosine",), tuning=Tuning())
    comparison.variants["cosine"] = Variant(str(CONFIGS / "digits_cosine.yaml"), overrides)
    with pytest.raises(UserError, match=f"^{message}"):
        run_comparison(comparison, folder=str(tmp_path / "results"))
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("mistakes", "message"),
    [
        ({"a": "no folder", "b": "no folder", "c": "no folder"}, "no folder"),
        ({"a": "no folder", "b": "no folder"}, "variant a: no folder"),
        ({"a": "no folder", "b": "no head", "c": "no folder"}, "variant a: no folder"),
        ({"c": "no head"}, "variant c: no head"),
    ],
)
def test_a_mistake_names_its_variant_unless_all_make_it(mistakes, message):
    def do(variant: str) -> None:
        if variant in mistakes:
            raise UserError(mistakes[variant])

    with pytest.raises(UserError) as refused:
        for_each("abc", do)
    assert str(refused.value) == message
    assert for_each("abc", str.upper) == {"a": "A", "b": "B", "c": "C"}
    with pytest.raises(ZeroDivisionError):
        for_each("abc", lambda variant: 1 / 0)


def test_a_hierarchy_decides_by_its_tree_whatever_file_names_it(tmp_path):
    flat = "".join(f"digit {label}\n" for label in range(10))
    trees = {"mine": flat, "windows": flat.replace("\n", "\r\n"), "other": flat.replace("digit 0", "digit o\no 0")}
    files, found = RunFiles(), {}
    for name, text in trees.items():
        (tmp_path / f"{name}.txt").write_bytes(text.encode())
        overrides = {"model.class_embeddings": str(tmp_path / f"{name}.txt")}
        config = files.parse(CONFIGS / "digits_cosine.yaml", overrides)
        found[name] = files.decisive(config, files.build(config).model.class_hierarchy)
    assert found["mine"] == found["windows"] != found["other"]
    for one in found.values():
        del one["model"]["init_args"]["class_embeddings"]
    assert found["mine"] == found["other"]


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({"samples_per_class": [5, 200]}, {}, "class '0' .* has 14. images to choose from: 200"),
        ({"tuning": Tuning(1, space=RATES, val_fraction=0.01)}, {}, "leaves no image for training or none for val"),
        (
            {"tuning": Tuning(1, space={"data.batch_size": Range(choices=[8, "many"])}), "overrides": {}},
            {},
            "^the range of data.batch_size holds many: .*",
        ),
        (
            {"tuning": Tuning(1, space={"model.embedding_dim": Range(4, 16)})},
            {},
            "the range of model.embedding_dim holds 4.0: it takes integers alone: give choices",
        ),
        (
            {"tuning": Tuning(1, space={"trainer.gradient_clip_val": Range(choices=[1.0, "hard"])})},
            {},
            "^the range of trainer.gradient_clip_val holds hard: .*",
        ),
        (
            {"tuning": Tuning(1, space={"trainer.limit_train_batches": Range(0.1, 0.9)})},
            {},
            "the range of trainer.limit_train_batches holds 0.1: trainer.limit_train_batches is 0.1: runs",
        ),
        ({}, {"max_hours": 1e-6}, "max_hours is 1e-06, and what is left of the plan takes about"),
        (
            {"tuning": Tuning(1, space={"data.augment": Range(1.0, 2.0)})},
            {},
            "the range of data.augment holds 1.0: (?!it takes integers)",
        ),
        (
            {"tuning": Tuning(1, space={"trainer.overfit_batches": Range(0.0, 0.5)})},
            {},
            "the range of trainer.overfit_batches holds 0.5: trainer.overfit_batches is 0.5: runs",
        ),
        ({}, {"max_hours": 0}, "max_hours is 0: it must be above 0"),
        ({}, {"max_hours": float("inf")}, "max_hours is inf: it must be above 0 and finite"),
        ({}, {"jobs": 0}, "jobs is 0"),
        ({"variants": {"x": Variant("no.yaml")}}, {}, "^config is no.yaml: there is no such run file"),
        ({"folds": 400}, {}, "class '.' has 1.. images: folds is 400"),
    ],
)
def test_a_plan_that_cannot_be_run_is_refused(changes, settings, message, tmp_path):
    with pytest.raises(UserError, match=message):
        run_comparison(tiny(("softmax",), **{"trials": 0, **changes}), folder=str(tmp_path / "results"), **settings)
    assert not (tmp_path / "results").exists()


def test_without_a_test_part_folds_are_asked_for(tmp_path, monkeypatch, capsys):
    read = DigitsDataModule.read
    monkeypatch.setattr(DigitsDataModule, "read", lambda self, part: None if part == "test" else read(self, part))
    cost = Cost(1.0, 1.0, 1, 1, 0.1, 0.1, accelerator=False)
    monkeypatch.setattr(Worker, "measure", lambda self, run: cost)
    comparison = tiny(("softmax",), tuning=Tuning())
    with pytest.raises(UserError, match=r"^DigitsDataModule has no test part: give folds, so that"):
        run_comparison(comparison, str(tmp_path / "results"))
    run_comparison(replace(comparison, folds=2), str(tmp_path / "results"), dry_run=True)
    assert "1438 images, of which each of 2 folds tests a part" in capsys.readouterr().out


EMA = {"class_path": "EMAWeightAveraging"}


def test_what_a_result_does_not_depend_on_decides_no_run():
    files, config = RunFiles(), CONFIGS / "digits_cosine.yaml"

    def decisive(**settings):
        overrides = {name.replace("__", "."): value for name, value in settings.items()}
        return files.decisive(files.parse(config, overrides), None)

    plain = decisive()
    drawing = [{"class_path": name} for name in ("GeometryMonitor", "EmbeddingPlot", "ConfusionMatrixPlot")]
    drawing += [{"class_path": name} for name in ("LearningRateMonitor", "ModelCheckpoint", "TQDMProgressBar")]
    trainer = {"default_root_dir": "elsewhere", "log_every_n_steps": 3, "logger": False, "enable_checkpointing": False}
    shown = {"enable_progress_bar": False, "enable_model_summary": False, "callbacks": drawing}
    others = {f"trainer__{name}": value for name, value in {**trainer, **shown}.items()}
    assert decisive(**others, data__num_workers=1, data__cache_gb=1.0, seed_everything=7) == plain
    for name, value in {
        "data__batch_size": 7,
        "model__embedding_dim": 7,
        "trainer__precision": "bf16-mixed",
        "trainer__gradient_clip_val": 7.0,
        "trainer__callbacks": [EMA],
    }.items():
        assert decisive(**{name: value}) != plain, name
    built = files.build(files.parse(config, {"trainer.callbacks": [*drawing, EMA]}))
    assert [type(callback).__name__ for callback in built.callbacks] == ["EMAWeightAveraging"]
    assert "logger" not in built.trainer
    assert built.trainer["max_epochs"] == files.parse(config, {}).trainer.max_epochs


def test_trials_need_as_many_validation_images_for_every_variant(tmp_path):
    variants = {}
    for name, share in (("none", 0), ("fifth", 0.2)):
        file = tmp_path / f"{name}.yaml"
        data = {"class_path": "DigitsDataModule", "init_args": {"val_fraction": share}}
        file.write_text(json.dumps({"data": data, "model": str(CONFIGS / "model" / "softmax_tiny.yaml")}))
        variants[name] = Variant(str(file))
    comparison = tiny(variants=variants, tuning=Tuning(1, space=RATES))
    with pytest.raises(UserError, match=r"^variant fifth has data.val_fraction 0.2, and none 0.0: give tuning.val_f"):
        run_comparison(comparison, str(tmp_path / "results"))
    with pytest.raises(UserError, match=r"^data.val_fraction is 0, and trials are validated: give tuning"):
        run_comparison(replace(comparison, only=["none"]), str(tmp_path / "results"))
    assert not (tmp_path / "results").exists()


def test_tuning_without_optuna_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "metricloss_pl\[compare\]".* --tuning.trials 0'):
        run_comparison(tiny(), folder=str(tmp_path / "results"))


# ------------------------------------------------------------------------------------------------------- command line


def refused(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit):
        main(["compare", *arguments])
    return capsys.readouterr().err


def test_a_folder_alone_is_enough(tmp_path, capsys, monkeypatch):
    root = make_folder(tmp_path / "fruit", images=10)
    monkeypatch.chdir(tmp_path)
    flags = ["--only", "[softmax]", "--seeds", "[0]", "--steps", "1", "--tuning.trials", "0"]
    small = ["--overrides", '{"data.image_size": 16}']
    shutil.copy(root / "cat" / "0.png", root / "cat" / "10.png")
    main(["compare", "--data_root", str(root), *flags, *small])
    assert [line["status"] for line in lines(tmp_path / "runs" / "compare" / "fruit")] == ["ok"]
    out = capsys.readouterr().out
    assert "17 images to train on and 4 to test on, of 2 classes" in out

    main(["compare", "--data_root", str(root), *flags, *small, "--folds", "3", "--dry_run", "true"])
    assert "21 images, of which each of 3 folds tests a part, of 2 classes" in capsys.readouterr().out

    message = refused(capsys, "--data_root", str(root), "--data.image_size=16")
    assert 'compare has no --data.image_size: what holds for every variant is given by --overrides "{data.im' in message

    shutil.copytree(root / "cat", tmp_path / "alone" / "cat")
    assert "error: the data have 1 class" in refused(capsys, "--data_root", str(tmp_path / "alone"), *flags)

    (root / "dog" / "broken.jpg").write_bytes(b"no image")
    assert "broken.jpg cannot be read as an image" in refused(capsys, "--data_root", str(root), *flags)


def test_images_that_stand_twice_are_looked_for_in_every_fold(tmp_path, capsys, monkeypatch):
    root = make_folder(tmp_path / "fruit", images=12)
    for name in ("cat", "dog"):
        for number in range(3):
            shutil.copy(root / name / f"{number}.png", root / name / f"{number}-again.png")
    shutil.copy(root / "cat" / "0.png", root / "cat" / "0-a-third-time.png")
    shutil.copy(root / "cat" / "5.png", root / "dog" / "stray.png")
    (root / "dog" / "scan.heic").touch()
    monkeypatch.chdir(tmp_path)
    flags = ["--only", "[softmax]", "--seeds", "[0]", "--steps", "1", "--tuning.trials", "1", "--dry_run", "true"]
    decoded: list[Path] = []
    for module in (file_checks, store):
        read = module.read_image
        monkeypatch.setattr(
            module, "read_image", lambda path, *a, read=read, **k: decoded.append(path) or read(path, *a, **k)
        )
    cost = Cost(1.0, 1.0, 1, 1, 0.1, 0.1, accelerator=False)
    monkeypatch.setattr(Worker, "measure", lambda self, run: cost)
    data = ImageFolderDataModule(root=str(root), image_size=16, val_fraction=0)
    images = data.read("train"), data.read("test")
    folds = assign_folds(concatenate(*images), 6, 0, data.class_names)
    of = dict(zip([*images[0].names, *images[1].names], folds, strict=True))
    alike: dict[bytes, list[str]] = {}
    for name in of:
        alike.setdefault((root / name).read_bytes(), []).append(name)
    others = [
        (min(of[other] for other in names), fold) for names in alike.values() for fold in sorted(map(of.get, names))[1:]
    ]
    parted = sum(first != fold for first, fold in others)
    assert 2 < parted < len(others)
    main(["compare", "--data_root", str(root), *flags, "--folds", "6", "--overrides", '{"data.image_size": 16}'])
    screen = capsys.readouterr().out
    assert "trials      6: 1 for each of 6 (variant, size, fold) on " in screen
    assert f"warning: {parted} duplicates in more than one set" in screen
    assert "warning: 1 duplicate of two classes" in screen
    assert "within one class of a set" in screen
    assert screen.count("warning: not used: 1 file of unknown type, such as 'dog/scan.heic'") == 1
    assert len(decoded) == len(set(decoded)) == len(of)


def test_an_image_for_training_and_validation_stands_in_two_parts(tmp_path, capsys, monkeypatch):
    """Also to a final run, which trains on both."""
    root = make_folder(tmp_path / "fruit", parts=("train", "val", "test"))
    shutil.copy(root / "train" / "cat" / "0.png", root / "val" / "cat" / "again.png")
    monkeypatch.chdir(tmp_path)
    cost = Cost(1.0, 1.0, 1, 1, 0.1, 0.1, accelerator=False)
    monkeypatch.setattr(Worker, "measure", lambda self, run: cost)
    main(["compare", "--data_root", str(root), "--only", "[softmax]", "--seeds", "[0]", "--dry_run", "true"])
    screen = capsys.readouterr().out
    [line] = (line for line in screen.splitlines() if "in more than one set" in line)
    assert re.search(r"1 duplicate .*again\.png \(val\) = .*0\.png \(train\)", line)
    assert "within one class" not in screen


def test_images_that_no_run_draws_are_looked_at(tmp_path, capsys, monkeypatch):
    root = make_folder(tmp_path / "fruit", images=12, parts=("train", "test"))
    for image in range(12):
        shutil.copy(root / "train" / "cat" / f"{image}.png", root / "test" / "cat" / f"{image}.png")
    cost = Cost(1.0, 1.0, 1, 1, 0.1, 0.1, accelerator=False)
    monkeypatch.setattr(Worker, "measure", lambda self, run: cost)
    flags = ["--data_root", str(root), "--only", "[softmax,cosine]", "--tuning.trials", "0", "--dry_run", "true"]
    flags += ["--samples_per_class", "[2]", "--seeds", "[0]", "--steps", "1", "--overrides", '{"data.image_size": 16}']
    main(["compare", *flags, "--folder", str(tmp_path / "results")])
    out = capsys.readouterr().out
    assert "warning: 12 duplicates in more than one set" in out
    assert (
        "warning: 24 test images can show a difference only between variants that differ on at least 6 of them. " in out
    )
    assert "What helps most: --folds 5, which tests every image once" in out
    (root / "train" / "dog" / "7.png").write_bytes(b"no image")
    assert "7.png cannot be read as an image" in refused(capsys, *flags, "--folder", str(tmp_path / "results"))


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    config = CONFIGS / "compare" / "digits.yaml"
    few = ["--only", "[softmax]", "--samples_per_class", "[5]", "--dry_run", "true"]
    main(["compare", "--config", str(config), "--folder", str(tmp_path / "results"), *few])
    out = capsys.readouterr().out
    assert "final runs  5," in out
    assert "trials      5: 5 for each of 1 (variant, size) on 20 validation images" in out
    assert "warning: 20 validation images can't tell trials apart that differ on fewer than 6 of them" in out
    assert "test images can show" not in out  # 359 are enough
    assert "time left   about" in out
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "compare needs --config"),
        (["--data_root", "nowhere", "--only", "[softmax,cosine]"], "error: no folder nowhere"),
        (["--config", str(CONFIGS / "compare" / "digits.yaml"), "--sizes", "3"], "sizes"),
        (["--data_rot", "my_images"], "unrecognized arguments: --data_rot"),
        (["--config", str(CONFIGS / "compare" / "digits.yaml"), "--seeds", "[a]"], "seeds"),
        (["--config", str(CONFIGS / "compare" / "digits.yaml"), "--seeds", "0,1"], 'as in --seeds "[0,1]"'),
        (
            ["--config", str(CONFIGS / "compare" / "digits.yaml"), "--only", "softmax,cosine"],
            '--only "[softmax,cosine]"',
        ),
        (["--config", str(CONFIGS / "compare" / "digits.yaml"), "--only", "[cosine, arcface]"], "only names arcface"),
    ],
)
def test_a_mistake_gets_one_line(arguments, message, capsys):
    error = refused(capsys, *arguments)
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize(
    ("flags", "epochs", "steps"),
    [
        ([], None, 400),
        (["--epochs", "7"], 7, None),
        (["--steps=30"], None, 30),
        (["--epochs=7", "--steps=30"], 7, 30),  # refused by the plan
    ],
)
def test_a_flag_for_epochs_takes_the_place_of_steps(flags, epochs, steps, tmp_path, monkeypatch):
    config = tmp_path / "plan.yaml"
    config.write_text("variants: {softmax: {config: configs/digits_softmax.yaml}}\nsteps: 400\n")
    described = []
    seen = functools.wraps(run_comparison)(lambda comparison, **rest: described.append(comparison))
    monkeypatch.setattr(running, "run_comparison", seen)
    monkeypatch.chdir(CONFIGS.parent)
    main(["compare", "--config", str(config), *flags])
    assert [(one.epochs, one.steps) for one in described] == [(epochs, steps)]
