"""Settings of a run in its loggers, as TensorBoard's own reader reads them."""

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from tests.command_line import fit

SHORT = ("--data.samples_per_class=8", "--data.batch_size=16")
SETTINGS = {
    "seed_everything": 3,
    "data": "DigitsDataModule",
    "data.samples_per_class": 8,
    "data.batch_size": 16,
    "data.augment.0": "ShiftCrop",
    "data.augment.0.pixels": 1,
    "model": "CosineClassifier",
    "model.backbone": "TinyConvNet",
    "model.ce_weight": 0.25,
    "model.optimizer": "AdamW",
    "model.optimizer.lr": 0.002,
    "trainer.max_epochs": 1,
}
FLAGS = ("--seed_everything=3", "--model.ce_weight=0.25", "--model.optimizer=AdamW", "--model.optimizer.lr=0.002")


def check(settings, expected):
    assert {name: settings.get(name) for name in expected} == expected
    assert all(isinstance(value, (bool, int, float, str)) for value in settings.values())
    assert not [name for name in settings if "_instantiator" in name or "class_path" in name]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--test_after_fit=true"], {"best/val/accuracy", "test/accuracy"}),
        ([], {"best/val/accuracy"}),
        (["--data.val_fraction=0"], {"train/loss"}),
    ],
)
def test_tensorboard_shows_settings_beside_final_metrics(flags, expected, tmp_path):
    run = fit("digits_cosine", tmp_path, *SHORT, *FLAGS, *flags)
    events = EventAccumulator(str(run))
    events.Reload()
    assert "hp_metric" not in events.Tags()["scalars"]
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    start = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    kinds = {"number_value", "string_value", "bool_value"}
    found = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
    assert {value.WhichOneof("kind") for value in start.hparams.values()} <= kinds
    check(found, SETTINGS)
    content = events.summary_metadata["_hparams_/experiment"].plugin_data.content
    metrics = {m.name.tag for m in plugin_data_pb2.HParamsPluginData.FromString(content).experiment.metric_infos}
    assert expected <= metrics
    assert any(name.startswith("test/") for name in metrics) == ("test/accuracy" in expected)
    assert metrics <= set(events.Tags()["scalars"])  # which have the values
    check(yaml.safe_load((run / "hparams.yaml").read_text()), SETTINGS)


def test_other_loggers_log_the_same_settings(tmp_path):
    logger = ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={tmp_path}", "--trainer.logger.name=csv"]
    fit("digits_cosine", tmp_path / "runs", *SHORT, *FLAGS, *logger)
    check(yaml.safe_load((tmp_path / "csv" / "version_0" / "hparams.yaml").read_text()), SETTINGS)


def test_settings_are_not_logged_where_that_is_switched_off(tmp_path):
    run = fit("digits_cosine", tmp_path, *SHORT, "--trainer.enable_autolog_hparams=false")
    assert not yaml.safe_load((run / "hparams.yaml").read_text())
