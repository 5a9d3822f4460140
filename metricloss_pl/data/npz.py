"""Arrays in one .npz file, under the key names of MedMNIST."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from metricloss_pl.data.samples import Samples, Split, array_samples
from metricloss_pl.data.test_split import HeldOutDataModule
from metricloss_pl.errors import UserError, plural, reason

SPLITS: tuple[Split, ...] = ("train", "val", "test")
_SHOWN = 10  # labels, of many
_MOST_CLASSES = 1_000_000  # that a label is taken for a class of
_BROKEN_FILE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)  # what NumPy raises on one


@dataclass(kw_only=True, eq=False, repr=False)
class NpzDataModule(HeldOutDataModule):
    """An .npz file with `train_images`, `train_labels` and, if wanted, the same for `val` and `test` (MedMNIST's keys).

    Images are (N, H, W), (N, H, W, 1) or (N, H, W, 3), uint8, uint16 (divided by 65535) or floats in [0, 1]; all sets
    have one shape. Labels are integers (N,) or (N, 1), from 0 to C - 1. `classes` or `class_names` (C,) names the
    classes; without it they are "0", "1", ...

    Args:
        path: The .npz file. Pickled objects in it are not read.
        in_channels: 3 for colour, 1 for grey; images of the other kind are converted. None: as the arrays are.
    """

    path: str
    in_channels: int | None = None  # type: ignore[assignment]  # a number once constructed

    def __post_init__(self) -> None:
        self._file = Path(self.path).expanduser()
        heads = read_heads(self._file)
        images = check_heads(self._file, heads, trained=self.classes is None)
        if self.in_channels is None:
            self.in_channels = 3 if len(images.shape) == 4 and images.shape[3] == 3 else 1
        super().__post_init__()
        self._present = [split for split in SPLITS if f"{split}_images" in heads]
        labels = {split: read_labels(self._file, split) for split in self._present}
        self._found_classes = read_classes(self._file, heads, labels, trained=self.classes is None)

    @property
    def found_classes(self) -> list[str]:
        """The names in the file, else the labels as text."""
        return self._found_classes

    @property
    def given_splits(self) -> list[Split]:
        """The sets in the file."""
        return self._present

    def list_split(self, split: Split) -> Samples:
        """Read the images of one set into memory.

        Raises:
            UserError: The file is broken.
        """
        return array_samples(_array(self._file, f"{split}_images"), read_labels(self._file, split), split)


class Head(NamedTuple):
    """What an array's head tells without reading the array."""

    shape: tuple[int, ...]
    dtype: np.dtype


def read_heads(file: Path) -> dict[str, Head]:
    """Reads shape and type of each array of an .npz file.

    Raises:
        UserError: The file is missing, or no .npz file.
    """
    if not file.is_file():
        raise UserError(f"no file {file}: an .npz file is needed")
    heads = {}
    try:
        with zipfile.ZipFile(file) as packed:
            for name in packed.namelist():
                with packed.open(name) as stream:
                    version = np.lib.format.read_magic(stream)
                    read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
                        version, np.lib.format.read_array_header_2_0
                    )
                    shape, _, dtype = read(stream)
                    heads[name.removesuffix(".npy")] = Head(shape, dtype)
    except _BROKEN_FILE as error:
        raise UserError(f"{file} cannot be read as an .npz file: {reason(error)}") from error
    return heads


def check_heads(file: Path, heads: dict[str, Head], trained: bool = True) -> Head:
    """Check keys, shapes and types, and return the head of the training images, or of others where there are none.

    Args:
        file: The .npz file.
        heads: The heads of its arrays.
        trained: Require training images.

    Raises:
        UserError: A key is missing, or an array has another shape or type than it should.
    """
    train = next((heads[f"{split}_images"] for split in SPLITS if f"{split}_images" in heads), None)
    trained = trained or train is None
    for split in SPLITS:
        images_key, labels_key = f"{split}_images", f"{split}_labels"
        if not (trained and split == "train") and images_key not in heads and labels_key not in heads:
            continue
        for key in (images_key, labels_key):
            if key not in heads:
                raise UserError(f"{file} has no array {key!r}; its arrays are {', '.join(heads) or 'none'}")
        images, labels = heads[images_key], heads[labels_key]
        right_shape = len(images.shape) == 3 or (len(images.shape) == 4 and images.shape[3] in (1, 3))
        if not right_shape or 0 in images.shape[1:]:
            raise UserError(
                f"{images_key} in {file} has the shape {images.shape}: "
                "(N, H, W), (N, H, W, 1) or (N, H, W, 3) is needed"
            )
        if _kind(images.dtype) is None:
            raise UserError(
                f"{images_key} in {file} are {images.dtype.name}: uint8, uint16 or floats in [0, 1] are needed; values "
                "from 0 to 255 become uint8 by images.astype('uint8')"
            )
        if len(labels.shape) not in (1, 2) or labels.shape[1:] not in ((), (1,)):
            raise UserError(f"{labels_key} in {file} has the shape {labels.shape}: (N,) or (N, 1) is needed")
        if labels.dtype.kind not in "iub":
            raise UserError(
                f"{labels_key} in {file} are {labels.dtype.name}: integers are needed; np.unique(labels, "
                "return_inverse=True) gives names and integers"
            )
        if images.shape[0] != labels.shape[0]:
            raise UserError(
                f"{images_key} in {file} has the shape {images.shape}, but {labels_key} {labels.shape}: "
                "one label an image is needed"
            )
        if train is not None and (images.shape[1:] != train.shape[1:] or _kind(images.dtype) != _kind(train.dtype)):
            raise UserError(
                f"{images_key} in {file} are {images.dtype.name} of shape {images.shape}, but train_images "
                f"{train.dtype.name} of shape {train.shape}: images of one shape and type are needed"
            )
    assert train is not None  # or refused
    return train


def _kind(dtype: np.dtype) -> str | None:
    """Return "uint8", "uint16" or "float", whatever the order of the bytes; None: no type of images."""
    return "float" if dtype.kind == "f" else dtype.name if dtype.name in ("uint8", "uint16") else None


def read_labels(file: Path, split: Split) -> Tensor:
    """Reads the labels of one split as (N,) int64.

    Raises:
        UserError: The split is empty or a label is negative.
    """
    key = f"{split}_labels"
    stored = _array(file, key).reshape(-1)
    if len(stored) == 0:
        raise UserError(f"{key} in {file} is empty: at least one image is needed")
    if stored.max() > np.iinfo(np.int64).max:
        position = int(stored.argmax())
        raise UserError(f"{key}[{position}] in {file} is {stored[position]}: labels from 0 to C - 1 are needed")
    labels = stored.astype(np.int64)
    if labels.min() < 0:
        position = int(labels.argmin())
        raise UserError(f"{key}[{position}] in {file} is {labels[position]}: labels from 0 are needed")
    return torch.from_numpy(labels)


def read_classes(file: Path, heads: dict[str, Head], labels: dict[Split, Tensor], trained: bool = True) -> list[str]:
    """Return the classes' names after having compared them with the labels of all sets.

    Args:
        file: The .npz file.
        heads: The heads of its arrays.
        labels: The labels of each set.
        trained: Require a training image of each class.

    Raises:
        UserError: The names are not a text array (C,) without repetition, a label is C or more, or a class has no
            training image.
    """
    known = set((labels["train"] if trained else torch.cat([*labels.values()])).tolist())
    key = next((key for key in ("classes", "class_names") if key in heads), None)
    # No more names than there are images: a label beyond leaves some class without any, which is said below.
    most = len(labels["train"]) + 1 if trained else _MOST_CLASSES
    names = [str(label) for label in range(min(max(known) + 1, most))]
    if key is not None:
        if len(heads[key].shape) != 1 or heads[key].dtype.kind not in "US":
            raise UserError(
                f"{key} in {file} are {heads[key].dtype} of shape {heads[key].shape}: text of shape (C,) is needed"
            )
        try:
            names = [name.decode() if isinstance(name, bytes) else str(name) for name in _array(file, key).tolist()]
        except UnicodeDecodeError as error:
            raise UserError(f"{key} in {file} are not UTF-8: {reason(error)}") from error
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f"{key} in {file} names {twice!r} twice: each class needs a name of its own")
    elif trained and len(known) < len(names):
        found = sorted(known)
        listed = ", ".join(map(str, found[:_SHOWN])) + (", ..." if len(found) > _SHOWN else "")
        raise UserError(
            f"train_labels in {file} have {plural(len(found), 'value')}, {listed}: the labels of "
            f"{plural(len(found), 'class')} are 0 to {len(found) - 1}; np.unique(labels, return_inverse=True)[1] "
            "renumbers the labels of all sets together"
        )
    for split, of_set in labels.items():
        position = int(of_set.argmax())
        if of_set[position] >= len(names):
            raise UserError(
                f"{split}_labels[{position}] in {file} is {int(of_set[position])}: "
                f"with {plural(len(names), 'class')} labels run from 0 to {len(names) - 1}"
            )
    for label, name in enumerate(names):
        if trained and label not in known:
            raise UserError(f"train_labels in {file} has no image of class {name!r} (label {label})")
    return names


def _array(file: Path, key: str) -> np.ndarray:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            array: np.ndarray = arrays[key]
            return array
    except _BROKEN_FILE as error:
        raise UserError(f"{key} in {file} cannot be read: {reason(error)}") from error
