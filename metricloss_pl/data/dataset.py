"""The torch data set that returns the images of one set, cropped and augmented, in finished batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from metricloss_pl.augment import devices
from metricloss_pl.augment.base import Augmentation
from metricloss_pl.augment.geometric import crop
from metricloss_pl.augment.keys import image_keys, streams, uniform
from metricloss_pl.data.reading import one_thread
from metricloss_pl.data.resizing import with_shorter_side
from metricloss_pl.data.store import ImageStore
from metricloss_pl.errors import UserError

_LARGE = 64  # px from which slicing image by image is faster than one gather for the batch
Views = Literal["flip", "crops", "crops_and_flips"]
Deferred = Literal["augmentation", "all"]
_CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))  # top and left, as shares of the room beside the crop
_CROP_STREAM = 2**32  # a stream of draws that no position in a list of augmentations has


class UnfinishedBatch(NamedTuple):
    """Training batch that `ImageDataset.finish` crops and augments where its tensors are, such as on a GPU.

    Attributes:
        images: Crops (B, C, S, S); or positions in the set (B,), if all of its images are on the device.
        labels: (B,) int64.
        keys: (A + 1, B) int64, of each of A augmentations and of the crop.
    """

    images: Tensor
    labels: Tensor
    keys: Tensor


class ImageDataset(Dataset[Any]):
    """Images and labels of one set, fetched a whole batch at a time.

    A DataLoader needs `collate_fn=identity_collate`. An item is a position in the set, or (position, draw) from the
    training sampler; the draw (the epoch, for an image that is used once per epoch) determines the augmentation.

    Args:
        store: Decoded or decodable images.
        labels: (N,) int64.
        names: N names, for messages.
        image_size: Side in px of the square crop. None: images as they are, all of one size.
        resize: Shorter side in px to which fetched images are resized again. None: as in the store.
        training: Crop at random and augment; else crop the center.
        augment: Augmentations in their order, for training only.
        seed: Seed of crops and augmentations.
        with_index: Batches are (images, labels, index) instead of (images, labels).
        views: Views of each image: itself and its mirror image, the crops at the center and in the corners, or these
            and their mirror images. Images are then (B, V, C, S, S), the plain one first. Not for training.
        defer: Work that is left to `finish`: the augmentation of the crops, or all work on images, for a set that is
            one tensor. Batches are then `UnfinishedBatch`es. None: nothing. For training only.

    Raises:
        UserError: Views are crops, and the images are not larger than the crop.
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
        defer: Deferred | None = None,
    ) -> None:
        whole = isinstance(store.images, Tensor) and store.images.shape[-2:] == (image_size, image_size)
        if views in ("crops", "crops_and_flips") and (image_size is None or whole):
            raise UserError(
                f"tta is {views!r} and image_size {image_size}, so there is nothing to crop: resize must be "
                "above image_size; or set tta to flip"
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
        self.defer = defer
        self._on_device: Tensor | None = None  # the images of the set

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[Tensor, ...]:
        """Return one image (C, S, S) and its label (), and its index () if `with_index`."""
        return tuple(part[0] for part in self.__getitems__([item]))

    def __getitems__(self, items: Sequence[int | tuple[int, int]]) -> tuple[Tensor, ...]:
        """Return the finished batch: images (B, C, S, S), labels (B,), and index (B,) if `with_index`.

        With views, images are (B, V, C, S, S).
        """
        try:
            with one_thread():
                return self._batch(items)
        except UserError as error:
            if get_worker_info() is None:
                raise
            raise _WorkerUserError(str(error)) from error

    def finish(self, batch: UnfinishedBatch) -> tuple[Tensor, Tensor]:
        """Return images (B, C, S, S) and labels (B,) of a batch, on its device; they are those of a finished batch.

        Resized pixels may differ by one level from those of the CPU.
        """
        images = batch.images
        if self.defer == "all":
            images = self._images_on(images.device).index_select(0, images)
            images = self._crop(self._augment(images, batch.keys, True), batch.keys)
        return self._augment(images, batch.keys, False), batch.labels

    def _images_on(self, device: torch.device) -> Tensor:
        if self._on_device is None or self._on_device.device != device:
            assert isinstance(self.store.images, Tensor)
            self._on_device = self.store.images.to(device)
        return self._on_device

    def _batch(self, items: Sequence[int | tuple[int, int]]) -> tuple[Tensor, ...]:
        pairs = [item if isinstance(item, tuple) else (int(item), 0) for item in items]
        indices = [index for index, _ in pairs]
        index = torch.tensor(indices, dtype=torch.int64)
        labels = self.labels[index]
        keys = None
        if self.training:
            keys = image_keys(self.seed, [draw for _, draw in pairs], indices)
            keys = streams(keys, [*range(len(self.augment)), _CROP_STREAM])
        if self.defer == "all":
            assert keys is not None
            return UnfinishedBatch(index, labels, keys)
        whole = self._fetch(indices)
        if keys is not None:
            whole = self._augment(whole, keys, True)
        images = self._crop(whole, keys, indices)
        if self.views is not None:
            views = [images]
            if self.views != "flip":
                views += [self._crop(whole, keys, indices, corner) for corner in _CORNERS]
            if self.views != "crops":
                views += [view.flip(-1) for view in views]
            images = torch.stack(views, dim=1)
        if keys is not None:
            if self.defer == "augmentation":
                return UnfinishedBatch(images, labels, keys)
            images = self._augment(images, keys, False)
        return (images, labels, index) if self.with_index else (images, labels)

    def _fetch(self, indices: list[int]) -> Tensor | list[Tensor]:
        images = self.store.fetch(indices)
        if isinstance(images, Tensor):
            return with_shorter_side(images, self.resize)
        return [with_shorter_side(image, self.resize) for image in images]

    def _augment(self, images: Any, keys: Tensor, before_crop: bool) -> Any:
        """Apply the augmentations that come before or after the crop."""
        for position, augmentation in enumerate(self.augment):
            if augmentation.before_crop == before_crop:
                drawn_by = keys[position]
                if isinstance(images, Tensor):
                    images = augmentation(images, drawn_by)
                else:  # of different sizes
                    images = [augmentation(image[None], drawn_by[i : i + 1])[0] for i, image in enumerate(images)]
        return images

    def _crop(
        self,
        images: Tensor | list[Tensor],
        keys: Tensor | None,
        indices: Sequence[int] = (),
        corner: tuple[int, int] | None = None,
    ) -> Tensor:
        size = self.image_size
        if size is None:
            return images if isinstance(images, Tensor) else self._stack(images, indices)
        if isinstance(images, Tensor) and images.shape[-2:] == (size, size):
            return images
        if isinstance(images, Tensor):
            sides = [torch.full((len(images),), side, device=images.device) for side in images.shape[-2:]]
        else:
            sides = list(torch.tensor([image.shape[-2:] for image in images]).unbind(1))
        tops, lefts = self._places(sides, size, keys, corner)
        if isinstance(images, Tensor) and (size < _LARGE or not devices.on_cpu(images)):
            return crop(images, tops, lefts, size, size)
        return torch.cat(
            [
                crop(image[None], tops[i : i + 1], lefts[i : i + 1], size, size)
                if min(image.shape[-2:]) < size
                else image[None, :, top : top + size, left : left + size]
                for i, (image, top, left) in enumerate(zip(images, tops.tolist(), lefts.tolist(), strict=True))
            ]
        )

    def _places(
        self, sides: list[Tensor], size: int, keys: Tensor | None, corner: tuple[int, int] | None
    ) -> list[Tensor]:
        """Return tops and lefts (B,) of the crops: random in training if the image is larger, else central."""
        draws = None if keys is None else uniform(keys[-1], 2)
        places = []
        for axis, side in enumerate(sides):
            room = side - size
            chosen = center = room.div(2, rounding_mode="floor")
            if corner is not None:
                chosen = room * corner[axis]
            elif draws is not None:
                chosen = (draws[:, axis] * (room + 1)).floor().to(torch.int64)
            places.append(torch.where(room > 0, chosen, center))
        return places

    def _stack(self, images: list[Tensor], indices: Sequence[int]) -> Tensor:
        first = images[0].shape
        for image, index in zip(images, indices, strict=True):
            if image.shape != first:
                raise UserError(
                    f"{self.names[index]} has {image.shape[2]} x {image.shape[1]} px and {self.names[indices[0]]} has "
                    f"{first[2]} x {first[1]} px: images of different sizes need image_size"
                )
        return torch.stack(images)


class _WorkerUserError(UserError):
    """A user's mistake in a worker process.

    torch re-raises it by calling its type with the worker's traceback as text, whose last line is the message.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text.strip().splitlines()[-1].removeprefix(f"{__name__}.{type(self).__name__}: "))


def identity_collate(batch: Any) -> Any:
    """Return a batch unchanged: the `collate_fn` of a data set that fetches finished batches."""
    return batch
