import pytest
import torch

from metricloss_pl.surroundings import surroundings


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_threads_are_those_of_the_moment():
    """A run's own: the number differs between the runs of one process."""
    for number in (1, 2, 1):
        torch.set_num_threads(number)
        assert surroundings()["hardware"]["threads"] == number
