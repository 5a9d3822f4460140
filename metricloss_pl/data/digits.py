"""scikit-learn's bundled handwritten digits: a first run that downloads nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metricloss_pl.data.samples import Samples, Split, array_samples
from metricloss_pl.data.test_split import HeldOutDataModule


@dataclass(kw_only=True, eq=False, repr=False)
class DigitsDataModule(HeldOutDataModule):
    """scikit-learn's 1,797 handwritten digits of 8 x 8 px, in gray, bundled with it (no download).

    There is no official test set: a stratified one is drawn, the same for every `seed`. The values 0..16 are scaled to
    0..255. The images are of the test split of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998).
    """

    in_channels: int = 1

    @property
    def found_classes(self) -> list[str]:
        """The digits "0" to "9"."""
        return [str(digit) for digit in range(10)]

    @property
    def given_splits(self) -> tuple[Split, ...]:
        """The training set alone, which is all images."""
        return ("train",)

    def list_split(self, split: Split) -> Samples:
        """Return all images."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        return array_samples(images, digits.target, "digits")
