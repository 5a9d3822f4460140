from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from metricloss_pl.data.augment import (
    HorizontalFlip,
    RandAugment,
    RandomErasing,
    RandomResizedCrop,
    ShiftCrop,
    image_keys,
    stream,
)
from metricloss_pl.data.sampler import TrainSampler
from metricloss_pl.data.samples import (
    ImageDataset,
    ImageStore,
    Samples,
    as_it_is,
    check_samples,
    concatenate,
    image_files,
    read_image,
)
from metricloss_pl.errors import UserError

Make = Callable[..., Samples]


def pixels(height: int = 6, width: int = 9, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def as_tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.copy()).permute(2, 0, 1)


def file_samples(paths: list[Path]) -> Samples:
    return Samples(images=paths, labels=torch.arange(len(paths)) % 2, names=[path.name for path in paths])


def store_of(paths: list[Path], **changes: object) -> ImageStore:
    arguments = {"in_channels": 3, "resize": None, "cache_gb": 1.0} | changes
    return ImageStore(file_samples(paths), **arguments)  # type: ignore[arg-type]


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Colour images of different sizes."""
    paths = []
    for index, (height, width) in enumerate([(20, 30), (25, 18), (16, 16), (40, 17), (9, 31)]):
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(np.random.default_rng(index).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(
            paths[-1]
        )
    return paths


# Samples and their checks.


def test_subset_and_concatenate(samples: Make) -> None:
    whole = replace(samples([4, 3]), groups=torch.arange(7))
    part = whole.subset([5, 2])
    assert torch.equal(part.images, whole.images[[5, 2]])  # type: ignore[arg-type]
    assert part.labels.tolist() == whole.labels[[5, 2]].tolist()
    assert part.names == ["train[5]", "train[2]"]
    assert part.groups is not None
    assert part.groups.tolist() == [5, 2]
    both = concatenate(part, whole)
    assert len(both) == 9
    assert both.subset(range(2, 9)).names == whole.names
    files = Samples(images=[Path("a"), Path("b")], labels=torch.tensor([0, 1]), names=["a", "b"])
    assert files.subset(np.array([1])).images == [Path("b")]
    with pytest.raises(UserError, match="joined"):
        concatenate(files, whole)


def test_good_samples_pass(samples: Make) -> None:
    good = samples([4, 3])
    check_samples(good, 2, "train")
    check_samples(replace(good, labels=good.labels.to(torch.uint8)), 2, "train")
    check_samples(replace(good, images=torch.rand(7, 1, 4, 4)), 2, "train")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.5, 1.5])
def test_float_images_are_finite_and_in_range(samples: Make, value: float) -> None:
    images = torch.rand(7, 1, 4, 4)
    images[4, 0, 2, 2] = value
    with pytest.raises(UserError, match=r"train\[4\]"):
        check_samples(replace(samples([4, 3]), images=images), 2, "train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([0, 1, 0, 1, 2, 0, 0])}, r"train\[4\].* label 2.* 0 to 1"),
        ({"labels": torch.tensor([0, 1, -1, 1, 0, 0, 0])}, r"train\[2\].* label -1"),
        ({"labels": torch.tensor([0.0, 1, 1, 1, 0, 0, 0])}, r"float32 .*train\[0\].* 0.0.*integer"),
        ({"labels": torch.zeros(7, dtype=torch.bool)}, "bool"),
        ({"labels": torch.zeros(6, dtype=torch.int64)}, "7 images, labels of shape"),
        ({"labels": torch.zeros(7, 1, dtype=torch.int64)}, "one label"),
        ({"names": ["a"] * 6}, "6 names"),
        ({"groups": torch.zeros(3, dtype=torch.int64)}, "groups"),
        ({"images": torch.zeros(7, 4, 4, dtype=torch.uint8)}, r"\(7, 4, 4\)"),
        ({"images": torch.zeros(7, 2, 4, 4, dtype=torch.uint8)}, r"\(7, 2, 4, 4\)"),
        ({"images": torch.zeros(7, 1, 4, 4, dtype=torch.int32)}, "int32"),
    ],
)
def test_bad_samples_are_named(samples: Make, change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        check_samples(replace(samples([4, 3]), **change), 2, "train")  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_an_empty_part_is_an_error(samples: Make) -> None:
    with pytest.raises(UserError, match=r"test part .* no image"):
        check_samples(samples([3]).subset([]), 1, "test")


def test_image_files(tmp_path: Path) -> None:
    for name in ("b/2.PNG", "b/1.jpg", "a.tiff", "notes.txt", ".hidden.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in image_files(tmp_path)] == ["a.tiff", "b/1.jpg", "b/2.PNG"]
    with pytest.raises(UserError, match="nowhere"):
        image_files(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no image in .*empty"):
        image_files(tmp_path / "empty")


# Files.


def test_colour_and_grey(tmp_path: Path) -> None:
    colour, grey = pixels(), pixels(channels=1)
    Image.fromarray(colour).save(tmp_path / "c.png")
    Image.fromarray(grey[..., 0]).save(tmp_path / "g.png")
    assert torch.equal(read_image(tmp_path / "c.png", 3), as_tensor(colour))
    assert torch.equal(read_image(tmp_path / "g.png", 1), as_tensor(grey))
    assert torch.equal(read_image(tmp_path / "g.png", 3), as_tensor(grey).expand(3, -1, -1))
    luma = (colour @ np.array([0.299, 0.587, 0.114])).round()
    assert np.abs(read_image(tmp_path / "c.png", 1)[0].numpy() - luma).max() <= 1


def test_exif_orientation(tmp_path: Path) -> None:
    colour = pixels()
    for orientation, turned in ((3, colour[::-1, ::-1]), (6, np.rot90(colour, -1)), (2, colour[:, ::-1])):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(colour).save(tmp_path / "e.png", exif=exif)
        assert torch.equal(read_image(tmp_path / "e.png", 3), as_tensor(turned))


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("in_channels", [1, 3])
def test_sixteen_bits(tmp_path: Path, suffix: str, in_channels: int) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (6, 9), dtype=np.uint16)
    deep[0, :2] = 0, 65535
    Image.fromarray(deep).save(tmp_path / f"d.{suffix}")
    image = read_image(tmp_path / f"d.{suffix}", in_channels)
    assert image.dtype == torch.float32
    assert image.shape == (in_channels, 6, 9)
    assert torch.equal(image, torch.from_numpy(deep.astype(np.float32) / 65535).expand(in_channels, -1, -1))


def test_floating_point_files(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((4, 5), dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "f.tiff")
    assert torch.equal(read_image(tmp_path / "f.tiff", 1)[0], torch.from_numpy(values))
    for value in (7.5, float("nan")):
        values[1, 1] = value
        Image.fromarray(values).save(tmp_path / "f.tiff")
        with pytest.raises(UserError, match=r"f\.tiff"):
            read_image(tmp_path / "f.tiff", 1)


def test_alpha_lies_over_white(tmp_path: Path) -> None:
    colour = pixels()
    alpha = np.zeros((6, 9, 1), dtype=np.uint8)
    alpha[:, :4] = 255
    Image.fromarray(np.concatenate([colour, alpha], axis=2)).save(tmp_path / "a.png")
    white = np.where(alpha == 255, colour, 255)
    assert torch.equal(read_image(tmp_path / "a.png", 3), as_tensor(white))
    grey = pixels(channels=1)
    Image.fromarray(np.concatenate([grey, alpha], axis=2), mode="LA").save(tmp_path / "la.png")
    assert torch.equal(read_image(tmp_path / "la.png", 1), as_tensor(np.where(alpha == 255, grey, 255)))


def test_palettes(tmp_path: Path) -> None:
    palette = Image.fromarray(pixels()).quantize(16)
    palette.save(tmp_path / "p.png")
    want = np.asarray(palette.convert("RGB"))
    assert torch.equal(read_image(tmp_path / "p.png", 3), as_tensor(want))
    palette.save(tmp_path / "t.png", transparency=3)
    transparent = np.asarray(palette)[..., None] == 3
    assert transparent.any()
    assert torch.equal(read_image(tmp_path / "t.png", 3), as_tensor(np.where(transparent, 255, want)))
    Image.fromarray(pixels(channels=1)[..., 0] > 99).save(tmp_path / "one.png")
    assert set(read_image(tmp_path / "one.png", 1).unique().tolist()) == {0, 255}
    Image.fromarray(pixels()).convert("CMYK").save(tmp_path / "cmyk.jpg")
    assert read_image(tmp_path / "cmyk.jpg", 3).shape == (3, 6, 9)


@pytest.mark.parametrize("content", [b"", b"not an image", "torn"])
@pytest.mark.parametrize("cache_gb", [0.0, 1.0])
def test_unreadable_files_are_named(tmp_path: Path, photos: list[Path], content: bytes | str, cache_gb: float) -> None:
    whole = photos[0].read_bytes()
    bad = tmp_path / "bad.png"
    bad.write_bytes(content if isinstance(content, bytes) else whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"bad\.png cannot be read") as caught:
        store_of([photos[0], bad], cache_gb=cache_gb).fetch([0, 1])
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"missing\.png cannot be read"):
        store_of([tmp_path / "missing.png"], cache_gb=cache_gb)


def test_an_error_in_a_worker_stays_one_line(tmp_path: Path, photos: list[Path]) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(photos[0].read_bytes()[:200])
    files = [photos[0], bad]
    dataset = ImageDataset(store_of(files, cache_gb=0), torch.tensor([0, 1]), ["a", "b"], image_size=8)
    loader = DataLoader(dataset, batch_size=2, collate_fn=as_it_is, num_workers=1)
    with pytest.raises(UserError, match=r"^[^\n]*bad\.png cannot be read[^\n]*$"):
        next(iter(loader))


# The store.


def test_cached_and_uncached_files_are_alike(photos: list[Path]) -> None:
    cached, fresh = store_of(photos, resize=12), store_of(photos, resize=12, cache_gb=0)
    assert cached.images is not None
    assert fresh.images is None
    for one, other, path in zip(
        cached.fetch([0, 3, 4]), fresh.fetch([0, 3, 4]), [photos[0], photos[3], photos[4]], strict=True
    ):
        assert torch.equal(one, other)
        assert min(one.shape[-2:]) == 12
        width, height = Image.open(path).size
        assert abs(one.shape[2] / one.shape[1] - width / height) < 0.1


def test_resize_is_antialiased(tmp_path: Path) -> None:
    stripes = np.zeros((32, 32), dtype=np.uint8)
    stripes[:, 1::4] = stripes[:, 2::4] = 255  # each sampled place falls between two white pixels
    Image.fromarray(stripes).save(tmp_path / "s.png")
    image = store_of([tmp_path / "s.png"], in_channels=1, resize=8).fetch([0])[0]
    assert (image[:, :, 1:-1].float() - 127.5).abs().max() < 20
    tensor = Samples(images=torch.from_numpy(stripes)[None, None], labels=torch.tensor([0]), names=["s"])
    assert torch.equal(ImageStore(tensor, in_channels=1, resize=8, cache_gb=0).fetch([0])[0], image)


def test_the_cache_keeps_its_budget(photos: list[Path]) -> None:
    size = sum(width * height * 3 for width, height in (Image.open(path).size for path in photos)) / 1e9
    assert store_of(photos, cache_gb=size * 1.01).images is not None
    assert store_of(photos, cache_gb=size * 0.99).images is None


def test_files_of_one_size_are_one_tensor(tmp_path: Path) -> None:
    for index in range(3):
        Image.fromarray(pixels()).save(tmp_path / f"{index}.png")
    assert store_of(image_files(tmp_path)).fetch([2, 0]).shape == (2, 3, 6, 9)  # type: ignore[union-attr]


@pytest.mark.parametrize("cache_gb", [0.0, 1.0])
def test_one_dtype_a_part(tmp_path: Path, cache_gb: float) -> None:
    Image.fromarray(pixels(channels=1)[..., 0]).save(tmp_path / "a.png")
    Image.fromarray(np.full((6, 9), 40000, dtype=np.uint16)).save(tmp_path / "b.png")
    store = store_of(image_files(tmp_path), in_channels=1, cache_gb=cache_gb)
    eight, sixteen = store.fetch([0, 1])
    assert store.dtype == eight.dtype == sixteen.dtype == torch.float32
    assert torch.allclose(eight, as_tensor(pixels(channels=1)) / 255)
    assert torch.allclose(sixteen, torch.tensor(40000 / 65535))


def test_tensors_are_converted(samples: Make) -> None:
    colour, grey = samples([4, 3]), samples([4, 3], channels=1)
    to_colour = ImageStore(grey, in_channels=3, resize=None, cache_gb=0).fetch([2])
    assert torch.equal(to_colour, grey.images[[2]].expand(-1, 3, -1, -1))  # type: ignore[index, arg-type]
    to_grey = ImageStore(colour, in_channels=1, resize=None, cache_gb=0).fetch([2])
    weights = torch.tensor([0.299, 0.587, 0.114])
    luma = torch.einsum("c,nchw->nhw", weights, colour.images[[2]].float())  # type: ignore[index]
    assert (to_grey[:, 0].float() - luma).abs().max() <= 1  # type: ignore[call-overload]
    assert ImageStore(colour, in_channels=3, resize=5, cache_gb=0).fetch([0, 1]).shape == (2, 3, 5, 5)  # type: ignore[union-attr]
    assert ImageStore(colour, in_channels=3, resize=None, cache_gb=0).images is colour.images


# The data set.


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


def test_evaluation_crops_the_centre(samples: Make) -> None:
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
    monkeypatch.setattr("metricloss_pl.data.samples._LARGE", 1)
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
    """Cut from each image as it was resized, to the data's image_size; in evaluation the centre, as ever."""
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
    """Where the training crops lie: read off images whose pixels tell their own place."""
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
            dataset, batch_size=batch_size, sampler=sampler, collate_fn=as_it_is, num_workers=num_workers
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
