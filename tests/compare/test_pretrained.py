"""Variants of a pretrained network: how it is named, what they are, and a probe against scikit-learn."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torchvision import models

from metricloss_pl.backbones import TorchvisionBackbone
from metricloss_pl.compare import pretrained
from metricloss_pl.compare.budget import measure, shorter, total_seconds
from metricloss_pl.compare.config import Tuning, Variant
from metricloss_pl.compare.dataset import summarize
from metricloss_pl.compare.plan import expand
from metricloss_pl.compare.pretrained import find_backbone, with_pretrained
from metricloss_pl.compare.runner import Task, build, execute
from metricloss_pl.errors import UserError
from metricloss_pl.losses import functional as F
from tests.backbones.conftest import calls  # noqa: F401
from tests.backbones.stub_timm import StubNetwork
from tests.compare.small import RATES, small

NAME = "shufflenet_v2_x0_5"
RIVALS = ["linear_probe", "fine_tuned_softmax", "fine_tuned_cosine"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / f"{NAME}-f707e7126e.pth"
    torch.save(models.get_model(NAME).state_dict(), file)
    return str(file)


def test_a_network_is_named_by_its_file_or_beside_it(weights, tmp_path):
    expected = {"class_path": "TorchvisionBackbone", "init_args": {"name": NAME, "weights": weights}}
    assert find_backbone(weights) == expected
    other = tmp_path / "resnet18.pth"
    shutil.copy(weights, other)
    expected["init_args"]["weights"] = str(other)
    assert find_backbone(f"{NAME}={other}") == expected
    with pytest.raises(UserError, match="does not fit resnet18"):
        find_backbone(str(other))
    unknown = other.rename(tmp_path / "model.pth")
    with pytest.raises(UserError, match=f"NAME={unknown}"):
        find_backbone(str(unknown))
    with pytest.raises(UserError, match=r"pretrained is resnet19: .*resnet18"):
        find_backbone("resnet19")


def test_names_are_looked_up_in_both_libraries(monkeypatch, tmp_path, calls):  # noqa: F811
    """A name in both is torchvision's, unless its weights fit timm's network alone or it has a tag of timm's."""
    assert find_backbone("stubnet.a1_in1k") == {
        "class_path": "TimmBackbone",
        "init_args": {"name": "stubnet.a1_in1k", "weights": "pretrained"},
    }
    torch.save(StubNetwork(num_classes=3).state_dict(), file := tmp_path / "resnet18.pth")
    monkeypatch.setattr("timm.is_model", lambda name: True)
    assert find_backbone(str(file))["class_path"] == "TimmBackbone"
    assert find_backbone("resnet18.tag")["class_path"] == "TimmBackbone"
    built = []
    monkeypatch.setattr(pretrained, "TorchvisionBackbone", type("TorchvisionBackbone", (), {
        "__init__": lambda self, name, weights: built.append((name, weights))}))  # fmt: skip
    assert find_backbone("resnet18")["class_path"] == "TorchvisionBackbone"
    assert built == [("resnet18", "DEFAULT")]


def test_variants_have_the_data_of_the_baseline(weights):
    config = small(trials=3, overrides={"data.batch_size": 25, "data.image_size": 16, "model.embedding_dim": 7})
    checked = with_pretrained(config, weights).checked()
    assert list(checked.variants) == ["softmax", "cosine", *RIVALS]
    for name in RIVALS:
        settings = checked.resolved_overrides(name)
        data = settings["data"]["init_args"]
        assert settings["data"]["class_path"].endswith("DigitsDataModule")
        assert (data["image_size"], data["batch_size"]) == (16, 25)  # of the plan
        assert (data["in_channels"], data["mean"], data["test_fraction"]) == (1, None, 0.2)
        assert "model.embedding_dim" not in settings
        assert checked.trials(name) == 3
        assert not set(checked.space(name)) & set(RATES) or "fine_tuned" in name
    assert list(checked.space("linear_probe")) == ["model.C"]
    block = with_pretrained(small(), weights).variants["linear_probe"].overrides["data"]["init_args"]
    assert block["image_size"] == "auto"  # that of the weights


def test_the_plan_decides_among_the_variants(weights):
    config = small(include=["softmax", "linear_probe"])
    assert list(with_pretrained(config, weights).checked().variants) == ["softmax", "linear_probe"]
    own = Variant("folder_probe.yaml", {"model.backbone": "TinyConvNet"}, kind="linear_probe")
    config = small(tuning=Tuning(), variants={**small().variants, "linear_probe": own})
    added = with_pretrained(config, weights)
    assert added.variants["linear_probe"] is own
    untuned = with_pretrained(small(tuning=Tuning(), epochs=None), weights).checked()
    assert untuned.resolved_overrides("linear_probe")["model.C"] > 0  # final runs have no validation images
    assert untuned.resolved_overrides("fine_tuned_cosine")["trainer.max_epochs"] == 30
    with pytest.raises(UserError, match="mine is no run file"):
        with_pretrained(replace(small(), variants={"mine": Variant(factory=print)}), weights)


@pytest.fixture(scope="module")
def comparison(weights):
    """Plan of a probe and a fine-tuned network on digits of 32 px, its images and runs."""
    config = small(("softmax",), overrides={"data.image_size": 32}, include=["softmax", *RIVALS[:2]], seeds=[0, 1])
    config = with_pretrained(config, weights).checked()
    summary = summarize(config)
    return config, expand(config, summary.decisive, summary.digest)


def test_the_probe_is_that_of_scikit_learn(comparison, weights, tmp_path, monkeypatch):
    """Trials try values of C; a final run takes the best one, and no image passes the network twice."""
    config, runs = comparison
    seen = []
    forward = TorchvisionBackbone.forward
    monkeypatch.setattr(
        TorchvisionBackbone, "forward", lambda self, images: seen.append(len(images)) or forward(self, images)
    )
    results, predictions = {}, {}
    for run in runs:
        if run.variant != "linear_probe":
            continue
        before = tuple(results[key] for key in run.needs)
        task = Task(run, config, before=before, features_dir=tmp_path)
        results[run.key], predictions[run.key] = execute(task)
    assert {result["status"] for result in results.values()} == {"ok"}
    values = {result["settings"]["model.C"] for result in results.values() if result["kind"] == "trial"}
    assert len(values) == 2
    finals = [result for result in results.values() if result["kind"] == "final"]
    assert {result["settings"]["model.C"] for result in finals} < values
    assert {(result["steps"], result["epochs"]) for result in finals} == {(1, 1)}
    tested = finals[0]["images"]["test"]
    assert sum(seen) <= 2 * 50 + tested  # two draws of 50 images
    assert len(list(tmp_path.iterdir())) == 1

    _, data, _ = build(Task(next(run for run in runs if run.kind == "final"), config), {})
    data.setup("fit"), data.setup("test")
    backbone = TorchvisionBackbone(NAME, 1, weights).eval()
    sets = []
    for loader in (data.train_eval_dataloader(), data.test_dataloader()):
        images, labels = (torch.cat(column) for column in zip(*loader, strict=True))
        with torch.no_grad():
            normalized = (images / 255 - 0.449) / 0.226  # ImageNet's mean and deviation, averaged over color
            sets.append((F.normalize(backbone(normalized)).double().numpy(), labels.numpy()))
    (train, test), result = sets, finals[0]
    reference = LogisticRegression(C=result["settings"]["model.C"], tol=1e-6, max_iter=1000).fit(*train)
    logits = torch.from_numpy(reference.decision_function(test[0])) / result["metrics"]["temperature"]
    found = predictions[result["key"]]
    np.testing.assert_array_equal(found.labels, test[1])
    np.testing.assert_allclose(found.probabilities, logits.softmax(1), atol=2e-3)


def test_fine_tuning_trains_all_layers(comparison, tmp_path):
    config, runs = comparison
    run = next(run for run in runs if run.variant == "fine_tuned_softmax")
    outcome = execute(Task(run, config))
    assert (outcome.result["status"], outcome.result["reason"]) == ("ok", None)
    assert 1e-4 <= outcome.result["settings"]["model.optimizer.lr"] <= 3e-3


def test_a_dry_run_counts_features_once(comparison):
    config, runs = comparison
    run = next(run for run in runs if run.variant == "linear_probe" and run.kind == "final")
    cost = measure(Task(run, config))
    assert cost.training == 0 < cost.scoring
    costs = {(name, 5): replace(cost, around=1.0, scoring=0.1, training=100.0) for name in config.variants}
    subsets = [{"kind": kind, "size": 5, "train": 50, "val": 10, "test": 40} for kind in ("final", "trial")]
    probe = [run for run in runs if run.variant == "linear_probe"]
    assert total_seconds(config, probe, costs, subsets, 1) == pytest.approx(4 * 1.0 + 140 * 0.1)
    ways = shorter(config, runs, lambda kept, share=1.0: total_seconds(config, kept, costs, subsets, 1, share))
    assert any('--include "[softmax,linear_probe]"' in way for way in ways)
