"""Views of the images of test and predict."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as transforms

from metricloss_pl.data import DigitsDataModule, ImageFolderDataModule, NpzDataModule
from metricloss_pl.errors import UserError
from tests.helpers import make_image


def corners(image, size):
    return transforms.five_crop(image, [size, size])[:4]


@pytest.fixture
def folder(tmp_path):
    """Images of many sizes, some smaller than the others' crop before they are resized."""
    for seed, (width, height) in enumerate([(20, 30), (31, 17), (16, 16), (40, 24), (24, 25), (19, 50)]):
        for name in ("cat", "dog"):
            file = tmp_path / name / f"{seed}.png"
            make_image(file, 50, seed)
            Image.open(file).crop((0, 0, width, height)).save(file)
    return tmp_path


@pytest.mark.parametrize("views", ["flip", "crops", "crops_and_flips"])
@pytest.mark.parametrize("image_size", [16, 64])  # small and large crops are cut in different ways
def test_views_are_torchvisions(views, image_size, folder):
    options = {"root": folder, "image_size": image_size, "resize": image_size + 5, "batch_size": 50}
    options |= {"val_fraction": 0.3, "test_fraction": 0.5}
    data = ImageFolderDataModule(**options, tta=views)
    usual = ImageFolderDataModule(**options)
    whole = ImageFolderDataModule(**{**options, "image_size": None, "batch_size": 1})
    for part in (data, usual, whole):
        part.setup()
    [(images, labels)] = data.test_dataloader()
    [(centers, expected_labels)] = usual.test_dataloader()
    assert torch.equal(labels, expected_labels)
    assert torch.equal(images[:, 0], centers)
    for row, (image, _) in zip(images, whole.test_dataloader(), strict=True):
        # Where the room beside a crop is odd, torchvision's center is a pixel off: it is compared above.
        expected = [row[0], *(corners(image[0], image_size) if views != "flip" else [])]
        if views != "crops":
            expected += [view.flip(-1) for view in expected]
        assert torch.equal(row, torch.stack(expected))
    [(predicted, _, index)] = data.predict_dataloader()
    assert torch.equal(predicted, images)
    assert torch.equal(index, torch.arange(len(images)))


def test_training_and_validation_have_none():
    data = DigitsDataModule(tta="flip", samples_per_class=20, batch_size=32)
    data.setup()
    for loader in (data.train_dataloader(), data.train_eval_dataloader(), data.val_dataloader()):
        assert next(iter(loader))[0].shape[1:] == (1, 8, 8)
    images = next(iter(data.test_dataloader()))[0]
    assert images.shape == (32, 2, 1, 8, 8)
    assert torch.equal(images[:, 1], images[:, 0].flip(-1))


def test_nothing_to_crop(tmp_path):
    with pytest.raises(UserError, match="tta of DigitsDataModule is 'mirror'; it must be one of 'flip', 'crops', "):
        DigitsDataModule(tta="mirror")
    data = DigitsDataModule(tta="crops")
    data.setup("test")
    with pytest.raises(UserError, match="tta is 'crops' and image_size None, so there is nothing to crop"):
        data.test_dataloader()
    images, labels = np.zeros((6, 12, 12), dtype=np.uint8), np.arange(6) % 2
    arrays = {f"{part}_{name}": a for part in ("train", "test") for name, a in (("images", images), ("labels", labels))}
    np.savez(tmp_path / "set.npz", **arrays)
    for resize, refused in ((None, True), (14, False)):
        data = NpzDataModule(path=tmp_path / "set.npz", image_size=12, resize=resize, tta="crops_and_flips")
        data.setup("test")
        if refused:
            with pytest.raises(UserError, match="image_size 12, so there is nothing to crop: resize must be above"):
                data.test_dataloader()
        else:
            assert next(iter(data.test_dataloader()))[0].shape == (6, 10, 1, 12, 12)
