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

from metricloss_pl.data.samples import SPLITS, Samples, Split, array_samples
from metricloss_pl.data.test_split import HeldOutDataModule
from metricloss_pl.errors import UserError, check_distinct, plural, reason

_MOST_CLASSES = 1_000_000  # a larger label is a mistake
_BROKEN_FILE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)  # raised by NumPy


@dataclass(kw_only=True, eq=False, repr=False)
class NpzDataModule(HeldOutDataModule):
    """An .npz file with `train_images`, `train_labels` and optionally the same for `val` and `test` (MedMNIST's keys).

    Images are (N, H, W) or (N, H, W, C), uint8, uint16 (divided by 65535) or floats in [0, 1]; all sets have one shape.
    Labels are integers (N,) or (N, 1), from 0 to C - 1. `classes` or `class_names` (C,) names the classes; without it
    they are "0", "1", ...

    Args:
        path: The .npz file. Pickled objects in it are not read.
        in_channels: Channels of the images. Gray (1) and color (3) are converted into each other. None: those of the
            arrays.
    """

    path: str
    in_channels: int | None = None  # type: ignore[assignment]  # a number once constructed

    def __post_init__(self) -> None:
        self._file = Path(self.path).expanduser()
        heads = _read_heads(self._file)
        shape = _check_heads(self._file, heads, trained=self.classes is None)
        if self.in_channels is None:
            self.in_channels = shape[3] if len(shape) == 4 else 1
            if self.in_channels > min(shape[1:3]):
                raise UserError(
                    f"the images in {self._file} have the shape {shape}: the channels are the last axis; if they are, "
                    f"set in_channels to {self.in_channels}"
                )
        super().__post_init__()
        self._present = [split for split in SPLITS if f"{split}_images" in heads]
        labels = {split: _read_labels(self._file, split) for split in self._present}
        self._found_classes = _read_classes(self._file, heads, labels, trained=self.classes is None)

    @property
    def found_classes(self) -> list[str]:
        """Names in the file, else the labels as text."""
        return self._found_classes

    @property
    def given_splits(self) -> list[Split]:
        """Sets in the file."""
        return self._present

    def list_split(self, split: Split) -> Samples:
        """Read the images of one set into memory.

        Raises:
            UserError: The file is broken.
        """
        return array_samples(_array(self._file, f"{split}_images"), _read_labels(self._file, split), split)


class _Head(NamedTuple):
    """Shape and type of an array that has not been read."""

    shape: tuple[int, ...]
    dtype: np.dtype


def _read_heads(file: Path) -> dict[str, _Head]:
    """Return shape and type of each array of an .npz file."""
    if not file.is_file():
        raise UserError(f"no file {file}: an .npz file is needed")
    heads = {}
    try:
        with zipfile.ZipFile(file) as packed:
            for name in packed.namelist():
                with packed.open(name) as stream:
                    old = np.lib.format.read_magic(stream) == (1, 0)
                    read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
                    shape, _, dtype = read(stream)
                    heads[name.removesuffix(".npy")] = _Head(shape, dtype)
    except _BROKEN_FILE as error:
        raise UserError(f"{file} cannot be read as an .npz file: {reason(error)}") from error
    return heads


def _check_heads(file: Path, heads: dict[str, _Head], trained: bool) -> tuple[int, ...]:
    """Check keys, shapes and types, and return the shape of the training images, or of others if there are none."""
    first = next((heads[f"{split}_images"] for split in SPLITS if f"{split}_images" in heads), None)
    for split in SPLITS:
        keys = f"{split}_images", f"{split}_labels"
        required = split == "train" and (trained or first is None)
        if not required and not any(key in heads for key in keys):
            continue
        for key in keys:
            if key not in heads:
                raise UserError(f"{file} has no array {key!r}; its arrays are {', '.join(heads) or 'none'}")
        images, labels = (heads[key] for key in keys)
        found = f"{keys[0]} in {file} are {images.dtype.name} of shape {images.shape}"
        if len(images.shape) not in (3, 4) or 0 in images.shape[1:]:
            raise UserError(f"{found}: (N, H, W) or (N, H, W, C) is needed")
        if _kind(images.dtype) is None:
            raise UserError(
                f"{found}: uint8, uint16 or floats in [0, 1] are needed; images.astype('uint8') converts values from "
                "0 to 255"
            )
        if first is not None and (images.shape[1:], _kind(images.dtype)) != (first.shape[1:], _kind(first.dtype)):
            raise UserError(
                f"{found}, and those of another set {first.dtype.name} of shape {first.shape}: all sets need images of "
                "one type and shape"
            )
        found = f"{keys[1]} in {file} are {labels.dtype.name} of shape {labels.shape}"
        if labels.shape not in (images.shape[:1], (images.shape[0], 1)):
            raise UserError(f"{found}, and the images {images.shape}: one label per image is needed")
        if labels.dtype.kind not in "iub":
            raise UserError(
                f"{found}: integers are needed; np.unique(labels, return_inverse=True) returns names and integers"
            )
    assert first is not None  # else an array is missing
    return first.shape


def _kind(dtype: np.dtype) -> str | None:
    """Return "uint8", "uint16" or "float", in any byte order; None: no type of images."""
    return "float" if dtype.kind == "f" else dtype.name if dtype.name in ("uint8", "uint16") else None


def _read_labels(file: Path, split: Split) -> Tensor:
    """Read the labels of one set as (N,) int64."""
    key = f"{split}_labels"
    labels = _array(file, key).reshape(-1)
    if len(labels) == 0:
        raise UserError(f"{key} in {file} is empty: at least one image is needed")
    wrong = np.flatnonzero((labels < 0) | (labels > _MOST_CLASSES))
    if len(wrong):
        raise UserError(f"{key}[{wrong[0]}] in {file} is {labels[wrong[0]]}: labels from 0 to C - 1 are needed")
    return torch.from_numpy(labels.astype(np.int64))


def _read_classes(file: Path, heads: dict[str, _Head], labels: dict[Split, Tensor], trained: bool) -> list[str]:
    """Return the names of the classes, after comparing them with the labels of all sets.

    Args:
        file: The .npz file.
        heads: Shapes and types of its arrays.
        labels: Labels of each set.
        trained: Require a training image of each class.
    """
    known = labels["train"] if trained else torch.cat([*labels.values()])
    found = known.unique().tolist()
    key = next((key for key in ("classes", "class_names") if key in heads), None)
    if key is None:
        names = [str(label) for label in range(found[-1] + 1)]
    else:
        if len(heads[key].shape) != 1 or heads[key].dtype.kind not in "US":
            raise UserError(
                f"{key} in {file} are {heads[key].dtype} of shape {heads[key].shape}: text of shape (C,) is needed"
            )
        names = np.char.asarray(_array(file, key)).astype(str).tolist()
        check_distinct(f"{key} in {file}", names)
    for split, numbers in labels.items():
        position = int(numbers.argmax())
        if numbers[position] >= len(names):
            raise UserError(
                f"{split}_labels[{position}] in {file} is {int(numbers[position])}: with "
                f"{plural(len(names), 'class')} labels run from 0 to {len(names) - 1}"
            )
    missing = next((label for label in range(len(names)) if label not in set(found)), None) if trained else None
    if missing is not None:
        raise UserError(
            f"train_labels in {file} have {plural(len(found), 'value')}, and no image of class {names[missing]!r} "
            f"(label {missing}): np.unique(labels, return_inverse=True)[1] renumbers the labels of all sets together"
        )
    return names


def _array(file: Path, key: str) -> np.ndarray:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            array: np.ndarray = arrays[key]
            return array
    except _BROKEN_FILE as error:
        raise UserError(f"{key} in {file} cannot be read: {reason(error)}") from error
