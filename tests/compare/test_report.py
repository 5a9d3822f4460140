"""The report on simulated results: true, complete, safe, and honest about what is missing."""

import base64
import csv
import json
import re
import shutil
import struct
import zlib
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, roc_auc_score

from metricloss_pl import plots
from metricloss_pl.compare import pictures, remarks, statistics
from metricloss_pl.compare.conditions import conditions
from metricloss_pl.compare.plan import Comparison, Plan, Variant
from metricloss_pl.compare.report import write_report
from metricloss_pl.compare.summary import read
from metricloss_pl.errors import UserError
from tests.compare.simulated import make_results
from tests.systems import make_pipe

PIXEL = b'<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"></svg>'
VOID = {"meta", "img", "br", "hr", "link", "input"}
SMALL = {"sizes": (10, 20), "epochs": 5, "trials": 3, "images": 90}


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are made but not drawn, which takes most of a report's time."""
    monkeypatch.setattr("metricloss_pl.plots.figure_bytes", lambda figure, format: PIXEL)


class Page(HTMLParser):
    """A page's elements, and its text; it fails where tags do not balance."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text = [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


def page_of(folder):
    return Page(write_report(folder).read_text(encoding="utf-8"))


def check(page):
    """What every page keeps: accessible, self-contained, without programs."""
    assert page.elements[0] == ("html", {"lang": "en"})
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert page.all("img")
    assert all(attrs["alt"] for attrs in page.all("img"))
    assert all(attrs["scope"] in ("col", "row") for attrs in page.all("th"))
    assert not {"script", "link", "iframe", "object", "form"} & {tag for tag, _ in page.elements}
    for tag, attrs in page.elements:
        for name, value in attrs.items():
            assert not name.startswith("on")
            if name in ("src", "href", "aria-labelledby"):
                target = value if name != "aria-labelledby" else f"#{value}"
                assert target.startswith("data:image/") or target[1:] in ids, (tag, name)
    for attrs in page.all("img"):
        kind, data = attrs["src"].removeprefix("data:image/").split(";base64,")
        content = base64.b64decode(data, validate=True)
        if kind == "svg+xml":
            assert not re.search(rb'(?:href|src)="(?!#|data:)|<script|url\((?!#)', content)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1


def test_a_whole_report(tmp_path):
    folder = make_results(tmp_path, {"softmax": 0.0, "cosine": 1.5, "center": 0.0}, seeds=range(5))
    page = page_of(folder)
    check(page)
    assert re.search(r"Compared with softmax, cosine \(\+\d+\.\d points\) is better\.", page.text)
    assert "p is at least 2^(1-k), the smallest that a sign test can give with k images on which" in page.text
    assert re.search(r"center: [+\u2212].*no difference shown", page.text)
    assert "Incomplete" not in page.text
    for heading in (
        "results",
        "accuracy",
        "curves",
        "learning-rate",
        "classes",
        "calibration",
        "geometry",
        "embeddings",
    ):
        assert {"id": heading} in page.all("h2")
    for words in (
        "python cli.py compare --config",
        "torch 2.14.1",
        "12 trials for each variant and size",
        "ebfc3c5",
        "cores 2",
    ):
        assert words in page.text
    first = (folder / "report.html").read_bytes()
    assert len(first) < 2e6
    assert write_report(folder).read_bytes() == first


def test_the_table_as_csv_and_markdown(tmp_path, undrawn):
    folder = make_results(tmp_path, seeds=range(3), **SMALL)
    write_report(folder)
    comparison = read(folder)
    with (folder / "report.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["samples_per_class"] for line in lines] == ["mean over sizes"] * 4 + ["10"] * 4 + ["20"] * 4
    for line, row in zip(lines, comparison.overall + comparison.rows, strict=True):
        assert (line["variant"], int(line["runs"])) == (row.variant, row.done)
        assert float(line["accuracy"]) == pytest.approx(row.accuracy.mean, rel=1e-5)
        assert line["p_corrected"] == ("" if row.p is None else f"{row.p:.6g}")
    stored = [json.loads(text) for text in (folder / "results.jsonl").read_text().splitlines()]
    finals = [
        run for run in stored if (run["kind"], run["variant"], run["samples_per_class"]) == ("final", "cosine", 20)
    ]
    accuracies = [run["metrics"]["test/accuracy"] for run in finals]
    cosine = lines[9]
    assert float(cosine["accuracy"]) == pytest.approx(np.mean(accuracies), rel=1e-5)
    assert float(cosine["spread"]) == pytest.approx(np.std(accuracies, ddof=1), rel=1e-5)
    gaps = [run["metrics"]["train/accuracy"] - run["metrics"]["test/accuracy"] for run in finals]
    assert float(cosine["gap"]) == pytest.approx(np.mean(gaps), rel=1e-4)
    assert float(cosine["difference"]) == pytest.approx(
        np.mean(accuracies) - float(lines[8]["accuracy"]), rel=1e-3, abs=1e-6
    )

    markdown = (folder / "report.md").read_text(encoding="utf-8")
    table = [line.strip("| ").split(" | ") for line in markdown.splitlines() if line.startswith("| ")]
    assert table[0][:2] == ["variant", "accuracy, %"]
    assert [row[0] for row in table[2:6]] == ["softmax", "cosine", "center", "standalone"]
    assert table[3][1].startswith(f"{100 * float(lines[1]['accuracy']):.1f} ± ")
    pictures = re.findall(r"!\[[^\]]+\]\((figures/[^)]+)\)", markdown)
    assert len(pictures) == len(list((folder / "figures").iterdir())) > 8
    assert all((folder / picture).is_file() for picture in pictures)


def test_only_figures_of_an_earlier_report_go(tmp_path, undrawn):
    folder = make_results(tmp_path, {"softmax": 0.0, "cosine": 0.0}, seeds=range(2), **SMALL)
    write_report(folder)
    shown = set((folder / "figures").iterdir())
    (folder / "figures" / "my_own.svg").write_text("mine")
    (folder / "results.jsonl").write_text("")
    write_report(folder)
    left = set((folder / "figures").iterdir())
    assert (folder / "figures" / "my_own.svg") in left
    assert len(left) < len(shown)


def test_a_tie_is_called_a_tie(tmp_path, undrawn):
    folder = make_results(tmp_path, {"softmax": 0.0, "cosine": 0.0}, seeds=range(4), **SMALL)
    text = page_of(folder).text
    assert "No difference shown." in text
    assert re.search(r"there may be one: differences below about \d points could not|too small to tell much", text)
    assert "that alone shows nothing" in text
    assert "At no single size is a difference shown (2 tests, corrected together)." in text
    assert "is better" not in text


def changed(folder, change):
    """Lets a function change each line of the results."""
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    for line in lines:
        change(line)
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {line["key"]: line for line in lines}


def as_if(folder, key, other):
    """A run has tested as another one has."""
    shutil.copy(folder / "predictions" / f"{other}.npz", folder / "predictions" / f"{key}.npz")
    metrics = changed(folder, lambda line: None)[other]["metrics"]
    names = ("test/accuracy", "test/balanced_accuracy")
    changed(folder, lambda line: line["key"] == key and line["metrics"].update({name: metrics[name] for name in names}))


def test_variants_that_were_not_run_alike(tmp_path, undrawn):
    three = {"softmax": 0.0, "cosine": 0.0, "center": 0.0}
    folder = make_results(tmp_path, three, seeds=(0, 1), **SMALL)
    page = page_of(folder)
    assert "Training5 epochs, 100 steps" in page.text
    assert "Not all" not in page.text

    def change(line):
        if (line["kind"], line["variant"]) == ("final", "cosine"):
            line |= {"git": None, "versions": line["versions"] | {"torch": "9.9"}}
            line["hardware"] = {"device": "H100", "cores": line["seed"] + 2}
            if line["samples_per_class"] == 20:
                line |= {"epochs": 50, "steps": 1000 + line["seed"]}

    changed(folder, change)
    text = page_of(folder).text
    assert "Training of softmax and center5 epochs, 100 steps" in text
    assert (
        "Training of cosineat 10 images a class 5 epochs, 100 steps; at 20 images a class 50 epochs, 1000 to 1001 steps"
    ) in text
    assert (
        "Not all variants were trained equally long at 20 images a class: softmax and center 5 epochs, 100 steps; "
        "cosine 50 epochs, 1000 to 1001 steps."
    ) in text
    assert "equally long at 10" not in text
    assert (
        "Not all variants were run alike, which may make a difference of its own: softmax and center with torch "
        "2.14.1, device CPU, cores 2, git ebfc3c5; cosine with torch 9.9, device H100, cores 2 or 3, git unknown."
    ) in text


def test_predictions_of_another_run_are_left_out(tmp_path, undrawn):
    folder = make_results(tmp_path, {"softmax": 0.0, "cosine": 3.0}, (10,), (0, 1, 2), epochs=2, trials=0)
    ours, theirs = (folder / "predictions" / f"final-{name}-10-0-None-0.npz" for name in ("softmax", "cosine"))
    between = ours.rename(folder / "between")
    theirs.rename(ours)
    between.rename(theirs)
    found = read(folder)
    assert len(found.predictions) == 4
    assert re.search(
        r"softmax, 10 images a class, split 0, seed 0: its predictions can't be read "
        r"\(their accuracy is 0\.\d{4}, and that of the run 0\.\d{4}\)",
        "; ".join(found.notes),
    )


def test_equal_means_are_not_ranked(tmp_path, undrawn):
    three = {"softmax": 0.0, "cosine": 0.0, "center": -1.0}
    folder = make_results(tmp_path, three, sizes=(10,), seeds=(0, 1), images=90, trials=0)
    for of_cosine in (folder / "predictions").glob("final-cosine-*"):
        as_if(folder, of_cosine.stem, of_cosine.stem.replace("cosine", "softmax"))
    mean = read(folder).overall[0].accuracy.mean
    assert f"The highest mean is that of softmax and cosine, {100 * mean:.1f} %" in page_of(folder).text
    for of_center in (folder / "predictions").glob("final-center-*"):
        as_if(folder, of_center.stem, of_center.stem.replace("center", "softmax"))
    text = page_of(folder).text
    assert f"The means of all variants are {100 * mean:.1f} %." in text
    assert "The highest mean" not in text


@pytest.mark.parametrize("broken", ["softmax", "cosine"])
def test_runs_that_failed_are_part_of_the_verdict(tmp_path, undrawn, broken):
    folder = make_results(
        tmp_path, {"softmax": 0.0, "cosine": 2.6}, (10,), range(5), epochs=2, trials=0,
        failing=lambda run: run["variant"] == broken and run["seed"] >= 3,
    )  # fmt: skip
    text = page_of(folder).text
    assert re.search(
        r"Compared with softmax, cosine \(\+\d+\.\d points\) is better in the runs that did not fail\.", text
    )
    assert "a difference in the runs that did not fail" in text
    assert f"{broken}: 2 of 5 final runs failed (train/loss is nan at step 12 <b>); it is judged by those that" in text
    assert "2 of 10 final runs failed." in text
    assert "Incomplete" not in text
    assert "missing" not in text


def test_where_every_run_failed(tmp_path, undrawn):
    folder = make_results(tmp_path, {"softmax": 0.0, "cosine": 0.0}, (10,), (0, 1), trials=0, failing=lambda run: True)
    text = Page(write_report(folder).read_text(encoding="utf-8")).text
    assert "No test: every final run failed." in text
    assert "softmax: 2 of 2 final runs failed (train/loss is nan at step 12 <b>); it is not judged." in text


def test_the_least_difference_is_of_what_was_not_shown(tmp_path):
    """At Holm's level for what is left, of the row whose images and repetitions are named."""
    three = {"softmax": 0.0, "cosine": 3.0, "center": 0.0}
    folder = make_results(
        tmp_path, three, (10,), range(6), epochs=2, trials=0,
        without=lambda run: run["variant"] == "center" and run["seed"] > 3,
    )  # fmt: skip
    found = read(folder)
    shown, left = found.overall[1:]
    assert shown.p <= 0.05 < left.p
    least = 100 * statistics.least_shown(left.difference, 1)
    assert remarks.least_difference(found) == (
        f"differences below about {least:.0f} points could not have been shown with 360 test images and 4 repetitions"
    )
    both = make_results(tmp_path / "tiny", three | {"cosine": 0.0}, (10,), (0, 1), epochs=2, trials=0, images=4)
    said = remarks.least_difference(read(both))
    assert re.fullmatch("no difference could have been shown with 4 test images and 2 repetitions", said)


OWN, SAME_DRAW, SAME = (
    "each with a draw of training images of its own",
    "on the same draw of training images",
    "on the same training images",
)


@pytest.mark.parametrize(
    ("sizes", "seeds", "splits", "folds", "words", "scope"),
    [
        ((10,), 2, None, None, f"2 seeds, {OWN}", "on another draw from the training images at hand"),
        ((None,), 2, None, None, f"2 seeds {SAME}", f"{SAME}, not on others"),
        ((10,), 2, 1, None, f"2 seeds {SAME_DRAW}", f"{SAME_DRAW}, not on others"),
        ((10,), 2, 3, None, "3 draws of training images, with 2 seeds each", "on another draw from the training"),
        (
            (10, None), 2, 3, None,
            f"at 10 images a class 3 draws of training images, with 2 seeds each; with all images 2 seeds {SAME}",
            f"training again, at 10 images a class on another draw from the training images at hand; with all images "
            f"{SAME}, not on others. The mean over the sizes is of those repetitions that all sizes have.",
        ),
        (
            (10, None), 2, None, None, f"at 10 images a class 2 seeds, {OWN}; with all images 2 seeds {SAME}",
            f"at 10 images a class on another draw from the training images at hand; with all images {SAME}",
        ),
        ((None,), 2, None, 3, "one division of all images into 3 folds, with 2 seeds", "on the same folds"),
        (
            (10,), 2, None, 3, "one division of all images into 3 folds and one draw of training images, with 2 seeds",
            "on the same folds",
        ),
        (
            (None,), 1, None, 3,
            "one division of all images into 3 folds, with 1 seed, so that the folds are the repetitions",
            "on other folds, whose training images overlap, so that intervals may be somewhat too short",
        ),
        (
            (None,), 1, 2, 3, "2 divisions of all images into 3 folds, with 1 seed each",
            "on another division of the same images",
        ),
        (
            (10,), 2, 2, 3, f"2 divisions of all images into 3 folds, {OWN}, with 2 seeds each",
            "on another division of the same images",
        ),
    ],
)  # fmt: skip
def test_what_was_repeated(tmp_path, undrawn, sizes, seeds, splits, folds, words, scope):
    """Of each combination of sizes, seeds, splits and folds that a plan can have."""
    make_results(
        tmp_path, {"a": 0.0, "b": 0.0}, sizes, range(seeds), 1, folds, images=90, trials=0, epochs=2, dim=2,
        class_names=["x", "y"], without=lambda run: True,
    )  # fmt: skip
    variants = {name: Variant("a.yaml") for name in "ab"}
    comparison = Comparison(
        variants, baseline="a", samples_per_class=list(sizes), seeds=list(range(seeds)), splits=splits, folds=folds
    )
    planned = Plan.of(comparison, {"a": 0, "b": 1}, "").runs
    stored = json.loads((tmp_path / "plan.json").read_text())
    stored["keys"] = {
        run.key: {
            name: getattr(run, name) for name in ("kind", "variant", "samples_per_class", "split", "fold", "seed")
        }
        for run in planned
    }
    (tmp_path / "plan.json").write_text(json.dumps(stored))
    found = read(tmp_path)
    assert remarks.repetitions(found) == words
    assert scope in remarks.scope(found)
    assert ("The mean over the sizes" in remarks.scope(found)) == ("The mean over the sizes" in scope)


def test_a_result_without_any_difference_is_no_certainty(tmp_path, undrawn):
    """Two classes, eight test images, no mistake: what that can't show is said, and no interval is a point."""
    folder = make_results(
        tmp_path, {"softmax": 9.0, "cosine": 9.0}, (None,), range(3), class_names=["benign", "malignant"], images=8,
        trials=0,
    )  # fmt: skip
    page = page_of(folder)
    check(page)
    assert "What helps most: <code>--folds 5</code>, which" in (folder / "report.html").read_text()
    assert "cosine: +0.0 points, \u221233.7 to +33.7; p\u00a0=\u00a01.00, no difference shown" in page.text
    assert (
        "differences below about 75 points could not have been shown with 8 test images and 3 repetitions. What helps "
        "most: --folds 5, which tests every image once" in page.text
    )
    assert "2 classes have fewer than 5 test images (benign 4, malignant 4)" in page.text
    assert "learned" not in page.text
    assert "here the same in every class" in page.text
    for row in read(folder).rows:
        assert row.accuracy.low < row.accuracy.high == 1
    few = make_results(
        tmp_path / "few", {"softmax": 9.0}, (None,), range(3), class_names=["benign", "malignant"], images=4, trials=0
    )
    assert read(few).rows[0].accuracy.mean == 1  # all four right, which guessing does once in sixteen times
    assert "learned" not in page_of(few).text
    for file in (few / "predictions").glob("*.npz"):  # one class for every image
        arrays = dict(np.load(file))
        np.savez(file, **arrays | {"probabilities": np.tile([0.9, 0.1], (4, 1))})
    changed(few, lambda line: line["metrics"].update({"test/accuracy": 0.5, "test/balanced_accuracy": 0.5}))
    assert "Perhaps nothing has been learned: no variant" in page_of(few).text
    # Of trainings that differ much, more seeds say more.
    wavering = make_results(tmp_path / "seeds", {"softmax": 0.0, "cosine": 0.0}, (10,), (0, 1), images=400, trials=0)
    assert "400 test images and 2 repetitions. More seeds help most." in page_of(wavering).text


def test_few_test_images_are_more_the_matter_than_few_seeds(tmp_path, undrawn):
    """Trainings that differ much more than images do: of four images no number of them shows anything."""
    two = {"class_names": ["benign", "malignant"], "trials": 0, "epochs": 2}
    folder = make_results(tmp_path / "seeds", {"softmax": 9.0, "cosine": 9.0}, (None,), range(4), images=4, **two)
    for file in (folder / "predictions").glob("final-cosine-*-[13].npz"):
        with np.load(file) as stored:
            arrays = {**stored, "probabilities": np.eye(2)[1 - stored["labels"]]}
        np.savez(file, **arrays)
        changed(folder, lambda line, key=file.stem: line["key"] == key and line["metrics"].update({"test/accuracy": 0}))
    found = read(folder).overall[1].difference
    assert found.degrees < 2 * (found.repetitions - 1)  # by which more seeds would lower the error most
    folds = "What helps most: --folds 5, which tests every image once, in about 5 times as many runs."
    text = page_of(folder).text
    assert f"no difference could have been shown with 4 test images and 4 repetitions. {folds}" in text
    assert "seeds help" not in text

    single = make_results(tmp_path / "one", {"softmax": 0.0, "cosine": 0.0}, (None,), (0,), images=6, **two)
    few = "6 test images can show a difference only between variants that differ on at least 6 of them."
    assert f"{few} {folds}" in page_of(single).text
    for number in (20, 100):  # of 100 many enough to be told apart
        in_folds = make_results(
            tmp_path / f"folds {number}", {"softmax": -2.0, "cosine": -2.0}, (None,), (0,), folds=5, images=number,
            seed=1, **two,
        )  # fmt: skip
        text = page_of(in_folds).text
        assert f"with {number} test images and 5 repetitions. More images help most." in text
        assert "--folds" not in text
    assert remarks.few_test_images(60, 1)
    assert remarks.few_test_images(61, 1) is None
    assert remarks.few_test_images(6, 3).startswith("6 test images can show no difference, however large: that takes 7")


def test_tuning_on_few_validation_images(tmp_path):
    """A choice is said to be near chance where the images are few and the lead is of fewer than six of them."""

    def parts(*numbers):
        sizes = zip(SMALL["sizes"], numbers, strict=True)
        return [
            {"kind": "trial", "samples_per_class": n, "split": 0, "fold": None, "train": 9, "val": v} for n, v in sizes
        ]

    two = {"softmax": 0.0, "cosine": 0.0}
    folder = make_results(tmp_path, two, seeds=(0, 1), **SMALL, parts=parts(20, 400))

    def text_with(softmax, cosine):
        return warnings_with(folder, {("softmax", 10): softmax, ("cosine", 10): cosine})

    coin = "Tuning may have been little more than a coin toss: on 20 validation images, where one makes 5 points, the"
    tie, lead_of_four, lead_of_six = (0.5, 0.8, 0.8), (0.9, 0.2, 0.7), (0.9, 0.2, 0.6)  # of 20 images
    text = text_with(tie, lead_of_four)
    assert (
        f"{coin} best trial was in 2 of 4 choices of settings fewer than 6 images ahead of the next, and in 1" in text
    )
    assert (
        " level with it. All repetitions share what was chosen, so that no interval shows this. What helps: more "
        "images, a larger --tuning.val_fraction, --folds 5, which chooses anew in each fold, or --tuning.trials 0"
    ) in text
    assert "in 1 of 4 choices of settings fewer than 6 images ahead of the next, and in 1" in text_with(
        tie, lead_of_six
    )
    assert "and in none level with it." in text_with(lead_of_six, lead_of_four)
    assert "coin toss" not in text_with(lead_of_six, lead_of_six)
    plan = json.loads((folder / "plan.json").read_text())
    for others, said in (({"parts": parts(20, 60)}, True), ({"parts": parts(20, 61)}, False), ({}, False)):
        kept = {name: value for name, value in plan.items() if name != "parts"}
        (folder / "plan.json").write_text(json.dumps(kept | others))
        assert any("coin toss" in warning for warning in remarks.warnings(read(folder))) == said


def test_settings_that_are_drawn_twice_are_level_with_no_others(tmp_path):
    parts = [{"kind": "trial", "samples_per_class": None, "split": 0, "fold": None, "train": 9, "val": 20}]
    two = {"softmax": 0.0, "cosine": 0.0}
    folder = make_results(tmp_path, two, seeds=(0, 1), **{**SMALL, "sizes": (None,)}, parts=parts)

    def change(line):
        if line["kind"] == "trial":
            line["metrics"]["val/accuracy"] = (0.5, 0.8, 0.8)[line["trial"]]
            line["settings"] = {"model.optimizer.lr": (0.1, 0.2, 0.2)[line["trial"]]}

    changed(folder, change)
    assert not any("coin toss" in warning for warning in remarks.warnings(read(folder)))


def warnings_with(folder, scores, metric="accuracy"):
    """All warnings where the trials of a variant and size have reached so much."""

    def change(line):
        if line["kind"] == "trial":
            found = scores.get((line["variant"], line["samples_per_class"]), (0.9, 0.9, 0.9))
            line["metrics"][f"val/{metric}"] = float(np.float32(found[line["trial"]]))

    changed(folder, change)
    return " ".join(remarks.warnings(read(folder)))


def test_tuning_by_balanced_accuracy_counts_images_of_the_rarest_class(tmp_path):
    """Of which one of two in a class of ten makes 5 points, though it is one of 400 images."""
    part = {"kind": "trial", "samples_per_class": 10, "split": 0, "fold": None, "train": 9, "val": 400}
    facts = {"metric": "balanced_accuracy", "parts": [part | {"val_classes": 10, "val_rarest": 2}]}
    folder = make_results(
        tmp_path, {"softmax": 0.0, "cosine": 0.0}, (10,), (0, 1), images=90, trials=3, epochs=2, **facts
    )
    close, far = (0.9, 0.85, 0.895), (0.9, 0.2, 0.6)  # ahead by an image of a class of twenty, and by six of the rarest
    text = warnings_with(folder, {("softmax", 10): close, ("cosine", 10): far}, "balanced_accuracy")
    assert (
        "on 400 validation images, where one of the rarest class makes 5 points, the best trial was in 1 of 2 choices "
        "of settings fewer than 6 such images ahead of the next, and in none level with it."
    ) in text
    plan = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps(plan | {"parts": [part | {"val": 20}]}))  # as of an earlier version
    assert "coin toss" not in " ".join(remarks.warnings(read(folder)))


@pytest.mark.parametrize(
    ("seeds", "splits", "shared"), [((0, 1), 1, True), ((0,), 1, False), ((0,), 2, False), ((0, 1), 2, False)]
)
def test_what_was_chosen_is_shared_where_seeds_are_the_repetitions(tmp_path, seeds, splits, shared):
    place = {"kind": "trial", "samples_per_class": 10, "fold": None, "train": 9, "val": 20}
    folder = make_results(
        tmp_path, {"softmax": 0.0, "cosine": 0.0}, (10,), seeds, splits, 3, images=90, trials=3, epochs=2,
        parts=[{**place, "split": split} for split in range(splits)],
    )  # fmt: skip
    text = warnings_with(folder, {})
    assert "level with it." in text
    assert ("All repetitions share what was chosen" in text) == shared


def test_the_conditions(tmp_path, undrawn):
    weights = "5e" * 64  # the digest of a file
    backbone = {
        "class_path": "metricloss_pl.backbones.TorchvisionBackbone",
        "init_args": {"name": "efficientnet_v2_s", "weights": weights, "dropout": 0.0},
    }
    settings = {
        "model": {"class_path": "x", "init_args": {"backbone": backbone, "embedding_dim": 32}},
        "data": {
            "class_path": "x",
            "init_args": {"batch_size": 25, "image_size": 48, "resize": 64, "in_channels": 3},
        },
        "trainer": {"accumulate_grad_batches": 2},
    }
    other = json.loads(json.dumps(settings))
    other["model"]["init_args"]["embedding_dim"] = "auto"
    other["model"]["init_args"]["backbone"]["init_args"]["name"] = "efficientnet_v2_m"
    variants = {"softmax": {"settings": settings}, "cosine": {"settings": other, "space": {"data.batch_size": {}}}}
    place = {"split": 0, "fold": None}
    parts = [
        {"kind": kind, "samples_per_class": size, **place, "train": train, "val": val}
        for size in SMALL["sizes"]
        for kind, train, val in (("trial", 6 * size, 4 * size), ("final", 10 * size, 0))
    ]
    folder = make_results(
        tmp_path, {"softmax": 0.0, "cosine": 0.0}, seeds=(0, 1), **SMALL, parts=parts, steps=100,
        tuning={"pruner": "median", "epochs": None},
    )  # fmt: skip
    plan = json.loads((folder / "plan.json").read_text())
    for name, variant in variants.items():
        plan["variants"][name] = variant
    (folder / "plan.json").write_text(json.dumps(plan))
    changed(folder, lambda line: line["kind"] == "trial" and line.update(epochs=8))
    text = page_of(folder).text
    for words in (
        "Image size48 px out of 64 px, colour",
        "Networksoftmax TorchvisionBackbone (name efficientnet_v2_s, weights 5e5e5e5e5e5e5e5e...); "
        "cosine TorchvisionBackbone (name efficientnet_v2_m, weights 5e5e5e5e5e5e5e5e...)Embedding",
        "dimensionsoftmax 32; cosine that of the class embeddings",
        "Batch sizesoftmax 25, with 2 batches a step; cosine tuned, with 2 batches a step",
        "Images of a final runat 10 images a class 100 for training, 90 for test; at 20 images a class 200 for",
        "Images of a trialat 10 images a class 60 for training, 40 for validation; at 20",
        "3 trials for each variant and size, the same for all (12 ok); chosen by accuracy on validation",
        "on validation images; a trial below the median of those before it ends early",
        "Training of a trial8 epochs, 100 steps (as many steps as in a final run, but epochs without validation",
    ):
        assert words in text, words
    plan = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps(plan | {"folds": 5}))
    assert "3 trials for each variant, size and fold, the same" in dict(conditions(read(folder)))["Tuning"]


def test_a_network_that_knows_frequencies_alone_is_not_flattered(tmp_path, undrawn):
    folder = make_results(
        tmp_path, {"softmax": 0.0, "cosine": 0.0}, (10,), (0, 1), class_names=["rare", "common"],
        labels=[0] * 12 + [1] * 28, trials=0,
    )  # fmt: skip
    for file in (folder / "predictions").glob("final-cosine-*"):
        rewritten(probabilities=np.tile([0.3, 0.7], (40, 1)))(file)
    changed(folder, lambda line: line["variant"] == "cosine" and line["metrics"].update({"test/accuracy": 0.7}))
    write_report(folder)
    table = (folder / "report.md").read_text().partition("| variant | calibration error, points | Brier score |")[2]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:5]]
    table = {row[0]: row[1:3] for row in rows}
    scores = []
    for file in sorted((folder / "predictions").glob("final-softmax-*")):
        with np.load(file) as stored:
            scores.append(2 * brier_score_loss(stored["labels"], stored["probabilities"][:, 1].astype(float)))
    assert table["softmax"][1] == f"{np.mean(scores):.3f} ± {np.std(scores, ddof=1):.3f}"
    assert table["cosine"] == ["0.0 ± 0.0", "0.420 ± 0.000"]
    assert table["class frequencies"] == ["0.0", "0.420"]
    # Of all images, whatever the last variant has tested.
    in_folds = make_results(
        tmp_path / "folds", {"softmax": 0.0, "cosine": 0.0}, (10,), (0,), folds=2, class_names=["rare", "common"],
        labels=[0, 1] * 10 + [1, 1] * 10, trials=0, epochs=2,
        without=lambda run: run["variant"] == "cosine" and run["fold"] == 1,
    )  # fmt: skip
    write_report(in_folds)
    assert re.search(r"\| class frequencies +\| 0\.0 +\| 0\.375 \|", (in_folds / "report.md").read_text())


def test_what_has_learned_nothing_and_what_failed(tmp_path, undrawn):
    folder = make_results(
        tmp_path, {"softmax": 9.0, "cosine": -9.0}, (10,), range(2), class_names=["x", "y"], images=80, epochs=3,
        labels=[0] * 50 + [1] * 30,
    )  # fmt: skip
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    for line in [line for line in lines if (line["kind"], line["variant"]) == ("trial", "softmax")][:3]:
        line |= {"status": "failed", "reason": "train/loss is nan at step 12", "metrics": {}}
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = page_of(folder).text
    one = (
        "cosine at 10 images a class is not shown to be better than naming one class for every image (62.5 % accuracy)"
    )
    assert f"{one}; the others are. More epochs (--epochs)" in text
    assert "softmax: 3 of 12 trials failed (train/loss is nan at step 12)" in text
    for line in lines:
        if line["kind"] == "final":
            line["metrics"]["train/accuracy"] = 0.99
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "The training images were learned (99.0 %): more of them" in page_of(folder).text
    for file in (folder / "predictions").glob("final-softmax-*"):
        as_if(folder, file.stem, file.stem.replace("softmax", "cosine"))
    text = page_of(folder).text
    assert "Nothing has been learned: no variant is shown to be better than naming one class" in text
    plan = json.loads((folder / "plan.json").read_text()) | {"metric": "balanced_accuracy"}
    (folder / "plan.json").write_text(json.dumps(plan))
    assert "naming one class for every image (50.0 % balanced accuracy)" in page_of(folder).text


def test_what_is_little_above_guessing_is_not_said_to_be_better(tmp_path):
    """Five of eight right is more than half, and no more than guessing gives often."""
    folder = make_results(
        tmp_path, {"softmax": 9.0, "cosine": 9.0}, (None,), (0, 1), class_names=["x", "y"], images=8, trials=0, epochs=2
    )

    def said_of(softmax, cosine):
        for variant, right in (("softmax", softmax), ("cosine", cosine)):
            for file in (folder / "predictions").glob(f"final-{variant}-*"):
                with np.load(file) as stored:
                    labels = stored["labels"]
                rewritten(probabilities=np.eye(2)[np.where(np.arange(8) < right, labels, 1 - labels)])(file)
            changed(
                folder,
                lambda line, of=variant, share=right / 8: (
                    line["variant"] == of and line["metrics"].update({"test/accuracy": share})
                ),
            )
        return next(line for line in remarks.warnings(read(folder)) if "naming one class" in line)

    one = "cosine with all images is not shown to be better than naming one class for every image (50.0 % accuracy)"
    assert said_of(8, 4).startswith(f"{one}; the others are. ")
    assert said_of(5, 4).startswith(f"{one}. ")


def test_figures_of_trials_go_by_the_metric_of_the_plan(tmp_path, undrawn, monkeypatch):
    folder = make_results(tmp_path, variants={"softmax": 0.0}, seeds=range(2), **SMALL | {"sizes": (10,), "trials": 2})
    plan = json.loads((folder / "plan.json").read_text()) | {"metric": "balanced_accuracy"}
    (folder / "plan.json").write_text(json.dumps(plan))
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    found = iter([(0.9, 0.5), (0.6, 0.8)])
    for line in lines:
        line["history"].pop("val/accuracy", None)
        if line["kind"] == "trial":
            names = ("val/accuracy", "val/balanced_accuracy")
            line["metrics"] |= dict(zip(names, next(found), strict=True))
            line["history"] |= {name: [line["metrics"][name]] * 5 for name in names}
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    drawn = {}
    for name in ("learning_curves", "accuracy_against_rate"):
        draw = getattr(plots, name)
        spy = lambda of, *rest, name=name, draw=draw: drawn.update({name: of}) or draw(of, *rest)  # noqa: E731
        monkeypatch.setattr(plots, name, spy)
    page = page_of(folder)
    assert drawn["learning_curves"]["softmax"]["val"][1][-1] == 0.6  # of the trial whose balanced accuracy is the best
    assert sorted(drawn["accuracy_against_rate"]["softmax"][1]) == [0.5, 0.8]
    assert any(image["alt"].startswith("Balanced validation accuracy") for image in page.all("img"))


def test_what_is_missing_is_marked_on_every_table(tmp_path, undrawn):
    folder = make_results(
        tmp_path, seeds=range(3), **SMALL,
        without=lambda run: run["variant"] == "standalone" and run["seed"] == 2,
        failing=lambda run: run["variant"] == "center" and run["samples_per_class"] == 10,
    )  # fmt: skip
    stored = (folder / "results.jsonl").read_text().splitlines()
    foreign = json.dumps(json.loads(stored[0]) | {"key": "final-of-another-plan"})
    odd = json.dumps(json.loads(stored[0]) | {"variant": ["softmax"]})
    stranger = json.dumps(json.loads(stored[0]) | {"variant": "unheard-of"})
    (folder / "results.jsonl").write_text(
        "\n".join([*stored, foreign, stranger, '{"key": "final-co', "[7]", odd, stored[0]])
    )
    page = page_of(folder)
    check(page)
    n = len(stored)
    mark = "Incomplete: 2 of 24 final runs missing. 3 of 24 final runs failed."
    captions = re.findall(r'<p class="caption"[^>]*>(.*?)</p>', (folder / "report.html").read_text())
    assert len(captions) >= 6
    assert all(caption.startswith(mark) for caption in captions)
    figures = re.findall(r"<figcaption>(.*?)</figcaption>", (folder / "report.html").read_text())
    assert all(caption.startswith(mark) for caption in figures)
    assert "Not tested for want of complete results: center." in page.text
    assert "standalone, 20 images a class, split 0, seed 2" in page.text
    assert "Incomplete: 2 of 24 final runs missing. What is said here may change with them." in page.text
    assert "center: 3 of 6 final runs failed (train/loss is nan at step 12 <b>); it is judged by those" in page.text
    assert "0 of 3, 3 failed" in page.text
    assert "train/loss is nan at step 12 <b>" in page.text
    assert "3 runs failed." in page.text
    assert f"3 lines of results.jsonl left out, torn or no result: {n + 3}, {n + 4}, {n + 5}" in page.text
    assert "2 results of another plan left out" in page.text
    assert "1 result replaced by a later one of the same run" in page.text
    rows = {(row.variant, row.size): row for row in read(folder).rows}
    assert rows["center", 10].accuracy is None
    assert (rows["standalone", 10].done, rows["standalone", 10].planned) == (2, 3)
    overall = {row.variant: row for row in read(folder).overall}
    assert overall["center"].accuracy is None  # the mean of the easier size alone would mislead
    assert overall["center"].p is None


def test_names_are_text_and_never_markup(tmp_path):
    evil = "<script>alert('x')</script>"
    folder = make_results(
        tmp_path, {f"soft|max & *{evil}*": 0.0, '"><img src=x onerror=y>': 0.5}, seeds=(0, 1), sizes=(10,),
        class_names=[evil, "a_b $x$", "[c](http://example.org)"], images=60, trials=2, epochs=3,
        name_image=lambda k: f"{evil} {k}", name=evil, data={"root": evil}, command=evil,
    )  # fmt: skip
    page = page_of(folder)
    check(page)
    assert page.text.count(evil) >= 8
    assert f"Comparison: {evil}" in page.text
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    assert evil not in markdown
    assert "<script>" not in markdown
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in markdown.splitlines() if line.startswith("| soft")}
    assert widths <= {9, 4, 3, 5}
    with (folder / "report.csv").open(encoding="utf-8", newline="") as file:
        assert next(csv.DictReader(file))["variant"] == f"soft|max & *{evil}*"


def test_one_size_and_one_seed(tmp_path, undrawn):
    folder = make_results(tmp_path, {"softmax": 0.0, "cosine": 3.0}, (None,), (0,), images=90, validation=False)
    page = page_of(folder)
    check(page)
    assert "No test: one training of each variant" in page.text
    assert "With one repetition of the training there is no spread, no interval and no test." in page.text
    assert "Mean over" not in page.text
    table = page.text[page.text.index("All images.") : page.text.index("How to read this")]
    assert "±" not in table
    assert " to " not in table


def test_two_classes(tmp_path, undrawn):
    folder = make_results(
        tmp_path, {"softmax": 0.0, "cosine": 1.0}, (10,), range(3), class_names=["benign", "malignant"], images=80
    )
    page = page_of(folder)
    check(page)
    assert "Sensitivity is the share of malignant that is recognised." in page.text
    aucs, recalls = [], []
    for file in sorted((folder / "predictions").glob("final-cosine*")):
        with np.load(file) as stored:
            aucs.append(roc_auc_score(stored["labels"], stored["probabilities"][:, 1]))
            recalls.append((stored["probabilities"].argmax(1) == 1)[stored["labels"] == 1].mean())
    assert f"{np.mean(aucs):.3f} ± {np.std(aucs, ddof=1):.3f}" in page.text
    assert f"{100 * np.mean(recalls):.1f} ± {100 * np.std(recalls, ddof=1):.1f}" in page.text


def test_balanced_accuracy_where_it_counts(tmp_path, undrawn):
    folder = make_results(
        tmp_path, {"softmax": 0.0, "cosine": 1.0}, (10,), range(3), class_names=["rare", "common"],
        labels=[0] * 12 + [1] * 60, metric="balanced_accuracy",
    )  # fmt: skip
    page = page_of(folder)
    assert "Balanced accuracy minus that of softmax, with 95 % intervals" in page.text
    right = (
        "How often each variant was right on the test images of a class, averaged over the classes, and how much more"
    )
    assert right in page.text
    assert "1 % of the images" not in page.text
    expected = {}
    for variant in ("softmax", "cosine"):
        scores = []
        for file in sorted((folder / "predictions").glob(f"final-{variant}*")):
            with np.load(file) as stored:
                scores.append(balanced_accuracy_score(stored["labels"], stored["probabilities"].argmax(1)))
        expected[variant] = np.mean(scores)
    with (folder / "report.csv").open(encoding="utf-8", newline="") as file:
        first, second = csv.DictReader(file)
    assert float(first["balanced_accuracy"]) == pytest.approx(expected["softmax"], rel=1e-5)
    assert float(second["difference"]) == pytest.approx(expected["cosine"] - expected["softmax"], rel=1e-5)
    assert float(first["accuracy"]) != pytest.approx(expected["softmax"], rel=1e-3)


def test_what_the_plan_says_of_data_and_tuning(tmp_path, undrawn):
    """Its warnings are shown; of the settings those that are tuned; runs that it does not name are foreign."""
    folder = make_results(tmp_path, {"softmax": 0.0, "cosine": 0.5}, seeds=(0, 1), **SMALL)
    plan = json.loads((folder / "plan.json").read_text())
    plan["warnings"] = ["2 images stand in training and test <parts>"]
    plan["variants"]["cosine"] = {"space": {"model.optimizer.lr": {"low": 0.1, "high": 1}}}
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    trials = [line for line in lines if line["kind"] == "trial"]
    del plan["keys"][trials[0]["key"]]
    (folder / "plan.json").write_text(json.dumps(plan))
    text = page_of(folder).text
    assert "2 images stand in training and test <parts>" in text
    assert text.count("lr 0.03, weight_decay 0.0001") == text.count("lr 0.03") - 2 == 2
    assert "1 result of another plan left out" in text
    assert len(read(folder).trials) == len(trials) - 1
    assert len(read(folder).planned) == 8


def test_repetitions_of_splits_and_folds(tmp_path):
    """Splits are the repetitions, each with its seeds averaged; else seeds over all folds; else the folds."""
    two = {"softmax": 0.0, "cosine": 1.0}
    splits = read(make_results(tmp_path / "splits", two, (10,), (0, 1), splits=4, images=90, trials=0))
    seeds = read(make_results(tmp_path / "seeds", two, (10,), (0, 1, 2), folds=3, images=90, trials=0))
    folds = read(make_results(tmp_path / "folds", two, (10,), (0,), folds=5, images=90, trials=0))
    for comparison, repetitions in ((splits, 4), (seeds, 3), (folds, 5)):
        own, other = comparison.rows
        assert other.difference.repetitions == own.accuracy.repetitions == repetitions
        assert 0 < other.p < 1
        runs = [run["metrics"]["test/accuracy"] for run in comparison.finals_of("softmax", 10).values()]
        assert own.accuracy.mean == pytest.approx(np.mean(runs))
    assert (seeds.rows[0].accuracy.images, folds.rows[0].accuracy.images) == (90, 90)
    # A repetition that lacks a fold is none.
    gap = {"variant": "cosine", "fold": 1, "seed": 2}
    again = read(
        make_results(
            tmp_path / "gap", two, (10,), (0, 1, 2), folds=3, images=90, trials=0,
            without=lambda run: gap.items() <= run.items(),
        )
    )  # fmt: skip
    assert again.rows[1].difference.repetitions == 2


def test_pictures_of_the_images_where_variants_disagree(tmp_path, undrawn):
    for k in range(60):
        mode, value = [("L", 200), ("RGB", (200, 100, 0)), ("I;16", 40000)][k % 3]
        Image.new(mode, (30 + k, 40), value).save(tmp_path / f"{k}.png")
    (tmp_path / "7.png").write_bytes(b"no picture")
    folder = make_results(
        tmp_path / "results", {"softmax": 0.0, "cosine": 0.5}, (10,), range(3), images=60, trials=0,
        name_image=lambda k: f"{k}.png", images_root=str(tmp_path),
    )  # fmt: skip
    page = page_of(folder)
    check(page)
    assert 6 < thumbnails(page) <= 12
    assert re.search(r"\d\.png\nsoftmax [01] of 3\ncosine [23] of 3|softmax [23] of 3\ncosine [01] of 3", page.text)


def thumbnails(page):
    return sum(attrs["src"].startswith("data:image/jpeg") for attrs in page.all("img"))


def as_image(file):
    Image.new("L", (30, 40)).save(file)


def as_bomb(file):
    """Of 400 million pixels, by its header."""
    as_image(file)
    content = bytearray(file.read_bytes())
    content[16:24] = struct.pack(">II", 20_000, 20_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("place", "name", "root", "make", "shown"),
    [
        ("data/x/1.png", "x/1.png", "data", as_image, True),
        ("data/1.png", "{}/data/1.png", "data", as_image, True),
        ("data/1.png", "1.png", None, as_image, False),
        ("1.png", "1.png", "", as_image, True),
        ("1.png", "1.png", "data", as_image, False),
        ("1.png", "../1.png", "data", as_image, False),
        ("1.png", "{}/1.png", "data", as_image, False),
        ("data/1.png", "1.png", "data", as_bomb, False),
        ("data/1.png", "1.png", "data", make_pipe, False),
        ("data/1.png", "1" * 5000, "data", as_image, False),
        ("data/1.png", "a\0b", "data", as_image, False),
    ],
)
def test_only_images_of_the_data_are_shown(tmp_path, monkeypatch, place, name, root, make, shown):
    (tmp_path / "data" / "x").mkdir(parents=True)
    make(tmp_path / place)
    monkeypatch.chdir(tmp_path / place.rpartition("/")[0])
    root = None if root is None else str(tmp_path / root)
    assert (pictures._thumbnail(root, name.format(tmp_path)) is not None) == shown


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (
            {"predictions": "x" * 5000},
            "softmax, 10 images a class, split 0, seed 0: left out, its predictions are missing",
        ),
        ({"predictions": "a\0b"}, "left out, its predictions are missing"),
        ({"seconds": 10**400}, "1 line of results.jsonl left out, torn or no result: 1"),
        ({"history": {"epoch": [1], "train/loss": [10**400]}}, "1 line of results.jsonl left out"),
    ],
)
def test_values_that_can_not_be(tmp_path, undrawn, change, note):
    folder = make_results(tmp_path, {"softmax": 0.0, "cosine": 1.0}, (10,), (0, 1), images=30, epochs=2, trials=0)
    first, *others = (json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines())
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [first | change, *others]))
    assert note in page_of(folder).text


def test_a_folder_in_the_place_of_the_results(tmp_path):
    folder = make_results(tmp_path, {"softmax": 0.0}, (10,), (0,), images=10, epochs=2, trials=1)
    (folder / "results.jsonl").unlink()
    (folder / "results.jsonl").mkdir()
    with pytest.raises(UserError, match=r"results\.jsonl can't be read \(.*\): it must be the file that compare has"):
        write_report(folder)


def test_without_predictions_there_is_no_test(tmp_path, undrawn):
    folder = make_results(tmp_path, {"softmax": 0.0, "cosine": 3.0}, seeds=(0, 1, 2), **SMALL)
    for file in (folder / "predictions").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    assert "No test: no predictions are stored." in page.text
    assert "its predictions can't be read" in page.text
    assert all(row.p is None and row.accuracy.spread is not None for row in read(folder).rows)


def test_before_any_result(tmp_path, undrawn):
    folder = make_results(tmp_path, {"softmax": 0.0, "cosine": 3.0}, without=lambda run: True, trials=0)
    text = Page(write_report(folder).read_text(encoding="utf-8")).text
    assert "No test: there is no final run yet." in text
    assert "Incomplete: 18 of 18 final runs missing." in text
    (folder / "results.jsonl").unlink()
    assert "Incomplete: 18 of 18" in Page(write_report(folder).read_text(encoding="utf-8")).text


def test_the_last_word_on_a_run_counts(tmp_path):
    folder = make_results(tmp_path, {"softmax": 0.0}, (10,), (0, 1), images=30, trials=0)
    first, second = (json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines())
    failed = {name: second[name] for name in ("key", "kind", "variant", "samples_per_class", "split", "fold", "seed")}
    failed |= {"status": "failed", "reason": "out of memory", "settings": {}, "metrics": {}, "history": {}}
    for lines, finals, failures in (([first, failed, second], 2, 0), ([first, second, failed], 1, 1)):
        (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        comparison = read(folder)
        assert (len(comparison.finals), len(comparison.failed)) == (finals, failures)


def test_one_variant(tmp_path, undrawn):
    folder = make_results(tmp_path, {"softmax": 0.0}, seeds=(0, 1), **SMALL)
    assert "Nothing to compare: softmax is the only variant." in page_of(folder).text


def rewritten(**arrays):
    def spoil(file):
        with np.load(file) as stored:
            np.savez_compressed(file, **{**stored, **arrays})

    return spoil


def with_other_bytes(file):
    """Within the packed probabilities."""
    rewritten()(file)
    content = bytearray(file.read_bytes())
    content[80:90] = b"\xff" * 10
    file.write_bytes(content)


def as_one_array(file):
    with file.open("wb") as stream:
        np.save(stream, np.zeros(3))


@pytest.mark.parametrize(
    ("what", "spoil"),
    [
        ("predictions", with_other_bytes),
        ("predictions", as_one_array),
        ("predictions", lambda file: file.write_bytes(file.read_bytes()[:500])),
        ("predictions", rewritten(probabilities=np.full((90, 10), np.nan))),
        ("predictions", rewritten(labels=np.zeros((90, 1), dtype=int))),
        ("embeddings", rewritten(embeddings=np.array(["x"] * 90))),
        ("embeddings", rewritten(embeddings=np.zeros((3, 2)))),
        ("embeddings", rewritten(embeddings=np.zeros(90))),
    ],
)
def test_arrays_that_are_broken_are_left_out_and_named(tmp_path, undrawn, what, spoil):
    folder = make_results(tmp_path, {"softmax": 0.0, "cosine": 1.0}, seeds=(0, 1, 2), **SMALL)
    spoil(folder / "predictions" / "final-cosine-20-0-None-0.npz")
    page = page_of(folder)
    check(page)
    assert f"cosine, 20 images a class, split 0, seed 0: its {what} can't be read (" in page.text


def test_numbers_that_are_none_are_not_known(tmp_path, undrawn):
    folder = make_results(tmp_path, {"softmax": 0.0, "cosine": 1.0}, seeds=(0, 1), **SMALL)
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    for line in lines:
        line["metrics"] = dict.fromkeys(line["metrics"], float("nan"))
        line["history"]["val/accuracy"] = [float("nan")] * 5
        line["seconds"], line["predictions"] = float("nan"), None
    lines[0] |= {"metrics": []}
    lines[1]["history"]["epoch"] = [1, 2]
    lines[2]["settings"] = {"model.optimizer.lr": "0.1"}
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = page_of(folder)
    assert not re.search(r"\bnan\b", page.text + (folder / "report.csv").read_text())
    assert "The highest mean" not in page.text
    assert "2 lines of results.jsonl left out, torn or no result: 1, 2" in page.text


def test_names_that_are_no_unicode(tmp_path):
    """As Python reads the name of a folder that was written in another encoding."""
    names = ["\udce9", "bell\x07", "\ufffe", *"3456789"]
    make_results(tmp_path, {"softmax": 0.0, "caf\udce9": 1.0, "\x1bcosine": 0.0}, class_names=names, **SMALL)
    page = page_of(tmp_path)
    check(page)
    for file in (tmp_path / "figures").glob("*.svg"):
        ElementTree.parse(file)
    assert "caf?" in page.text


PLACE = {"kind": "final", "variant": "a", "samples_per_class": 10, "split": 0, "fold": None, "seed": 0}


def plan_of(place, **changes):
    plan = {"variants": {"a": {}}, "baseline": "a", "samples_per_class": [10], "class_names": ["x", "y"]}
    return json.dumps({**plan, **changes, "keys": {"k": place}})


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (None, r"plan\.json can't be read"),
        ("{", r"plan\.json is no JSON"),
        ("[" * 100_000, r"plan\.json is no JSON"),
        ("[]", r"holds no 'variants'"),
        ('{"variants": ["a"]}', r"holds no 'variants'"),
        ('{"variants": {"a": {}}}', r"holds no 'baseline'"),
        (
            '{"variants": {"a": {}}, "baseline": "b", "samples_per_class": [1], "class_names": [], "keys": {}}',
            r"the baseline 'b' is none of the variants \['a'\]",
        ),
        (plan_of({}), r"of the run 'k' it says \{\}: it must be the plan that compare has written"),
        (plan_of("final"), r"of the run 'k' it says 'final'"),
        (plan_of(PLACE | {"kind": "other"}), r"of the run 'k' it says \{'kind': 'other'"),
        (plan_of(PLACE | {"seed": None}), r"of the run 'k' it says .*'seed': None"),
        (plan_of(PLACE | {"samples_per_class": 20}), r"of the run 'k' it says .*'samples_per_class': 20"),
        (plan_of(PLACE, samples_per_class=[[10]]), r"samples_per_class is \[\[10\]\]"),
        (plan_of(PLACE, variants={"a": None}), r"the variant 'a' is None"),
    ],
)
def test_no_sound_plan(tmp_path, plan, message):
    if plan is not None:
        (tmp_path / "plan.json").write_text(plan)
    with pytest.raises(UserError, match=message):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()
