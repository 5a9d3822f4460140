"""A run's folder: its content, how it is found again, and that a resumed run keeps its best epoch."""

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
from tests import command_line
from tests.callback_stubs import PlainLogger, Stopped
from tests.command_line import CONFIGS, QUIET, ROOT, SHORT, SMALL, best, checkpoint_names, load, refusal, result
from tests.helpers import make_folder
from tests.processes import run_groups
from tests.systems import needs_fork

FAST = ["--model.lr_scheduler=null", "--model.optimizer.lr=0.3"]  # epochs differ much, and not all are better
STUBS = "tests.callback_stubs"


def fit(runs: Path, *flags: str, epochs: int = 1) -> Path:
    return command_line.fit("digits_softmax", runs, *SMALL, f"--trainer.max_epochs={epochs}", *flags)


def built(name: str, **settings: object) -> str:
    """Return the text of a class with its settings."""
    return json.dumps({"class_path": name, "init_args": settings})


def callbacks(*given: str) -> str:
    return f"--trainer.callbacks=[{', '.join(given)}]"


OWN = [
    built("lightning.pytorch.callbacks.EarlyStopping", monitor="val/loss", patience=9),
    built("lightning.pytorch.callbacks.ModelCheckpoint", monitor="val/loss", save_top_k=2, filename="own-{epoch}"),
]


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
    fit(tmp_path, *FAST, *RHYTHMS[rhythm], callbacks(*OWN, built(f"{STUBS}.CheckLast")), epochs=5)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs that were never stopped, by rhythm."""
    return {
        name: fit(tmp_path_factory.mktemp("whole"), *FAST, *flags, callbacks(*OWN), epochs=5)
        for name, flags in RHYTHMS.items()
    }


def stop(runs: Path, step: int, *flags: str) -> Path:
    """Train until a step; return the run's folder."""
    with pytest.raises(Stopped):
        fit(runs, *flags, epochs=5)
    return runs / "digits_softmax" / "version_0"


@pytest.mark.parametrize("rhythm", RHYTHMS)
@pytest.mark.parametrize("step", [4, *(pytest.param(step, marks=pytest.mark.slow) for step in range(5, 10))])
def test_a_resumed_run_has_the_best_of_the_whole_one(step, rhythm, whole, tmp_path):
    """Bit for bit, wherever it was stopped."""
    stopped = callbacks(*OWN, built(f"{STUBS}.StopAt", step=step))
    run = stop(tmp_path, step, *FAST, *RHYTHMS[rhythm], stopped)
    main(["fit", f"--resume={run}", callbacks(*OWN)])
    for name in ("best.ckpt", "last.ckpt"):
        expected, found = load(whole[rhythm] / "checkpoints" / name), load(run / "checkpoints" / name)
        assert expected["global_step"] == found["global_step"]
        assert all(torch.equal(tensor, found["state_dict"][key]) for key, tensor in expected["state_dict"].items())
        assert best_state(expected)["best_model_score"] == best_state(found)["best_model_score"]
    # A ModelCheckpoint of the user's own, stopped between its file and last.ckpt, writes that step again beside it.
    kept, expected = (
        {name for name in checkpoint_names(folder) if not name.startswith("own")} for folder in (run, whole[rhythm])
    )
    assert kept == expected


# Not within the last epoch: resumed there, the schedule has been stepped with its metric; otherwise it has not yet.
@pytest.mark.parametrize("step", [6, pytest.param(7, marks=pytest.mark.slow)])
@pytest.mark.parametrize("every", [[], ["--save_every_n_steps=1"]], ids=["ends", "within"])
def test_a_plateau_schedule_continues_as_if_never_stopped(step, every, tmp_path):
    """Stopped within an epoch, after one at whose end, or within which, last.ckpt was written."""
    schedule = {"monitor": "val/loss", "patience": 0, "threshold": 0.2}
    flags = ["--model.optimizer.lr=0.3", "--model.lr_scheduler=lightning.pytorch.cli.ReduceLROnPlateau", *every]
    flags += [f"--model.lr_scheduler.{name}={value}" for name, value in schedule.items()]
    whole = fit(tmp_path / "whole", *flags, epochs=5)
    run = stop(tmp_path, step, *flags, callbacks(built(f"{STUBS}.StopAt", step=step)))
    main(["fit", f"--resume={run}", "--trainer.callbacks=null"])
    expected, found = (load(folder / "checkpoints" / "last.ckpt") for folder in (whole, run))
    assert found["lr_schedulers"] == expected["lr_schedulers"]
    assert found["optimizer_states"][0]["param_groups"] == expected["optimizer_states"][0]["param_groups"]


def with_score(score: float, *checkpoints: Path) -> bytes:
    """Give the best epoch that checkpoints record a score; return the bytes of the first."""
    for path in checkpoints:
        checkpoint = load(path)
        state = best_state(checkpoint)
        state["best_model_score"] = state["kth_value"] = torch.tensor(score)
        state["best_k_models"] = dict.fromkeys(state["best_k_models"], torch.tensor(score))
        torch.save(checkpoint, path)
    return checkpoints[0].read_bytes()


def with_unbeatable_best(run: Path, names: tuple[str, ...] = ("best.ckpt", "last.ckpt")) -> bytes:
    return with_score(2.0, *(run / "checkpoints" / name for name in names))


def resume(run: Path | str, epochs: int) -> list[str]:
    """Resume a run; return the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        main(["fit", f"--resume={run}", f"--trainer.max_epochs={epochs}"])
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("how", ["moved", "copied", "linked", "from elsewhere"])
def test_a_run_keeps_its_best_wherever_it_is(how, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = fit(Path("runs"))
    unbeatable, original = with_unbeatable_best(before), {path: path.read_bytes() for path in before.rglob("*.ckpt")}
    run = tmp_path / {"moved": "new/place", "copied": "runs/digits_softmax/copy", "linked": "link"}.get(how, before)
    if how == "moved":
        run.parent.mkdir()
        shutil.move(before, run)
    elif how == "copied":
        shutil.copytree(before, run)
    elif how == "linked":
        run.symlink_to(before)
    else:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir("elsewhere")
    resume(os.path.relpath(run), epochs=3)
    assert (run / "checkpoints" / "best.ckpt").read_bytes() == unbeatable
    found = result(run)
    assert found["epochs"] == 3
    assert found["metrics"]["val/accuracy"] == 2.0
    assert Path(found["checkpoint"]).samefile(run / "checkpoints" / "best.ckpt")
    assert Path(best_state(load(run / "checkpoints" / "last.ckpt"))["dirpath"]).samefile(run / "checkpoints")
    if how == "copied":
        assert {path: path.read_bytes() for path in before.rglob("*.ckpt")} == original


def test_a_better_epoch_that_last_does_not_know_of_is_kept(tmp_path):
    """The run was killed after best.ckpt was written and before last.ckpt was; what follows turns out worse."""
    run = fit(tmp_path)
    unbeatable = with_unbeatable_best(run, ("best.ckpt",))
    torn = run / "checkpoints" / ".best.123.part.ckpt"
    torn.write_bytes(b"half")
    resume(run, epochs=2)
    assert (run / "checkpoints" / "best.ckpt").read_bytes() == unbeatable
    assert checkpoint_names(run) == {"best.ckpt", "last.ckpt"}


def test_a_run_without_its_best_keeps_the_best_from_there_on(tmp_path):
    run = fit(tmp_path)
    with_unbeatable_best(run)
    (run / "checkpoints" / "best.ckpt").unlink()
    assert [line for line in resume(run, epochs=2) if "best.ckpt" in line]
    assert best_state(load(run / "checkpoints" / "best.ckpt"))["best_model_score"] <= 1


@pytest.mark.parametrize("own_best", ["there", pytest.param("replaced", marks=pytest.mark.slow)])
def test_the_best_of_another_run_in_the_same_folder_is_left_alone(own_best, tmp_path):
    """It is newer and better, and may have taken the name of this run's."""
    kept = tmp_path / "kept"
    run = fit(tmp_path / "a", f"--checkpoint.dirpath={kept}")
    fit(tmp_path / "b", f"--checkpoint.dirpath={kept}")
    with_score(-1.0, kept / "best.ckpt", run / "checkpoints" / "last.ckpt")
    other = kept / "best-v1.ckpt"
    if own_best == "replaced":
        other = other.rename(kept / "best.ckpt")
    before = with_score(2.0, other)
    resume(run, epochs=2)
    assert other.read_bytes() == before
    assert not Path(result(run)["checkpoint"]).samefile(other)
    assert 0 <= result(run)["metrics"]["val/accuracy"] <= 1


@pytest.mark.parametrize("how", ["copied", pytest.param("moved", marks=pytest.mark.slow)])
def test_a_copy_of_a_run_leaves_the_checkpoints_of_the_original_alone(how, tmp_path, monkeypatch):
    """It has its own ones from there on, the best so far among them, also when it is resumed again."""
    monkeypatch.chdir(tmp_path)
    own = built("lightning.pytorch.callbacks.ModelCheckpoint", monitor="val/loss", filename="own", dirpath="own")
    before = fit(Path("a"), "--checkpoint.dirpath=kept", callbacks(own))
    unbeatable = with_score(2.0, Path("kept/best.ckpt"), before / "checkpoints" / "last.ckpt")
    of_original = Path("own/own.ckpt").read_bytes()
    (shutil.copytree if how == "copied" else shutil.move)("a", "b")
    run = Path("b/digits_softmax/version_0")
    assert [line for line in resume(run, epochs=2) if str(tmp_path / "kept") in line]
    Path("kept/best.ckpt").write_bytes(b"of the original, which was trained further")
    assert not [line for line in resume(run, epochs=3) if str(tmp_path / "kept") in line]
    assert Path(result(run)["checkpoint"]).samefile(run / "checkpoints" / "best.ckpt")
    assert (run / "checkpoints" / "best.ckpt").read_bytes() == unbeatable
    assert Path("own/own.ckpt").read_bytes() == of_original
    assert checkpoint_names(run) == {"best.ckpt", "own.ckpt", "last.ckpt"}


@pytest.mark.slow
def test_a_folder_of_checkpoints_within_a_run_is_moved_with_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = fit(Path("a"), "--checkpoint.dirpath=a/digits_softmax/version_0/kept")
    unbeatable = with_score(2.0, before / "kept" / "best.ckpt", before / "checkpoints" / "last.ckpt")
    run = Path(shutil.move("a", "b")) / "digits_softmax" / "version_0"
    resume(run, epochs=2)
    assert (run / "kept" / "best.ckpt").read_bytes() == unbeatable
    assert Path(result(run)["checkpoint"]).samefile(run / "kept" / "best.ckpt")
    assert not Path("a").exists()


def test_steps_that_end_a_run_do_not_change_how_it_continues(tmp_path):
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


@pytest.mark.parametrize("kept", [3, -1])
def test_several_checkpoints_do_not_overwrite_each_other(kept, tmp_path):
    run = fit(tmp_path, f"--checkpoint.save_top_k={kept}", *FAST, epochs=4)
    checkpoints = [load(file) for file in (run / "checkpoints").glob("best*.ckpt")]
    assert len({checkpoint["epoch"] for checkpoint in checkpoints}) == (4 if kept == -1 else 3)
    scores = [float(score) for score in best_state(load(Path(result(run)["checkpoint"])))["best_k_models"].values()]
    assert result(run)["metrics"]["val/accuracy"] >= max(scores)


# --------------------------------------------------------------------------------------------------- loggers, commands

PLAIN = built(f"{STUBS}.PlainLogger")
TENSORBOARD = built("lightning.pytorch.loggers.TensorBoardLogger", save_dir="logs")


@pytest.mark.parametrize(
    ("flags", "tensorboard"),
    [
        ([f"--trainer.logger={PLAIN}"], False),
        pytest.param([f"--trainer.logger=[{PLAIN}, {TENSORBOARD}]"], True, marks=pytest.mark.slow),
        pytest.param(["--trainer.logger=false"], False, marks=pytest.mark.slow),
        ([], True),
    ],
)
def test_whatever_the_logger_files_are_in_the_run(flags, tensorboard, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    plot = callbacks(built("EmbeddingPlot", max_images=4, projector=False))
    run = fit(Path("runs"), plot, *flags, epochs=2)
    assert ("tensorboard --logdir" in capsys.readouterr().out) == tensorboard
    assert {"config.yaml", "result.json", "checkpoints", "figures"} <= {path.name for path in run.iterdir()}
    assert len(list((run / "figures" / "embeddings").iterdir())) == 2
    main(["predict", best(run), *QUIET])
    assert (run / "predictions_test.csv").is_file()
    assert [path.name for path in run.parent.iterdir()] == ["version_0"]
    assert {path.name for path in tmp_path.iterdir()} <= {"runs", "logs"}


def test_without_the_command_line_files_go_where_the_checkpoints_go(tmp_path):
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "default_root_dir": tmp_path}
    assert run_folder(Trainer(logger=False, **quiet)) == tmp_path
    for logger in (CSVLogger(tmp_path, "a"), TensorBoardLogger(tmp_path, "b")):
        assert run_folder(Trainer(logger=[logger, PlainLogger()], **quiet)) == Path(logger.log_dir)
    assert run_folder(Trainer(logger=PlainLogger(), **quiet)) == Path("plain/0")
    stranger = Callback()
    stranger.run_folder = tmp_path / "other"  # another attribute of this name
    assert run_folder(Trainer(logger=False, callbacks=stranger, **quiet)) == tmp_path


@pytest.mark.parametrize(
    "flags",
    [
        ["--checkpoint.filename={epoch}-{val/accuracy:.2f}"],
        pytest.param(["--checkpoint.filename={epoch}={step} it's"], marks=pytest.mark.slow),
        pytest.param(["--checkpoint.dirpath=kept"], marks=pytest.mark.slow),
        ["--checkpoint.dirpath=my kept/it's", "--checkpoint.filename={epoch}-{val/accuracy:.2f}"],
        pytest.param(["--checkpoint.save_top_k=2"], marks=pytest.mark.slow),
        pytest.param(["--data.val_fraction=0"], marks=pytest.mark.slow),
        pytest.param(["--checkpoint.save_weights_only=true"], marks=pytest.mark.slow),
    ],
)
def test_the_printed_test_command_works(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = fit(Path("my runs"), *flags)
    main(printed_test_command(capsys))
    found = result(run, "test")
    assert Path(found["checkpoint"]).samefile(result(run)["checkpoint"])
    stored = shlex.split(found["command"])
    main(stored[stored.index("test") :])
    assert [path.name for path in run.parent.iterdir()] == ["version_0"]


def printed_test_command(capsys: pytest.CaptureFixture[str]) -> list[str]:
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("test "))
    command = shlex.split(line.removeprefix("test "))
    return command[command.index("test") :]


@pytest.mark.slow
def test_weights_alone_elsewhere_are_tested_with_the_config(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fit(Path("runs"), "--checkpoint.dirpath=kept", "--checkpoint.save_weights_only=true")
    main(printed_test_command(capsys))
    assert "test/accuracy" in capsys.readouterr().out


def test_another_run_in_its_place_is_not_taken_for_the_one_that_wrote_a_checkpoint(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fit(Path("runs"), "--checkpoint.dirpath=kept")
    shutil.rmtree("runs")
    fit(Path("runs"), "--data.seed=1")
    line = refusal(capsys, "test", "--ckpt_path=kept/best.ckpt")
    assert "kept/best.ckpt" in line
    assert "--config" in line


def test_a_saved_config_means_the_same_from_any_folder(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "a")
    make_folder(Path("my_images"), images=12)
    small = ["--model.backbone=TinyConvNet", "--data.image_size=16", "--data.batch_size=4", "--data.root=my_images"]
    kept = "--checkpoint.dirpath=kept"
    main(["fit", f"--config={CONFIGS / 'folder_softmax.yaml'}", *SHORT, *small, kept])
    run = next((tmp_path / "a" / "runs").rglob("version_0"))
    for folder in ("b", "a"):
        monkeypatch.chdir(tmp_path / folder)
        main(["test", f"--ckpt_path={tmp_path / 'a' / 'kept' / 'best.ckpt'}"])
        main(["fit", f"--resume={os.path.relpath(run)}", f"--trainer.max_epochs={result(run)['epochs'] + 1}"])
        saved = yaml.safe_load((run / "config.yaml").read_text())
        assert saved["data"]["init_args"]["root"] == str(tmp_path / "a" / "my_images")
    assert not list((tmp_path / "b").iterdir())


# -------------------------------------------------------------------------------------------------------------- ranks

LEFTOVER = {"SLURM_PROCID": "1", "RANK": "3", "LOCAL_RANK": "1", "NODE_RANK": "1", "WORLD_SIZE": "4"}


def fit_args(runs: Path, *flags: str) -> list[str]:
    return ["fit", f"--config={CONFIGS / 'digits_softmax.yaml'}", f"--runs_dir={runs}", *SHORT, *SMALL, *flags]


def main_with_leftovers(*commands: list[str]) -> None:
    """Run commands in a process that another job's variables were left to."""
    os.environ.update(LEFTOVER)
    rank_zero_only.rank = 1  # as Lightning finds it when it is imported
    in_turn(*commands)


@pytest.mark.parametrize("strategy", ["auto", pytest.param("ddp", marks=pytest.mark.slow)])
def test_ranks_left_over_from_another_job_change_nothing(strategy, tmp_path):
    args = fit_args(tmp_path, f"--trainer.strategy={strategy}", "--trainer.devices=1", "--test_after_fit=true")
    run_groups((1, main_with_leftovers, args, args))
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
    assert checkpoint_names(run) == {"best.ckpt", "last.ckpt"}
    assert result(run)["processes"] == 2


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param("ddp_fork", marks=needs_fork),
        pytest.param("ddp_notebook", marks=[needs_fork, pytest.mark.slow]),
        pytest.param("ddp_spawn", marks=pytest.mark.slow),
    ],
)
def test_results_of_processes_that_the_trainer_starts(strategy, tmp_path):
    """The process that started them has trained nothing itself, and reports and tests their results."""
    flags = [f"--trainer.strategy={strategy}", "--trainer.devices=2", "--test_after_fit=true", *FAST]
    run = tmp_path / "digits_softmax" / "version_0"
    evaluated = ["test", best(run), f"--trainer.strategy={strategy}", "--trainer.devices=2", *QUIET]
    resumed = ["fit", f"--resume={run}", "--trainer.max_epochs=4"]
    run_groups((1, in_turn, [*fit_args(tmp_path, *flags), "--trainer.max_epochs=3"], resumed, evaluated))
    found, last = result(run), load(run / "checkpoints" / "last.ckpt")
    assert (found["epochs"], found["steps"], found["processes"]) == (4, last["global_step"], 2)
    assert found["seconds"] > 0
    assert found["checkpoint"] == str(run / "checkpoints" / "best.ckpt")
    assert found["metrics"]["val/accuracy"] == best_state(load(Path(found["checkpoint"])))["best_model_score"].item()
    assert "test/accuracy" in found["metrics"]
    assert {path.name for path in run.iterdir() if "tfevents" not in path.name} == {
        *(".metricloss_run", "config.yaml", "result.json", "test.json", "checkpoints", "hparams.yaml", "split.csv")
    }
    assert found["best_epoch"] == load(Path(found["checkpoint"]))["epoch"] + 1
    main(["test", best(run), *QUIET])  # in one process
    assert result(run, "test_2")["classes"] == result(run, "test")["classes"] == found["classes"]
    assert result(run, "test_2")["images"] == result(run, "test")["images"]


def in_turn(*commands: list[str]) -> None:
    for args in commands:
        main(args)
