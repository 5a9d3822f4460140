"""Class hierarchies on the command line: in a config, in a checkpoint without its file, and shown."""

import re
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.trainer.connectors import data_connector
from PIL import Image

from metricloss_pl.class_embeddings import Hierarchy, published, semantic
from metricloss_pl.cli import main
from metricloss_pl.cli.console import filter_library_messages
from metricloss_pl.download import Resource
from tests.command_line import CONFIGS, QUIET, fit, load, refusal, refusal_of, result
from tests.helpers import make_folder, make_nab, md5

TREE = "digit\n-- loops\n---- 0\n---- two loops\n------ 6\n------ 8\n------ 9\n-- straight\n---- 1\n---- 4\n---- 7\n"
TREE += "-- open\n---- 2\n---- 3\n---- 5\n"
MODEL = "class_path: CosineClassifier\ninit_args:\n  backbone: TinyConvNet\n  class_embeddings: trees/digits.txt\n"
TESTED = "--test_after_fit=true"
MEASURES = {
    f"test/{name}"
    for name in ("hierarchical_accuracy", "mistake_severity", "hp_1", "hp_10", "hp_50", "hp_100", "mahp_250")
}


def model_settings(run: Path) -> dict:
    return yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]


@pytest.fixture
def model_file(tmp_path):
    """A model block whose hierarchy is named relative to it."""
    (tmp_path / "blocks" / "trees").mkdir(parents=True)
    (tmp_path / "blocks" / "trees" / "digits.txt").write_text(TREE)
    (tmp_path / "blocks" / "semantic.yaml").write_text(MODEL)
    return tmp_path / "blocks" / "semantic.yaml"


@pytest.mark.slow
def test_a_hierarchy_named_by_a_config(model_file, tmp_path, capsys):
    """Its file is needed once: a checkpoint holds the hierarchy, by which a test measures."""
    tree = model_file.parent / "trees" / "digits.txt"
    run = fit("digits_cosine", tmp_path / "runs", f"--model={model_file}", TESTED)
    metrics = result(run)["metrics"]
    assert metrics.keys() >= MEASURES
    assert 0 < metrics["test/accuracy"] < metrics["test/hierarchical_accuracy"] < 1
    assert 1 <= metrics["test/mistake_severity"] <= 3
    screen = capsys.readouterr().out
    for name in metrics:
        assert re.search(rf"(?m)^(best )?{name} +{metrics[name]:.4f}$", screen), name
    named = model_settings(run)["class_embeddings"]
    assert named == str(tree)

    checkpoint = run / "checkpoints" / "best.ckpt"
    saved = load(checkpoint)
    expected = semantic(Hierarchy.from_file(tree), [str(digit) for digit in range(10)]).float()
    assert torch.equal(saved["state_dict"]["criterion.class_embeddings"], expected)
    assert saved["hyper_parameters"]["class_embeddings"] is None
    assert saved["hyper_parameters"]["embedding_dim"] == 10

    tree.rename(tmp_path / "elsewhere.txt")
    main(["test", f"--ckpt_path={checkpoint}", *QUIET])
    tested = result(run, "test")["metrics"]
    assert tested == pytest.approx({name: value for name, value in metrics.items() if name.startswith("test/")})
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(tmp_path / "image.png")
    main(["predict", f"--ckpt_path={checkpoint}", f"--data.predict_dir={tmp_path}", "--data.image_size=8", *QUIET])
    main(["fit", f"--resume={run}", "--trainer.max_epochs=2", *QUIET])
    init_args = model_settings(run)
    assert init_args["class_embeddings"] == str(tree)
    assert init_args["class_list"] is None

    (tmp_path / "elsewhere.txt").rename(tree)
    main(
        ["fit", f"--config={run / 'config.yaml'}", f"--runs_dir={tmp_path / 'again'}", "--trainer.max_epochs=1", *QUIET]
    )


def test_approximate_embeddings_and_a_class_list(tmp_path):
    (tmp_path / "tree.txt").write_text(re.sub(r"(?m)(\d)$", r"leaf \1", TREE))
    (tmp_path / "names.txt").write_text("".join(f"{digit} leaf {digit}\n" for digit in range(10)))
    hierarchy = [f"--model.class_embeddings={tmp_path / 'tree.txt'}", f"--model.class_list={tmp_path / 'names.txt'}"]
    run = fit(
        "digits_cosine",
        tmp_path / "runs",
        *hierarchy,
        "--model.embedding_dim=6",
        "--trainer.limit_train_batches=2",
        TESTED,
    )
    checkpoint = run / "checkpoints" / "best.ckpt"
    assert load(checkpoint)["state_dict"]["criterion.class_embeddings"].shape == (10, 6)
    assert result(run)["metrics"].keys() >= MEASURES
    for name in ("tree.txt", "names.txt"):
        (tmp_path / name).unlink()
    main(["test", f"--ckpt_path={checkpoint}", *QUIET])
    assert result(run, "test")["metrics"].keys() >= MEASURES
    settings = model_settings(run)
    assert settings["class_list"] == str(tmp_path / "names.txt")


def test_a_hierarchy_called_by_its_name(tmp_path, monkeypatch):
    """It is fetched once; a checkpoint goes without it."""
    (tmp_path / "cub_flat.txt").write_text("".join(f"2{digit % 3} {digit}\n30 2{digit % 3}\n" for digit in range(10)))
    file = Resource("cub_flat.txt", (tmp_path / "cub_flat.txt").as_uri(), md5(tmp_path / "cub_flat.txt"))
    monkeypatch.setattr(published, "_FILES", {**published._FILES, "cub_flat": (file,)})
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    flags = ["--model.class_embeddings=cub_flat", "--trainer.limit_train_batches=2"]
    run = fit("digits_cosine", tmp_path / "runs", *flags, TESTED)
    (tmp_path / "cub_flat.txt").unlink()
    assert result(run)["metrics"].keys() >= MEASURES
    assert model_settings(run)["class_embeddings"] == "cub_flat"
    checkpoint = run / "checkpoints" / "best.ckpt"
    targets = load(checkpoint)["state_dict"]["criterion.class_embeddings"].double()
    same_group = torch.arange(10) % 3 == (torch.arange(10) % 3)[:, None]
    torch.testing.assert_close(targets @ targets.T, same_group / 2 + torch.eye(10) / 2, check_dtype=False)
    shutil.rmtree(tmp_path / "cache")
    main(["test", f"--ckpt_path={checkpoint}", *QUIET])
    assert result(run, "test")["metrics"].keys() >= MEASURES


def test_embeddings_from_a_file(tmp_path, monkeypatch, capsys):
    """The rows are those of the classes, in any order; nothing is known of a hierarchy."""
    directions = np.random.default_rng(0).normal(size=(11, 6))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    ids = [4, 9, 0, 3, 7, 10, 1, 8, 2, 6, 5]
    np.savez(tmp_path / "e.npz", embedding=directions, ind2label=ids)
    flags = [f"--model.class_embeddings={tmp_path / 'e.npz'}", "--trainer.limit_train_batches=2"]
    run = fit("digits_cosine", tmp_path / "runs", *flags, TESTED)
    metrics = result(run)["metrics"]
    assert "test/accuracy" in metrics
    assert not metrics.keys() & MEASURES
    (tmp_path / "e.npz").unlink()
    checkpoint = run / "checkpoints" / "best.ckpt"
    with warnings.catch_warnings(record=True) as caught:
        main(["test", f"--ckpt_path={checkpoint}", *QUIET])
    assert not [warning for warning in caught if "nothing is measured" in str(warning.message)]
    targets = load(checkpoint)["state_dict"]["criterion.class_embeddings"]
    expected = directions[[ids.index(digit) for digit in range(10)]]
    torch.testing.assert_close(targets, torch.from_numpy(expected).float())

    monkeypatch.chdir(tmp_path)
    np.savez("e.npz", embedding=directions[1:], ind2label=ids[1:])
    config = ["fit", f"--config={CONFIGS / 'digits_cosine.yaml'}", "--trainer.callbacks=null"]
    line = refusal(capsys, *config, "--model.class_embeddings=e.npz")
    assert all(word in line for word in ("class '4'", "9 of 10", "'10'", "class_list")), line


@pytest.mark.slow
def test_a_folder_of_ones_own_with_its_hierarchy(tmp_path, monkeypatch, capsys):
    """The shipped config as it is, but for root, size and epochs; the hierarchy as an editor of Windows writes it."""
    monkeypatch.chdir(tmp_path)
    root = make_folder(Path("other"), ["carrion crow", "mallard (female)", "mallard (male)", "cow"], images=10, size=32)
    tree = "animal\n-- bird (class)\n---- duck ?\n------ mallard (male)\n------ mallard (female)\n"
    tree += "---- carrion crow\n\n-- cow\n"
    flags = ["--data.root=other", "--data.image_size=32", "--trainer.max_epochs=1", "--trainer.callbacks=null"]
    command = ["fit", f"--config={CONFIGS / 'folder_semantic_cosine.yaml'}", *flags]
    line = refusal(capsys, *command)
    assert all(word in line for word in ("class_embeddings", "other/hierarchy.txt")), line
    (root / "hierarchy.txt").write_text(tree.replace("carrion", "carion"))
    line = refusal(capsys, *command)
    assert all(word in line for word in ("'carrion crow'", "other/hierarchy.txt", "3 of 4", "'carion crow'")), line
    (root / "hierarchy.txt").write_text(tree, encoding="utf-8-sig", newline="\r\n")
    (root / "cow" / "11.heic").touch()
    shutil.copy(root / "cow" / "0.png", root / "cow" / "0 (copy).png")
    shutil.copy(root / "cow" / "0.png", root / "cow" / "0 (other copy).png")
    show_warnings(monkeypatch)
    monkeypatch.setattr(data_connector, "suggested_max_num_workers", lambda devices: 7)
    warnings.filterwarnings("always", message=".*does not have many workers")  # as outside of pytest
    main([*command, "--data.cache_gb=0", *QUIET])
    shown = capsys.readouterr()
    unused, *twice = [line for line in shown.err.splitlines() if "ImageFolderDataModule" in line]
    assert "1 file" in unused
    assert all("cow/0" in line for line in twice)
    assert 1 <= len(twice) <= 2  # the split decides where the copies stand
    assert "workers" not in shown.err
    assert "--data.cache_gb" in shown.out
    run = tmp_path / "runs" / "folder_semantic_cosine" / "version_0"
    checkpoint = run / "checkpoints" / "best.ckpt"
    saved = load(checkpoint)
    assert saved["class_names"] == ["carrion crow", "cow", "mallard (female)", "mallard (male)"]
    targets = saved["state_dict"]["criterion.class_embeddings"]
    expected = torch.tensor([[3, 0, 1, 1], [0, 3, 0, 0], [1, 0, 3, 2], [1, 0, 2, 3]]) / 3
    torch.testing.assert_close(targets @ targets.T, expected)
    main(["test", f"--ckpt_path={checkpoint}", *QUIET])
    metrics = result(run, "test")["metrics"]
    assert metrics.keys() >= {"test/hierarchical_accuracy", "test/hp_1", "test/mahp_250"}
    assert metrics["test/accuracy"] <= metrics["test/hierarchical_accuracy"] <= 1
    (root / "hierarchy.txt").unlink()
    main(["predict", f"--ckpt_path={checkpoint}", "--data.predict_dir=other/cow", *QUIET])
    assert model_settings(run)["class_embeddings"] == "semantic"


def show_warnings(monkeypatch):
    """On standard error, as Python shows them outside of pytest."""

    def show(message, category, filename, lineno, file=None, line=None):
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))

    monkeypatch.setattr(warnings, "showwarning", show)


def test_a_warning_to_users_is_one_line_and_any_other_names_its_place(monkeypatch, capsys):
    before = warnings.formatwarning
    show_warnings(monkeypatch)
    with filter_library_messages():
        warnings.warn("of two\n  lines", UserWarning, stacklevel=1)
        warnings.warn("about code", RuntimeWarning, stacklevel=1)
    said, *place = capsys.readouterr().err.splitlines()
    assert said == "warning: of two lines"
    assert re.fullmatch(r".*test_cli_hierarchy.py:\d+: RuntimeWarning: about code", place[0])
    assert warnings.formatwarning is before


@pytest.mark.usefixtures("miniatures")
def test_the_hierarchy_of_nabirds(tmp_path, monkeypatch, capsys):
    """Its leaves are numbers, so that its class list is needed."""
    monkeypatch.chdir(tmp_path)
    make_nab(tmp_path / "data", classes=2)
    command = ["fit", f"--config={CONFIGS / 'folder_semantic_cosine.yaml'}", "--data=NABirdsDataModule"]
    command += [
        "--data.root=data",
        "--data.image_size=16",
        "--data.resize=16",
        "--trainer.max_epochs=1",
        "--trainer.callbacks=null",
    ]
    line = refusal(capsys, *command)
    file = tmp_path / "data" / "nabirds" / "hierarchy.txt"
    assert f"class 'Wood Duck (Plumage 0)' is no leaf of hierarchy {file} (0 of 2 classes are " in line
    assert "leaves without a class: '295', '296'; repair the names, or give class_list, a file of lines" in line
    main([*command, "--model.class_list=data/nabirds/classes.txt", *QUIET])
    (checkpoint,) = tmp_path.rglob("best.ckpt")
    targets = load(checkpoint)["state_dict"]["criterion.class_embeddings"]
    torch.testing.assert_close(targets @ targets.T, torch.tensor([[1, 0.5], [0.5, 1]]))


def test_metrics_of_ones_own_replace_those_that_come_by_themselves(model_file, tmp_path):
    settings = "{class_path: HierarchyMetrics, init_args: {hierarchy: blocks/trees/digits.txt, retrieval: false}}"
    (tmp_path / "trainer.yaml").write_text(f"max_epochs: 1\nlimit_train_batches: 2\ncallbacks:\n  - {settings}\n")
    flags = [f"--trainer={tmp_path / 'trainer.yaml'}", f"--model={model_file}", f"--runs_dir={tmp_path / 'runs'}"]
    main(["fit", f"--config={CONFIGS / 'digits_cosine.yaml'}", *flags, *QUIET])
    [run] = tmp_path.glob("runs/*/version_0")
    metrics = result(run)["metrics"]
    assert metrics.keys() & MEASURES == {"test/hierarchical_accuracy", "test/mistake_severity"}
    saved = yaml.safe_load((run / "config.yaml").read_text())["trainer"]["callbacks"]
    assert saved[0]["init_args"]["hierarchy"] == str(model_file.parent / "trees" / "digits.txt")


@pytest.mark.parametrize(
    ("text", "flags", "words"),
    [
        (None, [], ["class_embeddings is 'tree.txt'"]),
        ("a b\nc b\na d\n", [], ["tree.txt: 'b' ", "'a' and 'c'"]),
        ("r\n-- 0\n-- 1\n", [], ["class '2'", "tree.txt"]),
        (TREE, ["--model.embedding_dim=11"], ["11", "1 to 10"]),
        (TREE, ["--model.embedding_dim=null"], ["model.embedding_dim", "auto"]),
        (TREE, ["--model.class_list=gone.txt"], ["class list gone.txt: "]),
        (None, ["--model.class_embeddings=null"], ["class_embeddings is null"]),
        (None, ["--model.class_embeddings=semantic"], ["'semantic'", "--model"]),
        (None, ["--model.class_embeddings=7"], ["class_embeddings"]),
    ],
)
def test_mistakes_in_one_line(text, flags, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path("tree.txt").write_text(text)
    config = f"--config={CONFIGS / 'digits_cosine.yaml'}"
    line = refusal(capsys, "fit", config, "--trainer.callbacks=null", "--model.class_embeddings=tree.txt", *flags)
    assert all(word in line for word in words), line


# -------------------------------------------------------------------------------------------------------------- shown


def test_a_hierarchy_is_shown(tmp_path, capsys):
    (tmp_path / "tree.txt").write_text(TREE)
    main(["hierarchy", str(tmp_path / "tree.txt"), f"--picture={tmp_path / 'new' / 'tree.png'}"])
    screen = capsys.readouterr().out
    for line in (
        "classes +10, from 0 to 5",
        "nodes +15, root digit",
        "levels +2: 7, 3: 3",
        "heights +0: 10, 1: 3, 2: 1, 3: 1",
        r"similarity +0\.667 \(20\.0 %\), 0\.333 \(6\.7 %\), 0 \(73\.3 %\)",
        r"(?m)^---- two loops \(height 1\)$",
        "(?m)^------ 6$",
    ):
        assert re.search(line, screen), line
    with Image.open(tmp_path / "new" / "tree.png") as picture:
        assert min(picture.size) > 300
    (tmp_path / "shown.txt").write_text(screen.partition("\n\n")[2].partition("picture")[0])
    shown, tree = (Hierarchy.from_file(tmp_path / name) for name in ("shown.txt", "tree.txt"))
    expected = tree.lca_heights(tree.leaves)
    np.testing.assert_array_equal(shown.lca_heights(shown.leaves_of(tree.leaves)), expected)


def test_a_hierarchy_is_shown_by_its_name(capsys):
    main(["hierarchy", "cifar100_superclasses"])
    screen = capsys.readouterr().out
    assert re.search(r"classes +100, from beaver to tractor", screen)
    assert re.search(r"similarity +0\.5 \(4\.0 %\), 0 \(96\.0 %\) of the pairs", screen)
    _, tree = screen.split("\n\n")
    assert tree.splitlines()[60:] == ["# and 61 more lines, shown by --tree true"]
    main(["hierarchy", "cifar100_superclasses", "--tree=true"])
    assert len(capsys.readouterr().out.split("\n\n")[1].splitlines()) == 121


def test_names_of_a_class_list_are_shown(tmp_path, capsys):
    (tmp_path / "dag.txt").write_text("7 1\n7 2\n8 2\n8 3\n9 7\n9 8\n")
    (tmp_path / "names.txt").write_text("1 crow\n3 cow\n9 animal\n")
    flags = [f"--class_list={tmp_path / 'names.txt'}", "--format=parent_child"]
    main(["hierarchy", str(tmp_path / "dag.txt"), *flags, "--allow_dag=true", f"--save={tmp_path / 'tree.txt'}"])
    screen = capsys.readouterr().out
    assert (tmp_path / "tree.txt").read_text() == "9\n-- 7\n---- 1\n---- 2\n-- 8\n---- 3\n"
    assert "3, from crow to cow" in screen
    assert "root animal" in screen
    assert "'7' and '8'" in refusal_of(capsys, "hierarchy", str(tmp_path / "dag.txt"), *flags)


def test_mistakes_of_the_command(tmp_path, capsys):
    assert "gone.txt" in refusal_of(capsys, "hierarchy", str(tmp_path / "gone.txt"))
    assert refusal_of(capsys, "hierarchy")
    (tmp_path / "tree.txt").write_text(TREE)
    assert "yaml" in refusal_of(capsys, "hierarchy", str(tmp_path / "tree.txt"), "--format=yaml")


def test_the_shipped_hierarchy_is_of_the_classes_of_cifar10():
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    tree = Hierarchy.from_file(CONFIGS / "hierarchies" / "cifar10.txt")
    assert sorted(tree.leaves) == names
    assert tree.similarities(["cat", "dog", "truck"])[0].tolist() == [1, 0.75, 0]
