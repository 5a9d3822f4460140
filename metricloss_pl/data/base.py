"""The data module that all data sets share: facts and loaders. A data set adds `class_names` and `read`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from metricloss_pl._compat import resumed_position
from metricloss_pl.data.dataset import ImageDataset, Views, identity_collate
from metricloss_pl.data.device import DeviceAugmentation
from metricloss_pl.data.features import AnyDataset, FeatureDataset
from metricloss_pl.data.file_checks import check_readable, describe_left_out, find_unreadable, image_files
from metricloss_pl.data.reading import UnreadableImages
from metricloss_pl.data.sampler import EvaluationSampler, TrainSampler
from metricloss_pl.data.samples import SET_NAMES, Samples
from metricloss_pl.data.store import ImageStore, measure_normalization
from metricloss_pl.data.training_settings import Orientation, TrainingSettings
from metricloss_pl.errors import UserError, check_choice

_LEAST = {
    "batch_size": 1, "samples_per_class": 1, "seed": 0, "repeat": 1, "oversample_to": 1,
    "samples_per_class_in_batch": 1, "in_channels": 1, "resize": 1, "train_resize": 1, "image_size": 1,
    "num_workers": 0,
}  # fmt: skip


@dataclass(kw_only=True, eq=False, repr=False)
class ImageDataModule(TrainingSettings, DeviceAugmentation):
    """Labeled images in a training, a validation and a test set.

    A data set is a subclass, itself decorated with `@dataclass(kw_only=True, eq=False, repr=False)`, that implements
    `class_names` and `read`; it may override defaults and add fields. A subclass with its own `__post_init__` calls
    `super().__post_init__()`.

    Batches are images (B, C, S, S), uint8 or (16-bit and floating-point sources) float32 in [0, 1], not normalized,
    and labels (B,) int64; batches of `predict` add each image's index (B,), and the label is -1 if it is unknown.
    With `tta`, the images of `test` and `predict` are (B, V, C, S, S).

    Args:
        balanced_sampling: Draw each class equally often in training; images of small classes are repeated.
        samples_per_class_in_batch: Images of each class in a training batch, for far more classes than a batch can
            hold. A global batch has so many images of each of batch_size x processes / samples_per_class_in_batch
            classes, and all classes are drawn equally often. None: batches are drawn at random.
        resize: Shorter side in px to which images are resized before the crop. None: `image_size`.
        train_resize: Shorter side in px of the images that are augmented, such as a larger one for `RandomResizedCrop`,
            which enlarges its crops. None: `resize`.
        mean: Mean of each channel in [0, 1] units. None: that of the backbone's pretrained weights, or else measured on
            the training set.
        std: Standard deviation of each channel in [0, 1] units. None: as for `mean`.
        num_workers: Processes that prepare batches. 0: only the main process, which is the fastest for small images.
            None are started for training images that are kept on a GPU.
        cache_gb: Memory in GB for decoded images: the image files of a set are decoded once if they fit. Training
            images that are decoded, of one size and fit are also kept on the GPU that trains, if there is one.
        predict_dir: Folder of unlabeled images for `predict`. None: `predict` uses the test set.
        tta: Test-time augmentation: views of each image of `test` and `predict`, whose embeddings are averaged. `flip`:
            the image and its mirror image; `crops`: the center and the four corners of the resized image;
            `crops_and_flips`: all ten. None: the image alone.

    Raises:
        UserError: An argument is out of its range.
    """

    balanced_sampling: bool = False
    samples_per_class_in_batch: int | None = None
    resize: int | None = None
    train_resize: int | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    num_workers: int = 0
    cache_gb: float = 2.0
    predict_dir: str | None = None
    tta: Views | None = None

    def __post_init__(self) -> None:
        LightningDataModule.__init__(self)
        super().__post_init__()
        self.features: dict[str, Tensor] = {}  # (N, V, F) by set; its loaders yield these in place of images
        self.feature_sources: dict[str, Callable[[], Tensor]] = {}  # by set; called once, for its first loader
        self._stores: dict[str, ImageStore] = {}
        self._measured: tuple[ImageStore, tuple[list[float], list[float]]] | None = None  # mean and std of a store
        self._readable: set[str] = set()  # sets whose files have all been decoded once
        self.unreadable: UnreadableImages | None = None  # images of `predict_dir` that `predict` leaves out
        self._check_arguments()

    # Facts.

    @property
    def image_format(self) -> dict[str, int | None]:
        """Channels and sizes to which images are converted; known right after construction."""
        image_size, resize = self.resolved_image_size, self.resize
        if resize is None:
            trained = self._format_in_evaluation() if self.image_size == "auto" else None
            resize = image_size if trained is None else trained["resize"]
        return {"in_channels": self.in_channels, "resize": resize, "image_size": image_size}

    @property
    def hierarchy(self) -> str | None:
        """File of a hierarchy of the classes, if the set has one; it may be missing."""
        return None

    @property
    def normalization(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel of the training set in [0, 1] units, after `setup("fit")`."""
        if self.mean is not None and self.std is not None:
            return self.mean, self.std
        store = self._store("train")
        if self._measured is None or self._measured[0] is not store:
            self._measured = store, measure_normalization(store, self.seed)
        mean, std = self._measured[1]
        return self.mean or mean, self.std or std

    @property
    def class_counts(self) -> Tensor:
        """Training images per class (C,) int64, after `setup("fit")`."""
        return self.samples("train").counts(self.num_classes)

    @property
    def is_imbalanced(self) -> bool:
        """True if the largest class has at least twice the training images of the smallest, after `setup("fit")`."""
        return bool(self.class_counts.max() >= 2 * self.class_counts.min())

    @property
    def predict_files(self) -> list[str]:
        """Names of the images of `predict`, in order, after `setup("predict")`."""
        return list(self.samples("predict").names)

    def samples(self, split: str) -> Samples:
        """Return the images in use of "train", "val", "test" or "predict", once that set is set up."""
        if split not in self._samples:
            off = split == "val" and not self.has_validation
            stage = {"train": "fit", "val": "fit"}.get(split, split)
            why = "val_fraction is 0" if off else f'call setup("{stage}") first'
            raise UserError(f"{type(self).__name__} has no {SET_NAMES.get(split, split)} set: {why}")
        return self._samples[split]

    def describe(self) -> str:
        """Return one line about the data after `setup("fit")`: "26 training and 8 test images of 3 classes (...)"."""
        sizes = [f"{len(samples)} {SET_NAMES[split]}" for split, samples in self.list_sets().items()]
        joined = " and ".join([", ".join(sizes[:-1]), sizes[-1]] if len(sizes) > 1 else sizes)
        least, most = int(self.class_counts.min()), int(self.class_counts.max())
        per_class = str(least) if least == most else f"{least} to {most}"
        images = "image" if per_class == "1" else "images"
        groups = self.samples("train").groups
        grouped = "" if groups is None else f", {len(groups.unique())} groups in training"
        return f"{joined} images of {self.num_classes} classes ({per_class} training {images} per class{grouped})"

    def training_sample(self, count: int) -> Tensor:
        """Return at most `count` training images (N, C, S, S) in a random order, the same each time, not augmented."""
        dataset = self._dataset("train")
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(self.seed))
        images: Tensor = dataset.__getitems__(order[:count].tolist())[0]
        return images

    def in_memory(self, split: str) -> bool:
        """Return whether the images of a set are kept decoded, once it is set up."""
        return self._store(split).images is not None

    # Checks before a training from the command line; from Python they are up to the caller.

    def check_files(self) -> None:
        """Decode each image file in use that is not in memory, also of the test set.

        Raises:
            UnreadableImages: Some cannot be decoded; all of these are named.
        """
        self._check_readable(self.list_sets())

    # Lightning's hooks.

    def setup(self, stage: str | None = None) -> None:
        """Read the sets that a stage needs ("fit", "validate", "test", "predict"; None: all), and no others."""
        if stage in ("fit", "validate", None):
            self._set_up_fit()
        if stage in ("test", None) or (stage == "predict" and self.predict_dir is None):
            self._set_up_test(required=stage is not None)
        if stage in ("predict", None):
            self._set_up_predict()
        if stage in ("validate", "test", "predict"):  # `check_files` is that of "fit"
            needed = "val" if stage == "validate" else "test"
            self._check_readable({split: samples for split, samples in self._samples.items() if split == needed})

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the augmented training set, in a new order per epoch, without the last incomplete global batch."""
        sampler = self._train_sampler(self.samples("train"))
        defer = self._deferrable_work(self._store("train"), self.cache_gb)
        self._training_set = self._dataset("train", training=True, defer=defer)
        loader = self._loader(self._training_set, sampler, sampler.batch_size)
        if self.trainer is not None:
            sampler.resume(functools.partial(resumed_position, self.trainer, len(loader)))
        return loader

    def batches_in_epoch(self) -> int:
        """Return the length of `train_dataloader()`, also before `setup("fit")`."""
        sampler = self._train_sampler(self._training_images())
        return math.ceil(len(sampler) / sampler.batch_size)

    def train_eval_dataloader(self) -> DataLoader[Any]:
        """Return the training set in order, not augmented, each image once (each process has its share)."""
        return self._evaluation_loader("train")

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """Return the validation set in order, each image once; without one an empty list, which Lightning skips."""
        return self._evaluation_loader("val") if self.has_validation else []

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the test set in order, each image once."""
        return self._evaluation_loader("test", views=self.tta)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the images of `predict_dir`, else the test set, in order; batches are (images, labels, index)."""
        return self._evaluation_loader("predict", with_index=True, views=self.tta)

    # Implementation.

    def _check_arguments(self) -> None:
        where = f"of {type(self).__name__}"
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value != "auto" and value < least:
                raise UserError(f"{name} {where} is {value}: at least {least} is needed")
        if self.balanced_sampling and self.samples_per_class_in_batch is not None:
            raise UserError(f"balanced_sampling and samples_per_class_in_batch {where}: choose one of them")
        if self.repeat not in (1, "auto") and self.oversample_to is not None:
            raise UserError(f"repeat and oversample_to {where}: choose one of them")
        check_choice(f"tta {where}", self.tta, Views | None)
        check_choice(f"orientation {where}", self.orientation, Orientation | None)
        for augmentation in self.augmentations:
            if augmentation.changes_color and self.in_channels not in (1, 3):
                raise UserError(
                    f"{type(augmentation).__name__} changes colors: in_channels {where} must be 3 or 1, not "
                    f"{self.in_channels}; give another list as data.augment, such as [ShiftCrop]"
                )
        for name, values, low in (("mean", self.mean, 0.0), ("std", self.std, 1e-9)):
            if values is not None and not (
                len(values) == self.in_channels and all(low <= value <= 1 for value in values)
            ):
                kind = "positive numbers" if name == "std" else "numbers"
                raise UserError(f"{name} {where} is {values}: {self.in_channels} {kind} in [0, 1] units are needed")

    def _set_up_fit(self) -> None:
        if "train" not in self._samples:
            train, val = self.divide()
            self._add({"train": train} if val is None else {"train": train, "val": val})

    def _set_up_test(self, required: bool) -> None:
        if "test" in self._samples:
            return
        if (test := self.list_test()) is not None:
            self._add({"test": test})
        elif required:
            raise UserError(f"{type(self).__name__} has no test set")

    def _set_up_predict(self) -> None:
        if self.predict_dir is None:
            if "test" in self._samples:
                self._samples["predict"] = self._samples["test"]
        elif "predict" not in self._samples:
            root = Path(self.predict_dir)
            files = image_files(root)
            self._warn(describe_left_out(root, [root]))
            files = self._leave_out_unreadable(files)
            names = [path.relative_to(root).as_posix() for path in files]
            labels = torch.full((len(files),), -1, dtype=torch.int64)
            self._add({"predict": Samples(images=files, labels=labels, names=names)})

    def _add(self, sets: dict[str, Samples]) -> None:
        """Set up sets, all of them or none."""
        self._samples |= sets
        try:
            for split in sets:
                if not self._awaits_checkpoint():  # else the first loader does it
                    self._store(split)
        except BaseException as error:
            for split in sets:
                del self._samples[split]
            if isinstance(error, UnreadableImages):  # the first; name all
                test = self.list_test() if "train" in sets else None
                self._check_readable(sets if test is None else {**sets, "test": test})
            raise
        for split in ("val", "test"):
            if split in sets:
                self._warn_of_absent_classes(split)

    def _check_readable(self, sets: Mapping[Any, Samples]) -> None:
        """Decode the files of those sets that have not been decoded yet, and discard the pixels."""
        left = [split for split in sets if split not in self._readable]
        check_readable([path for split in left for path in sets[split].files], self.in_channels)
        self._readable.update(left)

    def _warn_of_absent_classes(self, split: str) -> None:
        counts = self._samples[split].counts(self.num_classes).tolist()
        absent = [name for name, count in zip(self.class_names, counts, strict=True) if count == 0]
        if absent:
            name, present = SET_NAMES[split], self.num_classes - len(absent)
            of = f"class {absent[0]!r}" if len(absent) == 1 else f"{len(absent)} classes, such as {absent[0]!r}"
            line = f"no {name} image of {of}: {name} metrics are over {present} of {self.num_classes} classes"
            self._warn([line])

    def _store(self, split: str) -> ImageStore:
        """Return the images of a set that is set up, decoded again if the set or its automatic size has changed."""
        samples = self.samples(split)
        split = "test" if samples is self._samples.get("test") else split  # `predict` may use the test set
        resize = self.image_format["resize"]
        if split == "train" and self.train_resize is not None:
            resize = self.train_resize
        store = self._stores.get(split)
        if store is None or store.samples is not samples or store.resize != resize:
            if split == "train" and self.resize is None:
                self._warn_of_enlarged()
            store = ImageStore(samples, in_channels=self.in_channels, resize=resize, cache_gb=self.cache_gb)
            self._stores[split] = store
            self._readable |= {split} if store.images is not None else set()
        return store

    def _leave_out_unreadable(self, files: list[Path]) -> list[Path]:
        """Return the files that can be decoded and warn of the others; each process checks a share of them."""
        processes, rank = self._processes()
        broken = find_unreadable(files[rank::processes], self.in_channels)
        if processes > 1:
            shares: list[Any] = [None] * processes
            dist.all_gather_object(shares, broken)
            broken = {path: share[path] for path in files for share in shares if path in share}
        if not broken:
            return files
        self.unreadable = UnreadableImages.of(broken, write_list=rank == 0)
        if len(broken) == len(files):
            raise self.unreadable
        self._warn([f"{self.unreadable}; the other images are predicted"])
        return [path for path in files if path not in broken]

    def _train_sampler(self, train: Samples) -> TrainSampler:
        num_replicas, rank = self._processes()
        return TrainSampler(
            train.labels,
            self._resolve_batch_size(train),
            seed=self.seed,
            repeat=self._resolve_repeat(train),
            balanced=self.balanced_sampling,
            per_class=self.samples_per_class_in_batch,
            num_replicas=num_replicas,
            rank=rank,
        )

    def _dataset(self, split: str, **arguments: Any) -> AnyDataset:
        samples = self.samples(split)
        if split in self.feature_sources:
            self.features[split] = self.feature_sources.pop(split)()
        if split in self.features:
            return FeatureDataset(self.features[split], samples.labels, self.seed)
        image_format = self.image_format
        enlarged = self.train_resize is not None and not arguments.get("training")
        return ImageDataset(
            self._store(split),
            samples.labels,
            samples.names,
            image_size=image_format["image_size"],
            resize=image_format["resize"] if enlarged else None,
            augment=self.augmentations,
            seed=self.seed,
            **arguments,
        )

    def _evaluation_loader(self, split: str, **arguments: Any) -> DataLoader[Any]:
        dataset = self._dataset(split, **arguments)
        num_replicas, rank = self._processes()
        if len(dataset) < num_replicas:
            raise UserError(
                f"{type(self).__name__} has {len(dataset)} {SET_NAMES.get(split, split)} images for {num_replicas} "
                "processes: use at most one process per image"
            )
        batch_size = 64 if self.batch_size == "auto" else self.batch_size
        sampler = EvaluationSampler(len(dataset), num_replicas=num_replicas, rank=rank)
        return self._loader(dataset, sampler, batch_size)

    def _loader(
        self, dataset: AnyDataset, sampler: TrainSampler | EvaluationSampler, batch_size: int
    ) -> DataLoader[Any]:
        device = None if self.trainer is None else self.trainer.strategy.root_device.type
        num_workers = 0 if dataset.defer == "all" else self.num_workers  # nothing is left for them
        return DataLoader(
            dataset=dataset,
            batch_size=batch_size,
            sampler=sampler,
            collate_fn=identity_collate,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available() if device is None else device == "cuda",
        )
