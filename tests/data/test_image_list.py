from __future__ import annotations

from pathlib import Path

import pytest

from metricloss_pl.data.lists import ImageListDataModule
from metricloss_pl.errors import UserError
from tests.helpers import make_image


@pytest.fixture
def folder(tmp_path) -> Path:
    for number in range(12):
        make_image(tmp_path / "images" / f"{number}.png", 8, number)
    return tmp_path


def write(folder: Path, *lines: str, encoding: str = "utf-8") -> str:
    file = folder / "list.csv"
    file.write_text("\n".join(lines) + "\n", encoding=encoding)
    return str(file)


def refused(folder: Path, *lines: str, **arguments) -> str:
    """The one line with which the list is refused."""
    with pytest.raises(UserError) as caught:
        ImageListDataModule(csv=write(folder, *lines), **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_spreadsheet_may_separate_by_semicolons(folder):
    path = write(
        folder, "file;label", "images/0.png;cat, big", "images/1.png;dog", "images/2.png;dog", "images/3.png;cat, big"
    )
    assert ImageListDataModule(csv=path).class_names == ["cat, big", "dog"]


def test_given_split(folder):
    path = write(
        folder,
        "label,file,split,note",
        "cat,images/0.png,train,a",
        "ant,images/1.png,Train,b",
        'cat,"images/2.png",valid,"c, d"',
        "cat,images/3.png,validation,",
        "ant,images/4.png,val,",
        'ant, "images/5.png" , test,',
    )
    data = ImageListDataModule(csv=path)
    assert data.class_names == ["ant", "cat"]
    train, val, test = (data.read(part) for part in ("train", "val", "test"))
    assert train.names == ["images/0.png", "images/1.png"]
    assert train.images == [folder / "images" / "0.png", folder / "images" / "1.png"]
    assert train.labels.tolist() == [1, 0]
    assert train.groups is None
    assert val.names == ["images/2.png", "images/3.png", "images/4.png"]
    assert val.labels.tolist() == [1, 1, 0]
    assert test.names == ["images/5.png"]


def test_given_split_without_validation(folder):
    path = write(folder, "file,label,split", "images/0.png,a,train", "images/1.png,a,test")
    assert ImageListDataModule(csv=path).read("val") is None


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["10", "9", "2"], ["2", "9", "10"]),
        (["10", "-3", "2"], ["-3", "2", "10"]),
        (["10", "9", "2b"], ["10", "2b", "9"]),
        (["1.5", "10", "9"], ["1.5", "10", "9"]),
    ],
)
def test_order_of_classes(folder, labels, names):
    path = write(folder, "file,label", *(f"images/{i}.png,{label}" for i, label in enumerate(labels * 2)))
    data = ImageListDataModule(csv=path)
    assert data.class_names == names
    train, test = data.read("train"), data.read("test")
    for samples in (train, test):
        for name, label in zip(samples.names, samples.labels.tolist(), strict=True):
            number = int(name.removeprefix("images/").removesuffix(".png"))
            assert names[label] == (labels * 2)[number]


def test_no_group_stands_on_two_sides(folder):
    lines = [f"images/{i}.png,{i % 2},patient {i // 4 if i < 8 else i}" for i in range(12)]
    path = write(folder, "file,label,group", *lines)
    data = ImageListDataModule(csv=path, test_fraction=0.25, val_fraction=0.25)
    data.setup()
    group = {line.split(",")[0]: line.split(",")[2] for line in lines}
    sides = [{group[name] for name in data.samples(part).names} for part in ("train", "val", "test")]
    assert all(sides)
    assert sum(map(len, sides)) == len(set().union(*sides)) == 6
    assert sum(len(data.samples(part).names) for part in ("train", "val", "test")) == 12


def test_images_without_group_are_groups_of_their_own(folder):
    path = write(folder, "file,label,group", *(f"images/{i}.png,a,{'g' if i < 2 else ''}" for i in range(12)))
    data = ImageListDataModule(csv=path, test_fraction=0.5)
    groups = data.read("train").groups.tolist() + data.read("test").groups.tolist()
    assert len(set(groups)) == 11


def test_root_and_byte_order_mark(folder):
    path = write(folder, "file,label", "0.png,ä", "1.png,ä", "2.png,ä", encoding="utf-8-sig")
    data = ImageListDataModule(csv=path, images_dir=str(folder / "images"))
    assert data.class_names == ["ä"]
    assert data.read("train").images[0].parent == folder / "images"


def test_absolute_files(folder):
    path = write(folder, "file,label", *(f"{folder / 'images'}/{i}.png,a" for i in range(5)))
    assert ImageListDataModule(csv=path, images_dir="/elsewhere").read("test").images[0].is_file()


def test_missing_list(tmp_path):
    with pytest.raises(UserError, match=r"none\.csv cannot be read") as caught:
        ImageListDataModule(csv=str(tmp_path / "none.csv"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("column", ["file", "label"])
def test_missing_column(folder, column):
    other = {"file": "label", "label": "file"}[column]
    message = refused(folder, f"{other},extra", "a,b")
    assert f"list.csv, line 1: no column '{column}'" in message
    assert f"{other}, extra" in message


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("images/1.png,,train,", "no label"),
        ("images/1.png", "no label"),
        (",a,train,", "no file"),
        ("images/none.png,a,train,", "no file {}/images/none.png"),
        ("images/1.png,a,dev,", "unknown split 'dev'"),
        ("images/1.png,a,,", "unknown split ''"),
        ("images/1.png,a,train,g,h", "more entries than columns"),
        ("images/0.png,a,train,", "listed already, in line 2"),
        ("images/1.png,a,test,g", "group 'g' is in test, but in line 3 in train"),
        ("images/1.png,b,test,", "class 'b' is in test, but in no line of train"),
    ],
)
def test_wrong_line_is_named(folder, line, what):
    message = refused(
        folder,
        "file,label,split,group",
        "images/0.png,a,train,",
        "images/2.png,a,train,g",
        "",
        line,
        "images/3.png,a,test,",
    )
    assert "list.csv, line 5: " in message
    assert what.format(folder) in message


def test_line_numbers_count_lines_within_quotes(folder):
    message = refused(folder, "file,label,note", 'images/0.png,a,"two', 'lines"', "images/1.png,,")
    assert "line 4: no label" in message


def test_no_training_line(folder):
    assert "no line has the split 'train'" in refused(folder, "file,label,split", "images/0.png,a,test")


def test_empty_list(folder):
    assert "list.csv lists no image" in refused(folder, "file,label")


def test_empty_file(folder):
    assert "its columns are none" in refused(folder)


def test_list_in_another_encoding(folder):
    (folder / "list.csv").write_bytes("file,label\nimages/0.png,Bär\n".encode("latin-1"))
    with pytest.raises(UserError, match="UTF-8") as caught:
        ImageListDataModule(csv=str(folder / "list.csv"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("head", "row"),
    [
        ("file,label,,", "{file},{label},,"),
        (",file,label", "{number},{file},{label}"),
        ("file,label", "{file},{label},,"),
        ("note,file,label,note", "x,{file},{label},y"),
        ("file;label;;", "{file};{label};;"),
    ],
)
def test_columns_without_a_name_or_a_use_are_ignored(folder, head, row):
    """Spreadsheets write such columns, and empty rows at the end."""
    rows = [row.format(file=f"images/{i}.png", label="ab"[i % 2], number=i) for i in range(4)]
    (folder / "list.csv").write_text("\n".join([head, *rows, ",,," if "," in head else ";;;", ""]))
    data = ImageListDataModule(csv=str(folder / "list.csv"))
    assert data.class_names == ["a", "b"]
    names = [name for part in ("train", "test") if (samples := data.read(part)) for name in samples.names]
    assert sorted(names) == [f"images/{i}.png" for i in range(4)]
