"""The project keeps to the vocabulary of its field and to American spelling."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SUFFIXES = {".py", ".md", ".yaml", ".yml", ".toml", ".html", ".css", ".j2"}
# What is always wrong, and what to write instead.
PHRASES = {
    r"\b(train(ing)?|val(idation)?|test)[ -]parts?\b": "training set, validation set, test set",
    r"\b(images|bytes|seconds|epochs|steps|ids|tasks|threads|operations|trials|GB|MB|ms|folder"
    r"|one|(one|a|each|two|three) (name|label|line|list|folder|image|row|file|axis|mark))"
    r" an? (class|epoch|step|image|process|node|rank|seed|variant|line|part|set|file|run|fold)\b"
    r"(?! (has|is|takes)\b)": "per class, per epoch, per step",
    r"colour|grey|centre|centring|neighbour|behaviour|favour|labelled(?!by)|labelling|modelling|cancelled|artefact|licence"
    r"|(general|initial|maxim|minim|normal|optim|organ|penal|random|recogn|regular|serial|summar|visual)"
    r"is(e[drs]?|ers|ing|ations?)(?![a-z])|\banalys(e|ing)": "American spelling (color, gray, center, normalize)",
    r"\banew\b": "again",
    r"\bmend(s|ed|ing)?\b": "repair",
    r"\b(go|goes|going|went|gone) on with\b": "continue, resume, use",
    r"(?<!samples_)\bper_class_in_batch\b": "samples_per_class_in_batch",
    r"\brepeat_up_to\b": "oversample_to",
    r"--data\.test_views\b|\btest_views=": "tta",
    r"--model\.mixing\b|^ *mixing:": "batch_mixing",
    r"\bsmoothing(=|: | )others\b": "smoothing_target: non_target",
    r"\bhead(=|: | )paper\b": "head: bn_linear",
    r"\bclass-means\b|\bcub-(deep|flat|wikispecies)\b|class_embeddings[ =:]+\W?one-hot": "values with underscores",
}
ROLES = {
    r":(meth|class|func|mod|attr|obj|exc|data|ref|doc):`": "`name` without a role",
    r"(?<!`)``(?!`)": "single backticks",
}
OPENING = re.compile(r"(What|How|Of|Where|Whether|Which|Why|With|Without)\b")


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of every docstring."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text is not None:
                yield node.body[0].lineno, text


def findings(text: str, name: str) -> list[str]:
    """Return a line for each phrase in a text that is not the project's vocabulary."""
    found = []
    texts = [(1, text, PHRASES)]
    if name.endswith(".py"):
        for line, docstring in docstrings(text):
            texts.append((line, docstring, ROLES))
            if OPENING.match(docstring):
                found.append(f"{name}:{line}: a docstring opens with {docstring.split()[0]!r}")
    for line, searched, phrases in texts:
        for pattern, instead in phrases.items():
            for match in re.finditer(pattern, searched, flags=re.IGNORECASE | re.MULTILINE):
                at = line + searched.count("\n", 0, match.start())
                found.append(f"{name}:{at}: {match[0].strip()!r}: write {instead}")
    return found


def written_files(*folders: str) -> list[Path]:
    """Return the files of the project that people write and read."""
    files = [file for folder in folders for file in [ROOT / folder, *(ROOT / folder).rglob("*")]]
    return [file for file in files if file.suffix in SUFFIXES and file.is_file() and file != Path(__file__)]


@pytest.mark.parametrize(
    ("text", "name", "count"),
    [
        ("the training part", "a.md", 1),
        ("50 images a class, 3 seconds a step", "a.md", 2),
        ("Normalised colours, greyscale, test_a_labelled_image", "a.md", 4),
        ("a class that has a part of the images of a batch is as an epoch; promise, organism, optimistic", "a.md", 0),
        ("A hypothesis, initials, mendelian, samples_per_class_in_batch", "a.md", 0),
        ('"""What it does."""', "a.py", 1),
        ('def f():\n    """Return :func:`f` of ``x``."""', "a.py", 3),
        ('x = ":func:`f`"\n"""```"""', "a.py", 0),
    ],
)
def test_phrases_are_found(text, name, count):
    assert len(findings(text, name)) == count


def test_the_vocabulary_is_kept():
    found = []
    for file in written_files(
        "metricloss_pl", "tests", "benchmarks", "configs", "docs", "README.md", "CONTRIBUTING.md"
    ):
        name = file.relative_to(ROOT).as_posix()
        found += findings(name, "path") + findings(file.read_text(encoding="utf-8"), name)
    assert not found, "\n".join(found)
