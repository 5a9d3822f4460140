from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metricloss_pl.data.unlabeled import UnlabeledFolderDataModule
from metricloss_pl.errors import UserError

FACTS = {"in_channels": 1, "resize": 10, "image_size": 8}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "new"
    (root / "deep").mkdir(parents=True)
    for index, name in enumerate(("z.png", "deep/b.jpg", "a.PNG")):
        array = np.random.default_rng(index).integers(0, 256, (20, 15 + index, 3), dtype=np.uint8)
        Image.fromarray(array).save(root / name)
    (root / "notes.txt").write_text("no image")
    return root


def test_images_are_prepared_as_the_facts_say(folder: Path) -> None:
    module = UnlabeledFolderDataModule(predict_dir=str(folder), class_names=["ant", "bee"], batch_size=2, **FACTS)
    assert module.image_format == FACTS
    assert module.class_names == ["ant", "bee"]
    assert module.num_classes == 2
    (folder / "deep" / "c.heic").touch()
    with pytest.warns(UserWarning, match=r"not used: 1 file of .* 'deep/c.heic'"):
        module.setup("predict")
    assert module.predict_files == ["a.PNG", "deep/b.jpg", "z.png"]
    batches = list(module.predict_dataloader())
    assert [images.shape for images, _, _ in batches] == [(2, 1, 8, 8), (1, 1, 8, 8)]
    assert torch.cat([labels for _, labels, _ in batches]).tolist() == [-1, -1, -1]
    assert torch.cat([index for _, _, index in batches]).tolist() == [0, 1, 2]


def test_only_predict(folder: Path) -> None:
    module = UnlabeledFolderDataModule(predict_dir=str(folder), class_names=["ant"], image_size=8)
    for stage in ("fit", "test"):
        with pytest.raises(UserError, match="UnlabeledFolderDataModule has no"):
            module.setup(stage)


def test_missing_and_empty_folders_are_named(tmp_path: Path) -> None:
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(UserError, match=re.escape(str(folder))):
            UnlabeledFolderDataModule(predict_dir=str(folder), class_names=["ant"], image_size=8).setup("predict")
