"""Subsets of ImageNet with few images per class, unpacked from its archives as published lists say."""

from __future__ import annotations

import pickle
import re
import shutil
import tarfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal, NamedTuple

from lightning.pytorch.utilities import rank_zero_info

from metricloss_pl.data.base import ImageDataModule
from metricloss_pl.data.index_files import read_list, read_mat, reinstall_hint
from metricloss_pl.data.samples import Samples, Split, Statistics, file_samples
from metricloss_pl.data.training_settings import Auto
from metricloss_pl.download import UNREADABLE_ARCHIVE, Resource, check_present, check_sum, make_folder, unpack
from metricloss_pl.errors import UserError, check_choice, reason
from metricloss_pl.files import UNREADABLE_PICKLE, read_lines

Subset = Literal["vipriors", "deic"]

_PAGE = "https://image-net.org/challenges/LSVRC/2012/2012-downloads.php, after registration"
_LISTS: dict[Subset, str] = {
    "vipriors": "train.pickle, val.pickle and test.pickle of VIPriors/vipriors-challenges-toolkit on GitHub, "
    "image-classification (last in commit d8c3344)",
    "deic": "train.txt, val.txt and test.txt of cvjena/deic on GitHub, datasets/imagenet",
}
_TRAIN_FILE, _TEST_FILE = r"n\d{8}/[\w.-]+\.JPEG", r"ILSVRC2012_val_\d{8}\.JPEG"


@dataclass(kw_only=True, eq=False, repr=False)
class ImageNetSubsetDataModule(ImageDataModule):
    """Subset of ImageNet (ILSVRC 2012, Russakovsky et al. 2015) of 1,000 classes, tested on ILSVRC's validation set.

    `vipriors` is the subset of the VIPriors challenge of 2020, with 50 images per class for training and 50 for
    validation; `deic` is that of Brigato et al. (2021), with 30 and 20. With `val_fraction: 0` both train. The class
    names are WordNet's, such as "n01440764".

    Nothing is downloaded: `ILSVRC2012_img_train.tar` and `ILSVRC2012_img_val.tar` (and for `vipriors`
    `ILSVRC2012_devkit_t12.tar.gz`, which has the test labels) have to be put into `root`. Only the images of the subset
    are unpacked, once, into `root/imagenet_<subset>`.

    Args:
        lists: Folder of the subset's lists, train, val and test: `.pickle` files from the repository
            VIPriors/vipriors-challenges-toolkit, or `.txt` files from cvjena/deic. Of pickles, only lists of texts are
            read.
        subset: Name of the subset.
        root: Folder that holds ImageNet's archives, or already `imagenet_<subset>`.
    """

    lists: str
    subset: Subset = "vipriors"
    root: str = "data"
    resize: int | None = 256
    image_size: int | Auto | None = 224
    mean: list[float] | None = field(default_factory=lambda: [122.65435 / 255, 116.65451 / 255, 103.99790 / 255])
    std: list[float] | None = field(default_factory=lambda: [71.40583 / 255, 69.56889 / 255, 73.04403 / 255])

    train_archive: ClassVar = Resource(
        "ILSVRC2012_img_train.tar", _PAGE, "1d675b47d978889d74fa0da5fadfb00e", by_hand=True
    )
    test_archive: ClassVar = Resource("ILSVRC2012_img_val.tar", _PAGE, "29b22e2961454d5413ddabcf34fc5622", by_hand=True)
    devkit: ClassVar = Resource("ILSVRC2012_devkit_t12.tar.gz", _PAGE, "fa75699e90414af021442c21a62c3abf", by_hand=True)
    published: ClassVar[dict[Subset, Statistics | None]] = {
        "vipriors": Statistics(classes=1000, train=100_000, test=50_000, images_per_class=(100, 100)),
        "deic": Statistics(classes=1000, train=50_000, test=50_000, images_per_class=(50, 50)),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(f"subset of {type(self).__name__}", self.subset, Subset)
        read = _read_pickles if self.subset == "vipriors" else _read_texts
        self._lists = read(Path(self.lists).expanduser())
        self._class_names = sorted({file.partition("/")[0] for file in self._lists.train + self._lists.val})

    @property
    def class_names(self) -> list[str]:
        """Sorted WordNet numbers of the classes."""
        return list(self._class_names)

    def published_statistics(self) -> Statistics | None:
        """Return the numbers of the chosen subset."""
        return self.published[self.subset]

    def prepare_data(self) -> None:
        """Unpack the subset's images if they are not there yet."""
        self._unpacked()

    def read(self, split: Split) -> Samples | None:
        """Return the files of one set."""
        folder = self._unpacked()
        position = {name: label for label, name in enumerate(self._class_names)}
        if split != "test":
            files = self._lists.train if split == "train" else self._lists.val
            return file_samples(folder / "train", files, [position[file.partition("/")[0]] for file in files])
        labels = self._lists.test_labels
        if labels is None:
            labels = _read_ground_truth(folder, self._lists.test, position)
        return file_samples(folder / "val", self._lists.test, labels)

    def _unpacked(self) -> Path:
        root = Path(self.root).expanduser()
        target = root / f"imagenet_{self.subset}"
        archives = [self.train_archive, self.test_archive, *([self.devkit] if self.subset == "vipriors" else [])]

        def build(partial: Path) -> Path:
            rank_zero_info(f"Checking ImageNet's archives and unpacking {target}: this takes a while, once.")
            train, test, *devkit = [check_sum(archive, root) for archive in archives]
            try:
                _unpack_train(train, [*self._lists.train, *self._lists.val], partial / "train")
                with tarfile.open(test) as packed:
                    _unpack_files(packed, set(self._lists.test), partial / "val", test)
            except UNREADABLE_ARCHIVE as error:
                raise UserError(f"{train} or {test.name} cannot be unpacked: {reason(error)}") from error
            for archive in devkit:
                unpack(archive, partial)
            return partial

        if not target.is_dir():
            check_present(archives, root, target)
        return make_folder(target, build)


def _unpack_train(archive: Path, files: list[str], into: Path) -> None:
    """Unpack `<class>/<file>` from a tar file with one tar file per class."""
    wanted: defaultdict[str, set[str]] = defaultdict(set)
    for file in files:
        wnid, _, name = file.partition("/")
        wanted[wnid].add(name)
    with tarfile.open(archive) as archives:
        for member in archives:
            wnid = PurePosixPath(member.name).stem
            stream = archives.extractfile(member) if wnid in wanted else None
            if stream is not None:
                with stream, tarfile.open(fileobj=stream) as images:
                    _unpack_files(images, wanted.pop(wnid), into / wnid, archive)
    if wanted:
        raise UserError(f"{archive} holds no {min(wanted)}.tar, which the lists name")


def _unpack_files(packed: tarfile.TarFile, names: set[str], into: Path, archive: Path) -> None:
    """Unpack the files of these names, and nothing else."""
    into.mkdir(parents=True)
    missing = set(names)
    for member in packed:
        stream = packed.extractfile(member) if member.name in missing else None
        if stream is not None:
            with stream, (into / member.name).open("wb") as file:
                shutil.copyfileobj(stream, file)
            missing.discard(member.name)
    if missing:
        raise UserError(f"{archive} holds no {min(missing)}, which the lists name")


class _Lists(NamedTuple):
    """Files of a subset: `<class>/<file>` of ILSVRC's training set, and files of its validation set."""

    train: list[str]
    val: list[str]
    test: list[str]
    test_labels: list[int] | None  # None: in ILSVRC's development kit


def _read_texts(folder: Path) -> _Lists:
    """Read deic's `train.txt`, `val.txt` and `test.txt`: lines `<file without extension> <label>`."""
    train, val, test = (read_list(_find_list(folder, f"{split}.txt", "deic")) for split in ("train", "val", "test"))
    wnids = sorted({file.partition("/")[0] for _, file, _ in (*train, *val)})
    position = {wnid: str(label) for label, wnid in enumerate(wnids)}
    for place, file, label in (*train, *val):
        if label != position[file.partition("/")[0]]:
            raise UserError(f"{place}: label {label!r}, where the position of the class among all classes is needed")
    for place, _, label in test:
        if label not in position.values():
            raise UserError(f"{place}: label {label!r}, where a number from 0 to {len(wnids) - 1} is needed")
    return _Lists(
        train=[_checked(f"{file}.JPEG", _TRAIN_FILE, place) for place, file, _ in train],
        val=[_checked(f"{file}.JPEG", _TRAIN_FILE, place) for place, file, _ in val],
        test=[_checked(f"{file}.JPEG", _TEST_FILE, place) for place, file, _ in test],
        test_labels=[int(label) for _, _, label in test],
    )


def _read_pickles(folder: Path) -> _Lists:
    """Read VIPriors' `train.pickle` and `val.pickle` (pairs of class and file) and `test.pickle` (files)."""
    train, val, test = (_find_list(folder, f"{split}.pickle", "vipriors") for split in ("train", "val", "test"))
    return _Lists(
        train=[_checked("/".join(map(str, pair)), _TRAIN_FILE, str(train)) for pair in _unpickle(train)],
        val=[_checked("/".join(map(str, pair)), _TRAIN_FILE, str(val)) for pair in _unpickle(val)],
        test=[_checked(PurePosixPath(str(file)).name, _TEST_FILE, str(test)) for file in _unpickle(test)],
        test_labels=None,
    )


def _find_list(folder: Path, name: str, subset: Subset) -> Path:
    if not (folder / name).is_file():
        raise UserError(f"no file {folder / name}: `lists` has to be a folder with {_LISTS[subset]}")
    return folder / name


def _checked(file: str, pattern: str, place: str) -> str:
    if not re.fullmatch(pattern, file):
        raise UserError(f"{place}: {file!r} is no name of an image of ImageNet")
    return file


class _ListUnpickler(pickle.Unpickler):
    """Unpickler of lists, texts and numbers. It looks up no names, so that a pickle cannot run code."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuse every name."""
        raise pickle.UnpicklingError(f"{module}.{name} in it is not plain data")


def _unpickle(file: Path) -> list[Any]:
    try:
        with file.open("rb") as stream:
            return list(_ListUnpickler(stream).load())
    except UNREADABLE_PICKLE as error:
        raise UserError(f"{file} cannot be read as a list: {reason(error)}") from error


def _read_ground_truth(folder: Path, files: list[str], position: dict[str, int]) -> list[int]:
    """Return the labels of files of ILSVRC's validation set from its unpacked development kit.

    Args:
        folder: Folder that holds `ILSVRC2012_devkit_t12`.
        files: Names such as "ILSVRC2012_val_00000001.JPEG".
        position: Labels of the classes.

    Raises:
        UserError: A file of the kit is missing or broken, or lacks some of the images and classes.
    """
    data = folder / "ILSVRC2012_devkit_t12" / "data"
    synsets = read_mat(data / "meta.mat", "synsets", reinstall_hint(folder), fields=("ILSVRC2012_ID", "WNID"))
    truth = read_lines(data / "ILSVRC2012_validation_ground_truth.txt", remedy=reinstall_hint(folder))
    label = {str(synset["ILSVRC2012_ID"]): position.get(synset["WNID"]) for synset in synsets}
    labels = []
    for file in files:
        number = int(PurePosixPath(file).stem.rpartition("_")[2])
        found = label.get(truth[number - 1].text) if 0 < number <= len(truth) else None
        if found is None:
            raise UserError(f"{data} has no class of the lists for {file}: {reinstall_hint(folder)}")
        labels.append(found)
    return labels
