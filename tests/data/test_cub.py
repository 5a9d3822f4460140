from __future__ import annotations

from pathlib import Path

import pytest

from metricloss_pl.data.cub import CUB200DataModule
from metricloss_pl.data.samples import Statistics
from metricloss_pl.errors import UserError
from tests.helpers import make_cub

pytestmark = pytest.mark.usefixtures("miniatures")


def refused(**arguments) -> str:
    """The one line with which the data set is refused."""
    with pytest.raises(UserError) as caught:
        CUB200DataModule(**arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_official_split(tmp_path):
    folder = make_cub(tmp_path, classes=3, images_per_class=5)
    data = CUB200DataModule(root=str(tmp_path), download=False)
    assert data.class_names == ["001.Bird_1", "002.Bird_2", "003.Bird_3"]
    assert data.num_classes == 3
    train, test = data.read("train"), data.read("test")
    assert train.names == [f"{c:03d}.Bird_{c}/Bird_{c}_{i:04d}.jpg" for c in (1, 2, 3) for i in (0, 1, 2)]
    assert test.names == [f"{c:03d}.Bird_{c}/Bird_{c}_{i:04d}.jpg" for c in (1, 2, 3) for i in (3, 4)]
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert train.images == [folder / "images" / name for name in train.names]
    assert all(file.is_file() for file in train.images + test.images)
    assert data.read("val") is None


def test_defaults_are_the_published_ones(tmp_path):
    make_cub(tmp_path)
    data = CUB200DataModule(root=str(tmp_path))
    assert data.image_format == {"in_channels": 3, "resize": 512, "image_size": 448}
    assert data.batch_size == 96
    mean, std = data.normalization
    assert [round(value * 255, 5) for value in mean] == [123.82988, 127.35117, 110.25606]
    assert [round(value * 255, 5) for value in std] == [59.22309, 58.07361, 67.80252]


def test_batches(tmp_path):
    make_cub(tmp_path)
    data = CUB200DataModule(root=str(tmp_path), resize=32, image_size=24, batch_size=4, val_fraction=0.3)
    data.setup()
    assert next(iter(data.train_dataloader()))[0].shape == (4, 3, 24, 24)
    assert sum(len(labels) for _, labels in data.test_dataloader()) == 12


def test_order_of_lines_does_not_matter(tmp_path):
    folder = make_cub(tmp_path)
    before = CUB200DataModule(root=str(tmp_path)).read("train")
    for file in folder.glob("*.txt"):
        file.write_text("\n".join(reversed(file.read_text().splitlines())) + "\n")
    data = CUB200DataModule(root=str(tmp_path))
    assert data.class_names == [f"00{c}.Bird_{c}" for c in (1, 2, 3, 4)]
    assert data.read("train").names == before.names
    assert data.read("train").labels.tolist() == before.labels.tolist()


@pytest.mark.parametrize("name", ["classes", "images", "image_class_labels", "train_test_split"])
def test_missing_index_file(tmp_path, name):
    file = make_cub(tmp_path) / f"{name}.txt"
    file.unlink()
    assert f"{file}: there is no such file" in refused(root=str(tmp_path))


@pytest.mark.parametrize("name", ["classes", "images", "image_class_labels", "train_test_split"])
def test_empty_index_file(tmp_path, name):
    file = make_cub(tmp_path) / f"{name}.txt"
    file.write_text("\n")
    assert f"{file} is empty" in refused(root=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "line", "words"),
    [
        ("classes", "two 002.Bird_2", ["'two 002.Bird_2'", "number"]),
        ("classes", "2", ["'2'", "number"]),
        ("classes", "1 002.Bird_2", ["number 1", "line 1"]),
        ("images", "1 other.jpg", ["number 1", "line 1"]),
        pytest.param("classes", f"{'2' * 5000} 002.Bird_2", ["where a number and a text are needed"], id="long number"),
        ("images", "-2 other.jpg", ["'-2 other.jpg'"]),
        ("image_class_labels", "99 1", ["image 99", "images.txt"]),
        ("image_class_labels", "2 5", ["class 5", "classes.txt"]),
        ("image_class_labels", "2 0", ["class 0", "classes.txt"]),
        ("image_class_labels", "2 one", ["class one", "classes.txt"]),
        ("train_test_split", "99 1", ["image 99", "images.txt"]),
        ("train_test_split", "2 2", ["'2'", "1 (training) or 0 (test)"]),
    ],
)
def test_wrong_line_is_named(tmp_path, name, line, words):
    file = make_cub(tmp_path) / f"{name}.txt"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], line, *lines[2:]]) + "\n")
    message = refused(root=str(tmp_path))
    assert f"{name}.txt, line 2: " in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("name", ["image_class_labels", "train_test_split"])
def test_image_without_label_or_part_is_named(tmp_path, name):
    folder = make_cub(tmp_path)
    lines = (folder / f"{name}.txt").read_text().splitlines()
    (folder / f"{name}.txt").write_text("\n".join(lines[:4] + lines[5:]) + "\n")
    message = refused(root=str(tmp_path))
    assert "images.txt, line 5: image 5 is not in" in message
    assert f"{name}.txt" in message


def test_missing_image_is_named(tmp_path):
    folder = make_cub(tmp_path)
    missing = folder / "images" / "002.Bird_2" / "Bird_2_0001.jpg"
    missing.unlink()
    data = CUB200DataModule(root=str(tmp_path), resize=32, image_size=24)
    with pytest.raises(UserError) as caught:
        data.setup("fit")
    assert str(missing) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_classes_without_images_are_left_out(tmp_path):
    folder = make_cub(tmp_path, classes=3)
    (folder / "classes.txt").write_text("0 Birds\n10 first\n2 second\n30 nobody\n3 third\n")
    labels = folder / "image_class_labels.txt"
    labels.write_text(
        "".join(f"{line}0\n" if line.endswith(" 1") else f"{line}\n" for line in labels.read_text().split("\n") if line)
    )
    data = CUB200DataModule(root=str(tmp_path))
    assert data.class_names == ["second", "third", "first"]
    assert data.read("train").labels.tolist() == [2, 2, 2, 0, 0, 0, 1, 1, 1]


def test_split_file_may_leave_images_out(tmp_path):
    make_cub(tmp_path, classes=2, images_per_class=4)
    (tmp_path / "train_test_split_1.txt").write_text("2 1\n6 1\n3 0\n4 0\n7 0\n")
    data = CUB200DataModule(root=str(tmp_path), split=str(tmp_path / "train_test_split_1.txt"))
    assert data.read("train").names == ["001.Bird_1/Bird_1_0001.jpg", "002.Bird_2/Bird_2_0001.jpg"]
    assert data.read("train").labels.tolist() == [0, 1]
    assert [name[-8:] for name in data.read("test").names] == ["0002.jpg", "0003.jpg", "0002.jpg"]
    assert data.read("val") is None


def test_an_official_split_leaves_no_image_out(tmp_path):
    folder = make_cub(tmp_path, classes=2, images_per_class=4)
    (folder / "train_test_split.txt").write_text("2 1\n6 1\n3 0\n4 0\n7 0\n")
    assert "image 1 is not in" in refused(root=str(tmp_path))


def test_published_statistics_are_those_of_the_official_split(tmp_path, monkeypatch):
    folder = make_cub(tmp_path)
    monkeypatch.setattr(CUB200DataModule, "statistics", Statistics(200, 5994, 5794, (29, 30)))
    small = {"root": str(tmp_path), "resize": 16, "image_size": 8}
    with pytest.raises(UserError, match="but 5,994 images of 200 classes"):
        CUB200DataModule(**small).setup("fit")
    CUB200DataModule(**small, split=str(folder / "train_test_split.txt")).setup()


def write_lists(folder: Path, **lists: list[str]) -> str:
    folder.mkdir(exist_ok=True)
    for part, lines in lists.items():
        (folder / f"{part}.txt").write_text("\n".join(lines) + "\n")
    return str(folder)


def test_lists_replace_the_official_split(tmp_path):
    folder = make_cub(tmp_path, classes=2, images_per_class=4)
    file = "00{0}.Bird_{0}/Bird_{0}_000{1}"
    split = write_lists(
        tmp_path / "lists",
        train=[f"{file.format(2, 3)} 1", f"{file.format(1, 0)} 0"],
        val=[f"{file.format(1, 1)} 0"],
        test=[f"{file.format(1, 2)}.jpg 0", f"{file.format(2, 0)} 1"],
    )
    data = CUB200DataModule(root=str(tmp_path), split=split, resize=16, image_size=8)
    assert data.class_names == ["001.Bird_1", "002.Bird_2"]
    train, val, test = (data.read(part) for part in ("train", "val", "test"))
    assert train.images == [
        folder / "images" / f"{file.format(2, 3)}.jpg",
        folder / "images" / f"{file.format(1, 0)}.jpg",
    ]
    assert [samples.labels.tolist() for samples in (train, val, test)] == [[1, 0], [0], [0, 1]]
    data.setup()
    everything = CUB200DataModule(root=str(tmp_path), split=split, resize=16, image_size=8, val_fraction=0)
    everything.setup("fit")
    assert sorted(everything.samples("train").names) == sorted(train.names + val.names)


def test_lists_without_validation(tmp_path):
    make_cub(tmp_path, classes=1, images_per_class=2)
    lists = {"train": ["001.Bird_1/Bird_1_0000 0"], "test": ["001.Bird_1/Bird_1_0001 0"]}
    data = CUB200DataModule(root=str(tmp_path), split=write_lists(tmp_path / "lists", **lists))
    assert data.read("val") is None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("001.Bird_1/Bird_1_0001 4", "label '4', where a number from 0 to 3 is needed"),
        ("001.Bird_1/Bird_1_0001 ", "where a file and a label are needed"),
        ("001.Bird_1/Bird_1_0099 0", "no file"),
        ("001.Bird_1/Bird_1_0000 0", "listed already, in line 1"),
    ],
)
def test_wrong_line_of_a_list_is_named(tmp_path, line, words):
    make_cub(tmp_path)
    train = [f"00{c}.Bird_{c}/Bird_{c}_0000 {c - 1}" for c in range(1, 5)]
    split = write_lists(tmp_path / "lists", train=[*train, line], test=["001.Bird_1/Bird_1_0005 0"])
    message = refused(root=str(tmp_path), split=split)
    assert "train.txt, line 5: " in message
    assert words in message


def test_split_that_is_not_there(tmp_path):
    make_cub(tmp_path)
    assert f"{tmp_path / 'none'}: there is no such file: give a file like" in refused(
        root=str(tmp_path), split=str(tmp_path / "none")
    )
    (tmp_path / "lists").mkdir()
    assert f"{tmp_path / 'lists' / 'train.txt'}: there is no such file" in refused(
        root=str(tmp_path), split=str(tmp_path / "lists")
    )
