"""Training of a head on the features of a frozen backbone, which are computed once."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from metricloss_pl.augment import HorizontalFlip
from metricloss_pl.callbacks.evaluation import evaluation_mode
from metricloss_pl.data import ImageDataModule
from metricloss_pl.data.samples import SET_NAMES
from metricloss_pl.errors import UserError, plural
from metricloss_pl.files import UNREADABLE_PICKLE, replacing

__all__ = ["CachedFeatures"]

_AT_ONCE = 4  # images on a CPU: of many, the maps are too large for memory that is used again, which doubles the time


class CachedFeatures(Callback):
    """Training of all layers but the backbone, which is frozen, on features that are computed once per image and view.

    Batches are features in place of images, in `fit` as in `validate` and `test`. The views of a training image are the
    image and its mirror image, if the data module mirrors images; a warning names its other augmentations, which are
    not used. With `tta`, the images of `test` pass the network as usual. Checkpoints hold the whole network, and take
    images.

    Features are kept in a file per network, by the pixels of the images: another run with the same backbone, whatever
    its head, its split or its seed, computes only those of new images.

    Args:
        flip: Whether mirror images are views of the training images. None: if `HorizontalFlip` is one of the data
            module's augmentations, or `orientation` brings it.
        cache_dir: Folder of the files. None: `features` in the Trainer's `default_root_dir`, which is the folder of the
            runs on the command line.
        keep: Whether to read and write the files. False: features are in memory alone, for `fit` only.

    Raises:
        UserError: The data are no `ImageDataModule`, the model has no backbone or nothing to train but it, it mixes
            images, or it has teachers.
    """

    def __init__(self, flip: bool | None = None, cache_dir: str | None = None, keep: bool = True) -> None:
        self.flip = flip
        self.cache_dir = cache_dir
        self.keep = keep
        self._trained: list[nn.Parameter] = []  # parameters of the backbone that had a gradient before

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, ImageDataModule):
            raise UserError("CachedFeatures needs an ImageDataModule")
        backbone = getattr(pl_module, "backbone", None)
        if not (isinstance(backbone, nn.Module) and hasattr(pl_module, "normalize")):
            raise UserError(f"CachedFeatures needs a regime of metricloss_pl, not {type(pl_module).__name__}")
        if stage == "fit":
            self._freeze(pl_module, backbone)
            if ignored := [type(one).__name__ for one in data.augmentations if type(one) is not HorizontalFlip]:
                rank_zero_warn(f"CachedFeatures: {', '.join(ignored)} (data.augment, data.orientation) have no effect")
        elif self.keep and stage in ("validate", "test"):
            self.provide(trainer, pl_module, "val" if stage == "validate" else "test")

    def provide(self, trainer: Trainer, module: LightningModule, split: str) -> None:
        """Let the loaders of a set yield features, outside of `fit`, too.

        They are computed for the first loader: a checkpoint is loaded by then, and the model on its device.
        """
        data: ImageDataModule = trainer.datamodule  # type: ignore[attr-defined]
        if split != "test" or data.tta is None:
            data.feature_sources[split] = lambda: self._compute(trainer, module, [split])[split]

    def _freeze(self, module: LightningModule, backbone: nn.Module) -> None:
        if getattr(module, "batch_mixing", None) is not None:
            raise UserError("CachedFeatures: model.batch_mixing mixes images, not features; leave it out")
        if getattr(module, "distillation", None) is not None:
            raise UserError("CachedFeatures: teachers of model.distillation take images, not features; leave it out")
        self._trained = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
        backbone.requires_grad_(False)  # before the optimizer is built
        if not any(parameter.requires_grad for parameter in module.parameters()):
            raise UserError("CachedFeatures: the model has nothing to train but its backbone; set model.embedding_dim")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data: ImageDataModule = trainer.datamodule  # type: ignore[attr-defined]
        data.features.clear()
        data.features |= self._compute(trainer, pl_module, ["train", "val"] if data.has_validation else ["train"])

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._free(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._free(trainer)

    def _free(self, trainer: Trainer) -> None:
        """Give images and backbone back, since another model may be evaluated on the images."""
        if isinstance(data := getattr(trainer, "datamodule", None), ImageDataModule):
            data.features.clear()
            data.feature_sources.clear()
        for parameter in self._trained:
            parameter.requires_grad = True
        self._trained = []

    def _compute(self, trainer: Trainer, module: LightningModule, splits: Sequence[str]) -> dict[str, Tensor]:
        """Return the features (N, V, F) of sets, and keep those that are new in the file."""
        file = self._file(trainer, module) if self.keep else None
        known = {} if file is None else _read(file)
        before = len(known)
        features = {split: self._of_set(trainer, module, split, known) for split in splits}
        if file is not None and len(known) > before and trainer.is_global_zero:
            _write(file, known)
            rank_zero_info(f"features: kept in {file}")
        return features

    def _of_set(self, trainer: Trainer, module: LightningModule, split: str, known: dict[bytes, np.ndarray]) -> Tensor:
        """Return the features (N, V, F) of a set, and add them to those known by the digest of the pixels."""
        data: ImageDataModule = trainer.datamodule  # type: ignore[attr-defined]
        loaders = {"train": data.train_eval_dataloader, "val": data.val_dataloader, "test": data.test_dataloader}
        flip = any(type(one) is HorizontalFlip for one in data.augmentations) if self.flip is None else self.flip
        views = 2 if flip and split == "train" else 1
        of_images = f"{plural(len(data.samples(split)), f'{SET_NAMES[split]} image')} x {plural(views, 'view')}"
        rank_zero_info(f"features: {of_images}, computed once by the frozen {type(module.backbone).__name__}")
        begin, new = time.perf_counter(), 0
        own: list[tuple[list[bytes], np.ndarray]] = []  # digests and features of the views (V, F) of each image
        with evaluation_mode(trainer, module):
            for images, _ in loaders[split]():
                of_views = []
                for view in (images, images.flip(-1))[:views]:
                    digests = [_digest(image) for image in view]
                    missing = [index for index, digest in enumerate(digests) if digest not in known]
                    if missing:
                        batch = trainer.strategy.batch_to_device(view[missing], module.device)
                        size = _AT_ONCE if module.device.type == "cpu" else len(batch)
                        parts = [module.backbone(module.normalize(part)) for part in batch.split(size)]  # type: ignore[operator]
                        found = torch.cat(parts).float().cpu().numpy()
                        known.update(zip([digests[index] for index in missing], found, strict=True))
                    new += len(missing)
                    of_views.append(digests)
                own += [(list(row), np.stack([known[d] for d in row])) for row in zip(*of_views, strict=True)]
        rows = _interleave(own)
        known.update(pair for digests, features in rows for pair in zip(digests, features, strict=True))
        rank_zero_info(f"features: {new:,} computed here in {time.perf_counter() - begin:.0f} s")
        return torch.from_numpy(np.stack([features for _, features in rows]))

    def _file(self, trainer: Trainer, module: LightningModule) -> Path:
        """Return the file of the features of a network, of which each change of a weight gives another one."""
        folder = Path(trainer.default_root_dir) / "features" if self.cache_dir is None else Path(self.cache_dir)
        digest = hashlib.blake2b(digest_size=8)
        digest.update(repr((module.mean.tolist(), module.std.tolist(), str(trainer.precision))).encode())  # type: ignore[operator]
        digest.update(repr(module.backbone).encode())
        for name, tensor in module.backbone.state_dict().items():  # type: ignore[union-attr]
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return folder / f"{digest.hexdigest()}.npz"


def _digest(image: Tensor) -> bytes:
    form = repr((image.shape, image.dtype)).encode()
    return hashlib.blake2b(form + image.numpy().tobytes(), digest_size=16).digest()


def _interleave(own: list[Any]) -> list[Any]:
    """Return the rows of all processes in the order of the set, of which each has every R-th."""
    if not (dist.is_available() and dist.is_initialized()):
        return own
    shares: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(shares, own)
    return [share[row] for row in range(len(shares[0])) for share in shares if row < len(share)]


def _read(file: Path) -> dict[bytes, np.ndarray]:
    """Return the features in a file by digest; none if it is missing or damaged."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return dict(zip(map(bytes, arrays["digests"]), arrays["features"], strict=True))
    except UNREADABLE_PICKLE:
        return {}


def _write(file: Path, features: dict[bytes, np.ndarray]) -> None:
    """Write features, and keep those that another run has added in the meantime."""
    merged = {**_read(file), **features}
    digests = np.frombuffer(b"".join(merged), dtype=np.uint8).reshape(len(merged), -1)
    with replacing(file) as beside, beside.open("wb") as target:
        np.savez(target, digests=digests, features=np.stack(list(merged.values())))
