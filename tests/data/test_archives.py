"""Every published set of image files on a miniature of its real archives: from the archive to fit and test."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import Trainer

from metricloss_pl.data import (
    ArchiveDataModule,
    CIFAR100DataModule,
    CUB200DataModule,
    Flowers102DataModule,
    ImageNetSubsetDataModule,
    MIT67DataModule,
    NABirdsDataModule,
    StanfordCarsDataModule,
)
from metricloss_pl.download import Resource
from metricloss_pl.errors import UserError
from tests.helpers import Expected, make_cars, make_cub, make_flowers, make_image, make_mit67, make_nab, md5, pack

pytestmark = pytest.mark.usefixtures("miniatures")


@dataclass
class Published:
    """A miniature as its authors would publish it: files in `web`, described by the data module's resources."""

    module: type[ArchiveDataModule]
    web: Path
    root: Path
    expected: Expected
    index_files: tuple[str, ...]

    def publish(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Gives the data module the URLs and checksums of what lies in `web` now."""
        resources = [
            Resource(
                resource.name, (self.web / resource.name).as_uri(), md5(self.web / resource.name), resource.by_hand
            )
            for resource in self.module.resources
        ]
        monkeypatch.setattr(self.module, "resources", tuple(resources))

    def bring(self) -> None:
        """Put the files into place, as a user does for a set that may not be downloaded."""
        self.root.mkdir(parents=True, exist_ok=True)
        for resource in self.module.resources:
            if resource.by_hand:
                shutil.copy(self.web / resource.name, self.root)

    def load(self, **arguments: Any) -> ArchiveDataModule:
        data = self.module(root=str(self.root), resize=10, image_size=8, batch_size=4, **arguments)
        data.prepare_data()
        return data

    def refused(self) -> str:
        """The one line with which the set is refused; nothing is left that could be taken for it."""
        with pytest.raises(UserError) as caught:
            self.load()
        assert "\n" not in str(caught.value)
        assert not (self.root / self.module.folder).exists()
        assert not list(self.root.parent.rglob("*.partial"))
        return str(caught.value)


def cub(source: Path) -> Expected:
    make_cub(source, size=24)
    (source / "attributes.txt").write_text("1 has_bill_shape::curved\n")
    of_class = {
        f"{c:03d}.Bird_{c}/Bird_{c}_{i:04d}.jpg": (f"{c:03d}.Bird_{c}", i) for c in range(1, 5) for i in range(6)
    }
    return {
        part: {file: name for file, (name, i) in of_class.items() if (i < 3) == (part == "train")}
        for part in ("train", "test")
    }


def pack_cub(source: Path, web: Path) -> None:
    pack(web / "CUB_200_2011.tgz", source / "attributes.txt", source / "CUB_200_2011")


def pack_nab(source: Path, web: Path) -> None:
    pack(web / "nabirds.tar.gz", source / "nabirds")


def pack_cars(source: Path, web: Path) -> None:
    cars = source / "stanford_cars"
    for archive, folder in (("car_devkit", "devkit"), ("cars_train", "cars_train"), ("cars_test", "cars_test")):
        pack(web / f"{archive}.tgz", cars / folder)
    shutil.copy(cars / "cars_test_annos_withlabels.mat", web)


def pack_flowers(source: Path, web: Path) -> None:
    pack(web / "102flowers.tgz", source / "flowers-102" / "jpg")
    for name in ("imagelabels.mat", "setid.mat"):
        shutil.copy(source / "flowers-102" / name, web)


def pack_mit67(source: Path, web: Path) -> None:
    pack(web / "indoorCVPR_09.tar", source / "indoorCVPR_09" / "Images")
    for name in ("TrainImages.txt", "TestImages.txt"):
        shutil.copy(source / "indoorCVPR_09" / name, web)


BIRD_FILES = ("classes.txt", "images.txt", "image_class_labels.txt", "train_test_split.txt")
CARS_FILES = ("devkit/cars_meta.mat", "devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat")
SETS: dict[type[ArchiveDataModule], tuple[Callable[..., Expected], Callable[[Path, Path], None], tuple[str, ...]]] = {
    CUB200DataModule: (cub, pack_cub, BIRD_FILES),
    NABirdsDataModule: (make_nab, pack_nab, BIRD_FILES),
    StanfordCarsDataModule: (make_cars, pack_cars, CARS_FILES),
    Flowers102DataModule: (
        lambda source: make_flowers(source, Flowers102DataModule.classes),
        pack_flowers,
        ("imagelabels.mat", "setid.mat"),
    ),
    MIT67DataModule: (make_mit67, pack_mit67, ("TrainImages.txt", "TestImages.txt")),
}
STATISTICS = {module: module.statistics for module in SETS}  # before the tests take them away
# Mean and standard deviation in units of 1/255 and the sides before and after the crop, as Barz and Denzler (2020) have
# them.
PREPARED = {
    CUB200DataModule: ((123.82988, 127.35117, 110.25606), (59.22309, 58.07361, 67.80252), 512, 448),
    NABirdsDataModule: ((125.30513, 129.66607, 118.45121), (57.00455, 56.70059, 68.44430), 512, 448),
    StanfordCarsDataModule: ((120.03731, 117.33781, 116.01303), (75.40416, 75.15394, 77.28287), 512, 448),
    Flowers102DataModule: ((110.77991, 97.65649, 75.32890), (74.90388, 62.70219, 69.76566), 512, 448),
    MIT67DataModule: ((124.62788, 110.01029, 94.95781), (68.56924, 66.86608, 67.35944), 256, 224),
    ImageNetSubsetDataModule: ((122.65435, 116.65451, 103.99790), (71.40583, 69.56889, 73.04403), 256, 224),
    CIFAR100DataModule: ((129.30386, 124.06987, 112.43356), (68.17020, 65.39176, 70.41801), None, None),
}


@pytest.fixture(params=SETS, ids=lambda module: module.__name__)
def published(request, tmp_path, monkeypatch) -> Published:
    make, pack_up, index_files = SETS[request.param]
    (tmp_path / "source").mkdir()
    (tmp_path / "web").mkdir()
    expected = make(tmp_path / "source")
    pack_up(tmp_path / "source", tmp_path / "web")
    shutil.rmtree(tmp_path / "source")
    miniature = Published(request.param, tmp_path / "web", tmp_path / "deep" / "data", expected, index_files)
    miniature.publish(monkeypatch)
    return miniature


def test_every_set_is_tried():
    ours = [module for module in ArchiveDataModule.__subclasses__() if module.__module__.startswith("metricloss_pl.")]
    assert set(SETS) == set(ours)


def test_from_the_archive_to_fit_and_test(published, classifier):
    published.bring()
    data = published.load(val_fraction=0.3)
    names = data.class_names
    assert sorted(set(names)) == sorted({name for part in published.expected.values() for name in part.values()})
    assert data.num_classes == len(names) == len(set(names))
    for part in ("train", "val", "test"):
        samples = data.read(part)
        if part not in published.expected:
            assert samples is None
            continue
        assert all(file.is_file() for file in samples.images)
        labels = [names[label] for label in samples.labels.tolist()]
        assert dict(zip(samples.names, labels, strict=True)) == published.expected[part]
    model = classifier(num_classes=len(names))
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, data)
    trainer.test(model, data, verbose=False)
    assert len(model.seen) == len(data.samples("train")) // 4
    assert model.tested == len(published.expected["test"])


def test_what_is_there_needs_no_archive(published):
    published.bring()
    names = published.load().class_names
    shutil.rmtree(published.web)
    for file in published.root.iterdir():
        if file.is_file():
            file.unlink()
    assert published.load(download=False).class_names == names


def test_what_is_missing_is_named_with_its_source(published):
    with pytest.raises(UserError) as caught:
        published.load(download=False)
    for resource in published.module.resources:
        assert f"{resource.name} (from {resource.url}, MD5 {resource.md5})" in str(caught.value)
    assert f"into {published.root}" in str(caught.value)
    by_hand = published.module.resources[0].by_hand
    assert ("switch `download` on" in str(caught.value)) != by_hand
    assert "\n" not in str(caught.value)
    assert not published.root.exists()


def test_wrong_checksum(published):
    for resource in published.module.resources:
        whole = (published.web / resource.name).read_bytes()
        (published.web / resource.name).write_bytes(whole[:-1] + b"?")
        published.bring()
        message = published.refused()
        assert resource.name in message
        assert f"instead of {resource.md5}" in message
        (published.web / resource.name).write_bytes(whole)
    published.bring()
    assert published.load().read("train") is not None


def test_missing_or_broken_index_file(published):
    published.bring()
    published.load()
    for name in published.index_files:
        file = published.root / published.module.folder / name
        whole = file.read_bytes()
        for content in (None, b"", b"\xff\x00 what is this"):
            file.unlink() if content is None else file.write_bytes(content)
            with pytest.raises(UserError) as caught:
                published.load()
            assert str(file) in str(caught.value)
            assert "\n" not in str(caught.value)
            if content is None:
                assert f"{file}: there is no such file: remove {published.root / published.module.folder}" in str(
                    caught.value
                )
        file.write_bytes(whole)
    assert published.load().read("train") is not None


def test_statistics_are_compared(published, monkeypatch):
    published.bring()
    statistics = STATISTICS[published.module]
    monkeypatch.setattr(published.module, "statistics", statistics)
    data = published.load(val_fraction=0)
    for stage, count in (("fit", statistics.train), ("test", statistics.test)):
        with pytest.raises(UserError, match=f"{count:,} images of {statistics.classes} classes") as caught:
            data.setup(stage)
        assert "\n" not in str(caught.value)


def test_flowers_know_their_classes_without_a_download(tmp_path):
    data = Flowers102DataModule(root=str(tmp_path / "none"))
    assert data.num_classes == 102
    assert data.class_names[:2] == ["pink primrose", "hard-leaved pocket orchid"]
    assert not (tmp_path / "none").exists()


def test_class_names_are_those_of_torchvision():
    from torchvision.datasets import Flowers102

    names = getattr(Flowers102, "classes", None)  # older versions have none
    assert names is None or list(Flowers102DataModule.classes) == names


def test_table_1():
    """Classes, training images, test images and images per class of Barz and Denzler's Table 1."""
    assert {
        CUB200DataModule: (200, 5994, 5794, (29, 30)),
        NABirdsDataModule: (555, 23929, 24633, (4, 60)),
        StanfordCarsDataModule: (196, 8144, 8041, (24, 68)),
        Flowers102DataModule: (102, 2040, 6149, (20, 20)),
        MIT67DataModule: (67, 5360, 1340, (77, 83)),
    } == {module: STATISTICS[module] for module in PREPARED if module in STATISTICS}


def test_example_of_contributing(tmp_path, monkeypatch):
    """The file and the block that CONTRIBUTING.md shows make a data set."""
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
    code, block = (
        re.search(rf"```{kind}\n(.*?SherdsDataModule.*?)```", text, re.DOTALL)[1] for kind in ("python", "yaml")
    )
    (tmp_path / "sherds.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("sherds").SherdsDataModule
    for part, name in itertools.product(("train", "test"), ("bowl", "amphora")):
        make_image(tmp_path / "images" / name / f"{part} 1.jpg", 24, 0)
        with (tmp_path / f"{part}.txt").open("a") as file:
            file.write(f"{name}/{part} 1.jpg\n")
    archive = tmp_path / "sherds.tgz"
    pack(archive, tmp_path / "images", tmp_path / "train.txt", tmp_path / "test.txt")
    monkeypatch.setattr(module, "resources", (Resource("sherds.tgz", archive.as_uri(), md5(archive)),))
    settings = yaml.safe_load(block)
    assert settings["class_path"] == "SherdsDataModule"
    arguments = {name: value for name, value in settings["init_args"].items() if name != "augment"}
    data = module(root=str(tmp_path / "data"), val_fraction=0, **arguments)
    assert data.class_names == ["amphora", "bowl"]
    assert data.read("train").names == ["bowl/train 1.jpg", "amphora/train 1.jpg"]
    assert data.read("test").labels.tolist() == [1, 0]
    with pytest.raises(UserError, match="but 600 images of 12 classes"):
        data.setup("fit")


@pytest.mark.parametrize("module", PREPARED, ids=lambda module: module.__name__)
def test_images_are_prepared_as_published(module):
    default = {field.name: field for field in dataclasses.fields(module)}
    mean, std, resize, image_size = PREPARED[module]
    assert [255 * value for value in default["mean"].default_factory()] == pytest.approx(mean, rel=1e-12)
    assert [255 * value for value in default["std"].default_factory()] == pytest.approx(std, rel=1e-12)
    assert (default["resize"].default, default["image_size"].default) == (resize, image_size)
    assert module not in SETS or default["batch_size"].default == 96
