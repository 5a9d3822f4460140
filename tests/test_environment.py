import subprocess

import pytest
import torch

from metricloss_pl import environment as module
from metricloss_pl.environment import collect_environment, multiplies_bfloat16


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
        assert collect_environment()["hardware"]["threads"] == number


@pytest.mark.parametrize("tracked", [True, False])
def test_the_commit_is_that_of_the_package_not_of_a_repository_around_an_environment(tracked, tmp_path, monkeypatch):
    package = tmp_path / ".venv" / "metricloss_pl"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (tmp_path / "thesis.txt").touch()

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    git("init", "--quiet")
    git("add", "." if tracked else "thesis.txt")
    git("commit", "--quiet", "--message", "all")
    monkeypatch.setattr(module.metricloss_pl, "__file__", str(package / "__init__.py"))
    module._commit.cache_clear()
    try:
        assert module._commit() == (git("rev-parse", "HEAD") if tracked else None)
    finally:
        module._commit.cache_clear()


@pytest.mark.parametrize(
    ("features", "able"),
    [
        ({}, False),
        ({"avx512_bf16": False, "avx2": True}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
    ],
)
def test_products_of_bfloat16(features, able, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features, raising=False)
    assert multiplies_bfloat16() == able


def test_a_torch_that_does_not_tell(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not multiplies_bfloat16()
