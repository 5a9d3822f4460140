import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from metricloss_pl.backbones import TinyConvNet
from metricloss_pl.callbacks import BestCheckpoint
from metricloss_pl.data import NpzDataModule
from metricloss_pl.regimes import SoftmaxClassifier
from tests.callbacks.runs import trainer

SCORES = (0.5, 0.7, 0.7, 0.6, 0.7, float("nan"), 0.6)


class Scored(BoringModel):
    def on_validation_epoch_end(self):
        self.log("score", SCORES[self.current_epoch] * (1 if self.trainer.checkpoint_callback.mode == "max" else -1))


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize(("kept", "epochs"), [(1, {4}), (2, {2, 4}), (4, {1, 2, 4, 6})])
def test_of_equal_epochs_the_latest_is_kept(kept, epochs, mode, tmp_path):
    checkpoint = BestCheckpoint(tmp_path, "{epoch}", "score", mode=mode, save_top_k=kept)
    trainer = Trainer(
        max_epochs=len(SCORES),
        limit_train_batches=1,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=checkpoint,
    )
    trainer.fit(Scored())
    found = {torch.load(file, weights_only=True)["epoch"] for file in tmp_path.glob("*.ckpt")}
    assert found == epochs
    assert torch.load(checkpoint.best_model_path, weights_only=True)["epoch"] in {1, 2, 4}


@pytest.mark.parametrize(
    ("smallest", "given", "monitor"),
    [
        (9, {}, "val/balanced_accuracy"),
        (10, {}, "val/accuracy"),  # of 18 and 10 training images
        (9, {"monitor": "val/loss", "mode": "min"}, "val/loss"),
    ],
)
def test_balanced_accuracy_chooses_if_classes_are_unequal(smallest, given, monitor, tmp_path):
    labels = np.repeat([0, 1, 2], [18, smallest, 12])
    images = np.random.default_rng(0).integers(0, 255, (len(labels), 8, 8), np.uint8)
    arrays = {"train_images": images, "train_labels": labels, "val_images": images[::2], "val_labels": labels[::2]}
    np.savez(tmp_path / "images.npz", **arrays)
    data = NpzDataModule(path=str(tmp_path / "images.npz"), in_channels=1, batch_size=8)
    best = BestCheckpoint(tmp_path, **given)
    key = best.state_key
    run = trainer(tmp_path, best, max_epochs=1, enable_checkpointing=True)
    run.fit(SoftmaxClassifier(3, TinyConvNet(width=4)), data)
    assert best.monitor == monitor
    assert best.best_model_score == run.callback_metrics[monitor]
    assert best.state_key == key  # resuming finds the state by it
    assert (tmp_path / "best.ckpt").is_file()
