"""Orders of images over epochs and processes.

Both samplers subclass torch's `DistributedSampler` because Lightning leaves those alone; a plain sampler would be split
over the processes a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from metricloss_pl.errors import UserError, plural


def process_group() -> tuple[int, int]:
    """Return the number of processes and the rank of this one; 1 and 0 if torch.distributed is not initialized."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size(), torch.distributed.get_rank()
    return 1, 0


class TrainSampler(DistributedSampler[Any]):
    """Training order, drawn from (seed, epoch) in whole global batches, of which each process has its share.

    The last incomplete global batch (of batch_size * num_replicas images) is dropped, so that all processes take
    equally many steps. A set smaller than one global batch gives one smaller batch, of equally many images per process.
    With the same global batch size, a global batch has the same images for any number of processes.

    An item is (index, draw): the draw is the epoch, plus 2^32 for each earlier use of the image in the epoch. Worker
    processes thereby know the epoch, and a repeated image is augmented differently.

    With `per_class` a global batch of G images has M = per_class images of each of P = G / M classes, drawn in rounds:
    in a round of ceil(C / P) batches each class is drawn once, and the last batch is filled up with classes of the
    first one. Rounds continue from one epoch to the next, so that no class is left out in short epochs. The number of
    batches per epoch does not change, but is at least one. Within an epoch the images of a class are drawn equally
    often (within one), and twice in a batch only if the class has fewer than M.

    Args:
        labels: (N,) int64.
        batch_size: Images per step and process.
        seed: At least 0.
        repeat: Number of times that each image is drawn per epoch.
        balanced: Draw every class equally often (within one) in each run of C images, and every image of a class
            equally often (within one). The number of images per epoch does not change.
        per_class: Images M of each class in a batch. None: batches are drawn without regard to classes.
        num_replicas: Number of processes. None: that of the process group.
        rank: Rank of this process. None: that in the process group.

    Raises:
        UserError: There are fewer images than processes; or per_class does not divide the global batch, or leaves it
            one class or more classes than there are.
    """

    def __init__(
        self,
        labels: Tensor,
        batch_size: int,
        *,
        seed: int = 0,
        repeat: int = 1,
        balanced: bool = False,
        per_class: int | None = None,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        world_size, own_rank = process_group()
        num_replicas = world_size if num_replicas is None else num_replicas
        rank = own_rank if rank is None else rank
        super().__init__(range(len(labels)), num_replicas=num_replicas, rank=rank, shuffle=True, seed=seed)  # type: ignore[arg-type]
        global_batch = batch_size * num_replicas
        if len(labels) < num_replicas:
            raise UserError(f"{plural(len(labels), 'training image')} cannot be shared out to {num_replicas} processes")
        self.labels = labels.numpy()
        self.balanced = balanced
        self.batch_size = batch_size
        self.per_class = per_class
        num_images = len(labels) * repeat
        if per_class is not None:
            self._check_classes(per_class, global_batch)
            num_images = max(num_images, global_batch)
        step = global_batch if num_images >= global_batch else num_replicas
        self.total_size = num_images // step * step
        self.repeat = repeat
        self.num_samples = self.total_size // num_replicas
        self._begin: Callable[[], tuple[int, int]] | None = None
        self._first_epoch = 0
        self._first_batch = 0

    def resume(self, begin: Callable[[], tuple[int, int]]) -> None:
        """Begin at a batch of an epoch; other epochs are whole.

        Args:
            begin: Function that returns (epoch, batch). It is called when the order is first needed, since a loader
                may be built before the state of an interrupted run is restored.
        """
        self._begin = begin

    def __iter__(self) -> Iterator[tuple[int, int]]:
        if self._begin is not None:
            self.epoch, self._first_batch = self._begin()
            self._first_epoch, self._begin = self.epoch, None
        generator = np.random.Generator(np.random.PCG64([self.seed, self.epoch]))
        if self.per_class is not None:
            order = self._order_by_class(generator, self.per_class)
        elif self.balanced:
            order = self._balanced_order(generator)
        else:
            order = generator.permutation(len(self.labels) * self.repeat)[: self.total_size] % len(self.labels)
        draws = self.epoch + (_earlier_occurrences(order) << 32)
        start = self._first_batch * self.batch_size if self.epoch == self._first_epoch else 0
        share = slice(self.rank, None, self.num_replicas)
        return iter(list(zip(order[share].tolist(), draws[share].tolist(), strict=True))[start:])

    def _check_classes(self, per_class: int, global_batch: int) -> None:
        classes = len(np.unique(self.labels))
        in_batch, rest = divmod(global_batch, per_class)
        if rest or not 2 <= in_batch <= classes:
            raise UserError(
                f"samples_per_class_in_batch is {per_class} and batch_size {self.batch_size} x {self.num_replicas} "
                f"processes: "
                f"they must make whole classes, at least 2 and at most the {classes} that there are"
            )

    def _order_by_class(self, generator: np.random.Generator, per_class: int) -> np.ndarray:
        in_batch = self.batch_size * self.num_replicas // per_class
        classes = np.unique(self.labels)
        round_length = -(-len(classes) // in_batch)  # in batches
        num_batches = self.total_size // (in_batch * per_class)
        first, last = self.epoch * num_batches, (self.epoch + 1) * num_batches
        rounds = range(first // round_length, -(-last // round_length))
        batches = np.concatenate([self._round(number, classes, round_length, in_batch) for number in rounds])
        begin = first - rounds.start * round_length
        turns = batches[begin : begin + num_batches].ravel().repeat(per_class)
        order = np.empty(self.total_size, dtype=np.int64)
        for label in np.unique(turns):
            members, places = np.flatnonzero(self.labels == label), np.flatnonzero(turns == label)
            order[places] = np.resize(generator.permutation(members), len(places))
        return order

    def _round(self, number: int, classes: np.ndarray, round_length: int, in_batch: int) -> np.ndarray:
        """Return the classes of a round's batches (round_length, in_batch), each at least once, never twice in one."""
        # One number more than an epoch's generator has, so that the two differ.
        generator = np.random.Generator(np.random.PCG64([self.seed, number, 1]))
        return np.resize(generator.permutation(classes), (round_length, in_batch))

    def _balanced_order(self, generator: np.random.Generator) -> np.ndarray:
        classes = np.unique(self.labels)
        rounds = -(-self.total_size // len(classes))
        turns = generator.permuted(np.tile(classes, (rounds, 1)), axis=1).ravel()[: self.total_size]
        order = np.empty(self.total_size, dtype=np.int64)
        for label in classes:
            members, places = np.flatnonzero(self.labels == label), np.flatnonzero(turns == label)
            repeats = -(-len(places) // len(members))
            order[places] = generator.permuted(np.tile(members, (repeats, 1)), axis=1).ravel()[: len(places)]
        return order


def _earlier_occurrences(order: np.ndarray) -> np.ndarray:
    """Return how often each entry occurs earlier in `order`: [5, 7, 5, 5] -> [0, 0, 1, 2]."""
    by_value = np.argsort(order, kind="stable")
    value = order[by_value]
    starts = np.flatnonzero(np.r_[True, value[1:] != value[:-1]])
    run_lengths = np.diff(np.r_[starts, len(order)])
    earlier = np.empty(len(order), dtype=np.int64)
    earlier[by_value] = np.arange(len(order)) - np.repeat(starts, run_lengths)
    return earlier


class EvaluationSampler(DistributedSampler[Any]):
    """Order of the data set, each image exactly once over all processes, without padding.

    Process r takes the images r, r + R, r + 2R, ...; so shares differ by one image at most.

    Args:
        num_images: N.
        num_replicas: Number of processes R. None: that of the process group.
        rank: Rank of this process. None: that in the process group.
    """

    def __init__(self, num_images: int, *, num_replicas: int | None = None, rank: int | None = None) -> None:
        world_size, own_rank = process_group()
        super().__init__(
            range(num_images),  # type: ignore[arg-type]
            num_replicas=world_size if num_replicas is None else num_replicas,
            rank=own_rank if rank is None else rank,
            shuffle=False,
        )
        self.indices = range(self.rank, num_images, self.num_replicas)
        self.num_samples = len(self.indices)
        self.total_size = num_images

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)
