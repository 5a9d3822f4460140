"""A run's folder: what is in it, what finds it again, and that a run which goes on keeps its best epoch."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from metricloss_pl.callbacks.run_folder import run_folder
from metricloss_pl.cli import main
from tests.callback_stubs import PlainLogger, Stopped
from tests.helpers import make_folder
from tests.processes import run_groups
from tests.systems import needs_fork

ROOT = Path(__file__).parent.parent
CPU = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
DIGITS = ["--data.samples_per_class=8", "--data.test_fraction=0.05", "--data.batch_size=16", "--data.val_fraction=0.5"]
SMALL = [*CPU, *DIGITS, "--trainer.callbacks=null", "--test_after_fit=false"]
FAST = ["--model.lr_scheduler=null", "--model.optimizer.lr=0.3"]  # epochs differ much, and not all are better
STUBS = "tests.callback_stubs"
OWN = [
    '{"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "val/loss", "patience": 9}}',
    '{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", '
    '"init_args": {"monitor": "val/loss", "save_top_k": 2, "filename": "own-{epoch}"}}',
]


def fit_args(runs: Path | str, *flags: str, epochs: int = 1) -> list[str]:
    config = f"--config={ROOT / 'configs' / 'digits_softmax.yaml'}"
    return ["fit", config, f"--runs_dir={runs}", *SMALL, f"--trainer.max_epochs={epochs}", *flags]


def fit(runs: Path, *flags: str, epochs: int = 1) -> Path:
    """Train on a few digits; the run's folder."""
    main(fit_args(runs, *flags, epochs=epochs))
    return max((runs / "digits_softmax").iterdir())


def callbacks(*given: str) -> str:
    return f"--trainer.callbacks=[{', '.join(given)}]"


def stub(name: str, **settings: object) -> str:
    return json.dumps({"class_path": f"{STUBS}.{name}", "init_args": settings})


def load(checkpoint: Path) -> dict:
    return torch.load(checkpoint, weights_only=True)


def best_state(checkpoint: dict) -> dict:
    return next(state for key, state in checkpoint["callbacks"].items() if key.startswith("BestCheckpoint"))


# ------------------------------------------------------------------------------------------------------ last and best

RHYTHMS = {
    "every epoch": [],
    "within epochs": ["--trainer.val_check_interval=0.5", "--save_every_n_steps=1"],
    "every other epoch": ["--trainer.check_val_every_n_epoch=2"],
}


@pytest.mark.parametrize("rhythm", RHYTHMS)
def test_last_checkpoint_has_seen_the_epoch(rhythm, tmp_path):
    fit(tmp_path, *FAST, *RHYTHMS[rhythm], callbacks(*OWN, stub("CheckLast")), epochs=5)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs that were never stopped, by rhythm."""
    return {
        name: fit(tmp_path_factory.mktemp("whole"), *FAST, *flags, callbacks(*OWN), epochs=5)
        for name, flags in RHYTHMS.items()
    }


@pytest.mark.parametrize("rhythm", RHYTHMS)
@pytest.mark.parametrize("step", [4, *(pytest.param(step, marks=pytest.mark.slow) for step in range(5, 10))])
def test_resumed_run_has_the_best_of_the_whole_one(step, rhythm, whole, tmp_path):
    """Bit for bit, wherever it was stopped."""
    with pytest.raises(Stopped):
        fit(tmp_path, *FAST, *RHYTHMS[rhythm], callbacks(*OWN, stub("StopAt", step=step)), epochs=5)
    run = tmp_path / "digits_softmax" / "version_0"
    main(["fit", f"--resume={run}", callbacks(*OWN)])
    for name in ("best.ckpt", "last.ckpt"):
        expected, found = load(whole[rhythm] / "checkpoints" / name), load(run / "checkpoints" / name)
        assert expected["global_step"] == found["global_step"]
        assert all(torch.equal(tensor, found["state_dict"][key]) for key, tensor in expected["state_dict"].items())
        assert best_state(expected)["best_model_score"] == best_state(found)["best_model_score"]
    # A ModelCheckpoint of the user's own, stopped between its file and last.ckpt, writes that step again beside it.
    kept, expected = (
        {p.name for p in (f / "checkpoints").iterdir() if not p.name.startswith("own")} for f in (run, whole[rhythm])
    )
    assert kept == expected


# Not within the last epoch: what it came to is told at once where it was resumed, and else is still to be told.
@pytest.mark.parametrize("step", [6, pytest.param(7, marks=pytest.mark.slow)])
def test_a_schedule_that_waits_for_a_plateau_goes_on_as_if_never_stopped(step, tmp_path):
    """Stopped within an epoch, after one at whose end, or within which, last.ckpt was written."""
    schedule = {"monitor": "val/loss", "patience": 0, "threshold": 0.2}
    flags = ["--model.optimizer.lr=0.3", "--model.lr_scheduler=lightning.pytorch.cli.ReduceLROnPlateau"]
    flags += [f"--model.lr_scheduler.{name}={value}" for name, value in schedule.items()]
    for name, every in (("ends", []), ("within", ["--save_every_n_steps=1"])):
        expected = fit(tmp_path / name / "whole", *flags, *every, epochs=5)
        with pytest.raises(Stopped):
            fit(tmp_path / name, *flags, *every, callbacks(stub("StopAt", step=step)), epochs=5)
        run = tmp_path / name / "digits_softmax" / "version_0"
        main(["fit", f"--resume={run}", "--trainer.callbacks=null"])
        expected, found = (load(folder / "checkpoints" / "last.ckpt") for folder in (expected, run))
        assert found["lr_schedulers"] == expected["lr_schedulers"]
        assert found["optimizer_states"][0]["param_groups"] == expected["optimizer_states"][0]["param_groups"]


def with_score(score: float, *checkpoints: Path) -> bytes:
    """Give the best epoch that checkpoints know of a score; the first one's bytes."""
    for path in checkpoints:
        checkpoint = load(path)
        state = best_state(checkpoint)
        state["best_model_score"] = state["kth_value"] = torch.tensor(score)
        state["best_k_models"] = dict.fromkeys(state["best_k_models"], torch.tensor(score))
        torch.save(checkpoint, path)
    return checkpoints[0].read_bytes()


def with_unbeatable_best(run: Path) -> bytes:
    """Give the best epoch a score that no epoch reaches; the checkpoint's bytes."""
    return with_score(2.0, *(run / "checkpoints" / name for name in ("best.ckpt", "last.ckpt")))


def resume(run: Path | str, epochs: int) -> list[str]:
    """Go on with a run; what warnings say."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        main(["fit", f"--resume={run}", f"--trainer.max_epochs={epochs}"])
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("how", ["moved", "copied", "linked", "from elsewhere"])
def test_a_run_keeps_its_best_wherever_it_is(how, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(fit_args("runs"))
    before, here = Path("runs/digits_softmax/version_0"), tmp_path
    best = with_unbeatable_best(before)
    run = {"moved": "new/place", "copied": "runs/digits_softmax/copy", "linked": "link"}.get(how, f"../{before}")
    if how == "moved":
        shutil.move("runs", "gone")
        shutil.move("gone/digits_softmax", "new")
        shutil.move("new/version_0", "new/place")
        before = Path("gone")
    elif how == "copied":
        shutil.copytree(before, run)
    elif how == "linked":
        Path("link").symlink_to(before)
    else:
        here = tmp_path / "elsewhere"
        here.mkdir()
        monkeypatch.chdir(here)
    capsys.readouterr()
    said = resume(run, epochs=3)
    run = here / run
    assert not [line for line in said if str(tmp_path / "runs") in line]
    assert (run / "checkpoints" / "best.ckpt").read_bytes() == best
    result = json.loads((run / "result.json").read_text())
    assert result["epochs"] == 3
    assert result["metrics"]["val/accuracy"] == 2.0
    assert Path(result["checkpoint"]).samefile(run / "checkpoints" / "best.ckpt")
    assert Path(best_state(load(run / "checkpoints" / "last.ckpt"))["dirpath"]).samefile(run / "checkpoints")
    printed = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("checkpoint "))
    assert Path(printed.removeprefix("checkpoint ").strip()).samefile(run / "checkpoints" / "best.ckpt")
    assert (tmp_path / before).exists()  # only what was moved is gone


def test_a_better_epoch_that_last_does_not_know_of_is_kept(tmp_path):
    """The run was killed after best.ckpt was written and before last.ckpt was; what follows turns out worse."""
    run = fit(tmp_path)
    last = (run / "checkpoints" / "last.ckpt").read_bytes()
    best = with_unbeatable_best(run)
    (run / "checkpoints" / "last.ckpt").write_bytes(last)
    resume(run, epochs=2)
    assert (run / "checkpoints" / "best.ckpt").read_bytes() == best


def test_a_run_without_its_best_starts_anew_and_says_so(tmp_path):
    run = fit(tmp_path)
    with_unbeatable_best(run)
    (run / "checkpoints" / "best.ckpt").unlink()
    assert [line for line in resume(run, epochs=2) if "best.ckpt" in line and "is missing" in line]
    assert best_state(load(run / "checkpoints" / "best.ckpt"))["best_model_score"] <= 1


@pytest.mark.parametrize("own_best", ["there", "replaced", "gone"])
def test_the_best_of_another_run_in_the_same_folder_is_left_alone(own_best, tmp_path):
    """It is newer and better, and may have taken the name of this run's."""
    kept = tmp_path / "kept"
    first = fit(tmp_path / "a", f"--checkpoint.dirpath={kept}")
    fit(tmp_path / "b", f"--checkpoint.dirpath={kept}")
    with_score(-1.0, kept / "best.ckpt", first / "checkpoints" / "last.ckpt")
    other = kept / "best-v1.ckpt"
    if own_best == "gone":
        (kept / "best.ckpt").unlink()
    elif own_best == "replaced":
        other = other.rename(kept / "best.ckpt")
    before = with_score(2.0, other)
    resume(first, epochs=2)
    assert other.read_bytes() == before
    result = json.loads((first / "result.json").read_text())
    assert not Path(result["checkpoint"]).samefile(other)
    assert 0 <= result["metrics"]["val/accuracy"] <= 1
    assert run_id(load(Path(result["checkpoint"]))) == run_id(load(first / "checkpoints" / "last.ckpt"))


def run_id(checkpoint: dict) -> str:
    return checkpoint["callbacks"]["RunFolder"]["id"]


OWN_KEPT = (
    '{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", '
    '"init_args": {"monitor": "val/loss", "filename": "own", "dirpath": "own"}}'
)


@pytest.mark.parametrize("how", ["copied", "moved"])
def test_a_copy_of_a_run_leaves_the_checkpoints_of_the_original_alone(how, tmp_path, monkeypatch):
    """It has its own ones from there on, also when it is resumed again, and what was the best is among them."""
    monkeypatch.chdir(tmp_path)
    fit(Path("a"), "--checkpoint.dirpath=kept", callbacks(OWN_KEPT))
    before = with_score(2.0, Path("kept/best.ckpt"), Path("a/digits_softmax/version_0/checkpoints/last.ckpt"))
    own = Path("own/own.ckpt").read_bytes()
    (shutil.copytree if how == "copied" else shutil.move)("a", "b")
    run = tmp_path / "b" / "digits_softmax" / "version_0"
    assert [line for line in resume(run, epochs=2) if str(tmp_path / "kept") in line]
    Path("kept/best.ckpt").write_bytes(b"the original has gone on")
    assert not [line for line in resume(run, epochs=3) if str(tmp_path / "kept") in line]
    result = json.loads((run / "result.json").read_text())
    assert (tmp_path / result["checkpoint"]).samefile(run / "checkpoints" / "best.ckpt")
    assert (run / "checkpoints" / "best.ckpt").read_bytes() == before
    assert Path("own/own.ckpt").read_bytes() == own
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"best.ckpt", "own.ckpt", "last.ckpt"}
    assert [p.name for p in (*Path("kept").iterdir(), *Path("own").iterdir())] == ["best.ckpt", "own.ckpt"]


def test_a_folder_of_checkpoints_within_a_run_is_copied_with_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(Path("a"), "--checkpoint.dirpath=a/digits_softmax/version_0/checkpoints/kept")
    original = Path("a/digits_softmax/version_0")
    before = {path: path.read_bytes() for path in original.rglob("*.ckpt")}
    shutil.copytree("a", "b")
    run = Path("b/digits_softmax/version_0")
    copied = run / "checkpoints" / "kept" / "best.ckpt"
    with_score(2.0, copied, run / "checkpoints" / "last.ckpt")
    resume(run, epochs=2)
    assert {path: path.read_bytes() for path in original.rglob("*.ckpt")} == before
    assert Path(json.loads((run / "result.json").read_text())["checkpoint"]).samefile(copied)
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"kept", "last.ckpt"}


def test_steps_that_end_a_run_do_not_change_how_it_goes_on(tmp_path):
    """From an epoch's end; with `max_steps` Lightning would enter that epoch again."""
    flags = [*FAST, "--data.batch_size=8"]
    limits = ["--trainer.max_epochs=6", "--trainer.max_steps=9"]
    expected = load(fit(tmp_path / "whole", *flags, *limits) / "checkpoints" / "last.ckpt")
    run = fit(tmp_path / "resumed", *flags)
    assert 0 < load(run / "checkpoints" / "last.ckpt")["global_step"] < 9
    main(["fit", f"--resume={run}", *limits])
    found = load(run / "checkpoints" / "last.ckpt")
    assert found["global_step"] == 9
    assert all(torch.equal(tensor, found["state_dict"][key]) for key, tensor in expected["state_dict"].items())
    assert found["loops"]["fit_loop"] == expected["loops"]["fit_loop"]
    assert best_state(found)["best_model_score"] == best_state(expected)["best_model_score"]


def test_torn_checkpoints_of_a_killed_run_are_removed(tmp_path):
    run = fit(tmp_path)
    torn = run / "checkpoints" / ".best.123.part.ckpt"
    torn.write_bytes(b"half")
    resume(run, epochs=2)
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}


@pytest.mark.parametrize("kept", [3, -1])
def test_several_checkpoints_do_not_overwrite_each_other(kept, tmp_path):
    run = fit(tmp_path, f"--checkpoint.save_top_k={kept}", *FAST, epochs=4)
    checkpoints = [load(file) for file in (run / "checkpoints").glob("best*.ckpt")]
    assert len({checkpoint["epoch"] for checkpoint in checkpoints}) == (4 if kept == -1 else 3)
    tested = load(Path(json.loads((run / "result.json").read_text())["checkpoint"]))
    scores = [float(score) for score in best_state(tested)["best_k_models"].values()]
    assert json.loads((run / "result.json").read_text())["metrics"]["val/accuracy"] >= max(scores)


# ------------------------------------------------------------------------------------------------------------ loggers


def logger(name: str, **settings: object) -> str:
    return json.dumps({"class_path": name, "init_args": settings})


PLAIN = logger(f"{STUBS}.PlainLogger")
TENSORBOARD = logger("lightning.pytorch.loggers.TensorBoardLogger", save_dir="logs")


@pytest.mark.parametrize(
    ("flags", "tensorboard"),
    [
        ([f"--trainer.logger={PLAIN}"], False),
        pytest.param(
            ["--trainer.logger=lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir=logs"],
            False,
            marks=pytest.mark.slow,
        ),
        pytest.param([f"--trainer.logger=[{PLAIN}, {TENSORBOARD}]"], True, marks=pytest.mark.slow),
        pytest.param(["--trainer.logger=false"], False, marks=pytest.mark.slow),
        ([], True),
    ],
)
def test_whatever_the_logger_files_are_in_the_run(flags, tensorboard, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    plot = '{"class_path": "EmbeddingPlot", "init_args": {"max_images": 4, "projector": false}}'
    for _ in range(2):
        main(fit_args("runs", callbacks(plot), *flags, epochs=2))
    assert ("tensorboard --logdir" in capsys.readouterr().out) == tensorboard
    for run in (tmp_path / "runs" / "digits_softmax").iterdir():
        assert {"config.yaml", "result.json", "checkpoints", "figures"} <= {path.name for path in run.iterdir()}
        assert len(list((run / "figures" / "embeddings").iterdir())) == 2
    main(["predict", f"--config={run / 'config.yaml'}", f"--ckpt_path={run / 'checkpoints' / 'best.ckpt'}", *CPU])
    assert (run / "predictions_test.csv").is_file()
    assert len(list((tmp_path / "runs" / "digits_softmax").iterdir())) == 2
    assert {path.name for path in tmp_path.iterdir()} <= {"runs", "logs"}


def test_without_the_command_line_files_go_where_the_checkpoints_go(tmp_path):
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "default_root_dir": tmp_path}
    assert run_folder(Trainer(logger=False, **quiet)) == tmp_path
    for logger in (CSVLogger(tmp_path, "a"), TensorBoardLogger(tmp_path, "b")):
        assert run_folder(Trainer(logger=[logger, PlainLogger()], **quiet)) == Path(logger.log_dir)
    assert run_folder(Trainer(logger=PlainLogger(), **quiet)) == Path("plain/0")
    stranger = Callback()
    stranger.run_folder = tmp_path / "other"  # means something of its own
    assert run_folder(Trainer(logger=False, callbacks=stranger, **quiet)) == tmp_path


# -------------------------------------------------------------------------------------------------- printed commands


@pytest.mark.parametrize(
    "flags",
    [
        ["--checkpoint.filename={epoch}-{val/accuracy:.2f}"],
        pytest.param(["--checkpoint.filename={epoch}={step} it's"], marks=pytest.mark.slow),
        pytest.param(["--checkpoint.dirpath=kept"], marks=pytest.mark.slow),
        ["--checkpoint.dirpath=my kept/it's", "--checkpoint.filename={epoch}-{val/accuracy:.2f}"],
        pytest.param(["--checkpoint.save_top_k=2"], marks=pytest.mark.slow),
        pytest.param(["--data.val_fraction=0"], marks=pytest.mark.slow),
    ],
)
def test_the_printed_test_command_works(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number in range(2):  # a second run leaves the first one's checkpoints alone
        capsys.readouterr()
        main(fit_args("my runs", *flags))
        line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("test "))
        command = shlex.split(line.removeprefix("test "))
        main(command[command.index("test") :])
        run = tmp_path / "my runs" / "digits_softmax" / f"version_{number}"
        result = json.loads((run / "test.json").read_text())
        assert (tmp_path / result["checkpoint"]).samefile(json.loads((run / "result.json").read_text())["checkpoint"])
        stored = shlex.split(result["command"])
        main(stored[stored.index("test") :])
    assert len(list((tmp_path / "my runs" / "digits_softmax").iterdir())) == 2


def test_weights_alone_elsewhere_are_tested_with_the_config(tmp_path, monkeypatch, capsys):
    """They hold nothing of their run, so the printed command names its config."""
    monkeypatch.chdir(tmp_path)
    main(fit_args("runs", "--checkpoint.dirpath=kept", "--checkpoint.save_weights_only=true"))
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("test "))
    command = shlex.split(line.removeprefix("test "))
    main(command[command.index("test") :])
    assert "test/accuracy" in capsys.readouterr().out


def test_without_checkpoints_the_last_weights_are_tested(tmp_path, capsys):
    run = fit(tmp_path, "--trainer.enable_checkpointing=false", "--test_after_fit=true")
    assert "test/accuracy" in json.loads((run / "result.json").read_text())["metrics"]
    assert "--ckpt_path" not in capsys.readouterr().out
    assert not (run / "checkpoints").exists()


def test_another_run_in_its_place_is_not_taken_for_the_one_that_wrote_a_checkpoint(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(fit_args("runs", "--checkpoint.dirpath=kept"))
    shutil.rmtree("runs")
    main(fit_args("runs", "--data.seed=1"))
    with pytest.raises(SystemExit):
        main(["test", "--ckpt_path=kept/best.ckpt"])
    assert "kept/best.ckpt lies in no run's folder" in capsys.readouterr().err


def test_a_saved_config_means_the_same_from_any_folder(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "a")
    make_folder(Path("my_images"), images=12)
    config = f"--config={ROOT / 'configs' / 'folder_softmax.yaml'}"
    small = ["--model.backbone=TinyConvNet", "--data.image_size=16", "--data.batch_size=4", "--trainer.callbacks=null"]
    flags = [*CPU, *small, "--trainer.max_epochs=1", "--checkpoint.dirpath=kept", "--test_after_fit=false"]
    main(["fit", config, "--data.root=my_images", *flags])
    run = next((tmp_path / "a" / "runs").rglob("version_0"))
    for folder in ("b", "a"):
        monkeypatch.chdir(tmp_path / folder)
        main(["test", f"--ckpt_path={tmp_path / 'a' / 'kept' / 'best.ckpt'}"])
        epochs = json.loads((run / "result.json").read_text())["epochs"] + 1
        main(["fit", f"--resume={os.path.relpath(run)}", f"--trainer.max_epochs={epochs}"])
        saved = yaml.safe_load((run / "config.yaml").read_text())
        assert saved["data"]["init_args"]["root"] == str(tmp_path / "a" / "my_images")
    assert not list((tmp_path / "b").iterdir())


# -------------------------------------------------------------------------------------------------------------- ranks

LEFTOVER = {
    "SLURM_PROCID": "1",
    "RANK": "3",
    "LOCAL_RANK": "1",
    "NODE_RANK": "1",
    "WORLD_SIZE": "4",
    "SLURM_LOCALID": "1",
}


def main_with_leftovers(*commands: list[str]) -> None:
    """Run commands in a process that another job's variables were left to."""
    os.environ.update(LEFTOVER)
    rank_zero_only.rank = 1  # as Lightning finds it when it is imported
    for args in commands:
        main(args)


@pytest.mark.parametrize("strategy", ["auto", "ddp"])
def test_ranks_left_over_from_another_job_change_nothing(strategy, tmp_path):
    flags = [f"--trainer.strategy={strategy}", "--trainer.devices=1", "--test_after_fit=true"]
    run_groups((1, main_with_leftovers, fit_args(tmp_path, *flags), fit_args(tmp_path, *flags)))
    runs = sorted((tmp_path / "digits_softmax").iterdir())
    assert [run.name for run in runs] == ["version_0", "version_1"]
    for run in runs:
        assert {"config.yaml", "result.json", "checkpoints"} <= {path.name for path in run.iterdir()}
        assert list(run.glob("events.out.tfevents.*"))


@pytest.mark.slow
def test_ranks_left_over_when_lightning_is_imported(tmp_path):
    command = [sys.executable, ROOT / "cli.py", *fit_args(tmp_path)]
    subprocess.run(command, env={**os.environ, **LEFTOVER, "PYTHONPATH": str(ROOT)}, check=True)
    run = tmp_path / "digits_softmax" / "version_0"
    assert {"config.yaml", "result.json", "checkpoints"} <= {path.name for path in run.iterdir()}


def test_processes_of_a_launcher_share_a_folder(tmp_path):
    """As torchrun starts them."""
    run_groups((2, main, fit_args(tmp_path, "--trainer.devices=2", "--test_after_fit=true")))
    assert [path.name for path in (tmp_path / "digits_softmax").iterdir()] == ["version_0"]
    run = tmp_path / "digits_softmax" / "version_0"
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert json.loads((run / "result.json").read_text())["processes"] == 2


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param("ddp_fork", marks=needs_fork),
        pytest.param("ddp_notebook", marks=needs_fork),
        pytest.param("ddp_spawn", marks=pytest.mark.slow),
    ],
)
def test_results_of_processes_that_the_trainer_starts(strategy, tmp_path):
    """The process that started them has trained nothing itself, and says and tests what they found."""
    flags = [f"--trainer.strategy={strategy}", "--trainer.devices=2", "--test_after_fit=true", *FAST]
    run_groups((1, main, fit_args(tmp_path, *flags, epochs=3)))
    run = tmp_path / "digits_softmax" / "version_0"
    result, last = json.loads((run / "result.json").read_text()), load(run / "checkpoints" / "last.ckpt")
    best = load(run / "checkpoints" / "best.ckpt")
    assert (result["epochs"], result["steps"], result["processes"]) == (3, last["global_step"], 2)
    assert result["seconds"] > 0
    assert result["checkpoint"] == str(run / "checkpoints" / "best.ckpt")
    assert result["metrics"]["val/accuracy"] == best_state(best)["best_model_score"].item()
    assert "test/accuracy" in result["metrics"]
    assert {p.name for p in run.iterdir() if "tfevents" not in p.name} == {
        *("config.yaml", "result.json", "checkpoints", "hparams.yaml", "split.csv")
    }
