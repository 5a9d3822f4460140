"""Exported files: the script that predicts, shared weights, and the model card."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import metricloss_pl
from metricloss_pl.cli import main
from metricloss_pl.errors import UserError
from metricloss_pl.export import card, export_model
from metricloss_pl.safetensors_files import read_safetensors, write_safetensors
from tests.compare.synthetic import make_comparison
from tests.helpers import make_folder

pytest.importorskip("onnxruntime")
pytest.importorskip("safetensors")

ROOT = Path(__file__).parent.parent.parent
NAMES = ("cat", "dog [wild]")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run on photographs of several sizes, tested and with predictions for its test set."""
    folder = tmp_path_factory.mktemp("run")
    root = make_folder(folder / "images", NAMES, images=12, size=20)
    data = [f"--data.root={root}", "--data.image_size=12", "--data.resize=14", "--data.batch_size=4"]
    network = ["--model.backbone=TinyConvNet", "--model.backbone.width=8"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", "--trainer.callbacks=null"]
    config = f"--config={ROOT / 'configs' / 'folder_cosine.yaml'}"
    length = ["--trainer.max_epochs=2", "--test_after_fit=true"]
    main(["fit", config, *network, *data, *length, f"--runs_dir={folder}", *quiet])
    [run] = folder.glob("*/version_0")
    return run


@pytest.fixture(scope="module")
def checkpoint(run: Path) -> Path:
    return run / "checkpoints" / "best.ckpt"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files of several kinds, sizes and depths; the last one has more than 8 bits."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    color = random.integers(0, 256, (25, 19, 4), dtype=np.uint8)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(color[..., :3]).save(folder / f"a{orientation}.jpg", exif=exif)
        Image.fromarray(color[..., :3]).save(folder / f"a{orientation}.tif", exif=exif)
    Image.fromarray(color).save(folder / "b.png")
    Image.fromarray(color[..., 0]).save(folder / "c.png")
    Image.fromarray(color[:9, :11, :3]).save(folder / "d.png")  # smaller than the crop
    Image.fromarray(color[..., :3]).quantize(16).save(folder / "e.gif")
    Image.fromarray(random.integers(0, 65536, (16, 22), dtype=np.uint16)).save(folder / "f.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an exported graph."""
    folder = tmp_path_factory.mktemp("exported")
    main(["export", str(checkpoint), "--out", str(folder / "birds.onnx")])
    assert {file.name for file in folder.iterdir()} == {"birds.onnx", "birds_card.md", "birds_predict.py"}
    return folder


def test_the_script_predicts_as_the_package(exported, checkpoint, photos):
    model = metricloss_pl.load(checkpoint)
    predict = runpy.run_path(str(exported / "birds_predict.py"))["predict"]
    for photo in photos[:-1]:
        want = model.predict(photo).probabilities[0].numpy()
        np.testing.assert_allclose(predict(photo), want, atol=1e-4, rtol=0)
        assert predict(photo).sum() == pytest.approx(1, abs=1e-5)


def test_the_script_crops_as_the_package(checkpoint, photos, tmp_path):
    """Also where the image is smaller than the crop, or not cropped; float input takes 16 bits."""
    content = torch.load(checkpoint, weights_only=True)
    content["image_format"] |= {"resize": None, "image_size": None}
    torch.save(content, tmp_path / "a.ckpt")
    files = export_model(tmp_path / "a.ckpt", input="float32", embeddings=True)
    assert files.model == tmp_path / "export" / "model.onnx"
    script, model = runpy.run_path(str(files.beside)), metricloss_pl.load(tmp_path / "a.ckpt")
    for resize, image_size in ((12, 12), (9, 16), (14, None), (3, 12), (None, None)):
        script["METADATA"].update(resize=resize, image_size=image_size)
        model.image_format = {"in_channels": 3, "resize": resize, "image_size": image_size}
        for photo in photos:
            want = model.predict(photo).probabilities[0].numpy()
            np.testing.assert_allclose(script["predict"](photo), want, atol=1e-4, rtol=0)


def test_the_script_is_short_and_needs_three_packages(exported, photos, tmp_path):
    script = exported / "birds_predict.py"
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 60
    program = "import runpy, sys; runpy.run_path(sys.argv[1])['predict'](sys.argv[2]); print(*sys.modules)"
    command = [sys.executable, "-c", program, str(script), str(photos[0])]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert {"numpy", "onnxruntime", "PIL"} <= set(loaded)
    assert not {"torch", "metricloss_pl", "scipy"} & set(loaded)
    (tmp_path / "bad.png").write_bytes(b"no image")
    given = [str(photos[0]), str(tmp_path / "bad.png"), str(photos[-1]), str(photos[1])]
    done = subprocess.run([sys.executable, str(script), *given], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == [given[0], given[3]]
    assert {row[1] for row in rows} <= set(NAMES)
    assert all(float(row[2]) >= float(row[4]) for row in rows)
    assert "bad.png" in done.stderr
    assert "f.png" in done.stderr
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "usage" in done.stderr


def test_shared_weights_give_the_same_scores(checkpoint, photos, tmp_path):
    files = export_model(checkpoint, "safetensors", tmp_path)
    assert files.model == tmp_path / "model.safetensors"
    model = metricloss_pl.load(checkpoint)
    want = model.predict(photos).probabilities
    for path in (tmp_path, files.model):
        loaded = metricloss_pl.load(path)
        assert type(loaded) is type(model)
        assert torch.equal(loaded.predict(photos).probabilities, want)
        facts = ("temperature", "class_names", "image_format")
        assert all(getattr(loaded, name) == getattr(model, name) for name in facts)
    config = json.loads(files.beside.read_text(encoding="utf-8"))
    assert config["class_names"] == list(NAMES)
    assert config["split"] is None
    assert "torch" in config["versions"]
    again = export_model(tmp_path, "safetensors", tmp_path / "more" / "again.safetensors")
    assert again.model.read_bytes() == files.model.read_bytes()


def test_a_folder_is_made(checkpoint, tmp_path):
    assert (
        export_model(checkpoint, "safetensors", tmp_path / "new" / "one").model
        == tmp_path / "new/one/model.safetensors"
    )


def test_several_models_share_a_folder(checkpoint, tmp_path):
    """Each with its own settings and script; files of different models are told apart."""
    content = torch.load(checkpoint, weights_only=True)
    torch.save({**content, "temperature": 3.0}, tmp_path / "b.ckpt")
    files = [
        export_model(path, "safetensors", tmp_path / f"{name}.safetensors")
        for path, name in ((checkpoint, "model"), (tmp_path / "b.ckpt", "it's"))
    ]
    assert [file.beside.name for file in files] == ["config.json", "it's_config.json"]
    temperatures = [metricloss_pl.load(path).temperature for path in (checkpoint, tmp_path / "b.ckpt")]
    assert temperatures[1] == 3
    assert [metricloss_pl.load(file.model).temperature for file in files] == temperatures
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    torch.save({**content, "state_dict": {name: value * 2 for name, value in weights.items()}}, tmp_path / "c.ckpt")
    other = export_model(tmp_path / "c.ckpt", "safetensors", tmp_path / "other.safetensors")
    shutil.copy(other.beside, files[0].beside)
    with pytest.raises(UserError, match=r"config\.json"):
        metricloss_pl.load(tmp_path)


def test_the_script_names_its_model(checkpoint, photos, tmp_path):
    for name in ("model", "it's"):
        files = export_model(checkpoint, out=tmp_path / f"{name}.onnx")
        assert runpy.run_path(str(files.beside))["predict"](photos[0]).shape == (2,)
    assert {file.name for file in tmp_path.glob("*.py")} == {"predict.py", "it's_predict.py"}


def test_shared_weights_are_guarded_as_checkpoints(checkpoint, tmp_path):
    export_model(checkpoint, "safetensors", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    settings = config["hyper_parameters"]
    foreign = {"class_path": "subprocess.Popen", "init_args": {"args": "true"}}
    for name, changed, words in (
        ("regime", {**config, "hyper_parameters": {**settings, "_class_path": "torch.nn.Linear"}}, "torch.nn.Linear"),
        ("backbone", {**config, "hyper_parameters": {**settings, "backbone": foreign}}, "subprocess.Popen"),
        ("nothing", {}, "holds no regime"),
        ("list", [1], "holds no regime"),
        ("std", {**config, "std": [0.0]}, "std"),
    ):
        (tmp_path / name).mkdir()
        shutil.copy(tmp_path / "model.safetensors", tmp_path / name)
        (tmp_path / name / "config.json").write_text(json.dumps(changed), encoding="utf-8")
        with pytest.raises(UserError, match=words) as caught:
            metricloss_pl.load(tmp_path / name)
        assert "\n" not in str(caught.value)
    (tmp_path / "nothing" / "config.json").write_text("{", encoding="utf-8")
    (tmp_path / "list" / "config.json").unlink()
    (tmp_path / "std" / "model.safetensors").write_bytes(b"no tensors")
    for name in ("nothing", "list", "std"):
        with pytest.raises(UserError, match=r"config\.json"):
            metricloss_pl.load(tmp_path / name)


def test_tensors_outside_of_the_weights_are_kept(tmp_path):
    content = {
        "state_dict": {"a": torch.ones(2, 3).t()},
        "rejection": {"means": torch.arange(3.0), "q": 0.05},
        "x": [1],
    }
    write_safetensors(content, tmp_path / "model.safetensors")
    found = read_safetensors(tmp_path)
    assert torch.equal(found["state_dict"].pop("a"), torch.ones(3, 2))
    assert torch.equal(found["rejection"].pop("means"), torch.arange(3.0))
    assert found == {"state_dict": {}, "rejection": {"q": 0.05}, "x": [1]}


def test_mistakes_are_refused_before_anything_is_written(checkpoint, tmp_path):
    with pytest.raises(UserError, match=r"a\.pt.*\.onnx"):
        export_model(checkpoint, out=tmp_path / "a.pt")
    (tmp_path / "predict.py").write_text("print('mine')")
    with pytest.raises(UserError, match=r"predict\.py"):
        export_model(checkpoint, out=tmp_path)
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        export_model(checkpoint, "torch_export", tmp_path / "b.pt2", comparison=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["predict.py"]
    content = torch.load(checkpoint, weights_only=True)
    torch.save({**content, "image_format": None}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="ImageDataModule"):
        export_model(tmp_path / "a.ckpt")


def test_nothing_is_written_if_the_graph_differs(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("metricloss_pl.export.graphs.MOST_DIFFERENCE", -1)
    with pytest.raises(UserError, match="gives other results"):
        export_model(checkpoint, out=tmp_path / "b.onnx")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------------ the card


@pytest.fixture
def planted(run: Path, tmp_path: Path) -> Path:
    """Copy of the run with 20 test images, of which 3 are mistaken."""
    copy = tmp_path / "version_0"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("events*"))
    truth = [("cat", f"cat/{n}.png") for n in range(12)] + [("dog [wild]", f"dog/{n}.png") for n in range(8)]
    wrong = {"cat/3.png": 0.7, "dog/1.png": 0.96, "dog/2.png": 0.6}
    with (copy / "split.csv").open("w", newline="") as file:
        rows = [("t1", "cat", "train"), ("t2", "cat", "train"), ("v", "dog [wild]", "val")]
        csv.writer(file).writerows([("file", "label", "split"), *rows, *((f, label, "test") for label, f in truth)])
    with (copy / "predictions_test.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("file", "class", "probability", "runner_up", "runner_up_probability"))
        for label, name in truth:
            other = NAMES[1 - NAMES.index(label)]
            best, second = (other, label) if name in wrong else (label, other)
            writer.writerow((name, best, wrong.get(name, 0.9), second, 0.05))
    result = json.loads((copy / "result.json").read_text())
    result["metrics"] |= {"test/accuracy": 0.85, "test/balanced_accuracy": 5 / 6}
    result["classes"] = {
        "cat": {"images": 12, "recall": 11 / 12, "f1": 0.9},
        "dog [wild]": {"images": 8, "recall": 6 / 8, "f1": 0.8},
    }
    (copy / "result.json").write_text(json.dumps(result))
    (copy / "predictions_test.json").write_text(json.dumps({"model_digest": result["model_digest"]}))
    return copy


def wilson(correct: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval by its closed form, in percent."""
    z = 1.959963984540054
    half = z * math.sqrt(correct * (n - correct) / n + z * z / 4)
    return tuple(100 * (correct + z * z / 2 + sign * half) / (n + z * z) for sign in (-1, 1))


def cells(card: str, first: str) -> list[str]:
    """Return the cells of the first row of a table that begins with a cell."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in card.splitlines() if line.startswith("|")]
    return next(row for row in rows if row[0] == first)


def test_the_card_shows_the_run(planted):
    checkpoint = planted / "checkpoints" / "best.ckpt"
    card = export_model(checkpoint, "safetensors").card.read_text(encoding="utf-8")
    assert (planted / "export" / "model_card.md").is_file()
    assert cells(card, "cat")[1:] == ["2", "0", "12"]
    assert cells(card, r"dog \[wild\]")[1:] == ["0", "1", "8"]
    low, high = wilson(17, 20)
    assert f"**85.0 %** (95 % confidence interval {low:.1f} to {high:.1f} %)" in card
    low, high = wilson(11, 12)
    assert f"| cat | 12 | 91.7 ({low:.1f} to {high:.1f}) |" in card
    low, high = wilson(6, 8)
    assert rf"| dog \[wild\] | 8 | 75.0 ({low:.1f} to {high:.1f}) |" in card
    assert cells(card, "balanced accuracy")[1] == "0.8333"
    # 10 bins: 17 images at 0.9 are right (bin of 0.9 with the mistake at 0.96), mistakes at 0.6 and 0.7 stand alone.
    error = (abs(17 * 0.9 + 0.96 - 17) + 0.6 + 0.7) / 20
    assert f"{(17 * 0.9 + 0.96 + 0.6 + 0.7) / 20:.1%}".replace("%", " %") in card
    assert f"is {100 * error:.1f} percentage points" in card
    mistakes = card.partition("## Most confident mistakes")[2].partition("##")[0]
    rows = [line.strip("| ").split(" | ") for line in mistakes.splitlines() if ".png" in line]
    assert [(row[0], row[3]) for row in rows] == [
        ("dog/1.png", "0.960"),
        ("cat/3.png", "0.700"),
        ("dog/2.png", "0.600"),
    ]
    assert "metricloss fit --config" in card
    assert "CutMix" in card
    assert r"little: dog \[wild\]" in card


def test_the_card_shows_the_comparison(planted, tmp_path):
    folder = make_comparison(tmp_path / "comparison", {"softmax": 0.8, "cosine": 0.9}, name="two_losses")
    checkpoint = planted / "checkpoints" / "best.ckpt"
    card = export_model(checkpoint, "safetensors", comparison=folder).card.read_text(encoding="utf-8")
    from metricloss_pl.compare.summary import Summary

    table = Summary(folder).table.set_index("variant")
    for variant in ("softmax", "cosine"):
        values = [100 * table.loc[variant, column] for column in ("accuracy", "low", "high")]
        assert cells(card, variant)[2] == "{:.1f} ({:.1f} to {:.1f})".format(*values)


def test_the_card_leaves_out_what_is_not_known(run, checkpoint, planted, tmp_path):
    """A checkpoint without its run, one that was not tested, and predictions of another one."""
    alone = shutil.copy(checkpoint, tmp_path / "alone.ckpt")
    card = export_model(alone, "safetensors", tmp_path).card.read_text(encoding="utf-8")
    titles = [line for line in card.splitlines() if line.startswith("## ")]
    assert titles == ["## Data", "## Calibration", "## Limits", "## Reproduce"]
    assert "cat" in card
    content = torch.load(checkpoint, weights_only=True)
    torch.save(content | {"temperature": 2.0}, planted / "checkpoints" / "other.ckpt")
    card = export_model(planted / "checkpoints" / "other.ckpt", "safetensors").card.read_text(encoding="utf-8")
    assert "## Training" in card
    assert "## Results" not in card
    assert "mistakes" not in card
    text = (planted / "predictions_test.csv").read_text().replace("cat/5.png", "another.png")
    (planted / "predictions_test.csv").write_text(text)
    card = export_model(planted / "checkpoints" / "best.ckpt", "safetensors").card.read_text(encoding="utf-8")
    assert "## Results" in card
    assert "mistakes" not in card
    (planted / "predictions_test.csv").write_text("\ufefffile;class\n1;2\n")  # saved by another program
    card = export_model(planted / "checkpoints" / "best.ckpt", "safetensors").card.read_text(encoding="utf-8")
    assert "mistakes" not in card
    result = json.loads((planted / "result.json").read_text())
    (planted / "result.json").write_text(json.dumps({**result, "command": "metricloss fit --resume version_0"}))
    card = export_model(planted / "checkpoints" / "best.ckpt", "safetensors").card.read_text(encoding="utf-8")
    assert f"fit --config {planted / 'config.yaml'}" in card
    assert "--resume" not in card
    (planted / "result.json").write_text(json.dumps({**result, "tta": "flip"}))
    card = export_model(planted / "checkpoints" / "best.ckpt", "safetensors").card.read_text(encoding="utf-8")
    assert "## Results" not in card
    (planted / "result.json").write_text(json.dumps(result))
    with (planted / "split.csv").open("a") as file:
        file.write("more.png,cat,test\n")
    card = export_model(planted / "checkpoints" / "best.ckpt", "safetensors").card.read_text(encoding="utf-8")
    assert "## Results" not in card


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"ce_weight": 0, "head": "none", "backbone": {"class_path": "a.B"}}, "ce_weight 0, head none"),
        ({"label_smoothing": 0.1, "embedding_dim": None, "class_weights": "balanced"}, "label_smoothing 0.1"),
        ({"hierarchy": os.path.abspath("tree.txt")}, "hierarchy tree.txt"),
    ],
)  # fmt: skip
def test_the_recipe_names_the_settings_of_the_loss(settings, wanted):
    recipe = card._recipe({"model": {"class_path": "CosineClassifier", "init_args": settings}})
    assert recipe["loss and head"] == wanted


def test_results_and_predictions_record_their_model(checkpoint, run, tmp_path):
    """So that the card takes those of its model alone, also once a threshold of rejection has been added to it."""
    copy = shutil.copytree(run, tmp_path / "version_0")
    best = copy / "checkpoints" / "best.ckpt"
    for tta, is_shown in (("flip", False), ("null", True)):  # the second one is predictions_test_2.csv
        main(["predict", "--ckpt_path", str(best), f"--data.tta={tta}", "--trainer.enable_progress_bar=false"])
        text = export_model(best, "safetensors").card.read_text(encoding="utf-8")
        assert ("calibration error" in text) == is_shown
    torch.save(torch.load(best, weights_only=True) | {"rejection": None, "more": 1}, best)
    text = export_model(best, "safetensors").card.read_text(encoding="utf-8")
    assert "## Results" in text
    assert "calibration error" in text


def test_the_card_gives_the_whole_command(checkpoint, tmp_path):
    files = export_model(checkpoint, "torch_export", tmp_path / "a.pt2", input="float32", embeddings=True)
    [command] = [line for line in files.card.read_text(encoding="utf-8").splitlines() if " export " in line]
    assert "--input float32 --embeddings true" in command


@pytest.mark.parametrize("image_size", [0, -5, 13])
def test_image_sizes_that_the_network_does_not_take(image_size, checkpoint, tmp_path):
    with pytest.raises(UserError, match=f"image_size is {image_size}: .* 12"):
        export_model(checkpoint, out=tmp_path / "a.onnx", image_size=image_size)
    assert not list(tmp_path.iterdir())
