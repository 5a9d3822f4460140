"""scikit-learn's bundled handwritten digits: a first run that downloads nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from metricloss_pl.data.base import ImageDataModule, Part
from metricloss_pl.data.held_out import check_test_fraction, hold_out_test
from metricloss_pl.data.samples import Samples, array_samples


@dataclass(kw_only=True, eq=False, repr=False)
class DigitsDataModule(ImageDataModule):
    """scikit-learn's 1,797 handwritten digits of 8 x 8 px, in grey, bundled with it (no download).

    There is no official test part: a stratified one is drawn, the same for every `seed`. The values 0..16 are scaled to
    0..255. The images are of the test part of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998).

    Args:
        test_fraction: Share of the images that is the test part, in (0, 1).
        in_channels: 3 for colour, 1 for grey; images of the other kind are converted.
    """

    test_fraction: float = 0.2
    in_channels: Literal[1, 3] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_test_fraction(self.test_fraction, self)

    @property
    def class_names(self) -> list[str]:
        """The digits "0" to "9"."""
        return [str(digit) for digit in range(10)]

    def read(self, part: Part) -> Samples | None:
        """Reads the training or test part; there is no official validation part."""
        if part == "val":
            return None
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        return hold_out_test(array_samples(images, digits.target, "digits"), part, self.test_fraction)
