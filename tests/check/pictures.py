"""Pictures with details of all sizes, as photographs have them, and labeled folders of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, width: int = 160, height: int = 120) -> Image.Image:
    """Return noise whose spectrum falls like that of photographs."""
    generator = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for cells in (2, 4, 8, 16, 32, 64):
        noise = generator.normal(128, 60, (cells, cells, 3)).clip(0, 255).astype(np.uint8)
        total += (
            np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC), float) / cells**0.5
        )
    total = (total - total.mean()) / total.std()
    return Image.fromarray((128 + 45 * total).clip(0, 255).astype(np.uint8))


def save(image: Image.Image, file: Path, **options: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, **options)
    return file
