import logging

import pytest


@pytest.fixture(autouse=True)
def lightning_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning's loggers keep their messages from others', and so from pytest's before its version 9."""
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "propagate", True)
