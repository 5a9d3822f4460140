"""Whole comparisons of a second or two each, without reports."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from metricloss_pl.cli import main
from metricloss_pl.compare import api, driver
from metricloss_pl.compare.api import compare
from metricloss_pl.compare.config import Range, Tuning, Variant
from metricloss_pl.compare.dataset import naming
from metricloss_pl.compare.executor import LocalPool
from metricloss_pl.compare.plan import expand
from metricloss_pl.compare.runner import Outcome, Task, execute
from metricloss_pl.compare.store import Store
from metricloss_pl.data import DigitsDataModule
from metricloss_pl.errors import UserError
from tests.command_line import QUIET, result
from tests.compare.small import CONFIGS, RATES, small
from tests.helpers import make_folder, make_image

pytest.importorskip("optuna")


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    monkeypatch.setattr(api.Comparison, "report", lambda self: self.folder / "report.html")


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """Folder of the small comparison."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api.Comparison, "report", lambda self: self.folder / "report.html")
        return compare(small(), str(tmp_path_factory.mktemp("complete"))).folder


def content(folder: Path) -> tuple[dict, dict]:
    """Return all results but their times, and all predictions."""
    store = Store(folder)
    results = store.results()
    predictions = {key: store.predictions(key) for key, found in results.items() if found["predictions"]}
    return {key: {**found, "seconds": 0} for key, found in results.items()}, predictions


def assert_equal(folder: Path, other: Path) -> None:
    """Assert that two comparisons have the same results, bit for bit."""
    (results, predictions), (expected, expected_predictions) = content(folder), content(other)
    assert results == expected
    assert predictions.keys() == expected_predictions.keys()
    for key, found in predictions.items():
        for mine, theirs in zip(found, expected_predictions[key], strict=True):
            assert np.array_equal(mine, theirs), key


def test_results_are_complete(complete):
    plan, (results, predictions) = Store(complete).plan(), content(complete)
    assert set(results) == set(plan["runs"])
    assert plan["data"]["class_names"] == [str(digit) for digit in range(10)]
    assert plan["data"]["n_images"] == 1797
    place = {"size": 5, "split": 0, "seed": 0, "fold": None, "test": 359}
    assert plan["data"]["subsets"] == [
        {"kind": "final", **place, "train": 50, "val": 0},
        {"kind": "trial", **place, "train": 30, "val": 20},
    ]
    data = DigitsDataModule()
    data.setup("test")
    for key, found in results.items():
        is_trial = found["kind"] == "trial"
        assert (found["status"], found["reason"], found["epochs"], found["steps"]) == ("ok", None, 1, 2 - is_trial)
        assert found["history"]["epoch"] == [1]
        assert ("val/accuracy" in found["history"]) == ("val/nll" in found["metrics"]) == is_trial
        assert 0.005 < found["settings"]["model.optimizer.lr"] < 0.5
        assert found["images"] == {"train": 30 if is_trial else 50, "val": 20 * is_trial, "test": 359 * (not is_trial)}
        if is_trial:
            continue
        names, labels, probabilities, embeddings = predictions[key]
        assert names.tolist() == data.samples("test").names
        assert labels.tolist() == data.samples("test").labels.tolist()
        assert np.allclose(probabilities.sum(1), 1, atol=1e-5)
        accuracy = (probabilities.argmax(1) == labels).mean()
        assert np.isclose(accuracy, found["metrics"]["test/accuracy"], atol=1e-6)
        nll = -np.log(probabilities[np.arange(len(labels)), labels].astype(float)).mean()
        assert np.isclose(nll, found["metrics"]["test/nll"], atol=1e-5)
        assert len(embeddings) == len(labels)


def test_variants_are_tuned_at_their_own_values_and_then_at_the_same_places(complete):
    trials = {
        (found["variant"], found["trial"]): found["settings"]
        for found in content(complete)[0].values()
        if found["kind"] == "trial"
    }
    assert len(trials) == 4
    for name in ("softmax", "cosine"):
        block = yaml.safe_load((CONFIGS / "model" / f"{name}_tiny.yaml").read_text())
        assert trials[name, 0] == {"model.optimizer.lr": block["init_args"]["optimizer"]["init_args"]["lr"]}
    assert trials["softmax", 1] == trials["cosine", 1] != trials["softmax", 0]


@pytest.mark.parametrize(("low", "first"), [(0.005, 0.05), (0.1, None)])
def test_the_first_trial_keeps_to_the_ranges(low, first):
    """A setting of the run file that is outside of its range, or has no value, is drawn as in other trials."""
    space = {"model.optimizer.lr": Range(low, 0.5, log=True), "model.class_weights": Range(choices=["balanced"])}
    config = small(tuning=Tuning(2, space=space)).checked()
    digests = {name: {} for name in config.variants}
    runs = [run for run in expand(config, digests, "") if run.variant == "softmax"]
    expected = {} if first is None else {"model.optimizer.lr": first}
    assert [Task(run, config).start for run in runs] == [expected, {}, {}]


def test_a_final_run_has_the_settings_of_its_best_trial(complete):
    results = content(complete)[0].values()
    for final in (found for found in results if found["kind"] == "final"):
        trials = [found for found in results if found["kind"] == "trial" and found["variant"] == final["variant"]]
        best = max(trials, key=lambda trial: (trial["metrics"]["val/accuracy"], -trial["metrics"]["val/nll"]))
        assert final["settings"] == best["settings"]
        assert final["metrics"]["temperature"] == best["metrics"]["val/temperature"]


def test_the_run_that_is_kept_is_a_run_of_fit(complete, tmp_path, monkeypatch, capsys):
    """Its config trains the same weights again, its checkpoint is tested as it was, and predicts."""
    [final] = [found for found in content(complete)[0].values() if found["checkpoint"]]
    checkpoint, run = complete / final["checkpoint"], complete / final["folder"]
    assert {path.name for path in run.parent.iterdir()} == {run.name}
    monkeypatch.chdir(tmp_path)
    main(["fit", f"--config={run / 'config.yaml'}", "--runs_dir=again", "--trainer.callbacks=null", *QUIET])
    [again] = tmp_path.glob("again/*/version_0/checkpoints/last.ckpt")
    states = [torch.load(file, weights_only=True)["state_dict"] for file in (checkpoint, again)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert (run / "split.csv").read_bytes() == (again.parent.parent / "split.csv").read_bytes()
    assert torch.load(checkpoint, weights_only=True)["temperature"] == final["metrics"]["temperature"]

    main(["test", f"--ckpt_path={checkpoint}", *QUIET])
    assert result(run, "test")["metrics"]["test/accuracy"] == pytest.approx(final["metrics"]["test/accuracy"], abs=1e-6)
    make_image(tmp_path / "new" / "one.png", 8, seed=0)
    main(["predict", f"--ckpt_path={checkpoint}", "--data.predict_dir=new", "--predictions.path=new.csv", *QUIET])
    assert len(Path("new.csv").read_text().splitlines()) == 2


def test_a_second_start_runs_nothing(complete, monkeypatch, capsys):
    before = content(complete)
    plan = Store(complete).plan()
    for name in ("InProcess", "check_subsets", "measure"):  # nor are images decoded again
        monkeypatch.setattr(driver, name, None)
    compare(small(name="other"), str(complete))
    assert content(complete)[0] == before[0]
    assert "6 of 6 runs" in capsys.readouterr().out
    assert Store(complete).plan() == {**plan, "name": "other"}
    compare(small(), str(complete))
    assert Store(complete).plan() == plan


def test_another_best_run_is_trained_again_for_its_checkpoint(complete, tmp_path):
    """Here by another baseline, which equally good variants are chosen by."""
    folder = shutil.copytree(complete, tmp_path / "copy")
    for file in folder.glob("runs/*.json"):
        found = json.loads(file.read_text())
        if found["kind"] == "trial":
            found["metrics"]["val/accuracy"] = 0.5
            file.write_text(json.dumps(found))
    compare(small(baseline="cosine"), str(folder))
    [kept] = [found for found in Store(folder).results().values() if found["folder"]]
    assert kept["variant"] == "cosine"
    assert [path.name for path in (folder / "trained").iterdir()] == [Path(kept["folder"]).name]
    before = content(complete)[0][kept["key"]]
    assert {**kept, "seconds": 0} == {**before, "folder": kept["folder"], "checkpoint": kept["checkpoint"]}


def test_a_best_run_that_is_not_the_first_is_trained_again_too(complete, tmp_path, monkeypatch, capsys):
    """Its result stays if that fails."""
    folder, config = shutil.copytree(complete, tmp_path / "copy"), small(("softmax",), seeds=[0, 1])
    compare(config, str(folder))
    first, second = [found for found in Store(folder).results().values() if found["kind"] == "final"]
    Store(folder).write_result({**first, "status": "failed", "reason": "no memory", "predictions": None})
    with monkeypatch.context() as patch:
        patch.setattr(driver, "execute", lambda task: Outcome({**second, "status": "failed", "reason": "full"}, None))
        compare(config, str(folder))
    assert Store(folder).results()[second["key"]] == second
    assert "no checkpoint: full" in capsys.readouterr().out
    compare(config, str(folder))
    found = Store(folder).results()[second["key"]]
    assert (folder / found["checkpoint"]).is_file()
    assert found["metrics"] == second["metrics"]


def test_the_baseline_may_be_any_variant(tmp_path):
    """The images of its trials and of all its seeds are listed."""
    made = driver.Driver(small(baseline="cosine", seeds=[0, 1]).checked(), Store(tmp_path), 1, None, "none")
    made.prepare(retry_failed=False)
    places = [(one["kind"], one["seed"]) for one in made.summary.subsets]
    assert places == [("final", 0), ("final", 1), ("trial", 0)]
    assert made.seconds(made.runs) > 0


def test_a_missing_result_is_computed_again_as_it_was(complete, tmp_path):
    folder = shutil.copytree(complete, tmp_path / "copy")
    runs = Store(folder).results()
    first, last = [next(key for key, run in runs.items() if run["kind"] == kind) for kind in ("trial", "final")]
    (folder / "runs" / f"{first}.json").write_text('{"key"')
    (folder / "predictions" / f"{last}.npz").unlink()
    compare(small(), str(folder))
    assert_equal(folder, complete)


@pytest.mark.slow
def test_processes_give_what_one_process_gives(complete, tmp_path):
    compare(small(), str(tmp_path), n_parallel=2)
    assert_equal(tmp_path, complete)


def test_a_variant_alone_gives_what_it_gives_among_others(complete, tmp_path):
    compare(small(("cosine",)), str(tmp_path), keep_checkpoints="none")
    alone, among = content(tmp_path), content(complete)
    assert len(alone[0]) == 3
    for key, found in alone[0].items():
        assert found == {**among[0][key], "folder": None, "checkpoint": None}
    for key, found in alone[1].items():
        assert np.array_equal(found.probabilities, among[1][key].probabilities)


@pytest.mark.slow
@pytest.mark.parametrize(("keep", "number"), [("all", 2), ("none", 0)])
def test_checkpoints_are_kept_as_asked_for(keep, number, tmp_path):
    compare(small(trials=0, tuning=Tuning()), str(tmp_path), keep_checkpoints=keep)
    kept = [found["checkpoint"] for found in Store(tmp_path).results().values() if found["checkpoint"]]
    assert len(kept) == len(list(tmp_path.glob("trained/*"))) == number
    assert all((tmp_path / name).is_file() for name in kept)
    assert not (tmp_path / ".attempts").exists()


def test_steps_are_the_same_at_every_size_in_whole_epochs(tmp_path):
    config = small(("softmax",), tuning=Tuning(), sizes=[5, 20], steps=6, epochs=None)
    compare(config, str(tmp_path), keep_checkpoints="none")
    lengths = [(found["epochs"], found["steps"]) for found in Store(tmp_path).results().values()]
    assert lengths == [(3, 6), (1, 8)]  # of batches of 25


@pytest.mark.slow
def test_trials_see_no_test_image_and_folds_test_each_image_once(tmp_path, monkeypatch):
    tested: list[str] = []
    read = DigitsDataModule.read
    config = small(("softmax",), trials=1, folds=3, sizes=[None], steps=3, epochs=None)
    compare(config, str(tmp_path), keep_checkpoints="none")
    store = Store(tmp_path)
    plan = store.plan()
    for key, found in store.results().items():
        assert found["status"] == "ok", found["reason"]
        if found["kind"] == "final":
            tested += store.predictions(key).names.tolist()
    assert len(tested) == len(set(tested)) == 1797
    sizes = {(one["kind"], one["fold"]): (one["train"], one["val"], one["test"]) for one in plan["data"]["subsets"]}
    assert all(sum(counts) == 1797 for counts in sizes.values())
    assert {kind for kind, _ in sizes} == {"trial", "final"}
    # Without folds the test set is not even listed in a trial.
    official = {"train": "train", "val": "val"}
    monkeypatch.setattr(DigitsDataModule, "read", lambda self, split: read(self, official[split]))
    config = small(("softmax",), trials=1).checked()
    assert execute(Task(expand(config, {"softmax": 0}, "")[0], config)).result["status"] == "ok"


def test_half_precision_scores_like_the_test(tmp_path, monkeypatch):
    overrides = {"trainer.precision": "bf16-mixed", "trainer.accelerator": "cpu"}
    compare(small(("softmax",), tuning=Tuning(), overrides=overrides, epochs=3), str(tmp_path))
    [found] = Store(tmp_path).results().values()
    monkeypatch.chdir(tmp_path)
    main(["test", f"--ckpt_path={tmp_path / found['checkpoint']}", *QUIET])
    tested = result(tmp_path / found["folder"], "test")["metrics"]
    assert tested["test/accuracy"] == pytest.approx(found["metrics"]["test/accuracy"], abs=1e-6)


@pytest.mark.slow
def test_a_run_that_diverges_is_recorded_and_the_others_go_on(tmp_path, capsys):
    diverging = Variant(str(CONFIGS / "digits_cosine.yaml"), {"model.optimizer.lr": 1e30})
    config = small(("softmax",), tuning=Tuning())
    config = replace(config, variants={"diverging": diverging, **config.variants})
    compare(config, str(tmp_path))
    status = {run["variant"]: (run["status"], run["metrics"] == {}) for run in Store(tmp_path).results().values()}
    assert status == {"diverging": ("failed", True), "softmax": ("ok", False)}
    out = capsys.readouterr().out
    assert "failed: diverging, 5 images per class, seed 0: " in out
    assert "--retry_failed true" in out
    failed = next(key for key, run in Store(tmp_path).results().items() if run["status"] == "failed")
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "runs").iterdir()}
    compare(config, str(tmp_path), retry_failed=True)
    after = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "runs").iterdir()}
    assert {name for name in before if before[name] != after[name]} == {f"{failed}.json"}


def test_a_search_without_a_good_trial_fails_by_name(tmp_path):
    tuning = Tuning(1, space={"model.optimizer.lr": Range(1e29, 1e30)}, val_fraction=0.4)
    compare(small(("softmax",), tuning=tuning, epochs=2), str(tmp_path))
    trial, final = Store(tmp_path).results().values()
    assert (trial["status"], final["status"], final["predictions"]) == ("failed", "failed", None)
    assert final["reason"].startswith("none of 1 trial has succeeded: ")


@pytest.mark.parametrize(("metric", "status"), [("accuracy", "ok"), ("balanced_accuracy", "pruned")])
def test_a_trial_is_stopped_by_the_metric_of_the_plan(metric, status, tmp_path):
    """All images are the same and nine of ten of one class, which all are taken for: 0.5 is the balanced accuracy."""
    for name, images in (("common", 54), ("rare", 6)):
        for image in range(images):
            make_image(tmp_path / "images" / name / f"{image}.png", 8, seed=0)
    file = tmp_path / "noise.yaml"
    data = {"class_path": "ImageFolderDataModule", "init_args": {"root": str(tmp_path / "images"), "batch_size": 4}}
    file.write_text(json.dumps({"data": data, "model": str(CONFIGS / "model" / "softmax_tiny.yaml")}))
    tuning = Tuning(4, space={"model.optimizer.lr": Range(0.02, 0.03)}, val_fraction=0.4)
    config = small(variants={"softmax": Variant(str(file))}, epochs=4, sizes=[None], overrides={}, tuning=tuning)
    config = replace(config, metric=metric).checked()
    trial = expand(config, {"softmax": 0}, "")[3]
    seen = dict.fromkeys(("val/accuracy", "val/balanced_accuracy"), 0.7)
    history = {"epoch": [1, 2, 3, 4], **{name: [value] * 4 for name, value in seen.items()}}
    past = {"status": "ok", "settings": {"model.optimizer.lr": 0.025}, "metrics": seen, "history": history}
    found = execute(Task(trial, config, before=(past | {"planned_epochs": 4},) * 3)).result
    assert found["status"] == status, found["reason"]
    assert found["history"]["val/accuracy"][-1] > 0.7
    assert found["history"]["val/balanced_accuracy"][-1] == 0.5
    assert (found["reason"] or "").startswith("val/balanced_accuracy 0." if status == "pruned" else "")


REFUSED = {
    "unknown setting": ({"model.optimizer.rate": 1}, "variant cosine: .*rate"),
    "linked setting": ({"model.num_classes": 7}, "model.num_classes comes from the data"),
    "several processes": ({"trainer.devices": 2, "trainer.accelerator": "cpu"}, ".*trainer.devices asks for 2"),
    "other images": ({"data.test_fraction": 0.5}, "variant cosine has other images or classes than softmax"),
    "early stopping": (
        {"trainer.callbacks": [{"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss"}}]},
        ".*EarlyStopping would stop some runs before others",
    ),
    "timer": (
        {"trainer.callbacks": [{"class_path": "Timer", "init_args": {"duration": "00:00:01:00", "interval": "epoch"}}]},
        ".*Timer would stop some runs before others",
    ),
    "steps": ({"trainer.max_steps": 5}, "trainer.max_steps is 5"),
    "no epochs": ({"trainer.max_epochs": -1}, "trainer.max_epochs is -1"),
    "part of the test set": ({"trainer.limit_test_batches": 1}, "trainer.limit_test_batches is 1: compared runs"),
    "part of the training set": ({"trainer.limit_train_batches": 0.5}, "trainer.limit_train_batches is 0.5"),
    "a clock": ({"trainer.max_time": "00:00:01:00"}, "trainer.max_time is 00:00:01:00"),
    "a checkpoint": ({"ckpt_path": "last.ckpt"}, "overrides have ckpt_path: compared runs"),
    "another run": ({"resume": "runs/cosine"}, "overrides have resume: compared runs"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_variant_is_refused_before_anything_runs(case, tmp_path):
    overrides, message = REFUSED[case]
    config = small(("softmax", "cosine") if message.startswith("variant") else ("cosine",), tuning=Tuning())
    config.variants["cosine"] = Variant(str(CONFIGS / "digits_cosine.yaml"), overrides)
    with pytest.raises(UserError, match=f"^{message}"):
        compare(config, str(tmp_path / "results"))
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({"sizes": [5, 200]}, {}, "class '0' .* has 14. images to choose from: 200"),
        ({"tuning": Tuning(1, space=RATES, val_fraction=0.01)}, {}, "leaves no image for training or none for val"),
        (
            {"tuning": Tuning(1, space={"data.batch_size": Range(choices=[8, "many"])}), "overrides": {}},
            {},
            "^the ranges hold data.batch_size many: .*",
        ),
        (
            {"tuning": Tuning(1, space={"model.embedding_dim": Range(4, 16)})},
            {},
            "the ranges hold model.embedding_dim 4.0: .*integers need choices",
        ),
        ({}, {"n_parallel": 0}, "n_parallel is 0"),
        ({}, {"keep_checkpoints": "some"}, "keep_checkpoints is 'some'"),
        ({"variants": {"x": Variant("no.yaml")}}, {}, "^config is no.yaml: there is no such run file"),
        ({"folds": 400}, {}, "class '.' has 1.. images: folds is 400"),
    ],
)
def test_a_plan_that_cannot_be_run_is_refused(changes, settings, message, tmp_path):
    with pytest.raises(UserError, match=message):
        compare(small(("softmax",), **{"trials": 0, **changes}), str(tmp_path / "results"), **settings)
    assert not (tmp_path / "results").exists()


def test_trials_need_equally_many_validation_images(tmp_path):
    variants = {}
    for name, share in (("none", 0), ("fifth", 0.2)):
        file = tmp_path / f"{name}.yaml"
        data = {"class_path": "DigitsDataModule", "init_args": {"val_fraction": share}}
        file.write_text(json.dumps({"data": data, "model": str(CONFIGS / "model" / "softmax_tiny.yaml")}))
        variants[name] = Variant(str(file))
    config = small(variants=variants, tuning=Tuning(1, space=RATES))
    with pytest.raises(UserError, match=r"^variant fifth has data.val_fraction 0.2, and none 0.0: give tuning.val_f"):
        compare(config, str(tmp_path / "results"))
    with pytest.raises(UserError, match=r"^data.val_fraction is 0, and trials are validated: give tuning"):
        compare(replace(config, include=["none"]), str(tmp_path / "results"))


def test_tuning_without_optuna_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "metricloss_pl\[compare\]".* --tuning.trials 0'):
        compare(small(), str(tmp_path / "results"))


def test_a_mistake_names_its_variant_if_there_are_several():
    for names, line in ((("softmax", "cosine"), "variant softmax: no folder"), (("softmax",), "no folder")):
        with pytest.raises(UserError) as refused, naming(small(names), "softmax"):
            raise UserError("no folder")
        assert str(refused.value) == line


@pytest.mark.slow
def test_sizes_that_are_auto_are_the_same_for_trials_and_final_runs(tmp_path, capsys):
    """A trial has fewer images than the final runs, so that `repeat` would be larger."""
    root = make_folder(tmp_path / "images", images=30, size=12)
    flags = ["--include=[softmax]", "--seeds=[0]", "--steps=2", "--tuning.trials=1", "--sizes=[8,null]"]
    main(["compare", f"--data_root={root}", *flags, f"--output_dir={tmp_path / 'out'}", "--trivial=false"])
    settings = {}
    for found in Store(tmp_path / "out").results().values():
        chosen = tuple(found["settings"][f"data.{name}"] for name in ("batch_size", "repeat", "image_size"))
        settings.setdefault(found["size"], set()).add(chosen)
    assert settings == {8: {(16, 12, 12)}, None: {(16, 12, 12)}}
    screen = capsys.readouterr().out
    assert "image_size 12" in screen
    assert "batch_size 16" in screen


def test_threads_are_those_of_the_first_start(complete, tmp_path):
    folder = shutil.copytree(complete, tmp_path / "copy")
    plan = json.loads((folder / "plan.json").read_text())
    plan["environment"]["threads"] = "3"
    (folder / "plan.json").write_text(json.dumps(plan))
    made = driver.Driver(small().checked(), Store(folder), 2, None, "none")
    made.prepare(retry_failed=False)
    assert made.threads == 3
    assert torch.get_num_threads() != 3


def no_module(settings):
    return 1, 2, 3


def test_factories_that_return_something_else_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"a factory returns \(LightningModule, LightningDataModule, dict"):
        api.compare({"mine": no_module}, str(tmp_path / "out"), trivial=False)
    with pytest.raises(UserError, match="variant mine: its factory can't be passed to another process"):
        api.compare({"mine": lambda settings: None}, str(tmp_path / "out"), n_parallel=2)
    assert not (tmp_path / "out").exists()
    assert LocalPool(2).free == 2
