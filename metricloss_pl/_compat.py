"""Every use of a dependency's private names, one small function each, with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

__all__ = ["set_default_root_dir"]


def set_default_root_dir(trainer: Trainer, folder: Path) -> None:
    """Set the Trainer's `default_root_dir`, which is read-only once a Trainer exists.

    Only a Trainer knows whether this process is the first one, which creates the folder.
    """
    trainer._default_root_dir = str(folder)  # type: ignore[attr-defined]
