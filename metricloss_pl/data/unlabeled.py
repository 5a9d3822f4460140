"""Any folder of images, for `predict` alone."""

from __future__ import annotations

from metricloss_pl.data.base import ImageDataModule
from metricloss_pl.data.dataset import Views
from metricloss_pl.data.samples import Samples, Split


class UnlabeledFolderDataModule(ImageDataModule):
    """Folder of images without labels, for `predict`, prepared as the training images of a classifier were.

    Args:
        predict_dir: The folder; images in its subfolders are included.
        class_names: Class names of the classifier, in the order of its labels.
        in_channels: Channels of the images; gray (1) and color (3) are converted into each other.
        resize: Shorter side in px to which images are resized before the crop. None: `image_size`.
        image_size: Side in px of the square center crop. None: images as they are, of one size.
        batch_size: Images per step and process.
        num_workers: Processes that prepare batches. 0: only the main process.
        cache_gb: Memory in GB: the images are all decoded at the start if they fit, else batch by batch.
        tta: Test-time augmentation, as of `ImageDataModule`: `flip`, `crops` or `crops_and_flips`. None: the image
            alone.
    """

    def __init__(
        self,
        *,
        predict_dir: str,
        class_names: list[str],
        in_channels: int = 3,
        resize: int | None = None,
        image_size: int | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        cache_gb: float = 0.0,
        tta: Views | None = None,
    ) -> None:
        self._class_names = list(class_names)
        super().__init__(
            predict_dir=predict_dir,
            in_channels=in_channels,
            resize=resize,
            image_size=image_size,
            batch_size=batch_size,
            num_workers=num_workers,
            cache_gb=cache_gb,
            tta=tta,
        )

    @property
    def class_names(self) -> list[str]:
        """Class names of the classifier, in the order of its labels."""
        return self._class_names

    def read(self, split: Split) -> Samples | None:
        """Return None: there are no labeled sets."""
        return None
