from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from metricloss_pl.augment import (
    HorizontalFlip,
    RandAugment,
    RandomErasing,
    RandomResizedCrop,
    ShiftCrop,
)
from metricloss_pl.augment.keys import image_keys, stream
from metricloss_pl.data.dataset import ImageDataset, identity_collate
from metricloss_pl.data.reading import read_image
from metricloss_pl.data.sampler import TrainSampler
from metricloss_pl.data.samples import Samples
from metricloss_pl.data.store import ImageStore
from metricloss_pl.errors import UserError
from tests.data.images import file_samples, store_of

Make = Callable[..., Samples]


def test_an_error_in_a_worker_stays_one_line(tmp_path: Path, photos: list[Path]) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(photos[0].read_bytes()[:200])
    files = [photos[0], bad]
    dataset = ImageDataset(store_of(files, cache_gb=0), torch.tensor([0, 1]), ["a", "b"], image_size=8)
    loader = DataLoader(dataset, batch_size=2, collate_fn=identity_collate, num_workers=1)
    with pytest.raises(UserError, match=r"^[^\n]*bad\.png cannot be read[^\n]*$"):
        next(iter(loader))


def dataset_of(samples: Samples, cache_gb: float = 1, **changes: object) -> ImageDataset:
    store = ImageStore(samples, in_channels=3, resize=None, cache_gb=cache_gb)
    return ImageDataset(store, samples.labels, samples.names, **({"image_size": None} | changes))  # type: ignore[arg-type]


def test_batches_are_plain_indexing(samples: Make) -> None:
    whole = samples([20, 10])
    images, labels = dataset_of(whole).__getitems__([5, 0, 29])
    assert torch.equal(images, whole.images[[5, 0, 29]])  # type: ignore[index]
    assert torch.equal(labels, whole.labels[[5, 0, 29]])
    assert torch.equal(dataset_of(whole, with_index=True).__getitems__([5, 0])[2], torch.tensor([5, 0]))
    image, label = dataset_of(whole)[7]
    assert torch.equal(image, whole.images[7])
    assert label == whole.labels[7]


def test_evaluation_crops_the_center(samples: Make) -> None:
    whole = samples([4], side=8)
    images, _ = dataset_of(whole, image_size=5).__getitems__([0, 3])
    assert torch.equal(images, whole.images[[0, 3], :, 1:6, 1:6])  # type: ignore[call-overload]
    bigger, _ = dataset_of(whole, image_size=12).__getitems__([0, 3])
    padded = torch.nn.functional.pad(whole.images[[0, 3]].float(), (2, 2, 2, 2), mode="reflect")  # type: ignore[index]
    assert torch.equal(bigger.float(), padded)


def test_training_crops_at_random(samples: Make) -> None:
    whole = samples([1], side=8)
    dataset = dataset_of(whole, image_size=5, training=True)
    places = set()
    for epoch in range(200):
        image = dataset.__getitems__([(0, epoch)])[0][0]
        found = [
            (y, x) for y in range(4) for x in range(4) if torch.equal(whole.images[0][:, y : y + 5, x : x + 5], image)
        ]
        assert len(found) == 1
        places.add(found[0])
    assert len(places) == 16
    assert torch.equal(dataset_of(whole, image_size=12, training=True)[0][0], dataset_of(whole, image_size=12)[0][0])


@pytest.mark.parametrize("image_size", [5, 10])
def test_large_crops_are_as_small_ones(samples: Make, monkeypatch: pytest.MonkeyPatch, image_size: int) -> None:
    dataset = dataset_of(samples([12], side=8), image_size=image_size, training=True)
    items = [(index, 2) for index in range(12)]
    images, _ = dataset.__getitems__(items)
    monkeypatch.setattr("metricloss_pl.data.dataset._LARGE", 1)
    assert torch.equal(dataset.__getitems__(items)[0], images)


@pytest.mark.parametrize("training", [False, True])
def test_images_of_different_sizes_are_cropped_one_by_one(photos: list[Path], training: bool) -> None:
    whole = file_samples(photos)
    dataset = dataset_of(whole, image_size=16, training=training)
    items = [(index, 3) for index in range(5)]
    images, _ = dataset.__getitems__(items)
    assert images.shape == (5, 3, 16, 16)
    for index, path in enumerate(photos):
        source = read_image(path, 3)
        padding = max(0, -(-(16 - source.shape[1]) // 2))
        source = torch.nn.functional.pad(source.float(), (0, 0, padding, padding), mode="reflect").to(torch.uint8)
        windows = source.unfold(1, 16, 1).unfold(2, 16, 1)  # (3, rows, columns, 16, 16)
        matches = (windows == images[index][:, None, None]).all(0).flatten(2).all(2).nonzero().tolist()
        assert len(matches) == 1
        if not training:
            rows, columns = windows.shape[1:3]
            assert matches[0] in ([(rows - 1) // 2, (columns - 1) // 2], [0, (columns - 1) // 2])
        assert torch.equal(dataset.__getitems__([items[index]])[0][0], images[index])


def test_images_of_different_sizes_need_an_image_size(photos: list[Path]) -> None:
    with pytest.raises(UserError, match=r"1\.png has 18 x 25 px and 0\.png has 30 x 20 px.*image_size"):
        dataset_of(file_samples(photos)).__getitems__([0, 1])


def test_augmentations_follow_their_order_and_only_in_training(samples: Make) -> None:
    whole = samples([8])
    augment = [RandomErasing(1.0), ShiftCrop(2, fill="zero")]
    items = [(index, 1) for index in range(8)]
    plain = dataset_of(whole, augment=augment).__getitems__(items)[0]
    assert torch.equal(plain, whole.images)  # type: ignore[arg-type]
    forth = dataset_of(whole, augment=augment, training=True).__getitems__(items)[0]
    back = dataset_of(whole, augment=augment[::-1], training=True).__getitems__(items)[0]
    assert not torch.equal(forth, back)


@pytest.mark.parametrize("cache_gb", [0.0, 1.0])
def test_random_resized_crops_take_the_place_of_the_crop(photos: list[Path], cache_gb: float) -> None:
    """Cut from each image as it was resized, to the data's image_size; in evaluation the center, as ever."""
    store = store_of(photos, resize=14, cache_gb=cache_gb)
    cropping = RandomResizedCrop(area=(0.1, 0.6))
    arguments = (store, torch.zeros(5, dtype=torch.int64), [path.name for path in photos])
    dataset = ImageDataset(*arguments, image_size=12, training=True, augment=[HorizontalFlip(), cropping])
    images = dataset.__getitems__([(index, 3) for index in range(5)])[0]
    keys = image_keys(0, [3] * 5, range(5))
    whole = store.fetch(list(range(5)))
    sized = RandomResizedCrop(area=(0.1, 0.6), size=12)
    cut = torch.cat([sized(image[None], stream(keys[i : i + 1], 1)) for i, image in enumerate(whole)])
    assert images.shape == (5, 3, 12, 12)
    assert torch.equal(images, HorizontalFlip()(cut, stream(keys, 0)))
    plain, evaluated = (
        ImageDataset(*arguments, image_size=12, augment=augment).__getitems__(list(range(5)))[0]
        for augment in ([], [cropping])
    )
    assert torch.equal(plain, evaluated)


def test_images_are_resized_once_more(photos: list[Path]) -> None:
    large, small = store_of(photos, resize=16), store_of(photos, resize=8)
    arguments = (torch.zeros(5, dtype=torch.int64), [path.name for path in photos])
    again = ImageDataset(large, *arguments, image_size=8, resize=8).__getitems__(list(range(5)))[0]
    once = ImageDataset(small, *arguments, image_size=8).__getitems__(list(range(5)))[0]
    assert again.shape == once.shape == (5, 3, 8, 8)
    assert (again.float() - once.float()).abs().mean() < 12  # of noise: not exactly the same


def crop_places(shapes: list[tuple[int, int]], side: int, items: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the places of the training crops, read from images whose pixels encode their position."""
    images = []
    for height, width in shapes:
        rows, columns = torch.arange(height)[:, None].expand(height, width), torch.arange(width).expand(height, width)
        images.append(torch.stack([rows, columns, columns]).to(torch.uint8))
    samples = Samples(images=torch.zeros(1, 3, 1, 1), labels=torch.zeros(1, dtype=torch.int64), names=["0"])
    store = ImageStore(samples, in_channels=3, resize=None, cache_gb=0)
    store.images = images
    labels, names = torch.zeros(len(shapes), dtype=torch.int64), [str(index) for index in range(len(shapes))]
    crops = ImageDataset(store, labels, names, image_size=side, training=True).__getitems__(items)[0]
    return [(int(image[0, 0, 0]), int(image[1, 0, 0])) for image in crops]


@pytest.mark.parametrize("fill", ["zero", "noise"])
def test_erasing_before_the_crop(samples: Make, fill: str) -> None:
    whole = samples([32], side=12)
    assert isinstance(whole.images, torch.Tensor)
    erasing = RandomErasing(1.0, fill=fill, before_crop=True)  # type: ignore[arg-type]
    items = [(index, 3) for index in range(32)]
    erased = erasing(whole.images, stream(image_keys(0, [3] * 32, range(32)), 0))
    places = crop_places([(12, 12)] * 32, 8, items)
    want = torch.stack([image[:, y : y + 8, x : x + 8] for image, (y, x) in zip(erased, places, strict=True)])
    augmented = dataset_of(whole, image_size=8, augment=[erasing], training=True)
    assert torch.equal(augmented.__getitems__(items)[0], want)
    plain = dataset_of(whole, image_size=8, augment=[erasing]).__getitems__(items)[0]
    assert torch.equal(plain, whole.images[:, :, 2:10, 2:10])
    later = dataset_of(whole, image_size=8, augment=[RandomErasing(1.0, fill=fill)], training=True)  # type: ignore[arg-type]
    assert not torch.equal(later.__getitems__(items)[0], want)


@pytest.mark.parametrize("cache_gb", [0.0, 1.0])
def test_erasing_before_the_crop_in_files_of_different_sizes(photos: list[Path], cache_gb: float) -> None:
    photos = photos[:4]
    erasing = RandomErasing(1.0, before_crop=True)
    dataset = dataset_of(
        file_samples(photos), cache_gb=cache_gb, image_size=16, augment=[HorizontalFlip(0), erasing], training=True
    )
    items = [(index, 1) for index in range(4)]
    keys = stream(image_keys(0, [1] * 4, range(4)), 1)  # its stream is its position in the list
    images = [read_image(path, 3) for path in photos]
    places = crop_places([image.shape[1:] for image in images], 16, items)  # type: ignore[misc]
    for index, (image, (y, x)) in enumerate(zip(images, places, strict=True)):
        want = erasing(image[None], keys[index : index + 1])[0, :, y : y + 16, x : x + 16]
        assert torch.equal(dataset.__getitems__(items)[0][index], want)


def test_equal_augmentations_draw_apart(samples: Make) -> None:
    whole = samples([64])
    flips = dataset_of(whole, augment=[HorizontalFlip(), HorizontalFlip()], training=True)
    images = flips.__getitems__([(index, 0) for index in range(64)])[0]
    unchanged = sum(torch.equal(image, source) for image, source in zip(images, whole.images, strict=True))
    assert 15 < unchanged < 50  # 64 if both drew the same


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_image_looks_the_same_in_an_epoch_in_every_batch_and_worker(samples: Make, num_workers: int) -> None:
    whole = samples([12, 12], side=10)
    dataset = dataset_of(
        whole, image_size=8, augment=[HorizontalFlip(), RandomErasing(), RandAugment()], training=True, seed=4
    )
    seen: dict[tuple[int, int], torch.Tensor] = {}
    for seed, batch_size in ((0, 24), (1, 6)):
        sampler = TrainSampler(whole.labels, batch_size, seed=seed)
        loader = DataLoader(
            dataset, batch_size=batch_size, sampler=sampler, collate_fn=identity_collate, num_workers=num_workers
        )
        for epoch in (0, 1):
            sampler.set_epoch(epoch)
            items = list(sampler)
            images = torch.cat([images for images, _ in loader])
            for item, image in zip(items, images, strict=True):
                assert torch.equal(seen.setdefault(item, image), image)
    assert len(seen) == 48
    changed = sum(not torch.equal(seen[index, 0], seen[index, 1]) for index in range(24))
    assert changed > 18
    alone = dataset.__getitems__([(5, 1)])[0][0]
    assert torch.equal(alone, seen[5, 1])
