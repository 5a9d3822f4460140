"""The test part of a set that has none of its own."""

from __future__ import annotations

from metricloss_pl.data.base import Part
from metricloss_pl.data.samples import Samples
from metricloss_pl.data.splits import split_off
from metricloss_pl.errors import UserError

_TEST_SEED = 1797  # fixed: the test part must not change with a run's `seed`


def check_test_fraction(test_fraction: float, owner: object) -> None:
    """Checks the argument of a data module.

    Raises:
        UserError: It is not in (0, 1).
    """
    if not 0 < test_fraction < 1:
        raise UserError(
            f"test_fraction of {type(owner).__name__} is {test_fraction}: a number between 0 and 1 is needed"
        )


def hold_out_test(everything: Samples, part: Part, test_fraction: float) -> Samples:
    """Returns one part of a set without a test part: a stratified (and grouped) share becomes it, always the same.

    Args:
        everything: The images to divide.
        part: "test", or "train" for all others.
        test_fraction: In (0, 1).

    Raises:
        UserError: There is no image, or no class (or group) has one to spare for the test part.
    """
    if len(everything) == 0:
        raise UserError("no image to cut a test part from")
    train, test = split_off(everything.labels, test_fraction, _TEST_SEED, groups=everything.groups)
    if len(test) == 0:
        raise UserError(
            f"test_fraction {test_fraction} of {len(everything)} images leaves none for test: a larger one is needed"
        )
    return everything.subset(train if part == "train" else test)
