"""`predict` with a checkpoint and images, `similar`, and the threshold for unknown images, on the command line."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import metricloss_pl
from metricloss_pl.cli import main
from metricloss_pl.data import preparation
from metricloss_pl.errors import UserError
from tests.command_line import QUIET, SMALL, fit, load, refusal_of, result
from tests.systems import make_link


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit("digits_cosine", tmp_path_factory.mktemp("runs"), *SMALL, "--reject_quantile=0.2")


@pytest.fixture(scope="module")
def checkpoint(run: Path) -> str:
    return str(run / "checkpoints" / "best.ckpt")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits as files, one folder for each."""
    folder = tmp_path_factory.mktemp("photos")
    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images[:30], digits.target[:30], strict=True)):
        file = folder / str(label) / f"{number:02}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(np.rint(pixels * (255 / 16)).astype(np.uint8)).save(file)
    return folder


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def failure_of(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Return the line of an error, and the output before it."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(list(args))
    assert caught.value.code == 1
    return capsys.readouterr().err


def test_both_forms_of_predict_agree(run, checkpoint, photos, tmp_path, capsys):
    by_trainer = ["--ckpt_path", checkpoint, f"--data.predict_dir={photos}"]
    main(["predict", *by_trainer, f"--predictions.path={tmp_path / 'trainer.csv'}", *QUIET])
    capsys.readouterr()
    main(["predict", checkpoint, str(photos), "--csv", str(tmp_path / "ours.csv")])
    screen = capsys.readouterr().out
    ours, want = read(tmp_path / "ours.csv"), read(tmp_path / "trainer.csv")
    assert list(ours[0]) == list(want[0]) == [
        *("file", "class", "probability", "runner_up", "runner_up_probability", "rejected"),
    ]  # fmt: skip
    for row, other in zip(ours, want, strict=True):
        assert row["file"] == f"{photos.as_posix()}/{other['file']}"
        assert (row["class"], row["runner_up"], row["rejected"]) == tuple(
            other[name] for name in ("class", "runner_up", "rejected")
        )
        for name in ("probability", "runner_up_probability"):
            assert float(row[name]) == pytest.approx(float(other[name]), abs=2e-6)
    assert {row["rejected"] for row in ours} == {"true", "false"}
    lines = screen.splitlines()
    assert len([line for line in lines if line.startswith(photos.as_posix())]) == 20  # beside the file
    assert "10 more of 30 images" in lines[-1]
    for row in ours[:20]:
        [line] = [line for line in lines if line.startswith(row["file"])]
        assert f"{float(row['probability']):.4f}" in line
        assert (f"unknown ({row['class']})" in line) == (row["rejected"] == "true")


def test_files_and_folders_in_any_order_with_all_probabilities(checkpoint, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(photos)
    file = tmp_path / "new" / "all.csv"
    main(["predict", checkpoint, "3/03.png", "--csv", str(file), "4", "3", "--all_probabilities=true", "0/00.png"])
    rows = read(file)
    assert [row["file"] for row in rows] == [
        *("3/03.png", "4/04.png", "4/14.png", "4/24.png", "3/13.png", "3/23.png", "0/00.png"),
    ]  # fmt: skip
    want = metricloss_pl.load(checkpoint).predict([row["file"] for row in rows])
    for row, name, values in zip(rows, want.classes, want.probabilities.tolist(), strict=True):
        assert row["class"] == name
        assert [float(row[f"probability_{label}"]) for label in range(10)] == pytest.approx(values, abs=2e-6)
    assert "--csv" in refusal_of(capsys, "predict", checkpoint, "3/03.png", "--all_probabilities=true")


def test_a_broken_photo_is_named_and_the_others_are_predicted(checkpoint, photos, tmp_path, capsys):
    shutil.copytree(photos / "3", tmp_path / "mixed")
    (tmp_path / "mixed" / "00.png").write_bytes(b"no image")
    given = [
        "predict",
        checkpoint,
        str(tmp_path / "mixed"),
        str(tmp_path / "missing.png"),
        str(photos / "4" / "04.png"),
    ]
    out = tmp_path / "out"
    lines = failure_of(capsys, *given, f"--csv={out / 'a.csv'}")
    assert "2 files cannot be read" in lines
    assert str(tmp_path / "mixed" / "00.png") in lines
    assert str(tmp_path / "missing.png") in lines
    assert [Path(row["file"]).name for row in read(out / "a.csv")] == ["03.png", "13.png", "23.png", "04.png"]
    lines = failure_of(capsys, "predict", checkpoint, str(tmp_path / "mixed" / "00.png"), f"--csv={out / 'b.csv'}")
    assert "00.png" in lines
    assert [file.name for file in out.iterdir()] == ["a.csv"]


def test_a_file_is_written_whole_or_not_at_all(checkpoint, photos, tmp_path, monkeypatch):
    read_image, seen = preparation.read_image, []

    def failing(path, *args):
        seen.append(path)
        if len(seen) == 20:
            raise KeyboardInterrupt
        return read_image(path, *args)

    monkeypatch.setattr(preparation, "read_image", failing)
    with pytest.raises(KeyboardInterrupt):
        main(["predict", checkpoint, str(photos), f"--csv={tmp_path / 'a.csv'}"])
    assert list(tmp_path.iterdir()) == []


def test_photos_are_decoded_batch_by_batch_and_once(checkpoint, photos, monkeypatch):
    read_image, seen = preparation.read_image, []
    monkeypatch.setattr(preparation, "read_image", lambda path, *args: (seen.append(path), read_image(path, *args))[1])
    batches = metricloss_pl.predict_files(metricloss_pl.load(checkpoint), photos, batch_size=7)
    first = next(batches)
    assert len(seen) == len(first.files) == len(first.probabilities) == 7
    files = first.files + [file for batch in batches for file in batch.files]
    assert files == sorted(photos.glob("*/*.png"))
    assert sorted(seen) == files


def test_mistakes(checkpoint, photos, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    photo = str(photos / "3" / "03.png")
    for arguments, words in (
        (["predict", str(tmp_path / "no.ckpt"), photo], "no.ckpt"),
        (["predict", checkpoint, str(tmp_path / "empty")], f"no image in {tmp_path / 'empty'}"),
        (["predict", checkpoint], "images"),
        (["predict", checkpoint, photo, "--cvs=a.csv"], "--cvs"),
        (["predict", checkpoint, photo, f"--csv={tmp_path / 'empty'}"], str(tmp_path / "empty")),
        (["similar", checkpoint, photo], "gallery"),
        (["similar", checkpoint, photo, str(photos), "--k=0"], "k is 0"),
        (["similar", checkpoint, str(tmp_path / "gone.png"), str(photos)], "gone.png"),
    ):
        assert words in refusal_of(capsys, *arguments)
    assert list((tmp_path / "empty").iterdir()) == []


def test_unused_files_in_a_folder_are_named(checkpoint, photos, tmp_path):
    shutil.copy(photos / "3" / "03.png", tmp_path / "a.png")
    (tmp_path / "b.heic").write_bytes(b"another format")
    with pytest.warns(UserWarning, match=r"b\.heic"):
        main(["predict", checkpoint, str(tmp_path)])


def test_help_of_predict_names_both_forms(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["predict", "--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in ("predict CHECKPOINT IMAGE", "--csv", "--ckpt_path", "--data.predict_dir"):
        assert words in text


def test_the_share_of_rejected_test_images_is_reported(run, checkpoint):
    before = load(Path(checkpoint))
    assert before["rejection"]["quantile"] == 0.2
    main(["validate", f"--ckpt_path={checkpoint}", "--reject_quantile=0.8", *QUIET])
    main(["validate", f"--ckpt_path={checkpoint}", *QUIET])  # which leaves the checkpoint as it is
    after = load(Path(checkpoint))["rejection"]
    assert after["quantile"] == 0.8
    assert after["threshold"] < before["rejection"]["threshold"]
    main(["test", f"--ckpt_path={checkpoint}", *QUIET])
    assert 0.5 < result(run, "test")["metrics"]["test/false_reject_rate"] <= 1
    torch.save(before, checkpoint)


@pytest.mark.parametrize("regime", ["cosine", "center"])
def test_similar_images_are_the_nearest(regime, checkpoint, photos, tmp_path, capsys):
    if regime == "center":
        run = fit("digits_center", tmp_path, *SMALL)
        checkpoint = str(run / "checkpoints" / "best.ckpt")
    queries = [photos / "3" / "03.png", photos / "4"]
    out = tmp_path / "near.csv"
    main(["similar", checkpoint, *map(str, queries), str(photos), "--k=2", f"--csv={out}"])
    screen = capsys.readouterr().out
    files = sorted(photos.glob("*/*.png"))
    model = metricloss_pl.load(checkpoint)
    with torch.no_grad():
        pixels = np.stack([np.asarray(Image.open(file)) for file in files])
        points = model.embed(torch.from_numpy(pixels)[:, None]).double().numpy()
    if regime == "cosine":
        points /= np.linalg.norm(points, axis=1, keepdims=True)
    rows = iter(read(out))
    for query in (queries[0], *sorted(queries[1].iterdir())):
        distances = {
            file: np.linalg.norm(point - points[files.index(query)])
            for file, point in zip(files, points, strict=True)
            if file != query
        }
        for rank, nearest in enumerate(sorted(distances, key=distances.__getitem__)[:2], 1):
            row = next(rows)
            assert (row["query"], row["rank"], row["file"]) == (query.as_posix(), str(rank), nearest.as_posix())
            assert float(row["distance"]) == pytest.approx(distances[nearest], rel=1e-3, abs=1e-5)
            assert nearest.as_posix() in screen
    assert next(rows, None) is None


def test_similar_from_python(checkpoint, photos, tmp_path, capsys):
    shutil.copytree(photos / "3", tmp_path / "gallery")
    query = tmp_path / "gallery" / "03.png"
    (tmp_path / "gallery" / "broken.png").write_bytes(b"")
    model = metricloss_pl.load(checkpoint)
    found = metricloss_pl.find_similar(model, query, tmp_path / "gallery", k=9)
    assert {neighbor.file.name for neighbor in found.neighbors} == {"13.png", "23.png"}  # not itself
    assert set(found.broken) == {tmp_path / "gallery" / "broken.png"}
    found = metricloss_pl.find_similar(model, [photos / "3" / "03.png", query], tmp_path / "gallery", k=1)
    copy, other = found.neighbors
    assert (copy.file, copy.distance) == (query, pytest.approx(0, abs=1e-6))
    assert other.file != query
    make_link(tmp_path / "gallery" / "link.png", query)
    for asked in (query, tmp_path / "gallery" / "link.png"):
        found = metricloss_pl.find_similar(model, asked, tmp_path / "gallery", k=9)
        assert {neighbor.file.name for neighbor in found.neighbors} == {"13.png", "23.png"}
    with pytest.raises(UserError, match="k is 0"):
        metricloss_pl.find_similar(model, query, photos, k=0)
    lines = failure_of(capsys, "similar", checkpoint, str(query), str(tmp_path / "gallery"))
    assert "broken.png" in lines
