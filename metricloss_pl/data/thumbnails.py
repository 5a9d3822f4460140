"""Small pictures of image files, for pages."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

__all__ = ["encode_jpeg", "thumbnail"]

_SIDE = 192  # px, of the longer side


def thumbnail(file: Path) -> bytes | None:
    """Return a small JPEG of an image file; None where it cannot be decoded."""
    from PIL import Image

    try:
        with Image.open(file) as picture:
            if picture.mode.startswith("I"):  # 16 bit
                small = Image.fromarray((np.asarray(picture) / 257).astype(np.uint8))
            else:
                picture.draft("RGB", (2 * _SIDE, 2 * _SIDE))
                small = picture.convert("RGB")
            small.thumbnail((_SIDE, _SIDE))
            return encode_jpeg(np.asarray(small.convert("RGB")))
    except Exception:  # a broken or hostile file can raise nearly anything
        return None


def encode_jpeg(pixels: np.ndarray) -> bytes:
    """Return pixels (H, W, 3) uint8 as a JPEG."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="JPEG", quality=85)
    return stream.getvalue()
