"""Published hierarchies, by name."""

from pathlib import Path

import numpy as np
import pytest

from metricloss_pl.class_embeddings import HIERARCHIES, open_hierarchy, published
from metricloss_pl.data import CIFAR100DataModule, CUB200DataModule, NABirdsDataModule
from metricloss_pl.download import Resource
from metricloss_pl.errors import UserError
from tests.helpers import make_cub, make_nab, md5

FILES = dict(published._FILES)


@pytest.fixture
def web(tmp_path, monkeypatch) -> Path:
    """Miniatures of the authors' files, and an empty folder of torch.hub."""
    folder = tmp_path / "web"
    folder.mkdir()
    files = {
        "cub_flat.parent-child.txt": "204 203\n203 2\n203 1\n204 205\n205 17\n",
        "cub_wikispecies.parent-child.txt": "204 1\n204 2\n204 17\n",
        "cub_balanced.parent-child.txt": "204 205\n205 1\n205 2\n204 17\n",
        "cifar.parent-child.txt": "100 2\n101 0\n102 100\n102 101\n101 1\n",
        "class_names.txt": "0 bear\n1 cow\n2 bed\n100 furniture\n101 animal\n102 entity\n",
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    miniatures = {
        name: tuple(Resource(file.name, (folder / file.name).as_uri(), md5(folder / file.name)) for file in resources)
        for name, resources in FILES.items()
    }
    monkeypatch.setattr(published, "_FILES", miniatures)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    return folder


BIRDS = ["001.Black_footed_Albatross", "002.Laysan_Albatross", "017.Cardinal"]


@pytest.mark.parametrize(
    ("name", "classes", "heights"),
    [
        ("cub_flat", BIRDS, [[0, 1, 2], [1, 0, 2], [2, 2, 0]]),
        ("cub_wikispecies", BIRDS, [[0, 1, 1], [1, 0, 1], [1, 1, 0]]),
        ("cub_deep", BIRDS, [[0, 1, 2], [1, 0, 2], [2, 2, 0]]),
        ("cifar100", ["bed", "cow", "bear"], [[0, 2, 2], [2, 0, 1], [2, 1, 0]]),
    ],
)
def test_a_name_is_downloaded_once(name, classes, heights, web, tmp_path):
    for _ in range(2):
        tree = open_hierarchy(name)
        np.testing.assert_array_equal(tree.lca_heights(tree.leaves_of(classes)), heights)
        for file in web.iterdir():
            file.unlink()
    assert [folder.name for folder in (tmp_path / "cache/hub/metricloss_pl").iterdir() if folder.is_dir()] == [name]


def test_downloads_are_checked(web):
    (web / "cub_flat.parent-child.txt").write_text("another\n")
    with pytest.raises(UserError, match=r"cub_flat\.parent-child\.txt is incomplete"):
        open_hierarchy("cub_flat")
    (web / "cub_flat.parent-child.txt").unlink()
    with pytest.raises(UserError, match=r"cub_flat\.parent-child\.txt \(MD5 \w+\)"):
        open_hierarchy("cub_flat")


def test_a_given_class_list_replaces_the_published_one(web, tmp_path):
    (tmp_path / "names.txt").write_text("0 ours\n1 cow\n2 Bett\n")
    assert open_hierarchy("cifar100", tmp_path / "names.txt").leaves_of(["Bett", "ours"]) == ["2", "0"]
    assert open_hierarchy("cub_flat", tmp_path / "names.txt").leaves_of(["Bett", "cow"]) == ["2", "1"]
    (tmp_path / "names.txt").write_text("apple Apfel\n")
    assert open_hierarchy("cifar100_superclasses", tmp_path / "names.txt").leaves_of(["Apfel"]) == ["apple"]


@pytest.mark.usefixtures("miniatures")
def test_classes_are_found_by_the_names_in_the_data_sets(web, tmp_path):
    make_cub(tmp_path, classes=3)
    birds = CUB200DataModule(root=str(tmp_path)).class_names
    assert open_hierarchy("cub_deep").leaves_of(birds[:2]) == ["1", "2"]
    make_nab(tmp_path)  # whose hierarchy comes with it
    folder, data = tmp_path / "nabirds", NABirdsDataModule(root=str(tmp_path))
    names = data.class_names
    tree = open_hierarchy(data.hierarchy, folder / "classes.txt")
    assert tree.leaves_of(names) == ["295", "296", "297", "298"]
    assert tree.parents == {"1": "0", **dict.fromkeys(["295", "296", "297", "298"], "1")}


def test_any_other_name_is_a_file(tmp_path):
    with pytest.raises(UserError, match="hierarchy cub:"):
        open_hierarchy("cub")
    (tmp_path / "dag.txt").write_text("1 r\n2 1\n3 2\n3 1\n4 r\n")
    assert open_hierarchy(tmp_path / "dag.txt", allow_dag=True).parents["3"] == "2"
    assert set(HIERARCHIES) == {*FILES, "cifar100_superclasses"}


# The coarse label of each class, as the data set's own files number them.
COARSE = """
    4 1 14 8 0 6 7 7 18 3 3 14 9 18 7 11 3 9 7 11 6 11 5 10 7 6 13 15 3 15 0 11 1 10 12 14 16 9 11 5
    5 19 8 8 15 13 14 17 18 10 16 4 17 4 2 0 17 4 18 17 10 3 2 12 12 16 12 1 9 19 2 10 0 1 16 12 9
    13 15 13 16 19 2 4 6 19 5 5 8 19 18 1 2 15 6 0 17 8 14 13
"""


def test_superclasses_of_cifar100():
    tree, coarse = open_hierarchy("cifar100_superclasses"), np.array(COARSE.split(), dtype=int)
    names = CIFAR100DataModule.classes
    leaves = tree.leaves_of(names)
    assert leaves == list(names)
    expected = np.where(coarse[:, None] == coarse, 1, 2) - np.eye(100, dtype=int)
    np.testing.assert_array_equal(tree.lca_heights(leaves), expected)
    # The data set numbers its coarse labels by their names, in ascending order.
    assert [tree.parents[name] for name in names] == [sorted(tree.children["CIFAR-100"])[label] for label in coarse]
