"""A run keeps its split, and what is evaluated where: from the command line."""

from __future__ import annotations

import csv
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from metricloss_pl.cli import main
from metricloss_pl.data import ImageFolderDataModule, ImageListDataModule, MNISTDataModule, NpzDataModule
from metricloss_pl.data.split_file import digest_of_split, read_split
from metricloss_pl.errors import UserError
from tests.helpers import make_image

CONFIGS = Path(__file__).parent.parent / "configs"
QUIET = ["--trainer.callbacks=null", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
SMALL = ["--model.backbone=TinyConvNet", "--data.image_size=8", "--data.batch_size=8", "--trainer.max_epochs=1", *QUIET]


def make_images(root: Path, name: str = "old", count: int = 20, classes: str = "ab", seed: int = 0) -> Path:
    for number, label in enumerate(classes):
        for image in range(count):
            make_image(root / label / f"{name}_{image:03d}.png", 8, seed + 1000 * number + image, 60 + 100 * number)
    return root


def fit(root: Path, *flags: str) -> Path:
    """Trains on a folder, and returns the run's folder."""
    runs = root.parent / "runs"
    known = set(runs.glob("*/version_*"))
    flags = [f"--data.root={root}", f"--runs_dir={runs}", *SMALL, *flags]
    main(["fit", f"--config={CONFIGS / 'folder_softmax.yaml'}", *flags])
    (run,) = set(runs.glob("*/version_*")) - known
    return run


def best(run: Path) -> str:
    return f"--ckpt_path={run / 'checkpoints' / 'best.ckpt'}"


def refusal(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(list(args))
    assert caught.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]


def sets(run: Path) -> dict[str, set[str]]:
    with (run / "split.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: {row["file"] for row in rows if row["split"] == name} for name in ("train", "val", "test")}


def evaluate(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[str, str]:
    """The row on the images that an evaluation prints, and its warnings."""
    capsys.readouterr()
    with warnings.catch_warnings(record=True) as caught:
        main(list(args))
    rows = capsys.readouterr().out.splitlines()
    return next(row for row in rows if row.startswith("images")), "\n".join(str(one.message) for one in caught)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_images(tmp_path / "root")


def predicted(run: Path) -> set[str]:
    with next(run.glob("predictions*.csv")).open(newline="") as file:
        return {row["file"] for row in csv.DictReader(file)}


def test_images_that_come_and_go_leave_the_split_as_it_is(folder, capsys):
    run = fit(folder)
    before = sets(run)
    assert [len(before[name]) for name in ("train", "val", "test")] == [26, 6, 8]
    checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert checkpoint["split"]["digest"] == digest_of_split(read_split(run / "split.csv"))
    make_images(folder, "new", 3)
    gone = sorted(before["test"])[0]
    (folder / gone).unlink()
    row, errors = evaluate(capsys, "test", best(run))
    assert row.endswith("7 test images of 2 classes")
    assert "not used: 6 images not in" in errors
    assert f"missing: 1 image of {run / 'split.csv'} (1 test), such as {gone!r}; the others are used" in errors
    main(["predict", best(run), *QUIET])
    assert predicted(run) == before["test"] - {gone}
    row, _ = evaluate(capsys, "validate", best(run))
    assert row.endswith("6 validation images of 2 classes")
    (folder / sorted(before["train"])[0]).unlink()
    with pytest.warns(UserWarning, match=r"\(1 training, 1 test\)"):
        main(["fit", f"--resume={run}", "--trainer.max_epochs=2"])
    assert "25 training, 6 validation and 7 test images of 2 classes" in capsys.readouterr().out
    assert sets(run) == before
    again = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert (again["epoch"], again["split"]) == (1, checkpoint["split"])


def test_a_run_and_its_images_may_move(folder, tmp_path, capsys):
    run = fit(folder)
    make_images(folder, "new", 2)
    moved, images = shutil.move(run, tmp_path / "kept"), shutil.move(folder, tmp_path / "images")
    (tmp_path / "link").symlink_to(images)
    for root in (images, f"{images}/", tmp_path / "link"):
        row, errors = evaluate(capsys, "test", best(Path(moved)), f"--data.root={root}")
        assert row.endswith("8 test images of 2 classes")
        assert "not used: 4 images not in" in errors
    away = shutil.copy(Path(moved) / "checkpoints" / "best.ckpt", tmp_path / "mine.ckpt")
    other = ["--data=ImageFolderDataModule", f"--data.root={images}"]
    assert "images have come or gone" in refusal(capsys, "test", f"--ckpt_path={away}", *other)
    given = f"--data.split_file={Path(moved) / 'split.csv'}"
    row, _ = evaluate(capsys, "test", f"--ckpt_path={away}", *other, given)
    assert row.endswith("8 test images of 2 classes")


def test_another_split_is_refused(folder, capsys):
    run = fit(folder)
    line = refusal(capsys, "test", best(run), "--data.test_fraction=0.5")
    assert "--data.test_fraction with --ckpt_path: another split would put training images among those of test" in line
    text = (run / "split.csv").read_text()
    (run / "split.csv").write_text(text.replace(",train", ",test", 1))
    line = refusal(capsys, "test", best(run))
    digest = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["split"]["digest"]
    assert f"{run / 'split.csv'} is not the split that" in line
    assert digest in line
    assert "is not the split" in refusal(capsys, "fit", f"--resume={run}", "--trainer.max_epochs=2")
    (run / "split.csv").unlink()
    assert evaluate(capsys, "test", best(run))[0].endswith("8 test images of 2 classes")
    make_images(folder, "new", 3)
    line = refusal(capsys, "test", best(run))
    assert digest in line
    assert "images have come or gone" in line
    line = refusal(capsys, "fit", f"--resume={run}", "--trainer.max_epochs=2")
    assert line.endswith(f"{run / 'split.csv'} is missing: put it back")
    (run / "split.csv").write_text(text)
    main(["fit", f"--resume={run}", "--trainer.max_epochs=2"])


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
        assert evaluate(capsys, "test", best(run), *given)[0].endswith("8 test images of 2 classes")
    make_images(folder, "new", 1)
    file.unlink()  # the run has a split of its own
    row, errors = evaluate(capsys, "test", best(run))
    assert row.endswith("8 test images of 2 classes")
    assert f"images not in {run / 'split.csv'}" in errors
    main(["predict", best(run), f"--data.predict_dir={folder / 'a'}", *QUIET])
    main(["fit", f"--resume={run}", "--trainer.max_epochs=2"])
    assert sets(run) == before
    new = make_images(tmp_path / "new", count=5, seed=7)  # images that the file says nothing of
    assert evaluate(capsys, "test", best(run), f"--data.root={new}")[0].endswith("10 test images of 2 classes")


def test_a_split_file_counts_where_the_run_has_lost_its_split(folder, tmp_path, capsys):
    file = tmp_path / "mine.csv"
    ImageFolderDataModule(root=str(folder), seed=3).save_split(file)
    run = fit(folder, f"--data.split_file={file}")
    (run / "split.csv").unlink()
    assert evaluate(capsys, "test", best(run))[0].endswith("8 test images of 2 classes")
    ImageFolderDataModule(root=str(folder), seed=4).save_split(file)
    assert "is missing: put it back" in refusal(capsys, "test", best(run))
    assert f"{file} is not the split that" in refusal(capsys, "test", best(run), f"--data.split_file={file}")


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_split_is_found_wherever_a_checkpoint_is(folder, tmp_path, capsys, elsewhere):
    where = [f"--checkpoint.dirpath={tmp_path / 'elsewhere'}"] if elsewhere else []
    run = fit(folder, "--checkpoint.filename={epoch}-{val/accuracy:.2f}", *where)
    (path,) = (tmp_path / "elsewhere" if elsewhere else run / "checkpoints").glob("*/*.ckpt")
    make_images(folder, "new", 1, classes="a")
    row, errors = evaluate(capsys, "test", f"--ckpt_path={path}")
    assert row.endswith("8 test images of 2 classes")
    assert errors.count("not used: 1 image not in") == 1


def test_checkpoints_without_a_split_are_tested_as_before(folder, capsys):
    run = fit(folder)
    (run / "split.csv").unlink()
    path = run / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["split"]
    torch.save(checkpoint, path)
    assert evaluate(capsys, "test", best(run))[0].endswith("8 test images of 2 classes")
    assert "another split" in refusal(capsys, "validate", best(run), "--data.seed=3")


def test_a_split_is_shared_by_runs(folder, capsys):
    run = fit(folder)
    make_images(folder, "new", 5)
    other = fit(folder, f"--data.split_file={run / 'split.csv'}", "--data.seed=5")
    assert sets(other) == sets(run)
    assert sets(fit(folder, "--data.seed=5")) != sets(run)
    assert evaluate(capsys, "test", best(other))[0].endswith("8 test images of 2 classes")


def test_other_images_are_all_tested(folder, tmp_path, capsys):
    run = fit(folder)
    new = make_images(tmp_path / "new", count=5, classes="bc", seed=7)
    row, errors = evaluate(capsys, "test", best(run), f"--data.root={new}")
    assert "5 test images of " in row
    assert "no test image of class 'a': test metrics are over 1 of 2 classes" in errors
    assert "not used: 5 images of 1 unknown class, 'c' (5)" in errors
    row, _ = evaluate(capsys, "validate", best(run), f"--data.root={new}")
    assert "5 validation images of " in row
    row, _ = evaluate(capsys, "test", best(run), f"--data.root={new}", "--data.test_fraction=0.4")
    assert "2 test images of " in row
    away = shutil.copy(run / "checkpoints" / "best.ckpt", tmp_path / "mine.ckpt")
    flags = ["--data=ImageFolderDataModule", f"--data.root={new}", f"--runs_dir={tmp_path / 'others'}", *QUIET]
    assert "5 test images of " in evaluate(capsys, "test", f"--ckpt_path={away}", *flags)[0]
    shutil.rmtree(new / "b")
    line = refusal(capsys, "test", best(run), f"--data.root={new}")
    assert "has none of the classes 'a', 'b': it has 'c'" in line


def test_other_images_with_a_test_set_of_their_own(folder, tmp_path, capsys):
    run = fit(folder)
    for name, count in (("train", 5), ("test", 3)):
        make_images(tmp_path / "new" / name, count=count, seed=7)
    row, _ = evaluate(capsys, "test", best(run), f"--data.root={tmp_path / 'new'}")
    assert row.endswith("6 test images of 2 classes")


def test_other_images_that_are_a_test_set_alone(folder, tmp_path, capsys):
    run = fit(folder)
    new = make_images(tmp_path / "new" / "test", count=3, classes="a", seed=7).parent
    assert "3 test images of " in evaluate(capsys, "test", best(run), f"--data.root={new}")[0]
    assert ImageFolderDataModule(root=str(new), classes=["test"]).given == ["train"]  # a class of this name


def test_training_images_among_those_tested_are_told(tmp_path, capsys):
    root = tmp_path / "root"
    make_images(root / "train", count=10)
    make_images(root / "test", count=3, seed=500)
    run = fit(root)
    row, errors = evaluate(capsys, "test", best(run), f"--data.root={root / 'train'}")
    assert row.endswith("20 test images of 2 classes")
    assert errors.count("16 of 16 training images looked for are among them") == 1
    _, errors = evaluate(capsys, "test", best(run), f"--data.root={root / 'test'}")
    assert "looked for" not in errors


def test_equal_names_do_not_make_other_images_those_of_the_run(folder, tmp_path, capsys):
    run = fit(folder)
    new = make_images(tmp_path / "new", seed=7)  # the names of the training images, other pictures
    assert evaluate(capsys, "test", best(run), f"--data.root={new}")[0].endswith("40 test images of 2 classes")


def save_npz(file: Path, names: str, **counts: int) -> str:
    generator = np.random.default_rng(counts.get("seed", 0))
    contents = {"classes": np.array([*names])}
    for part, count in counts.items():
        if part != "seed":
            labels = np.arange(count) % len(names)
            contents[f"{part}_labels"] = labels
            noise = generator.integers(0, 100, (count, 8, 8))
            contents[f"{part}_images"] = (noise + 100 * (labels % 2)[:, None, None]).astype(np.uint8)
    np.savez(file, **contents)
    return str(file)


def test_arrays(tmp_path, capsys):
    path = save_npz(tmp_path / "set.npz", "ab", train=60)
    flags = [
        "--model=SoftmaxClassifier",
        "--data=NpzDataModule",
        f"--data.path={path}",
        f"--runs_dir={tmp_path / 'runs'}",
    ]
    main(["fit", *flags, "--data.batch_size=8", "--model.backbone=TinyConvNet", "--trainer.max_epochs=1", *QUIET])
    (run,) = (tmp_path / "runs").glob("*/version_*")
    with np.load(path) as contents:
        images, labels = contents["train_images"], contents["train_labels"]
    front = np.zeros((3, 8, 8), np.uint8) + np.arange(3, dtype=np.uint8)[:, None, None]
    np.savez(
        path,
        classes=np.array(["a", "b"]),
        train_images=np.concatenate([front, images]),
        train_labels=[1, 0, 1, *labels],
    )
    row, errors = evaluate(capsys, "test", best(run))
    assert row.endswith("12 test images of 2 classes")
    assert "not used: 3 images not in" in errors
    other = save_npz(tmp_path / "other.npz", "cab", test=9, seed=3)
    row, errors = evaluate(capsys, "test", best(run), f"--data.path={other}")
    assert row.endswith("6 test images of 2 classes")
    assert "not used: 3 images of 1 unknown class, 'c' (3)" in errors


def test_a_list_of_other_images(folder, tmp_path, capsys):
    def save(name: str, lines: list[str]) -> str:
        (tmp_path / name).write_text("\n".join(["file,label,split", *lines]))
        return str(tmp_path / name)

    files = [f"{label}/old_{image:03d}.png,{label}," for label in "ab" for image in range(12)]
    data = [f"--data.csv={save('train.csv', [f'{line}train' for line in files])}", f"--data.images_dir={folder}"]
    flags = ["--model=SoftmaxClassifier", "--data=ImageListDataModule", *data, f"--runs_dir={tmp_path / 'runs'}"]
    main(["fit", *flags, *SMALL])
    (run,) = (tmp_path / "runs").glob("*/version_*")
    new = [f"{label}/old_{image:03d}.png,{label}," for label in "ab" for image in range(12, 20)]
    unmarked = save("new.csv", [f"{line}train" for line in new])
    assert evaluate(capsys, "test", best(run), f"--data.csv={unmarked}")[0].endswith("16 test images of 2 classes")
    marked = save("marked.csv", [f"{line}test" for line in new[:5]])
    assert "5 test images of " in evaluate(capsys, "test", best(run), f"--data.csv={marked}")[0]


# From Python.


def test_save_split_and_use_it(tmp_path):
    make_images(tmp_path / "root", count=10)
    data = ImageFolderDataModule(root=str(tmp_path / "root"))
    digest = data.save_split(tmp_path / "mine.csv")
    assert digest == digest_of_split(read_split(tmp_path / "mine.csv"))
    other = ImageFolderDataModule(root=str(tmp_path / "root"), split_file=str(tmp_path / "mine.csv"), seed=9)
    for module in (data, other):
        module.setup(None)
    for part in ("train", "val", "test"):
        assert other.samples(part).names == data.samples(part).names
    # A split is a list of images, too.
    listed = ImageListDataModule(csv=str(tmp_path / "mine.csv"), images_dir=str(tmp_path / "root"))
    listed.setup(None)
    assert listed.samples("val").names == data.samples("val").names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na,b", "has no column 'split'"),
        ("file,label,split\n", "lists no image"),
        ("file,label,split\na.png,b,dev\n", "line 2: a file and one of train, val and test are needed"),
        (None, "there is no such file"),
    ],
)
def test_split_files_that_cannot_be_used(tmp_path, text, message):
    if text is not None:
        (tmp_path / "split.csv").write_text(text)
    make_images(tmp_path / "root", count=3)
    with pytest.raises(UserError, match=message):
        ImageFolderDataModule(root=str(tmp_path / "root"), split_file=str(tmp_path / "split.csv"))


def test_a_set_without_any_of_its_images(tmp_path):
    make_images(tmp_path / "root", count=10)
    data = ImageFolderDataModule(root=str(tmp_path / "root"))
    data.save_split(tmp_path / "split.csv")
    for name in data.read("test").names:
        (tmp_path / "root" / name).unlink()
    data = ImageFolderDataModule(root=str(tmp_path / "root"), split_file=str(tmp_path / "split.csv"))
    with pytest.raises(UserError, match="has none of the 4 test images of"):
        data.setup("test")


def test_class_folders_are_not_listed_over_and_over(tmp_path, monkeypatch):
    root = make_images(tmp_path / "root", count=40)
    listed = 0
    scan = os.scandir

    class Counted:
        def __init__(self, path):
            self.entries = scan(path)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.entries.close()

        def __iter__(self):
            return self

        def __next__(self):
            nonlocal listed
            entry = next(self.entries)
            listed += 1
            return entry

    monkeypatch.setattr(os, "scandir", Counted)
    data = ImageFolderDataModule(root=str(root))
    assert listed < 20  # entries, of the folders of 80 images
    data.setup(None)
    data.left_out()
    data.save_split(tmp_path / "split.csv")
    assert listed < 3 * 80


def test_equal_arrays_stay_in_their_sets(tmp_path):
    zeros = np.zeros((30, 4, 4), np.uint8)
    np.savez(tmp_path / "set.npz", train_images=zeros, train_labels=np.arange(30) % 3)
    data = NpzDataModule(path=str(tmp_path / "set.npz"))
    data.save_split(tmp_path / "split.csv")
    other = NpzDataModule(path=str(tmp_path / "set.npz"), split_file=str(tmp_path / "split.csv"))
    for module in (data, other):
        module.setup(None)
    for part in ("train", "val", "test"):
        assert other.class_counts.tolist() == data.class_counts.tolist()
        assert other.samples(part).labels.bincount().tolist() == data.samples(part).labels.bincount().tolist()


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
    assert [sum(row.split == part for row in rows) for part in ("train", "val", "test")] == [54, 6, 60]
    assert rows[-1].file == "test[59]"
