"""The images of one part of a data set, and the torch data set that hands them out in finished batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info
from torchvision.transforms.v2 import functional as transforms

from metricloss_pl.data.augment import Augmentation, crop, image_keys, stream, uniform
from metricloss_pl.errors import UserError, reason

if TYPE_CHECKING:
    from PIL import Image

IMAGE_EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_DECODING_THREADS = 8
_DEEP_MODES = ("I", "F")  # first letter of Pillow's modes of more than 8 bits: I, I;16, I;16B, I;16L, I;16N, F
_LARGE = 64  # px from which slicing image by image is faster than one gather for the batch
Views = Literal["flip", "crops", "crops_and_flips"]
_CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))  # top and left, as shares of the room beside the crop
_CROP_STREAM = 2**32  # a stream of draws that no position in a list of augmentations has


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """The labelled images of one part of a data set: a tensor in memory, or files on disk.

    Args:
        images: (N, C, H, W) with C 1 or 3, uint8 or float32 in [0, 1]; or the N files.
        labels: (N,) int64 in [0, C), the position in the data module's `class_names`.
        names: One an image, for messages and prediction files: a relative path, or "train[12]".
        groups: (N,) int64: images of one group stay on one side of every split. None: no groups.
    """

    images: Tensor | list[Path]
    labels: Tensor
    names: list[str]
    groups: Tensor | None = None

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, indices: Sequence[int] | np.ndarray | Tensor) -> Samples:
        """Returns the images at `indices`, in that order."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        images = self.images[index] if isinstance(self.images, Tensor) else [self.images[i] for i in index.tolist()]
        return replace(
            self,
            images=images,
            labels=self.labels[index],
            names=[self.names[i] for i in index.tolist()],
            groups=None if self.groups is None else self.groups[index],
        )


def file_samples(root: Path, files: Sequence[str], labels: Sequence[int]) -> Samples:
    """Returns the images of files whose paths, relative to `root`, are their names."""
    images = [root / file for file in files]
    return Samples(images=images, labels=torch.tensor(labels, dtype=torch.int64), names=list(files))


class Statistics(NamedTuple):
    """What a published data set holds, to be compared with what is read.

    `train` counts an official validation part too; `images_per_class` are the fewest and the most of `train`.
    """

    classes: int
    train: int
    test: int
    images_per_class: tuple[int, int]


def check_statistics(published: Statistics, part: Literal["train", "test"], labels: Tensor, num_classes: int) -> None:
    """Checks that a published set was read whole.

    Args:
        published: What its authors say.
        part: "train" (with the official validation part) or "test".
        labels: (N,) of all images of the part.
        num_classes: C.

    Raises:
        UserError: There are more or fewer images or classes, or images of a class.
    """
    counts = torch.bincount(labels, minlength=num_classes).tolist()
    found = f"{len(labels):,} images of {num_classes:,} classes"
    right = f"{getattr(published, part):,} images of {published.classes:,} classes"
    if part == "train":
        found += f" ({min(counts)} to {max(counts)} a class)"
        right += f" ({published.images_per_class[0]} to {published.images_per_class[1]} a class)"
    if found != right:
        raise UserError(
            f"the {part} part has {found}, but {right} were published: the files on disk are not the whole set"
        )


def concatenate(first: Samples, second: Samples) -> Samples:
    """Returns the images of `first`, then those of `second`; both hold tensors of one shape, or both hold files.

    Groups are kept only where both have them.
    """
    if isinstance(first.images, Tensor) and isinstance(second.images, Tensor):
        images: Tensor | list[Path] = torch.cat([first.images, second.images])
    elif isinstance(first.images, list) and isinstance(second.images, list):
        images = first.images + second.images
    else:
        raise UserError("one part of the data set is in memory and the other in files: they cannot be joined")
    groups = None
    if first.groups is not None and second.groups is not None:
        groups = torch.cat([first.groups, second.groups])
    return Samples(
        images=images, labels=torch.cat([first.labels, second.labels]), names=first.names + second.names, groups=groups
    )


def check_samples(samples: Samples, num_classes: int, part: str) -> None:
    """Checks what a data set gave, once, so that nothing behind it has to.

    Args:
        samples: What was read.
        num_classes: C; labels must be in [0, C).
        part: "train", "val" or "test", for the message.

    Raises:
        UserError: The part is empty; images, labels, names and groups are not one to one; images are not
            (N, 1 or 3, H, W) of uint8 or of finite float32 in [0, 1]; labels are of no integer type or out of range.
    """
    labels, count = samples.labels, len(samples.names)
    if count == 0:
        raise UserError(f"the {part} part of the data set holds no image")
    if len(samples.images) != count or labels.shape != (count,):
        raise UserError(
            f"the {part} part has {len(samples.images)} images, labels of shape {tuple(labels.shape)} and {count} "
            "names: one label and one name an image are needed"
        )
    if samples.groups is not None and samples.groups.shape != (count,):
        raise UserError(f"the {part} part has {count} images and groups of shape {tuple(samples.groups.shape)}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise UserError(
            f"the labels of the {part} part are {labels.dtype} (that of {samples.names[0]} is {labels[0].item()}): "
            "an integer type is needed"
        )
    wrong = ((labels < 0) | (labels >= num_classes)).nonzero()
    if len(wrong):
        image = int(wrong[0])
        raise UserError(
            f"{samples.names[image]} ({part} part) has the label {int(labels[image])}, but with {num_classes} classes "
            f"labels run from 0 to {num_classes - 1}"
        )
    if isinstance(samples.images, Tensor):
        _check_tensor(samples.images, samples.names, part)


def _check_tensor(images: Tensor, names: list[str], part: str) -> None:
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.dtype not in (torch.uint8, torch.float32):
        raise UserError(
            f"the images of the {part} part are {images.dtype} of shape {tuple(images.shape)}: "
            "uint8, or float32 in [0, 1], of shape (N, 1 or 3, H, W) is needed"
        )
    if images.dtype == torch.float32:
        lowest, highest = images.flatten(1).amin(1), images.flatten(1).amax(1)
        wrong = (~((lowest >= 0) & (highest <= 1))).nonzero()  # NaN compares false, so it is caught here too
        if len(wrong):
            image = int(wrong[0])
            finite = bool(images[image].isfinite().all())
            value = f"values from {lowest[image]:g} to {highest[image]:g}" if finite else "values that are not finite"
            raise UserError(f"{names[image]} ({part} part) has {value}: float images are in [0, 1]")


def image_files(folder: str | Path) -> list[Path]:
    """Lists the images under `folder`, also in its subfolders, sorted by path; what is hidden is left out.

    Raises:
        UserError: The folder is missing, or holds no file with one of the extensions in `IMAGE_EXTENSIONS`.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"no folder {root}: a folder of images is needed")
    files = sorted(
        path
        for path in root.rglob("*")
        if path.suffix.lower() in IMAGE_EXTENSIONS
        and path.is_file()
        and not any(name.startswith(".") for name in path.relative_to(root).parts)  # such as .ipynb_checkpoints
    )
    if not files:
        raise UserError(f"no image in {root}: files ending in {', '.join(IMAGE_EXTENSIONS)} are looked for")
    return files


@contextmanager
def _one_thread() -> Iterator[None]:
    """Without torch's other threads: to wake them costs small batches more than they win."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _open(path: Path) -> Image.Image:
    from PIL import Image

    return Image.open(path)


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} cannot be read as an image ({reason(error)}): mend or remove the file")


def read_image(path: Path, in_channels: int) -> Tensor:
    """Decodes an image file.

    The EXIF orientation is applied, transparency is laid over white, palettes are resolved, an animation gives its
    first frame. Grey comes from colour by ITU-R 601-2 luma weights.

    Args:
        path: The file.
        in_channels: 3 for colour, 1 for grey.

    Returns:
        (in_channels, H, W), uint8; or float32 in [0, 1] for grey images of more than 8 bits (16-bit PNG or TIFF are
        divided by 65535, floating-point TIFF must be in [0, 1] already).

    Raises:
        UserError: The file is missing, damaged, no image, or has values out of the range of its kind.
    """
    from PIL import ImageOps

    try:
        with _open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            image.load()
            if image.mode.startswith(_DEEP_MODES):
                array = np.asarray(image)
            else:
                array = np.array(_flatten(image).convert("L" if in_channels == 1 else "RGB"))
    except Exception as error:  # Pillow's decoders raise a dozen unrelated types on damaged files
        raise _unreadable(path, error) from error
    if array.dtype == np.uint8:
        return torch.from_numpy(array).reshape(*array.shape[:2], in_channels).permute(2, 0, 1)
    deep = array.astype(np.float32) / (1 if array.dtype.kind == "f" else 65535)
    if not ((deep >= 0) & (deep <= 1)).all():
        right = "[0, 1]" if array.dtype.kind == "f" else "0 to 65535"
        raise UserError(
            f"{path} has values from {array.min():g} to {array.max():g}: {right} is right for {array.dtype}"
        )
    return torch.from_numpy(deep).expand(in_channels, -1, -1).contiguous()


def _flatten(image: Image.Image) -> Image.Image:
    """Lays transparency over white."""
    from PIL import Image

    if image.mode not in ("RGBA", "LA", "PA", "La", "RGBa") and "transparency" not in image.info:
        return image
    coloured = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), coloured)


def _with_channels(images: Tensor, in_channels: int) -> Tensor:
    """Converts (..., C, H, W) to grey or colour."""
    if images.shape[-3] == in_channels:
        return images
    if in_channels == 3:
        return images.expand(*images.shape[:-3], 3, *images.shape[-2:]).contiguous()
    grey: Tensor = transforms.rgb_to_grayscale(images)
    return grey


def _with_shorter_side(images: Tensor, side: int | None) -> Tensor:
    """Resizes (..., C, H, W) so that the shorter side has `side` px (antialiased bilinear); None: as it is."""
    if side is None or min(images.shape[-2:]) == side:
        return images
    resized: Tensor = transforms.resize(images, [side], antialias=True)
    return resized


class ImageStore:
    """The images of one part, converted and resized but not cropped, in memory where they fit.

    Args:
        samples: A tensor, which stays in memory, or files.
        in_channels: 3 for colour, 1 for grey.
        resize: Shorter side in px. None: as it is.
        cache_gb: Files are decoded at once and kept if they fit into so many GB (1e9 bytes), else at each use.
    """

    def __init__(self, samples: Samples, *, in_channels: int, resize: int | None, cache_gb: float) -> None:
        self.in_channels = in_channels
        self.resize = resize
        self.files: list[Path] = []
        self.images: Tensor | list[Tensor] | None = None  # None: decoded at each use
        self.dtype = torch.uint8
        if isinstance(samples.images, Tensor):
            self.dtype = samples.images.dtype
            self.images = self._prepare_tensor(samples.images)
        else:
            self.files = list(samples.images)
            self._look_at_files(cache_gb)

    def __len__(self) -> int:
        return len(self.files) if self.images is None else len(self.images)

    def fetch(self, indices: list[int]) -> Tensor | list[Tensor]:
        """Returns the images at `indices`: (B, C, H, W) where all of the part have one size in memory, else a list."""
        if isinstance(self.images, Tensor):
            return self.images.index_select(0, torch.tensor(indices, dtype=torch.int64))
        if self.images is not None:
            return [self.images[index] for index in indices]
        return [self._decode(self.files[index]) for index in indices]

    def _prepare_tensor(self, images: Tensor) -> Tensor:
        if images.shape[-3] == self.in_channels and self.resize in (None, min(images.shape[-2:])):
            return images
        chunks = images.split(1024)  # so that the intermediate copies stay small
        return torch.cat([self._prepare(chunk) for chunk in chunks])

    def _prepare(self, images: Tensor) -> Tensor:
        return _with_shorter_side(_with_channels(images, self.in_channels), self.resize).contiguous()

    def _decode(self, path: Path) -> Tensor:
        image = self._prepare(read_image(path, self.in_channels))
        if image.dtype == torch.uint8 and self.dtype == torch.float32:
            return image.float() / 255
        return image.clamp(0, 1) if image.dtype == torch.float32 else image

    def _look_at_files(self, cache_gb: float) -> None:
        with _one_thread(), ThreadPoolExecutor(_DECODING_THREADS) as pool:
            heads = list(pool.map(self._head, self.files))
            if any(deep for _, deep in heads):  # one dtype a part
                self.dtype = torch.float32
            size = sum(pixels for pixels, _ in heads) * self.in_channels * self.dtype.itemsize
            if size > cache_gb * 1e9:
                return
            images = list(pool.map(self._decode, self.files))
        same_size = all(image.shape == images[0].shape for image in images)
        self.images = torch.stack(images) if same_size else images

    def _head(self, path: Path) -> tuple[int, bool]:
        """The number of pixels after the resize, and whether the image has more than 8 bits, from the file's head."""
        try:
            with _open(path) as image:
                (width, height), deep = image.size, image.mode.startswith(_DEEP_MODES)
        except Exception as error:  # as in read_image
            raise _unreadable(path, error) from error
        scale = 1.0 if self.resize is None else self.resize / min(width, height)
        return int(width * scale) * int(height * scale), deep


class ImageDataset(Dataset[Any]):
    """The images and labels of one part, fetched a whole batch at a time.

    Give it to a DataLoader with `collate_fn=as_it_is`. An item is a position in the part, or (position, draw) as the
    training sampler gives them; the draw (the epoch, for an image that comes once an epoch) chooses the augmentation.

    Args:
        store: The images.
        labels: (N,) int64.
        names: One an image, for messages.
        image_size: Side in px of the square crop. None: as they are, all of one size.
        resize: Shorter side in px to which fetched images are resized once more. None: as the store has them.
        training: Crop at random and augment; else crop the centre.
        augment: Augmentations in their order; used in training only.
        seed: Of crops and augmentations.
        with_index: Batches are (images, labels, index) instead of (images, labels).
        views: Views of each image: itself and its mirror image, the crops at the centre and in the corners, or these
            and their mirror images. Images are then (B, V, C, S, S), the usual one first. Not for training.

    Raises:
        UserError: Crops of images that are not larger than the crop.
    """

    def __init__(
        self,
        store: ImageStore,
        labels: Tensor,
        names: list[str],
        *,
        image_size: int | None,
        resize: int | None = None,
        training: bool = False,
        augment: Sequence[Augmentation] = (),
        seed: int = 0,
        with_index: bool = False,
        views: Views | None = None,
    ) -> None:
        whole = isinstance(store.images, Tensor) and store.images.shape[-2:] == (image_size, image_size)
        if views in ("crops", "crops_and_flips") and (image_size is None or whole):
            raise UserError(
                f"test_views is {views!r} and image_size {image_size}, so there is nothing to crop: resize must be "
                "above image_size; or set test_views to flip"
            )
        self.store = store
        self.labels = labels
        self.names = names
        self.image_size = image_size
        self.resize = resize
        self.training = training
        self.augment = [augmentation.for_size(image_size) for augmentation in augment]
        self.seed = seed
        self.with_index = with_index
        self.views = views

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[Tensor, ...]:
        """Returns one image (C, S, S) and its label (), and its index () where batches have one."""
        return tuple(part[0] for part in self.__getitems__([item]))

    def __getitems__(self, items: Sequence[int | tuple[int, int]]) -> tuple[Tensor, ...]:
        """Returns the finished batch: images (B, C, S, S), labels (B,), and index (B,) where batches have one.

        Where there are views, images are (B, V, C, S, S).
        """
        try:
            with _one_thread():
                return self._batch(items)
        except UserError as error:
            if get_worker_info() is None:
                raise
            raise _WorkerUserError(str(error)) from error

    def _batch(self, items: Sequence[int | tuple[int, int]]) -> tuple[Tensor, ...]:
        pairs = [item if isinstance(item, tuple) else (int(item), 0) for item in items]
        indices = [index for index, _ in pairs]
        keys = image_keys(self.seed, [draw for _, draw in pairs], indices)
        whole = self._augment_whole(self._fetch(indices), keys)
        images = self._crop(whole, indices, keys)
        if self.views is not None:
            views = [images]
            if self.views != "flip":
                views += [self._crop(whole, indices, keys, corner) for corner in _CORNERS]
            if self.views != "crops":
                views += [view.flip(-1) for view in views]
            images = torch.stack(views, dim=1)
        for position, augmentation in enumerate(self.augment):
            if self.training and not augmentation.before_crop:
                images = augmentation(images, stream(keys, position))
        index = torch.tensor(indices, dtype=torch.int64)
        batch = (images, self.labels[index])
        return (*batch, index) if self.with_index else batch

    def _fetch(self, indices: list[int]) -> Tensor | list[Tensor]:
        images = self.store.fetch(indices)
        if isinstance(images, Tensor):
            return _with_shorter_side(images, self.resize)
        return [_with_shorter_side(image, self.resize) for image in images]

    def _augment_whole(self, images: Tensor | list[Tensor], keys: np.ndarray) -> Tensor | list[Tensor]:
        """Applies those augmentations that see the image before the crop."""
        for position, augmentation in enumerate(self.augment):
            if self.training and augmentation.before_crop:
                own = stream(keys, position)
                if isinstance(images, Tensor):
                    images = augmentation(images, own)
                else:  # of different sizes
                    images = [augmentation(image[None], own[i : i + 1])[0] for i, image in enumerate(images)]
        return images

    def _crop(
        self,
        images: Tensor | list[Tensor],
        indices: list[int],
        keys: np.ndarray,
        corner: tuple[int, int] | None = None,
    ) -> Tensor:
        size = self.image_size
        if size is None:
            return images if isinstance(images, Tensor) else self._stack(images, indices)
        if isinstance(images, Tensor) and images.shape[-2:] == (size, size):
            return images
        if isinstance(images, Tensor) and size < _LARGE:
            tops, lefts = self._places(
                torch.tensor(images.shape[-2:]).expand(len(images), 2), size, keys, corner
            ).unbind(1)
            return crop(images, tops, lefts, size, size)
        places = self._places(torch.tensor([image.shape[-2:] for image in images]), size, keys, corner)
        return torch.cat(
            [
                crop(image[None], place[:1], place[1:], size, size)
                if min(image.shape[-2:]) < size
                else image[None, :, place[0] : place[0] + size, place[1] : place[1] + size]
                for image, place in zip(images, places, strict=True)
            ]
        )

    def _places(self, sides: Tensor, size: int, keys: np.ndarray, corner: tuple[int, int] | None = None) -> Tensor:
        """Top and left (B, 2) of the crops; the centre, also where the image is smaller, unless in training."""
        room = sides - size
        centre = room.div(2, rounding_mode="floor")
        if corner is not None:
            return torch.where(room > 0, room * torch.tensor(corner), centre)
        if not self.training:
            return centre
        at_random = (uniform(stream(keys, _CROP_STREAM), 2) * (room + 1)).floor().to(torch.int64)
        return torch.where(room > 0, at_random, centre)

    def _stack(self, images: list[Tensor], indices: list[int]) -> Tensor:
        first = images[0].shape
        for image, index in zip(images, indices, strict=True):
            if image.shape != first:
                raise UserError(
                    f"{self.names[index]} has {image.shape[2]} x {image.shape[1]} px and {self.names[indices[0]]} has "
                    f"{first[2]} x {first[1]} px: images of different sizes need image_size"
                )
        return torch.stack(images)


class _WorkerUserError(UserError):
    """A user's mistake that a worker process met.

    torch hands it on by calling its type with the worker's traceback as text; what the user needs is the last line.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text.strip().splitlines()[-1].removeprefix(f"{__name__}.{type(self).__name__}: "))


def as_it_is(batch: Any) -> Any:
    """The `collate_fn` of a data set that fetches finished batches."""
    return batch
