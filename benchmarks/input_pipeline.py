"""Training epochs of our loaders, against torchvision's data sets with PIL transforms in torch's DataLoader.

Both yield augmented batches before normalization. A second group of lines compares the time of our loader per batch
with that of a training step, for the data blocks and networks of the shipped configs: above 1 the network never waits.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from _measure import Step, compare, interleaved, quick_asked, report_ratio
from _training import NoiseDataModule
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from metricloss_pl import augment as augmentations
from metricloss_pl.augment import Augmentation, HorizontalFlip, ShiftCrop
from metricloss_pl.backbones import PreActResNet, TinyConvNet, TorchvisionBackbone
from metricloss_pl.data import ImageDataModule, ImageFolderDataModule
from metricloss_pl.regimes import SoftmaxClassifier

SUBJECT = "input_pipeline"
BLOCKS = Path(__file__).parent.parent / "configs" / "data"
GOAL = 5.0  # in memory, and from a folder's second epoch on
GOAL_FIRST_EPOCH = 1.0
BATCH_SIZE = 128
PHOTO = (500, 375)  # px, width and height
FLIP = transforms.RandomHorizontalFlip()


class PilImages(Dataset[Any]):
    """Data set that treats images as torchvision's MNIST and CIFAR10 do: array to PIL, then the transforms."""

    def __init__(self, images: Tensor, labels: Tensor, transform: Any) -> None:
        gray = images.shape[1] == 1
        self.arrays = images[:, 0].numpy() if gray else images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return the image (C, S, S), float32 in [0, 1], and its label."""
        return self.transform(Image.fromarray(self.arrays[index])), self.labels[index]


def peer_loader(dataset: Dataset[Any], batch_size: int, workers: int) -> DataLoader[Any]:
    return DataLoader(
        dataset, batch_size, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
    )


def batches(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yield batches endlessly, each epoch in another order."""
    for epoch in itertools.count():
        if hasattr(loader.sampler, "set_epoch"):
            loader.sampler.set_epoch(epoch)
        yield from loader


def epoch_of(loader: DataLoader[Any]) -> Step:
    endless = batches(loader)

    def step() -> None:
        for _ in range(len(loader)):
            next(endless)  # not kept, as in training

    return step


def versus(ours: str, step: Step, peers: dict[int, Step], images: int, goal: float, quick: bool) -> None:
    """Print a line for each peer; peers are named by their number of workers."""
    (ours_s, *peers_s), turns = interleaved(step, *peers.values(), quick=quick)
    for workers, peer_s in zip(peers, peers_s, strict=True):
        report_ratio(
            SUBJECT,
            (ours, ours_s),
            (f"torchvision, PIL transforms, num_workers {workers}", peer_s),
            goal=goal,
            images=images,
            images_per_s=[round(images / seconds) for seconds in (ours_s, peer_s)],
            repetitions=turns,
        )


def in_memory(side: int, in_channels: Any, quick: bool) -> None:
    count = 4 * BATCH_SIZE if quick else 80 * BATCH_SIZE
    augment: list[Augmentation] = [HorizontalFlip(), ShiftCrop(pixels=4, fill="zero")]
    data = NoiseDataModule(side=side, count=count, in_channels=in_channels, batch_size=BATCH_SIZE, augment=augment)
    data.setup("fit")
    samples = data.samples("train")
    assert isinstance(samples.images, Tensor)
    transform = transforms.Compose([transforms.RandomCrop(side, padding=4), FLIP, transforms.ToTensor()])
    theirs = PilImages(samples.images, samples.labels, transform)
    peers = {workers: epoch_of(peer_loader(theirs, BATCH_SIZE, workers)) for workers in (0, 2)}
    name = f"images in memory, {in_channels} x {side} x {side}, num_workers 0"
    versus(name, epoch_of(data.train_dataloader()), peers, count, GOAL, quick)


def write_photos(root: Path, count: int) -> None:
    """Write JPEG files of smooth random images: `count` for training, and one per class for test."""
    generator = np.random.default_rng(0)
    for part, images in (("train", count), ("test", 2)):
        for index in range(images):
            coarse = Image.fromarray(generator.integers(256, size=(24, 32, 3), dtype=np.uint8))
            file = root / part / f"class_{index % 2}" / f"{index:05d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            coarse.resize(PHOTO, Image.Resampling.BICUBIC).save(file, quality=92)


def photos(root: Path, **settings: Any) -> ImageFolderDataModule:
    data = ImageFolderDataModule(root=str(root), **{"augment": [HorizontalFlip()], **settings, "val_fraction": 0})
    data.setup("fit")
    return data


def in_folder(root: Path, count: int, quick: bool) -> None:
    sizes: dict[str, Any] = {"resize": 256, "image_size": 224, "batch_size": 16}
    transform = transforms.Compose([transforms.Resize(256), transforms.RandomCrop(224), FLIP, transforms.ToTensor()])
    kept, not_kept = (photos(root, cache_gb=cache_gb, **sizes).train_dataloader() for cache_gb in (2.0, 0.0))

    def ours_from_nothing() -> None:
        data = photos(root, **sizes)
        assert len(data.normalization[0]) == 3  # computed at the first use
        epoch_of(data.train_dataloader())()

    def theirs(workers: int) -> DataLoader[Any]:
        return peer_loader(ImageFolder(root / "train", transform), sizes["batch_size"], workers)

    name = f"JPEG files of {PHOTO[0]} px to 224 px, num_workers 0"
    first_epochs: dict[int, Step] = {0: lambda: epoch_of(theirs(0))(), 2: lambda: epoch_of(theirs(2))()}
    first = f"{name}, first epoch with set-up, mean and deviation"
    versus(first, ours_from_nothing, first_epochs, count, GOAL_FIRST_EPOCH, quick)
    later = {workers: epoch_of(theirs(workers)) for workers in (0, 2)}
    versus(f"{name}, a later epoch", epoch_of(kept), later, count, GOAL, quick)
    versus(f"{name}, cache_gb 0", epoch_of(not_kept), {0: later[0]}, count, GOAL_FIRST_EPOCH, quick)


def shipped(block: str, quick: bool) -> dict[str, Any]:
    """Return batch size (small if `quick`) and augmentations of a shipped data block."""
    settings = yaml.safe_load((BLOCKS / f"{block}.yaml").read_text(encoding="utf-8"))["init_args"]
    named: list[Any] = [{"class_path": entry} if isinstance(entry, str) else entry for entry in settings["augment"]]
    augment = [getattr(augmentations, entry["class_path"])(**entry.get("init_args", {})) for entry in named]
    return {"batch_size": 4 if quick else settings["batch_size"], "augment": augment}


def feeds(block: str, data: ImageDataModule, backbone: nn.Module, quick: bool, **facts: object) -> None:
    """Compare the time of our loader per batch with that of a training step."""
    endless = batches(data.train_dataloader())
    images, labels = next(endless)
    model = SoftmaxClassifier(10, backbone)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def train() -> None:
        optimizer.zero_grad()
        model.losses(model.embed(images), labels)["loss"].backward()
        optimizer.step()

    ours = (f"loader of configs/data/{block}.yaml, a batch, num_workers 0", lambda: next(endless))
    against = (f"training step of {type(backbone).__name__} on the CPU", train)
    facts |= {"image_shape": list(images.shape[1:]), "batch_size": len(images)}
    compare(SUBJECT, ours, against, quick=quick, goal=1.0, **facts)


if __name__ == "__main__":
    quick = quick_asked(__doc__)
    in_memory(28, 1, quick)
    in_memory(32, 3, quick)
    sizes: Any = (("digits", 8, 1), ("mnist", 28, 1), ("fashion_mnist", 28, 1), ("cifar10", 32, 3))
    for block, side, channels in sizes:
        settings = shipped(block, quick)
        data = NoiseDataModule(side=side, count=4 * settings["batch_size"], in_channels=channels, **settings)
        data.setup("fit")
        feeds(block, data, TinyConvNet(channels) if block == "digits" else PreActResNet(channels), quick)
    with tempfile.TemporaryDirectory() as name:
        count = 16 if quick else 320
        write_photos(Path(name), count)
        in_folder(Path(name), count, quick)
        feeds("folder", photos(Path(name), image_size=96, **shipped("folder", quick)), PreActResNet(3), quick)
        size, resize = (64, 72) if quick else (448, 512)
        settings = shipped("cub", quick) | {"batch_size": 2}
        cub = photos(Path(name), image_size=size, resize=resize, cache_gb=0.0, **settings)
        # At 512 px the training set of CUB exceeds cache_gb, so its files are decoded at each use.
        note = "2 images instead of the config's 96, to be fast; both times are proportional to the number of images"
        feeds("cub", cub, TorchvisionBackbone("resnet50"), quick, note=note)
