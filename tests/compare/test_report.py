"""The report on simulated results: as in the golden files, complete, accessible, self-contained, safe."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from metricloss_pl import formatting
from metricloss_pl.compare.figures import thumbnail
from metricloss_pl.compare.report import write_report
from metricloss_pl.compare.store import Store
from metricloss_pl.compare.summary import Summary
from metricloss_pl.errors import UserError
from tests.compare.golden import __main__ as golden
from tests.compare.synthetic import make_comparison

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Elements and text of a page; tags that do not balance are an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
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


def check(page: Page) -> None:
    """Check what every page keeps: accessible, self-contained, without programs."""
    assert page.elements[0] == ("html", {"lang": "en"})
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert all(attrs["alt"] for attrs in page.all("img"))
    assert all(attrs["scope"] in ("col", "row") for attrs in page.all("th"))
    assert not {"script", "link", "iframe", "object", "form", "b"} & {tag for tag, _ in page.elements}
    for tag, attrs in page.elements:
        assert not any(name.startswith("on") for name in attrs)
        for name in {"src", "href", "aria-labelledby"} & attrs.keys():
            target = attrs[name] if name != "aria-labelledby" else f"#{attrs[name]}"
            assert target.startswith("data:image/") or target[1:] in ids, (tag, name)
    for attrs in page.all("img"):
        kind, data = attrs["src"].removeprefix("data:image/").split(";base64,")
        content = base64.b64decode(data, validate=True)
        if kind == "svg+xml":
            assert not re.search(rb'(?:href|src)="(?!#|data:)|<script|url\((?!#)', content)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are made but not drawn, which takes most of a report's time."""
    monkeypatch.setattr("metricloss_pl.plots.figure_bytes", lambda figure, format: golden.PIXEL)


def page_of(folder: Path) -> Page:
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    check(page)
    return page


def test_golden_files(tmp_path):
    """After a change of the text: python -m tests.compare.golden."""
    for name, text in golden.write_golden(tmp_path).items():
        assert text == (golden.FOLDER / name).read_text(encoding="utf-8"), name
    check(Page((tmp_path / "report.html").read_text(encoding="utf-8")))


def test_figures_are_drawn_and_the_same_results_give_the_same_bytes(tmp_path):
    folder = make_comparison(tmp_path, images=40, trials=2, class_names=["a", "b"])
    page = page_of(folder)
    sections = {"history", "tuning", "classes", "confusion", "confusion-1", "confusion-2", "calibration", "embeddings"}
    assert {file.stem for file in (folder / "figures").iterdir()} == sections
    assert len(page.all("img")) == len(sections)
    first = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    write_report(folder)
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == first


def test_figures_of_an_earlier_report_go_and_those_of_the_user_stay(tmp_path, undrawn):
    folder = make_comparison(tmp_path, images=40, trials=2, class_names=["a", "b"])
    write_report(folder)
    (folder / "figures" / "mine.svg").write_text("mine")
    make_comparison(tmp_path, {"softmax": 0.8}, images=40, class_names=["a", "b"])
    write_report(folder)
    names = {file.name for file in (folder / "figures").iterdir()}
    assert "mine.svg" in names
    assert not {"tuning.svg", "confusion-2.svg"} & names


def test_csv_files_hold_the_tables(tmp_path, undrawn):
    folder = make_comparison(tmp_path, sizes=(5, None), images=60)
    write_report(folder)
    results = pd.read_csv(folder / "results.csv")
    assert len(results) == 6
    runs = [run for run in Store(folder).results().values() if (run["variant"], run["size"]) == ("cosine", 5)]
    mean = np.mean([run["metrics"]["test/accuracy"] for run in runs])
    row = results[(results["variant"] == "cosine") & (results["size"] == 5)]
    assert row["accuracy"].item() == pytest.approx(mean)
    assert row["metric"].item() == "accuracy"
    assert row["low"].item() < mean < row["high"].item()
    assert len(pd.read_csv(folder / "classes.csv")) == 30


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"missing": lambda run: True}, "No final run has finished"),
        ({"failing": lambda run: True}, "No final run has finished"),
        ({"variants": {"softmax": 0.8}}, "only variant"),
        ({"seeds": (0,)}, "at least two complete runs"),
        ({"variants": {"softmax": 0.6, "cosine": 0.9}}, "cosine is more accurate than softmax: +"),
        ({"variants": {"softmax": 0.9, "cosine": 0.6}}, "cosine is less accurate than softmax: \u2212"),
        ({"variants": {"softmax": 0.8, "cosine": 0.8}}, "No statistically significant difference"),
        ({"folds": 3, "trials": 2}, "3 folds"),
        ({"splits": 3, "sizes": (5, 10)}, "3 subsamples"),
        ({"metric": "balanced_accuracy"}, "Highest mean balanced accuracy"),
        ({"class_names": [f"class {k}" for k in range(120)], "images": 360}, "20 easier classes are in classes.csv"),
        ({"class_names": ["a\udce9", "b"]}, "a?"),  # a folder's name that is no Unicode
        ({"embedding_dim": 1, "class_names": ["a", "b"]}, "Embeddings"),
    ],
)  # fmt: skip
def test_every_kind_of_comparison_has_a_report(settings, words, tmp_path, undrawn):
    folder = make_comparison(tmp_path, **({"images": 60} | settings))
    assert words in page_of(folder).text
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert words in text
    widths = [line.count("|") - line.count("\\|") for line in text.splitlines() if line.startswith("|")]
    rules = [line.count("|") for line in text.splitlines() if line.startswith("| ---")]
    assert set(widths) == set(rules)


def test_the_hardest_classes_come_first_and_those_without_images_last(tmp_path, undrawn):
    folder = make_comparison(tmp_path, class_names="fbcaed", labels=[0, 2, 3, 5] * 10)
    write_report(folder)
    order = re.findall(r"^\| (\w) \| \d", (folder / "report.md").read_text(encoding="utf-8"), flags=re.M)
    tables = [
        Summary(folder).per_class(variant, None).set_index("class")["recall"] for variant in Summary(folder).variants
    ]
    assert order[4:] == ["b", "e"]
    assert sum(tables)[order[:4]].is_monotonic_increasing
    assert sum(tables)[["f", "c", "a", "d"]].nunique() > 2


def test_disagreements_show_images_of_the_data_folder_alone(tmp_path, undrawn):
    data = tmp_path / "data"
    data.mkdir()
    for number in range(40):
        Image.new("RGB", (300, 200), (number, 0, 0)).save(data / f"{number}.png")
    Image.new("RGB", (9, 9)).save(tmp_path / "secret.png")
    folder = make_comparison(
        tmp_path / "run", images=40, class_names=["a", "b"], name_image=lambda n: f"{n}.png",
        data={"name": "folder", "root": str(data), "class_names": ["a", "b"], "n_images": 40, "image_size": 8,
              "subsets": []},
    )  # fmt: skip
    images = [attrs for attrs in page_of(folder).all("img") if attrs["src"].startswith("data:image/jpeg")]
    assert 0 < len(images) <= 12
    assert all(re.search(r"\d+\.png of class [ab]", attrs["alt"]) for attrs in images)
    with Image.open(folder / "figures" / "disagreement-0.jpg") as picture:
        assert max(picture.size) <= 192

    assert thumbnail(data, "0.png")
    for name in ("../secret.png", str(tmp_path / "secret.png"), "none.png", "."):
        assert thumbnail(data, name) is None
    assert thumbnail(None, "0.png") is None
    (data / "broken.png").write_bytes(b"\x89PNG broken")
    assert thumbnail(data, "broken.png") is None


def test_16_bit_images_keep_their_brightness(tmp_path):
    Image.fromarray(np.full((8, 8), 32896, dtype=np.uint16)).save(tmp_path / "deep.png")
    (tmp_path / "small.jpg").write_bytes(thumbnail(tmp_path, "deep.png"))
    with Image.open(tmp_path / "small.jpg") as picture:
        assert picture.getpixel((4, 4)) == pytest.approx((128, 128, 128), abs=2)


def test_a_folder_without_a_plan(tmp_path):
    with pytest.raises(UserError, match=re.escape("plan.json")):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (formatting.percent(0.97314), "97.3"),
        (formatting.percent(float("nan")), ""),
        (formatting.points(0.0123), "+1.2"),
        (formatting.points(-0.0123), "\u22121.2"),
        (formatting.points(-0.0001), "0.0"),
        (formatting.p_value(0.0004), "<\u00a00.001"),
        (formatting.p_value(0.0451), "0.045"),
        (formatting.p_value(0.452), "0.45"),
        (formatting.duration(3.14), "3.1 s"),
        (formatting.duration(119.0), "119 s"),
        (formatting.duration(150.0), "2 min"),
        (formatting.duration(9000.0), "2.5 h"),
        (formatting.size_name(1), "1 image per class"),
        (formatting.at_size(None), "with all images"),
        (formatting.listed(["a", "b", "c"]), "a, b and c"),
        (formatting.place(0.5, 0.25, 1.25), "25.0"),
        (formatting.place(0.5, 0.5, 0.5), "50.0"),
        (formatting.with_flags("<b> --folds 5"), "&lt;b&gt; <code>--folds 5</code>"),
        (formatting.escape_markdown("a|b_c\n`d`"), r"a\|b\_c \`d\`"),
        (formatting.escape_markdown(formatting.escape_markdown("*")), r"\*"),
    ],
)
def test_filters(text, expected):
    assert text == expected
