import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from metricloss_pl.callbacks import BestCheckpoint

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
