from __future__ import annotations

import json

import numpy as np
import pytest

from metricloss_pl.compare.results import Results
from metricloss_pl.errors import UserError


@pytest.fixture
def results(tmp_path):
    made = Results(tmp_path)
    made.make()
    return made


PLACE = {"kind": "final", "variant": "cosine", "samples_per_class": 10, "split": 0, "fold": None, "seed": 0}


def plan(*keys: str):
    return dict.fromkeys(keys, PLACE)


def line(key: str, **more):
    return {
        "key": key,
        **PLACE,
        "settings": {},
        "status": "ok",
        "reason": None,
        "metrics": {"test/accuracy": 0.5},
        "history": {},
        "predictions": None,
        **more,
    }


def test_what_is_appended_is_read(tmp_path, results):
    arrays = {"probabilities": np.eye(3, dtype=np.float32), "names": np.array(["a", "b", "ü"])}
    results.append(line("1"))
    results.append(line("2"), arrays)
    found = Results(tmp_path).read(plan("1", "2", "3"))
    assert list(found) == ["1", "2"]
    with np.load(tmp_path / found["2"]["predictions"]) as stored:
        assert {name: stored[name].tolist() for name in stored} == {n: a.tolist() for n, a in arrays.items()}


def bytes_of(**changes):
    return json.dumps(line("2", **changes)).encode()


@pytest.mark.parametrize(
    "torn",
    [
        b'{"key": "2", "kind"',
        b"\xff\xfe",
        b"[1, 2]",
        b'{"key": "2"}',
        b"\x00" * 40,
        bytes_of(variant=["cosine"]),
        bytes_of(status="well"),
        bytes_of(metrics={"test/accuracy": "0.5"}),
        bytes_of(history={"epoch": [1, 2], "train/loss": [1.0]}),
        bytes_of(history={"epoch": 1}),
        bytes_of(predictions=1),
    ],
    ids=["half", "no text", "list", "other", "zeros", "variant", "status", "metric", "curves", "no curve", "no file"],
)
def test_a_torn_line_is_named_and_the_next_is_whole(tmp_path, results, torn):
    results.append(line("1"))
    with results.file.open("ab") as file:
        file.write(torn)
    results.append(line("3"))
    assert list(results.read(plan("1", "2", "3"))) == ["1", "3"]
    assert results.notes == ["1 line of results.jsonl left out, torn or no result: 2"]


def test_results_of_another_plan_are_told_apart(tmp_path, results):
    for key in "1234":
        results.append(line(key))
    results.append(line("3", seed=1))
    assert results.read(plan("3")) == {"3": line("3")}
    assert (results.notes, results.others) == ([], ["1", "2", "4", "3"])


def test_the_last_word_on_a_run_counts(tmp_path, results):
    for status in ("failed", "ok"):
        results.append(line("1", status=status))
    assert results.read(plan("1"))["1"]["status"] == "ok"
    assert results.notes == ["1 result replaced by a later one of the same run"]


def test_a_number_that_is_none_is_not_known(results):
    results.append(line("1", metrics={"val/nll": float("nan")}, history={"val/accuracy": [float("nan")]}))
    found = results.read(plan("1"))["1"]
    assert (found["metrics"], found["history"]) == ({"val/nll": None}, {"val/accuracy": [None]})


def test_a_line_without_its_predictions_does_not_count(tmp_path, results):
    results.append(line("1"), {"labels": np.zeros(2)})
    (tmp_path / "predictions" / "1.npz").unlink()
    assert results.read(plan("1")) == {}
    assert results.notes == ["cosine, 10 images a class, split 0, seed 0: left out, its predictions are missing"]


def test_a_run_is_claimed_once(tmp_path, results):
    with Results(tmp_path).claimed("1") as mine:
        assert mine
        with Results(tmp_path).claimed("1") as again, Results(tmp_path).claimed("2") as other:
            assert (again, other) == (False, True)
            assert Results(tmp_path).held("123") == {key: tmp_path / ".claims" / f"{key}.lock" for key in "12"}
    with Results(tmp_path).claimed("1") as free:
        assert free
    assert Results(tmp_path).held("123") == {}


@pytest.mark.parametrize("limit", [64, 100_000])
def test_without_room_nothing_of_a_result_stays(tmp_path, results, limit):
    """The line has no room, or its predictions."""
    resource = pytest.importorskip("resource")
    results.append(line("1"))
    before = sorted(tmp_path.rglob("*.*"))
    noise = np.random.default_rng(0).random(50_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (results.file.stat().st_size + limit, hard))
    try:
        with pytest.raises(UserError, match=r"can't be written whole \(File too large\): make room there, and start"):
            results.append(line("2"), None if limit == 64 else {"probabilities": noise})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(tmp_path.rglob("*.*")) == before
    assert list(results.read(plan("1", "2"))) == ["1"]
    results.append(line("3"))
    assert list(results.read(plan("1", "2", "3"))) == ["1", "3"]
    assert results.notes == []


def test_what_is_taken_out_is_gone_and_all_else_stays(tmp_path, results):
    for key in "121":
        results.append(line(key))
    with results.file.open("ab") as file:
        file.write(b'{"key": "1", torn\n')
    results.append(line("3"))
    _, second, _, *last = results.file.read_bytes().splitlines(keepends=True)
    results.remove({key: line(key) for key in "14"})
    assert results.file.read_bytes() == second + b"".join(last)
    results.append(line("1"))
    assert list(results.read(plan("1", "2", "3"))) == ["2", "3", "1"]


def test_what_another_process_has_done_meanwhile_is_not_taken_out(results):
    for key in "1122":
        results.append(line(key, status="failed", metrics={"test/nll": float("nan")}))
    seen = results.read(plan("1", "2"))
    results.append(line("1"))
    results.remove(seen)
    assert results.read(plan("1", "2")) == {"1": line("1")}
    assert results.notes == ["2 results replaced by a later one of the same run"]


def test_lines_are_plain_json(tmp_path, results):
    results.append(line("1", reason="a\nb"))
    assert json.loads(results.file.read_text())["reason"] == "a\nb"
    assert results.file.read_text().count("\n") == 1


def test_a_folder_that_can_hold_nothing_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="can't hold a comparison"):
        Results(tmp_path / "file" / "results").make()
