"""Results of one command do not replace those of another; broken images are named, and the others are predicted."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from sklearn.metrics import precision_recall_fscore_support

from metricloss_pl.cli import main, results
from tests.command_line import QUIET, best, fit, refusal, result
from tests.helpers import make_folder, make_image
from tests.processes import run_groups
from tests.systems import needs_fork


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on images of two classes, beside the folder of its images."""
    folder = tmp_path_factory.mktemp("trained")
    root = make_folder(folder / "images", images=20)  # so that each set has some
    data = [f"--data.root={root}", "--data.image_size=16", "--data.batch_size=4"]
    fit("folder_cosine", folder / "runs", *data, "--model.backbone=TinyConvNet")
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run."""
    (folder,) = (trained / "runs").glob("*/version_0")
    return Path(shutil.copytree(folder, tmp_path / "runs" / "folder" / "version_0"))


def predict(run: Path, images: Path) -> list[str]:
    """Return the command."""
    return ["predict", best(run), f"--data.predict_dir={images}", "--data.batch_size=2", *QUIET]


def files_of(table: Path) -> list[str]:
    with table.open(newline="", encoding="utf-8") as file:
        return [row["file"] for row in csv.DictReader(file)]


def test_another_command_does_not_replace_results(run: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_image(tmp_path / name / f"{name}.png", 16, 0)
    main(predict(run, tmp_path / "a"))
    main(predict(run, tmp_path / "b"))
    make_image(tmp_path / "a" / "later.png", 16, 0)
    main(predict(run, tmp_path / "a"))
    assert files_of(run / "predictions.csv") == ["a.png", "later.png"]
    assert files_of(run / "predictions_2.csv") == ["b.png"]
    assert not (run / "predictions_3.csv").exists()
    for flags in ([], ["--data.batch_size=2"], []):
        main(["test", best(run), *flags, "--trainer.callbacks=ConfusionMatrixPlot", *QUIET])
    figures = sorted(file.name for file in (run / "figures").glob("confusion_matrix*.png"))
    assert figures == ["confusion_matrix.png", "confusion_matrix_2.png"]
    assert sorted(file.name for file in run.glob("test*.json")) == ["test.json", "test_2.json"]


@pytest.mark.parametrize("most", [20, 1])
def test_each_class_has_its_recall_and_f1(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """Up to 20 classes are also on the screen."""
    monkeypatch.setattr(results, "_MOST_CLASSES", most)
    main(["predict", best(run), *QUIET])
    with (run / "predictions_test.csv").open(newline="", encoding="utf-8") as file:
        rows = [(row["file"].split("/")[0], row["class"]) for row in csv.DictReader(file)]
    labels, predicted = zip(*rows, strict=True)
    _, recall, f1, images = precision_recall_fscore_support(labels, predicted, zero_division=0.0)
    capsys.readouterr()
    main(["test", best(run), *QUIET])
    found = result(run, "test")["classes"]
    assert list(found) == ["cat", "dog"]
    screen = capsys.readouterr().out
    for number, (name, scores) in enumerate(found.items()):
        assert scores["images"] == images[number]
        assert [scores["recall"], scores["f1"]] == pytest.approx([recall[number], f1[number]])
        row = rf"(?m)^{name} +{images[number]} +{recall[number]:.4f} +{f1[number]:.4f}$"
        assert bool(re.search(row, screen)) == (most > 1)


def test_what_no_image_tells_is_undefined(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folder(tmp_path / "new", classes=["cat"])
    with pytest.warns(UserWarning, match="dog"):
        main(["test", best(run), f"--data.root={tmp_path / 'new'}", *QUIET])
    assert result(run, "test")["classes"]["dog"] == {"images": 0, "recall": None, "f1": None}
    assert re.search(r"(?m)^dog +0 +- +-$", capsys.readouterr().out)


def test_accuracy_not_above_chance_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folder(tmp_path / "images", classes=["cat", "dog"], images=20)
    make_folder(tmp_path / "images", classes=["cow"], images=60)
    flags = [f"--data.root={tmp_path / 'images'}", "--data.image_size=16", "--data.batch_size=4"]
    flags += ["--model.backbone=TinyConvNet", "--model.optimizer.lr=0", "--data.val_fraction=0.5"]
    run = fit("folder_softmax", tmp_path / "runs", *flags)
    screen = capsys.readouterr().out
    assert re.search(r"(?m)^chance +best val/balanced_accuracy .* 0\.3333", screen)
    main(["test", best(run), *QUIET])
    assert re.search(r"(?m)^chance +test/accuracy .* 0\.6000.* 'cow'$", capsys.readouterr().out)


@pytest.mark.parametrize(("accuracy", "lines"), [(0.69, 1), (0.71, 0)])
def test_chance_is_what_two_standard_errors_do_not_exceed(accuracy: float, lines: int) -> None:
    """The error is 0.049 with 60 cows among 100 images; the other set has no accuracy."""
    metrics = {"test/accuracy": accuracy, "test/balanced_accuracy": 0.1, "best val/loss": 1.0}
    counts = {"val": [1, 1, 1], "test": [20, 60, 20]}
    assert len(results._describe_chance(metrics, counts, ["cat", "cow", "dog"])) == lines


@pytest.mark.parametrize("flag", [None, "--data.balanced_sampling=true", "--model.class_weights=balanced"])
def test_unequal_classes_are_named_with_the_remedy(
    flag: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_folder(tmp_path / "images", classes=["cat"], images=50)
    make_folder(tmp_path / "images", classes=["dog"], images=20)
    flags = [f"--data.root={tmp_path / 'images'}", "--data.image_size=16", "--model.backbone=TinyConvNet"]
    flags += ["--trainer.enable_progress_bar=true"]
    run = fit("folder_softmax", tmp_path / "runs", *flags, *([flag] if flag else []))
    screen = capsys.readouterr().out
    assert re.search(r"(?m)^epoch 1/1: loss \d\.\d{4}, val/balanced_accuracy \d\.\d{4},", screen)
    [line] = re.findall(r"(?m)^imbalance +(.*)$", screen)
    assert "val/balanced_accuracy" in line
    assert ("balanced_sampling" in line) == ("class_weights" in line) == (flag is None)
    assert result(run)["monitor"] == "val/balanced_accuracy"
    assert yaml.safe_load((run / "config.yaml").read_text())["checkpoint"]["monitor"] == "auto"


@pytest.mark.parametrize("broken", [2, 8])
def test_broken_images_are_named_first_and_the_others_are_predicted(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: int
) -> None:
    folder = tmp_path / "new"
    for index in range(9):
        make_image(folder / f"{index}.png", 16, index)
    whole = (folder / "0.png").read_bytes()
    for index in range(1, broken + 1):
        (folder / f"{index}.png").write_bytes(whole[:150] if index % 2 else b"")
    with pytest.warns(UserWarning, match=f"{broken} files .*; the other images are"):
        line = refusal(capsys, *predict(run, folder))
    assert files_of(run / "predictions.csv") == ["0.png", *(f"{index}.png" for index in range(broken + 1, 9))]
    assert f"{broken} files" in line
    assert f"{folder / '1.png'} (" in line
    assert f"{folder / '2.png'} (an empty file)" in line
    if broken == 8:
        assert len(Path(line.split("all are listed in ")[1].split(";")[0]).read_text().splitlines()) == broken


def test_nothing_but_broken_images_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "a.png").write_bytes(b"no image")
    assert str(tmp_path / "new" / "a.png") in refusal(capsys, *predict(run, tmp_path / "new"))
    assert not (run / "predictions.csv").exists()


def refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 1


@needs_fork
def test_a_process_that_starts_others_to_predict_fails_for_broken_images(run: Path, tmp_path: Path) -> None:
    make_image(tmp_path / "new" / "good.png", 16, 0)
    (tmp_path / "new" / "broken.png").write_bytes(b"no image")
    flags = ["--trainer.strategy=ddp_fork", "--trainer.devices=1"]
    run_groups((1, refused, [*predict(run, tmp_path / "new"), *flags]))
    assert files_of(run / "predictions.csv") == ["good.png"]
    assert {path.name for path in run.glob(".*")} == {".metricloss_run"}


@pytest.mark.parametrize(("subcommand", "cache_gb"), [("test", 0), ("test", 1), ("validate", 0), ("predict", 0)])
def test_broken_images_of_the_set_are_named(
    trained: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], subcommand: str, cache_gb: int
) -> None:
    shutil.copytree(trained / "images", tmp_path / "images")
    for path in (tmp_path / "images").glob("*/*.png"):
        path.write_bytes(path.read_bytes()[:-200])  # its head is whole
    flags = [f"--data.root={tmp_path / 'images'}", f"--data.cache_gb={cache_gb}", "--data.batch_size=1"]
    line = refusal(capsys, subcommand, best(run), *flags)
    assert str(tmp_path / "images") in line
    assert int(line.removeprefix("error: ").split()[0]) > 1  # files, not the first alone
    assert not list(run.glob(f"{subcommand}*"))


def test_processes_agree_on_what_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each looks at its share, and all leave out the same."""
    from metricloss_pl.data import UnlabeledFolderDataModule, base

    for index in range(5):
        make_image(tmp_path / f"{index}.png", 16, index)
    for index in (1, 2):
        (tmp_path / f"{index}.png").write_bytes(b"no image")
    shares: list[dict[Path, str]] = []
    looked_at: list[list[str]] = []
    find = base.find_unreadable

    def noted(files: list[Path], in_channels: int) -> dict[Path, str]:
        looked_at.append([path.name for path in files])
        shares.append(find(files, in_channels))
        return shares[-1]

    def all_gather(gathered: list[object], own: object) -> None:
        gathered[:] = [find([tmp_path / f"{i}.png" for i in range(rank, 5, 2)], 3) for rank in range(2)]

    monkeypatch.setattr(base, "find_unreadable", noted)
    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather)
    for rank in range(2):
        data = UnlabeledFolderDataModule(predict_dir=str(tmp_path), class_names=["a", "b"])
        monkeypatch.setattr(data, "_processes", lambda rank=rank: (2, rank))
        with pytest.warns(UserWarning, match="2 files cannot be read"):
            data.setup("predict")
        assert data.predict_files == ["0.png", "3.png", "4.png"]
        assert data.unreadable is not None
        assert list(data.unreadable.broken) == [tmp_path / "1.png", tmp_path / "2.png"]
    assert looked_at == [["0.png", "2.png", "4.png"], ["1.png", "3.png"]]
