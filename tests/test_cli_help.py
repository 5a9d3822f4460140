"""Help that can be read, the type of backbones, and subclasses of the command line."""

import json
import sys
from argparse import ArgumentError

import pytest
import torch
from torch import Tensor, nn

from metricloss_pl import backbones
from metricloss_pl.backbones import Backbone, TinyConvNet
from metricloss_pl.cli import MetricLossCLI, main
from metricloss_pl.errors import UserError
from metricloss_pl.regimes import SoftmaxClassifier

DEV_RUN = ["--trainer.fast_dev_run=true", "--trainer.logger=false", "--trainer.callbacks=null",
           "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]  # fmt: skip


class PlainNet(nn.Module):
    """A user's network, which knows nothing of this package."""

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__()
        self.num_features = 64 * in_channels

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


class Doubling(MetricLossCLI):
    """An argument of its own, and a link."""

    def add_arguments_to_parser(self, parser):
        parser.add_argument("--half", type=int, default=8)
        parser.link_arguments("half", "model.init_args.embedding_dim", compute_fn=lambda half: 2 * half)


def help_of(capsys, monkeypatch, *arguments: str) -> str:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    assert caught.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("regime", ["CosineClassifier", "SoftmaxClassifier", "CenterSoftmaxClassifier",
                                    "StandaloneCenterClassifier", "MetricLearningClassifier"])  # fmt: skip
def test_help_of_a_regime_fits_on_few_screens(regime, capsys, monkeypatch):
    text = help_of(capsys, monkeypatch, "fit", "--model.help", regime)
    assert len(text.splitlines()) <= 130
    for name in {*backbones.__all__, "AdamW", "OneCycleLR", "CosineDecay", "MixUp"} - {"Backbone"}:
        assert name in text
    assert "CIFAR" not in text


def test_own_options_come_first(capsys, monkeypatch):
    text = help_of(capsys, monkeypatch, "fit", "--help")
    places = [text.index(f"  {option}") for option in ("-c CONFIG", "--runs_dir", "--resume", "--trainer.max_epochs")]
    places = [text.index("usage: metricloss fit (--config FILE"), *places]
    assert places == sorted(places)
    assert len(text[: text.index("options:")].splitlines()) < 8


def test_help_of_a_part_needs_what_it_is_a_part_of(capsys, monkeypatch):
    with pytest.raises(SystemExit):
        main(["fit", "--model.backbone.help", "TinyConvNet"])
    assert capsys.readouterr().err == (
        "error: --model.backbone.help is about a part of --model: give --model CLASS or --config FILE before it\n"
    )
    text = help_of(capsys, monkeypatch, "fit", "--model=SoftmaxClassifier", "--model.backbone.help", "TinyConvNet")
    assert "backbone.width" in text


def test_any_module_is_a_backbone_and_only_ours_are_listed():
    assert issubclass(PlainNet, Backbone)
    assert isinstance(PlainNet(), Backbone)
    assert isinstance(TinyConvNet(), Backbone)
    assert not isinstance(3, Backbone)
    assert not issubclass(int, Backbone)
    assert not isinstance(PlainNet(), TinyConvNet)
    assert not issubclass(PlainNet, TinyConvNet)
    ours = {getattr(backbones, name) for name in backbones.__all__} - {Backbone}
    assert ours <= set(Backbone.__subclasses__())
    assert PlainNet not in Backbone.__subclasses__()
    with pytest.raises(TypeError):
        Backbone()


def test_a_plain_module_by_its_class_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "my_networks", sys.modules[__name__])
    main(["fit", "--config", "digits_softmax.yaml", "--model.backbone", "my_networks.PlainNet", *DEV_RUN])
    with pytest.raises(SystemExit):
        main(["fit", "--config", "digits_softmax.yaml", "--model.backbone", "builtins.int", *DEV_RUN])


def test_a_plain_module_from_python():
    network = PlainNet()
    assert SoftmaxClassifier(3, network).backbone is network
    with pytest.raises(UserError, match="has no num_features"):
        SoftmaxClassifier(3, nn.Flatten())


def test_the_command_line_can_be_subclassed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["fit", "--config", "digits_softmax.yaml", "--half=5", "--trainer.max_epochs=1",
                 "--trainer.limit_train_batches=1", *DEV_RUN[1:]]  # fmt: skip
    made = Doubling(
        SoftmaxClassifier,
        args=arguments,
        seed_everything_default=7,
        trainer_defaults={"limit_val_batches": 1, "logger": False},
        save_config_kwargs={"config_filename": "settings.yaml"},
    )
    assert isinstance(made.model, SoftmaxClassifier)
    assert made.model.embedding_dim == 10
    assert made.model.num_classes == 10
    assert made.trainer.limit_val_batches == 1
    run = tmp_path / "runs" / "digits_softmax" / "version_0"
    assert "\nseed_everything: 7\n" in f"\n{(run / 'settings.yaml').read_text()}"
    assert json.loads((run / "result.json").read_text())["seed"] == 7
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["hyper_parameters"]["embedding_dim"] == 10


def test_another_base_class_narrows_the_choice(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArgumentError):
        MetricLossCLI(SoftmaxClassifier, args=["fit", "--config", "digits_cosine.yaml", *DEV_RUN])


def test_all_is_built_without_running_anything(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["--config", "digits_softmax.yaml", "--trainer.max_epochs=1", "--trainer.limit_train_batches=1",
                 *DEV_RUN[2:]]  # fmt: skip
    made = MetricLossCLI(args=arguments, run=False)
    assert made.trainer.global_step == 0
    made.trainer.fit(made.model, made.datamodule)
    assert made.trainer.global_step == 1
    assert (tmp_path / "runs" / "digits_softmax" / "version_0" / "config.yaml").is_file()
