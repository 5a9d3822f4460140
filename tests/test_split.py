"""A run keeps its split, and a trained network is evaluated on images that it was not trained on."""

from __future__ import annotations

import csv
import os
import shutil
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from metricloss_pl.cli import main
from metricloss_pl.cli.split import choose_images
from metricloss_pl.data import ImageFolderDataModule, ImageListDataModule, MNISTDataModule, NpzDataModule
from metricloss_pl.data.samples import SET_NAMES
from metricloss_pl.data.split_file import digest_of_split, read_split
from metricloss_pl.errors import UserError
from tests import command_line
from tests.command_line import QUIET, SHORT, best, load, refusal
from tests.helpers import make_folder, make_image

SMALL = ["--model.backbone=TinyConvNet", "--data.batch_size=8"]


def make_images(root: Path, name: str = "old", count: int = 20, classes: str = "ab", seed: int = 0) -> Path:
    for number, label in enumerate(classes):
        for image in range(count):
            make_image(root / label / f"{name}_{image:03d}.png", 8, seed + 1000 * number + image, 60 + 100 * number)
    return root


def fit(root: Path, *flags: str) -> Path:
    """Train on a folder; return the run's folder."""
    flags = [f"--data.root={root}", "--data.image_size=8", *SMALL, *flags]
    return command_line.fit("folder_softmax", root.parent / "runs", *flags)


def sets(run: Path) -> dict[str, set[str]]:
    with (run / "split.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: {row["file"] for row in rows if row["split"] == name} for name in ("train", "val", "test")}


def evaluate(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[str, str]:
    """Return the row on the images that an evaluation prints, without its name, and its warnings."""
    capsys.readouterr()
    with warnings.catch_warnings(record=True) as caught:
        main(list(args))
    rows = capsys.readouterr().out.splitlines()
    row = next(row for row in rows if row.startswith("images"))
    return row.removeprefix("images").strip(), "\n".join(str(one.message) for one in caught)


def images_of(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    return evaluate(capsys, *args)[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_images(tmp_path / "root")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, which tests leave as it is, beside the folder `root` of its images."""
    return fit(make_images(tmp_path_factory.mktemp("trained") / "root"))


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run; its config names the same images."""
    return Path(shutil.copytree(trained, tmp_path / "runs" / "folder_softmax" / "version_0"))


def predicted(run: Path) -> set[str]:
    with next(run.glob("predictions*.csv")).open(newline="") as file:
        return {row["file"] for row in csv.DictReader(file)}


def test_images_that_come_and_go_leave_the_split_as_it_is(folder, capsys):
    run = fit(folder)
    before = sets(run)
    assert [len(before[name]) for name in ("train", "val", "test")] == [26, 6, 8]
    split = load(run / "checkpoints" / "best.ckpt")["split"]
    assert split["digest"] == digest_of_split(read_split(run / "split.csv"))
    make_images(folder, "new", 3)
    gone = sorted(before["test"])[0]
    (folder / gone).unlink()
    row, warned = evaluate(capsys, "test", best(run))
    assert row == "7 test images of 2 classes"
    assert "not used: 6 images" in warned
    assert f"1 image of {run / 'split.csv'} (1 test), such as {gone!r}" in warned
    main(["predict", best(run), *QUIET])
    assert predicted(run) == before["test"] - {gone}
    assert images_of(capsys, "validate", best(run)) == "6 validation images of 2 classes"
    (folder / sorted(before["train"])[0]).unlink()
    with pytest.warns(UserWarning, match=r"\(1 training, 1 test\)"):
        main(["fit", f"--resume={run}", "--trainer.max_epochs=2"])
    assert "25 training, 6 validation and 7 test images of 2 classes" in capsys.readouterr().out
    assert sets(run) == before
    last = load(run / "checkpoints" / "last.ckpt")
    assert (last["epoch"], last["split"]) == (1, split)


def test_a_run_and_its_images_may_move(folder, tmp_path, capsys):
    run = fit(folder)
    make_images(folder, "new", 2)
    run, images = Path(shutil.move(run, tmp_path / "kept")), shutil.move(folder, tmp_path / "images")
    (tmp_path / "link").symlink_to(images)
    for root in (images, f"{images}/", tmp_path / "link"):
        row, warned = evaluate(capsys, "test", best(run), f"--data.root={root}")
        assert row == "8 test images of 2 classes"
        assert warned.count("not used: 4 images") == 1
    away = [f"--ckpt_path={shutil.copy(run / 'checkpoints' / 'best.ckpt', tmp_path / 'mine.ckpt')}"]
    away += ["--data=ImageFolderDataModule", f"--data.root={images}"]
    assert "a new split" in refusal(capsys, "test", *away)
    assert images_of(capsys, "test", *away, f"--data.split_file={run / 'split.csv'}") == "8 test images of 2 classes"


def test_another_split_is_refused(folder, capsys):
    run = fit(folder)
    digest = load(run / "checkpoints" / "best.ckpt")["split"]["digest"]
    resume = ["fit", f"--resume={run}", "--trainer.max_epochs=2"]
    for flag in ("--data.test_fraction=0.5", "--data.seed=3"):
        assert flag.partition("=")[0] in refusal(capsys, "test", best(run), flag)
    assert images_of(capsys, "test", best(run), "--data.seed=0").startswith("8 test")  # as in training
    text = (run / "split.csv").read_text()
    (run / "split.csv").write_text(text.replace(",train", ",test", 1))
    for command in (["test", best(run)], resume):
        line = refusal(capsys, *command)
        assert str(run / "split.csv") in line
        assert digest in line
    (run / "split.csv").unlink()
    assert images_of(capsys, "test", best(run)) == "8 test images of 2 classes"
    make_images(folder, "new", 3)
    for command in (["test", best(run)], resume):
        line = refusal(capsys, *command)
        assert f"{run / 'split.csv'} is missing" in line
        assert digest in line
    (run / "split.csv").write_text(text)
    main(resume)


@pytest.mark.parametrize("case", ["train and test alone", "samples_per_class", "missing images"])
def test_a_run_on_a_split_file_is_tested_and_resumed(folder, tmp_path, capsys, case):
    file = tmp_path / "mine.csv"
    ImageFolderDataModule(root=str(folder)).save_split(file)
    lines = file.read_text().splitlines()
    flags = []
    if case == "train and test alone":
        lines = [line.replace(",val", ",train") for line in lines]
    elif case == "samples_per_class":
        flags = ["--data.samples_per_class=5"]
    else:
        lines += ["a/gone.png,a,train", "b/gone.png,b,test"]
    file.write_text("\n".join(lines))
    run = fit(folder, f"--data.split_file={file}", *flags)
    before = sets(run)
    for given in ([], [f"--data.split_file={file}"], [f"--data.split_file={run / 'split.csv'}"]):
        assert images_of(capsys, "test", best(run), *given) == "8 test images of 2 classes"
    make_images(folder, "new", 1)
    file.unlink()  # the run has a split of its own
    row, warned = evaluate(capsys, "test", best(run))
    assert row == "8 test images of 2 classes"
    assert f"images not in {run / 'split.csv'}" in warned
    main(["predict", best(run), f"--data.predict_dir={folder / 'a'}", *QUIET])
    main(["fit", f"--resume={run}", "--trainer.max_epochs=2"])
    assert sets(run) == before
    new = make_images(tmp_path / "new", count=5, seed=7)  # images that the file does not list
    assert images_of(capsys, "test", best(run), f"--data.root={new}") == "10 test images of 2 classes"


def test_a_split_file_counts_where_the_run_has_lost_its_split(folder, tmp_path, capsys):
    file = tmp_path / "mine.csv"
    ImageFolderDataModule(root=str(folder), seed=3).save_split(file)
    run = fit(folder, f"--data.split_file={file}")
    (run / "split.csv").unlink()
    assert images_of(capsys, "test", best(run)) == "8 test images of 2 classes"
    ImageFolderDataModule(root=str(folder), seed=4).save_split(file)
    for flags in ([], [f"--data.split_file={file}"]):
        assert f"{file} is not the one" in refusal(capsys, "test", best(run), *flags)


def test_a_split_is_shared_by_runs(folder, capsys):
    run = fit(folder)
    make_images(folder, "new", 5)
    other = fit(folder, f"--data.split_file={run / 'split.csv'}", "--data.seed=5", "--checkpoint.filename={epoch}")
    assert sets(other) == sets(run)
    assert sets(fit(folder, "--data.seed=5")) != sets(run)
    (checkpoint,) = (other / "checkpoints").glob("epoch*.ckpt")
    assert images_of(capsys, "test", f"--ckpt_path={checkpoint}") == "8 test images of 2 classes"


def test_other_images_are_all_tested(run, tmp_path, capsys):
    new = make_images(tmp_path / "new", count=5, classes="bc", seed=7)
    root = f"--data.root={new}"
    row, warned = evaluate(capsys, "test", best(run), root)
    assert "5 test images of " in row
    assert "class 'a'" in warned
    assert "1 of 2 classes" in warned
    assert "5 images of 1 unknown class, 'c' (5)" in warned
    assert "5 validation images of " in images_of(capsys, "validate", best(run), root)
    assert "2 test images of " in images_of(capsys, "test", best(run), root, "--data.test_fraction=0.4")
    away = shutil.copy(run / "checkpoints" / "best.ckpt", tmp_path / "mine.ckpt")
    flags = ["--data=ImageFolderDataModule", root, f"--runs_dir={tmp_path / 'others'}", *QUIET]
    assert "5 test images of " in images_of(capsys, "test", f"--ckpt_path={away}", *flags)
    shutil.rmtree(new / "b")
    line = refusal(capsys, "test", best(run), root)
    assert "'a', 'b'" in line
    assert "'c'" in line


@pytest.mark.parametrize(
    ("counts", "classes", "expected"),
    [
        ({"train": 5, "test": 3}, "ab", "6 test images of 2 classes"),
        ({"test": 3}, "a", "3 test images of "),
        ({"": 20}, "ab", "40 test images of 2 classes"),  # the names of the training images, other pictures
    ],
)
def test_other_images_with_a_test_set_or_without(counts, classes, expected, run, tmp_path, capsys):
    for name, count in counts.items():
        make_images(tmp_path / "new" / name, count=count, classes=classes, seed=7)
    assert expected in images_of(capsys, "test", best(run), f"--data.root={tmp_path / 'new'}")


def test_training_images_among_those_tested_are_told(tmp_path, capsys):
    root = tmp_path / "root"
    make_images(root / "train", count=10)
    make_images(root / "test", count=3, seed=500)
    run = fit(root)
    row, warned = evaluate(capsys, "test", best(run), f"--data.root={root / 'train'}")
    assert row == "20 test images of 2 classes"
    assert warned.count("16 of 16 training images") == 1
    _, warned = evaluate(capsys, "test", best(run), f"--data.root={root / 'test'}")
    assert "training image" not in warned


def save_npz(file: Path, names: str, subset: str, count: int, seed: int = 0) -> Path:
    labels = np.arange(count) % len(names)
    noise = np.random.default_rng(seed).integers(0, 100, (count, 8, 8))
    images = (noise + 100 * (labels % 2)[:, None, None]).astype(np.uint8)
    np.savez(file, classes=np.array([*names]), **{f"{subset}_labels": labels, f"{subset}_images": images})
    return file


def test_arrays(tmp_path, capsys):
    path = save_npz(tmp_path / "set.npz", "ab", "train", 60)
    flags = ["--model=SoftmaxClassifier", "--data=NpzDataModule", f"--data.path={path}", *SMALL, *SHORT]
    main(["fit", *flags, f"--runs_dir={tmp_path / 'runs'}"])
    (run,) = (tmp_path / "runs").glob("*/version_*")
    with np.load(path) as contents:
        images, labels = contents["train_images"], contents["train_labels"]
    front = np.zeros((3, 8, 8), np.uint8) + np.arange(3, dtype=np.uint8)[:, None, None]
    changed = {"train_images": np.concatenate([front, images]), "train_labels": [1, 0, 1, *labels]}
    np.savez(path, classes=np.array(["a", "b"]), **changed)
    row, warned = evaluate(capsys, "test", best(run))
    assert row == "12 test images of 2 classes"
    assert "not used: 3 images" in warned
    other = save_npz(tmp_path / "other.npz", "cab", "test", 9, seed=3)
    row, warned = evaluate(capsys, "test", best(run), f"--data.path={other}")
    assert row == "6 test images of 2 classes"
    assert "3 images of 1 unknown class, 'c' (3)" in warned


def test_a_list_of_other_images(folder, tmp_path, capsys):
    def save(name: str, subset: str, numbers: range, classes: str = "ab") -> Path:
        rows = [f"{label}/old_{number:03d}.png,{label},{subset}" for label in classes for number in numbers]
        (tmp_path / name).write_text("\n".join(["file,label,split", *rows]))
        return tmp_path / name

    data = [f"--data.csv={save('train.csv', 'train', range(12))}", f"--data.images_dir={folder}", "--data.image_size=8"]
    flags = ["--model=SoftmaxClassifier", "--data=ImageListDataModule", *data, f"--runs_dir={tmp_path / 'runs'}"]
    main(["fit", *flags, *SMALL, *SHORT])
    (run,) = (tmp_path / "runs").glob("*/version_*")
    unmarked = save("new.csv", "train", range(12, 20))
    assert images_of(capsys, "test", best(run), f"--data.csv={unmarked}") == "16 test images of 2 classes"
    marked = save("marked.csv", "test", range(12, 17), "a")
    assert "5 test images of " in images_of(capsys, "test", best(run), f"--data.csv={marked}")


@pytest.mark.parametrize("record", [{}, {"split": None}, {"split": {"digest": "0"}}])
def test_a_checkpoint_without_a_split(record, tmp_path):
    make_images(tmp_path / "root", count=3)
    data = ImageFolderDataModule(root=str(tmp_path / "root"))
    with pytest.raises(UserError, match=r"mine\.ckpt"):
        choose_images(data, "test", [], record, tmp_path / "mine.ckpt")


# From Python.


def test_save_split_and_use_it(tmp_path):
    make_images(tmp_path / "root", count=10)
    data = ImageFolderDataModule(root=str(tmp_path / "root"))
    digest = data.save_split(tmp_path / "mine.csv")
    assert digest == digest_of_split(read_split(tmp_path / "mine.csv"))
    other = ImageFolderDataModule(root=str(tmp_path / "root"), split_file=str(tmp_path / "mine.csv"), seed=9)
    for module in (data, other):
        module.setup(None)
    for subset in ("train", "val", "test"):
        assert other.samples(subset).names == data.samples(subset).names
    # A split is a list of images, too.
    listed = ImageListDataModule(csv=str(tmp_path / "mine.csv"), images_dir=str(tmp_path / "root"))
    listed.setup(None)
    assert listed.samples("val").names == data.samples("val").names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na,b", "'split'"),
        ("file,label,split\n", "no image"),
        ("file,label,split\na.png,b,dev\n", "line 2.*dev"),
        (None, "no such file"),
    ],
)
def test_split_files_that_cannot_be_used(tmp_path, text, message):
    if text is not None:
        (tmp_path / "split.csv").write_text(text)
    make_images(tmp_path / "root", count=3)
    with pytest.raises(UserError, match=message):
        ImageFolderDataModule(root=str(tmp_path / "root"), split_file=str(tmp_path / "split.csv"))


@pytest.mark.parametrize("again", ["train", "test"])
def test_an_image_with_two_rows(again, tmp_path):
    make_images(tmp_path / "root", count=10)
    data = ImageFolderDataModule(root=str(tmp_path / "root"))
    data.save_split(tmp_path / "split.csv")
    name = next(row.file for row in read_split(tmp_path / "split.csv") if row.split == "train")
    with (tmp_path / "split.csv").open("a") as file:
        file.write(f"{name},a,{again}\n")
    data = ImageFolderDataModule(root=str(tmp_path / "root"), split_file=str(tmp_path / "split.csv"))
    with pytest.raises(UserError, match=f"split.csv .*'{name}'.* training set .* {SET_NAMES[again]} set"):
        data.setup("test")


def test_a_set_without_any_of_its_images(tmp_path):
    make_images(tmp_path / "root", count=10)
    data = ImageFolderDataModule(root=str(tmp_path / "root"))
    data.save_split(tmp_path / "split.csv")
    for name in data.read("test").names:
        (tmp_path / "root" / name).unlink()
    data = ImageFolderDataModule(root=str(tmp_path / "root"), split_file=str(tmp_path / "split.csv"))
    with pytest.raises(UserError, match="4 test images"):
        data.setup("test")


def test_class_folders_are_not_listed_again_and_again(tmp_path, monkeypatch):
    root, listed, scan = make_images(tmp_path / "root", count=40), [], os.scandir

    @contextmanager
    def counted(path):
        with scan(path) as entries:
            yield (listed.append(entry.name) or entry for entry in entries)

    monkeypatch.setattr(os, "scandir", counted)
    data = ImageFolderDataModule(root=str(root))
    assert len(listed) < 20  # entries, of the folders of 80 images
    data.setup(None)
    data.left_out()
    data.save_split(tmp_path / "split.csv")
    assert len(listed) < 3 * 80


def test_equal_arrays_stay_in_their_sets(tmp_path):
    zeros = np.zeros((30, 4, 4), np.uint8)
    np.savez(tmp_path / "set.npz", train_images=zeros, train_labels=np.arange(30) % 3)
    data = NpzDataModule(path=str(tmp_path / "set.npz"))
    data.save_split(tmp_path / "split.csv")
    other = NpzDataModule(path=str(tmp_path / "set.npz"), split_file=str(tmp_path / "split.csv"))
    for module in (data, other):
        module.setup(None)
    for subset in ("train", "val", "test"):
        assert other.class_counts.tolist() == data.class_counts.tolist()
        assert other.samples(subset).labels.bincount().tolist() == data.samples(subset).labels.bincount().tolist()


def test_official_sets_are_recorded(tmp_path, monkeypatch):
    class Official(MNISTDataModule):
        def read(self, part):
            if part == "val":
                return None
            from metricloss_pl.data.samples import array_samples

            images = np.random.default_rng(len(part)).integers(0, 256, (60, 4, 4), dtype=np.uint8)
            return array_samples(images, np.arange(60) % 10, part)

    data = Official(root=str(tmp_path))
    data.save_split(tmp_path / "split.csv")
    rows = read_split(tmp_path / "split.csv")
    assert [sum(row.split == subset for row in rows) for subset in ("train", "val", "test")] == [54, 6, 60]
    assert rows[-1].file == "test[59]"


def test_an_automatic_image_size_is_that_of_the_training(tmp_path):
    data = ImageFolderDataModule(root=str(make_folder(tmp_path)), predict_dir=str(tmp_path), image_size="auto")
    trained = {"in_channels": 3, "resize": 56, "image_size": 48}
    choose_images(data, "predict", (), {"image_format": trained}, tmp_path / "best.ckpt")
    assert data.image_format == trained
