"""Class hierarchies on the command line: in a config, in a checkpoint without its file, and shown."""

import json
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
from metricloss_pl.errors import UserError
from tests import command_line
from tests.command_line import CONFIGS, QUIET, refusal
from tests.helpers import make_folder, make_nab, md5

TREE = "digit\n-- loops\n---- 0\n---- two loops\n------ 6\n------ 8\n------ 9\n-- straight\n---- 1\n---- 4\n---- 7\n"
TREE += "-- open\n---- 2\n---- 3\n---- 5\n"
MODEL = "class_path: CosineClassifier\ninit_args:\n  backbone: TinyConvNet\n  class_embeddings: trees/digits.txt\n"
MEASURES = {
    f"test/{name}"
    for name in ("hierarchical_accuracy", "mistake_severity", "hp_1", "hp_10", "hp_50", "hp_100", "mahp_250")
}


def fit(*args):
    """Train by a shipped config for an epoch, and test; return the run's folder."""
    return command_line.fit(*args, "--test_after_fit=true")


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
    run = fit("digits_cosine", tmp_path / "runs", f"--model={model_file}")
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    assert metrics.keys() >= MEASURES
    assert 0 < metrics["test/accuracy"] < metrics["test/hierarchical_accuracy"] < 1
    assert 1 <= metrics["test/mistake_severity"] <= 3
    screen = capsys.readouterr().out
    for name in metrics:
        assert re.search(rf"(?m)^(best )?{name} +{metrics[name]:.4f}$", screen), name
    named = yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]["class_embeddings"]
    assert named == str(tree)

    checkpoint = run / "checkpoints" / "best.ckpt"
    saved = torch.load(checkpoint, weights_only=True)
    expected = semantic(Hierarchy.from_file(tree), [str(digit) for digit in range(10)]).float()
    assert torch.equal(saved["state_dict"]["criterion.class_embeddings"], expected)
    assert saved["hyper_parameters"]["class_embeddings"] is None
    assert saved["hyper_parameters"]["embedding_dim"] == 10

    tree.rename(tmp_path / "elsewhere.txt")
    main(["test", f"--ckpt_path={checkpoint}", *QUIET])
    tested = json.loads((run / "test.json").read_text())["metrics"]
    assert tested == pytest.approx({name: value for name, value in metrics.items() if name.startswith("test/")})
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(tmp_path / "image.png")
    main(["predict", f"--ckpt_path={checkpoint}", f"--data.predict_dir={tmp_path}", "--data.image_size=8", *QUIET])
    main(["fit", f"--resume={run}", "--trainer.max_epochs=2", *QUIET])
    init_args = yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]
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
        "digits_cosine", tmp_path / "runs", *hierarchy, "--model.embedding_dim=6", "--trainer.limit_train_batches=2"
    )
    checkpoint = run / "checkpoints" / "best.ckpt"
    assert torch.load(checkpoint, weights_only=True)["state_dict"]["criterion.class_embeddings"].shape == (10, 6)
    assert json.loads((run / "result.json").read_text())["metrics"].keys() >= MEASURES
    for name in ("tree.txt", "names.txt"):
        (tmp_path / name).unlink()
    main(["test", f"--ckpt_path={checkpoint}", *QUIET])
    assert json.loads((run / "test.json").read_text())["metrics"].keys() >= MEASURES
    settings = yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]
    assert settings["class_list"] == str(tmp_path / "names.txt")


def test_a_hierarchy_called_by_its_name(tmp_path, monkeypatch):
    """It is fetched once; a checkpoint goes without it."""
    (tmp_path / "cub_flat.txt").write_text("".join(f"2{digit % 3} {digit}\n30 2{digit % 3}\n" for digit in range(10)))
    file = Resource("cub_flat.txt", (tmp_path / "cub_flat.txt").as_uri(), md5(tmp_path / "cub_flat.txt"))
    monkeypatch.setattr(published, "_FILES", {**published._FILES, "cub_flat": (file,)})
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    flags = ["--model.class_embeddings=cub_flat", "--trainer.limit_train_batches=2"]
    run = fit("digits_cosine", tmp_path / "runs", *flags)
    (tmp_path / "cub_flat.txt").unlink()
    assert json.loads((run / "result.json").read_text())["metrics"].keys() >= MEASURES
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]["class_embeddings"] == "cub_flat"
    checkpoint = run / "checkpoints" / "best.ckpt"
    targets = torch.load(checkpoint, weights_only=True)["state_dict"]["criterion.class_embeddings"].double()
    same_group = torch.arange(10) % 3 == (torch.arange(10) % 3)[:, None]
    torch.testing.assert_close(targets @ targets.T, same_group / 2 + torch.eye(10) / 2, check_dtype=False)
    shutil.rmtree(tmp_path / "cache")
    main(["test", f"--ckpt_path={checkpoint}", *QUIET])
    assert json.loads((run / "test.json").read_text())["metrics"].keys() >= MEASURES


def test_embeddings_from_a_file(tmp_path, monkeypatch, capsys):
    """The rows are those of the classes, in any order; nothing is known of a hierarchy."""
    directions = np.random.default_rng(0).normal(size=(11, 6))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    ids = [4, 9, 0, 3, 7, 10, 1, 8, 2, 6, 5]
    np.savez(tmp_path / "e.npz", embedding=directions, ind2label=ids)
    flags = [f"--model.class_embeddings={tmp_path / 'e.npz'}", "--trainer.limit_train_batches=2"]
    run = fit("digits_cosine", tmp_path / "runs", *flags)
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    assert "test/accuracy" in metrics
    assert not metrics.keys() & MEASURES
    (tmp_path / "e.npz").unlink()
    checkpoint = run / "checkpoints" / "best.ckpt"
    with warnings.catch_warnings(record=True) as caught:
        main(["test", f"--ckpt_path={checkpoint}", *QUIET])
    assert not [warning for warning in caught if "nothing is measured" in str(warning.message)]
    targets = torch.load(checkpoint, weights_only=True)["state_dict"]["criterion.class_embeddings"]
    expected = directions[[ids.index(digit) for digit in range(10)]]
    torch.testing.assert_close(targets, torch.from_numpy(expected).float())

    monkeypatch.chdir(tmp_path)
    np.savez("e.npz", embedding=directions[1:], ind2label=ids[1:])
    config = ["fit", f"--config={CONFIGS / 'digits_cosine.yaml'}", "--trainer.callbacks=null"]
    line = refusal(capsys, *config, "--model.class_embeddings=e.npz")
    assert "class '4' is no row of embeddings " in line
    assert "(9 of 10 classes are rows); rows without a class: '10'; repair the names, or give class_list" in line


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
    assert "class_embeddings is 'semantic', and there is no other/hierarchy.txt: write the hierarchy there" in line
    assert "--model.class_embeddings" in line
    misspelt = tree.replace("carrion", "carion")
    (root / "hierarchy.txt").write_text(misspelt)
    line = refusal(capsys, *command)
    assert (
        f"class 'carrion crow' is no leaf of hierarchy {Path.cwd()}/other/hierarchy.txt (3 of 4 classes are leaves);"
        in line
    )
    assert "; leaves without a class: 'carion crow';" in line
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
    assert unused.startswith("warning: ImageFolderDataModule: not used: 1 file of")
    assert all(re.match(r"warning: ImageFolderDataModule: \d images? stand.* cow/0 ?", line) for line in twice)
    assert 1 <= len(twice) <= 2  # where the copies stand, the split decides
    assert "workers" not in shown.err
    assert re.search(r"(?m)^images +decoded anew for each batch: raise --data.cache_gb or ", shown.out)
    run = tmp_path / "runs" / "folder_semantic_cosine" / "version_0"
    checkpoint = run / "checkpoints" / "best.ckpt"
    saved = torch.load(checkpoint, weights_only=True)
    assert saved["class_names"] == ["carrion crow", "cow", "mallard (female)", "mallard (male)"]
    targets = saved["state_dict"]["criterion.class_embeddings"]
    expected = torch.tensor([[3, 0, 1, 1], [0, 3, 0, 0], [1, 0, 3, 2], [1, 0, 2, 3]]) / 3
    torch.testing.assert_close(targets @ targets.T, expected)
    main(["test", f"--ckpt_path={checkpoint}", *QUIET])
    metrics = json.loads((run / "test.json").read_text())["metrics"]
    assert metrics.keys() >= {"test/hierarchical_accuracy", "test/hp_1", "test/mahp_250"}
    assert metrics["test/accuracy"] <= metrics["test/hierarchical_accuracy"] <= 1
    (root / "hierarchy.txt").unlink()
    main(["predict", f"--ckpt_path={checkpoint}", "--data.predict_dir=other/cow", *QUIET])
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]["class_embeddings"] == "semantic"


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
    targets = torch.load(checkpoint, weights_only=True)["state_dict"]["criterion.class_embeddings"]
    torch.testing.assert_close(targets @ targets.T, torch.tensor([[1, 0.5], [0.5, 1]]))


def test_every_regime_is_measured_by_a_hierarchy_of_the_callbacks(model_file, tmp_path):
    callbacks = tmp_path / "trainer.yaml"
    settings = "{class_path: HierarchyMetrics, init_args: {hierarchy: blocks/trees/digits.txt, retrieval: false}}"
    callbacks.write_text(f"max_epochs: 1\nlimit_train_batches: 2\ncallbacks:\n  - {settings}\n")
    config = f"--config={CONFIGS / 'digits_center.yaml'}"
    main(["fit", config, f"--trainer={callbacks}", f"--runs_dir={tmp_path / 'runs'}", *QUIET])
    run = tmp_path / "runs" / "digits_center" / "version_0"
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    assert metrics.keys() & MEASURES == {"test/hierarchical_accuracy", "test/mistake_severity"}
    saved = yaml.safe_load((run / "config.yaml").read_text())["trainer"]["callbacks"]
    assert saved[0]["init_args"]["hierarchy"] == str(model_file.parent / "trees" / "digits.txt")


def test_ones_own_metrics_take_the_place_of_those_that_come_by_themselves(model_file, tmp_path):
    tree = model_file.parent / "trees" / "digits.txt"
    flags = ["--trainer.callbacks=HierarchyMetrics", f"--trainer.callbacks.hierarchy={tree}"]
    flags += ["--trainer.callbacks.retrieval=false", "--trainer.limit_train_batches=2", f"--model={model_file}"]
    run = fit("digits_cosine", tmp_path / "runs", *flags)
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    assert metrics.keys() & MEASURES == {"test/hierarchical_accuracy", "test/mistake_severity"}


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        (None, [], "class_embeddings is 'tree.txt'"),
        ("a b\nc b\na d\n", [], "tree.txt: 'b' has two parents, 'a' and 'c'"),
        ("r\n-- 0\n-- 1\n", [], "class '2' is no leaf of hierarchy"),
        (TREE, ["--model.embedding_dim=11"], "11 dimensions of semantic class embeddings: they must be 1 to 10"),
        (TREE, ["--model.embedding_dim=null"], "set model.embedding_dim to auto"),
        (TREE, ["--model.class_list=gone.txt"], "class list gone.txt: there is no such file"),
    ],
)
def test_mistakes_in_one_line(text, flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path("tree.txt").write_text(text)
    config = f"--config={CONFIGS / 'digits_cosine.yaml'}"
    line = refusal(capsys, "fit", config, "--trainer.callbacks=null", "--model.class_embeddings=tree.txt", *flags)
    assert message in line
    assert [path.name for path in tmp_path.iterdir()] == ([] if text is None else ["tree.txt"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("null", "class_embeddings is null"),
        (
            "semantic",
            "class_embeddings is 'semantic'",
        ),
        ("7", "class_embeddings"),
    ],
)
def test_what_a_config_cannot_say(given, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("model.yaml").write_text(MODEL.replace("trees/digits.txt", given))
    line = refusal(
        capsys, "fit", f"--config={CONFIGS / 'digits_cosine.yaml'}", "--model=model.yaml", "--test_after_fit=false"
    )
    assert message in line


# -------------------------------------------------------------------------------------------------------------- shown


def test_a_hierarchy_is_shown(tmp_path, capsys):
    (tmp_path / "tree.txt").write_text(TREE)
    main(["hierarchy", str(tmp_path / "tree.txt"), f"--picture={tmp_path / 'new' / 'tree.png'}"])
    screen = capsys.readouterr().out
    for line in (
        r"classes +10, from 0 to 5",
        r"nodes +15, root digit",
        r"levels +2: 7, 3: 3 \(level: classes",
        r"heights +0: 10, 1: 3, 2: 1, 3: 1 \(height: nodes",
        r"similarity +0\.667 \(20\.0 %\), 0\.333 \(6\.7 %\), 0 \(73\.3 %\) of the pairs",
        r"(?m)^---- two loops \(height 1\)$",
        r"(?m)^------ 6$",
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
    flags = [f"--class_list={tmp_path / 'names.txt'}", "--format=parent-child"]
    main(["hierarchy", str(tmp_path / "dag.txt"), *flags, "--allow_dag=true", f"--save={tmp_path / 'tree.txt'}"])
    screen = capsys.readouterr().out
    assert (tmp_path / "tree.txt").read_text() == "9\n-- 7\n---- 1\n---- 2\n-- 8\n---- 3\n"
    assert "3, from crow to cow" in screen
    assert "root animal" in screen
    assert "'2' has two parents, '7' and '8'" in hierarchy_refusal(capsys, str(tmp_path / "dag.txt"), *flags)


def hierarchy_refusal(capsys, *args):
    with pytest.raises(SystemExit) as caught:
        main(["hierarchy", *args])
    assert caught.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_mistakes_of_the_command(tmp_path, capsys):
    assert "there is no such file" in hierarchy_refusal(capsys, str(tmp_path / "gone.txt"))
    assert hierarchy_refusal(capsys).startswith("error: ")
    (tmp_path / "tree.txt").write_text(TREE)
    assert "yaml" in hierarchy_refusal(capsys, str(tmp_path / "tree.txt"), "--format=yaml")
    with pytest.raises(UserError, match="no such file"):
        Hierarchy.from_file("gone.txt")


def test_the_shipped_hierarchy_is_of_the_classes_of_cifar10():
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    tree = Hierarchy.from_file(CONFIGS / "hierarchies" / "cifar10.txt")
    assert sorted(tree.leaves) == names
    assert tree.similarities(["cat", "dog", "truck"])[0].tolist() == [1, 0.75, 0]
