from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from metricloss_pl.compare.folds import digest, images_root
from metricloss_pl.data import DigitsDataModule, FileListDataModule, ImageListDataModule
from metricloss_pl.data.folds import FoldDataModule
from metricloss_pl.data.samples import Samples, file_samples
from metricloss_pl.data.splits import assign_folds
from metricloss_pl.errors import UserError
from tests.helpers import make_image


def labelled(labels: list[int], groups: list[int] | None = None) -> Samples:
    return Samples(
        images=torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8),
        labels=torch.tensor(labels),
        names=[str(index) for index in range(len(labels))],
        groups=None if groups is None else torch.tensor(groups),
    )


def test_every_image_is_tested_once_and_every_class_in_every_fold():
    folds = [FoldDataModule.of(DigitsDataModule(val_fraction=0.2), 4, fold, 3) for fold in range(4)]
    tested: list[str] = []
    for data in folds:
        data.setup(None)
        parts = {part: set(data.samples(part).names) for part in ("train", "val", "test")}
        assert len(set.union(*parts.values())) == sum(len(names) for names in parts.values()) == 1797
        counts = torch.bincount(data.samples("test").labels)
        assert int(counts.max() - counts.min()) <= 4  # the digits come 174 to 183 times
        tested += data.samples("test").names
    assert len(tested) == len(set(tested)) == 1797


def test_images_of_one_name_in_two_parts_stay_two(tmp_path):
    for part, images in (("train", 6), ("test", 4)):
        files = [f"{'ab'[image % 2]}/{image}.png" for image in range(images)]
        for file in files:
            make_image(tmp_path / part / file, 8, seed=0)
        (tmp_path / f"{part}.txt").write_text("".join(f"{file} {file[0]}\n" for file in files))
    lists = {"train": str(tmp_path / "train.txt"), "test": str(tmp_path / "test.txt")}
    roots = {"root": str(tmp_path / "train"), "test_root": str(tmp_path / "test")}
    source = FileListDataModule(**lists, **roots, image_size=8)
    tested = [FoldDataModule.of(source, 2, fold, 0).read("test") for fold in range(2)]
    of_name = {name: path for part in tested for name, path in zip(part.names, part.images, strict=True)}
    assert len(of_name) == sum(len(part) for part in tested) == 10
    assert all(path == tmp_path / name for name, path in of_name.items())


def test_a_fold_keeps_the_settings_and_the_source_reads_no_part_by_itself():
    source = DigitsDataModule(samples_per_class=10, batch_size=7, val_fraction=0, seed=5)
    data = FoldDataModule.of(source, 3, 1, 0)
    data.setup("fit")
    assert (data.batch_size, data.seed, data.num_classes, data.image_format) == (7, 5, 10, source.image_format)
    assert data.class_counts.tolist() == [10] * 10
    assert not data.has_validation


def test_groups_stay_whole():
    generator = np.random.default_rng(0)
    groups = generator.integers(0, 30, 200)
    images = labelled((groups % 3).tolist(), groups.tolist())
    numbers = assign_folds(images, 4, 0, ["a", "b", "c"])
    assert all(len(set(numbers[groups == group])) == 1 for group in range(30))
    assert min(np.bincount(numbers)) > 30


def test_a_list_with_groups_has_them_on_one_side_of_every_split(tmp_path):
    rows = ["file,label,group"]
    for image in range(36):
        make_image(tmp_path / f"{image}.png", 8, image)
        rows.append(f"{image}.png,{'ab'[image % 2]},{image // 4}")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    for fold in range(3):
        source = ImageListDataModule(csv=str(tmp_path / "list.csv"), val_fraction=0.3, image_size=8)
        data = FoldDataModule.of(source, 3, fold, 0)
        data.setup(None)
        sides = [set(data.samples(part).groups.tolist()) for part in ("train", "val", "test")]
        assert all(sides)
        assert len(set.union(*sides)) == sum(len(side) for side in sides) == 9


def test_folds_that_cannot_be_filled_are_refused():
    with pytest.raises(UserError, match="class 'b' has 3 images: folds is 4"):
        assign_folds(labelled([0] * 9 + [1] * 3), 4, 0, ["a", "b"])
    with pytest.raises(UserError, match="class 'b' has too few groups"):
        assign_folds(labelled([0] * 9 + [1] * 4, [*range(9), 9, 9, 9, 9]), 3, 0, ["a", "b"])


def test_a_digest_tells_images_apart():
    images = labelled([0, 1, 1])
    other = labelled([0, 1, 1])
    assert isinstance(other.images, torch.Tensor)
    other.images[2, 0, 1, 1] = 1
    differing = [images, labelled([0, 1, 0]), labelled([0, 1, 1], [0, 0, 1]), images.subset([0, 1]), other]
    assert len({digest(samples) for samples in differing}) == 5
    assert digest(images) == digest(labelled([0, 1, 1]))


def test_a_digest_tells_files_of_one_size_apart(tmp_path):
    def found(seeds):
        for image, seed in enumerate(seeds):
            make_image(tmp_path / f"{image}.bmp", 8, seed)
        return digest(file_samples(tmp_path, ["0.bmp", "1.bmp"], [0, 1]))

    assert len({found([0, 1]), found([0, 2]), found([1, 0])}) == 3
    known = {tmp_path / "0.bmp": b"0", tmp_path / "1.bmp": b"1"}
    samples = file_samples(tmp_path, ["0.bmp", "1.bmp"], [0, 1])
    assert digest(samples, {**known}) != digest(samples) == found([1, 0])  # what is known is not read again
    (tmp_path / "1.bmp").unlink()
    with pytest.raises(UserError, match=r"1.bmp cannot be read as an image \(there is no such file\)"):
        digest(samples)


@pytest.mark.parametrize(
    ("files", "names", "root"),
    [
        (["data/a/1.png", "data/b/1.png"], ["a/1.png", "b/1.png"], "data"),
        (["data/train/1.png", "data/test/2.png"], ["1.png", "2.png"], None),
        (["data/1.png"], ["1"], None),
        (["other/1.png"], ["../other/1.png"], None),
    ],
)
def test_the_folder_from_which_names_lead_to_images(tmp_path, monkeypatch, files, names, root):
    monkeypatch.chdir(tmp_path)
    labels = torch.zeros(len(files), dtype=torch.int64)
    expected = None if root is None else str(tmp_path / root)
    assert images_root([Samples(images=[Path(file) for file in files], labels=labels, names=names), None]) == expected
    whole = Samples(images=[tmp_path / "x/1.png"], labels=labels[:1], names=[str(tmp_path / "x/1.png")])
    assert images_root([whole]) == str(tmp_path / "x")
    assert images_root([Samples(images=torch.zeros(1, 1, 2, 2), labels=labels[:1], names=["test[0]"])]) is None
