import csv

import numpy as np
import pytest
from PIL import Image

from metricloss_pl.check import check_images, write_report
from metricloss_pl.check.findings import _superfluous
from metricloss_pl.check.listing import Entry
from metricloss_pl.data import ImageListDataModule
from metricloss_pl.errors import UserError
from tests.check.pictures import picture, save
from tests.compare.synthetic import make_comparison
from tests.systems import make_link


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six images per class and set; copies, a broken file, and a class of two images."""
    root = tmp_path_factory.mktemp("data") / "images"
    for number in range(12):
        for label, name in enumerate(("cat", "dog")):
            save(picture(100 * label + number), root / ("test" if number < 6 else "train") / name / f"{number}.png")
    for number in range(2):
        save(picture(200 + number), root / "train" / "rare" / f"{number}.png")
    (root / "train/cat/copy.png").write_bytes((root / "train/cat/6.png").read_bytes())  # of an image of the set
    save(picture(0).crop((4, 0, 160, 116)), root / "train/cat/crop.jpg")  # of test/cat/0.png
    save(picture(107), root / "train/cat/misplaced.jpg")  # of train/dog/7.png
    (root / "train/dog/broken.png").write_bytes(b"no image")
    (root / "train/dog/notes.xyz").write_bytes(b"no image either")
    return root


@pytest.fixture(scope="module")
def findings(folder):
    return check_images(folder)


def names(findings, positions):
    return {findings.listing.entries[position].name for position in positions}


def test_findings_of_a_folder(findings):
    assert names(findings, findings.broken) == {"train/dog/broken.png"}
    assert [warning for warning in findings.listing.warnings if "notes.xyz" in warning]
    crossing, mixed, exact = findings.groups
    assert names(findings, crossing.members) == {"test/cat/0.png", "train/cat/crop.jpg"}
    assert names(findings, mixed.members) == {"train/dog/7.png", "train/cat/misplaced.jpg"}
    assert names(findings, exact.members) == {"train/cat/6.png", "train/cat/copy.png"}
    assert [(group.crosses_splits, group.labels, group.is_exact) for group in findings.groups] == [
        (True, ["cat"], False), (False, ["cat", "dog"], False), (False, ["cat"], True)
    ]  # fmt: skip
    assert [(one.name, one.images, one.tested, one.left_out) for one in findings.classes] == [
        ("cat", 15, 6, 3), ("dog", 12, 6, 1), ("rare", 2, 0, 0)
    ]  # fmt: skip
    assert [one.name for one in findings.classes if one.is_too_small] == ["rare"]


def test_the_list_of_the_others_is_read(findings, folder, tmp_path):
    page, remaining = write_report(findings, tmp_path / "deep" / "out")
    data = ImageListDataModule(csv=str(remaining), image_size=16)
    kept = {split: {path.resolve() for path in data.list_split(split).files} for split in ("train", "test")}
    out = ("train/cat/copy.png", "train/cat/crop.jpg", "train/cat/misplaced.jpg", "train/dog/7.png")
    suspects = {(folder / name).resolve() for name in (*out, "train/dog/broken.png")}
    for split in ("train", "test"):
        assert kept[split] == {path.resolve() for path in (folder / split).rglob("*.*g")} - suspects
    text = page.read_text()
    assert text.count("data:image/jpeg;base64,") == 6
    for words in ("train/cat/crop.jpg", "labels differ", "rare", "broken.png", "notes.xyz"):
        assert words in text
    for place in ('src="http', "<script", "url("):
        assert place not in text


def test_a_list_keeps_its_sets_and_groups(folder, tmp_path):
    lines = ["file;label;split;group", "train/cat/6.png;1;train;a", "train/cat/copy.png;1;train;b"]
    lines += ["train/dog/8.png;0;testing;", "train/dog/none.png;0;train;", "train/dog/9.png;0;train;c"]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    findings = check_images(tmp_path / "list.csv", images_dir=folder)
    assert names(findings, findings.broken) == {"train/dog/none.png"}
    assert [warning for warning in findings.listing.warnings if "not used" in warning]
    _, remaining = write_report(findings, tmp_path / "out")
    with remaining.open(newline="") as file:
        rows = [
            (row["file"].rpartition("/")[2], row["label"], row["split"], row["group"]) for row in csv.DictReader(file)
        ]
    assert rows == [("6.png", "1", "train", "a"), ("8.png", "0", "test", ""), ("9.png", "0", "train", "c")]
    assert len(ImageListDataModule(csv=str(remaining), image_size=16).all_images()) == 3


def test_a_folder_without_sets_has_no_column_for_them(tmp_path):
    for number in range(3):
        save(picture(number), tmp_path / "images" / "ab"[number % 2] / f"{number}.png")
    (tmp_path / "images" / "empty").mkdir()
    findings = check_images(tmp_path / "images")
    _, remaining = write_report(findings, tmp_path / "images" / "out")
    assert remaining.read_text().splitlines() == ["file,label", "../a/0.png,a", "../a/2.png,a", "../b/1.png,b"]
    assert [(one.name, one.images) for one in findings.classes] == [("a", 2), ("b", 1), ("empty", 0)]
    assert len(check_images(tmp_path / "images").listing.entries) == 3  # `out` holds no data


def test_the_list_is_read_from_a_folder_behind_a_link(tmp_path):
    save(picture(0), tmp_path / "disk" / "a" / "0.png")
    (tmp_path / "scratch" / "deep" / "runs").mkdir(parents=True)
    make_link(tmp_path / "runs", tmp_path / "scratch" / "deep" / "runs")
    make_link(tmp_path / "images", tmp_path / "disk")
    _, remaining = write_report(check_images(tmp_path / "images"), tmp_path / "runs" / "out")
    [file] = ImageListDataModule(csv=str(remaining), image_size=16).list_split("train").files
    assert file.samefile(tmp_path / "disk" / "a" / "0.png")


@pytest.mark.parametrize(
    ("images", "links", "wrong", "expected"),
    [
        ([("train", "a"), ("test", "a")], [(0, 1)], set(), {0}),
        ([("train", "a"), ("val", "a")], [(0, 1)], set(), {0}),
        ([("train", "a"), ("test", "b")], [(0, 1)], set(), {0, 1}),
        ([("train", "a"), ("train", "a"), ("train", "a")], [(0, 1), (1, 2)], set(), {1}),  # the ends differ
        ([("train", "a"), ("train", "a")], [(0, 1)], {0}, {0}),
        ([("train", "a"), ("train", "a")], [], set(), set()),
    ],
)
def test_one_of_the_duplicates_remains(images, links, wrong, expected, tmp_path):
    entries = [Entry(tmp_path, "", label, split, "") for split, label in images]
    contents = {position: position for position in range(len(entries))}
    assert _superfluous(entries, contents, links, wrong) | wrong == expected


def test_one_of_many_equal_files_remains(tmp_path):
    content = save(picture(0), tmp_path / "train" / "a" / "0.png").read_bytes()
    for number in range(30):
        for split in ("train", "test"):
            file = tmp_path / split / "a" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    findings = check_images(tmp_path)
    (group,) = findings.groups
    assert (len(group.members), group.is_exact, group.crosses_splits) == (60, True, True)
    assert [entry.split for entry in findings.remaining] == ["test"]


def test_wrong_labels_come_from_a_comparison_with_folds(tmp_path):
    classes = ["a", "b", "c"]
    for number in range(30):
        save(
            Image.fromarray(np.full((8, 8), 8 * number, np.uint8)),
            tmp_path / "images" / classes[number % 3] / f"{number}.png",
        )
    shared = {"folds": 3, "images": 30, "class_names": classes, "name_image": lambda n: f"{classes[n % 3]}/{n}.png"}
    folder = make_comparison(tmp_path / "compare", {"softmax": 0.7}, **shared)
    findings = check_images(tmp_path / "images", folder)
    assert (findings.variant, findings.predicted) == ("softmax", 30)
    assert findings.wrong_labels
    assert findings.suspects == {one.position for one in findings.wrong_labels}
    probabilities = [one.probability for one in findings.wrong_labels]
    assert probabilities == sorted(probabilities)
    for one in findings.wrong_labels:
        assert one.suggestion != findings.listing.entries[one.position].label
        assert one.suggested_probability > one.probability
    assert "→" in write_report(findings, tmp_path / "out")[0].read_text(encoding="utf-8")

    first = findings.listing.entries[findings.wrong_labels[0].position]
    corrected = tmp_path / "images" / findings.wrong_labels[0].suggestion / first.path.name
    first.path.rename(corrected)
    again = check_images(tmp_path / "images", folder)
    assert again.predicted == 29
    assert len(again.wrong_labels) == len(findings.wrong_labels) - 1
    with pytest.raises(UserError, match=r"test \d"):
        check_images(tmp_path / "images", make_comparison(tmp_path / "other", folds=3, images=30))
