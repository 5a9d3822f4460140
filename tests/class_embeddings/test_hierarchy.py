import random

import numpy as np
import pytest

from metricloss_pl.class_embeddings import Hierarchy
from metricloss_pl.errors import UserError
from tests.class_embeddings.trees import (
    BY_HAND,
    LCA_HEIGHTS,
    LEAVES,
    lca_heights_by_paths,
    random_pairs,
)


def written(folder, text, name="tree.txt"):
    (folder / name).write_text(text, encoding="utf-8", newline="")
    return folder / name


# ---------------------------------------------------------------------------------------------------------- the tree


def test_a_tree_by_hand():
    tree = Hierarchy.from_pairs(BY_HAND)
    assert tree.leaves == LEAVES
    assert tree.nodes == ["r", "A", "a1", "a2", "B", "b1", "C", "c1", "c2", "d"]
    assert tree.height == 3
    assert {node: tree.heights[node] for node in "ABCrd"} == {"A": 1, "B": 2, "C": 1, "r": 3, "d": 0}
    assert {node: tree.levels[node] for node in ("r", "B", "C", "c1", "d")} == {"r": 0, "B": 1, "C": 2, "c1": 3, "d": 1}
    heights = tree.lca_heights(LEAVES)
    assert heights.dtype == np.int16
    np.testing.assert_array_equal(heights, LCA_HEIGHTS)
    np.testing.assert_array_equal(tree.similarities(LEAVES), 1 - np.array(LCA_HEIGHTS) / 3)


@pytest.mark.parametrize("seed", range(8))
def test_lca_heights_of_any_leaves_in_any_order(seed):
    pairs = random_pairs(seed)
    tree = Hierarchy.from_pairs(pairs)
    assert set(tree.leaves) == {child for _, child in pairs} - {parent for parent, _ in pairs}
    leaves = random.Random(seed).sample(tree.leaves, k=max(2, len(tree.leaves) * (1 + seed % 2) // 2))
    np.testing.assert_array_equal(tree.lca_heights(leaves), lca_heights_by_paths(pairs, leaves))


def test_heights_are_of_the_whole_tree():
    """Even where the data have only some of the classes."""
    similarities = Hierarchy.from_pairs(BY_HAND).similarities(["a1", "a2"])
    np.testing.assert_allclose(similarities, [[1, 2 / 3], [2 / 3, 1]])


def test_a_deep_tree():
    chain = [(f"n{k}", f"n{k + 1}") for k in range(5000)]
    tree = Hierarchy.from_pairs([*chain, *((f"n{k}", f"leaf {k}") for k in range(0, 5000, 500))])
    assert tree.height == 5000
    assert tree.lca_heights(["leaf 0", "leaf 4500", "n5000"]).tolist() == [
        [0, 5000, 5000],
        [5000, 0, 500],
        [5000, 500, 0],
    ]


def test_leaves_are_sorted_as_numbers_where_all_are():
    assert Hierarchy.from_pairs([("0", "10"), ("0", "9"), ("0", "2")]).leaves == ["2", "9", "10"]
    assert Hierarchy.from_pairs([("0", "10"), ("0", "9"), ("0", "x")]).leaves == ["10", "9", "x"]


# ----------------------------------------------------------------------------------------------------------- reading


PARENT_CHILD = "".join(f"{parent} {child}\n" for parent, child in BY_HAND)
CHILD_PARENT = "".join(f"{child}  {parent}\n" for parent, child in BY_HAND)
INDENTED = """\
# a comment
r

-- A
---- a1
---- a2
-- B
---- b1
---- C
------ c1
------ c2
-- d
"""


@pytest.mark.parametrize(
    ("text", "format"),
    [
        (PARENT_CHILD, "auto"),
        (CHILD_PARENT, "auto"),
        (CHILD_PARENT, "child_parent"),
        (INDENTED, "auto"),
        (PARENT_CHILD.replace(" ", "\t").replace("\n", "\r\n") + "\n# end\n", "auto"),
        ("\ufeff" + PARENT_CHILD, "auto"),
        ("\ufeff" + INDENTED.replace("\n", "\r\n"), "auto"),
        (INDENTED.replace("-- ", "--\t"), "auto"),
    ],
)
def test_every_format_gives_the_same_tree(text, format, tmp_path):
    tree = Hierarchy.from_file(written(tmp_path, text), format)
    assert tree.parents == {child: parent for parent, child in BY_HAND}
    assert tree.nodes[0] == "r"


def test_spaces_within_names(tmp_path):
    indented = written(tmp_path, "Aves\n-- Larus\n---- Larus argentatus\n---- Larus californicus \n-- Sterna\n")
    assert Hierarchy.from_file(indented).leaves == ["Larus argentatus", "Larus californicus", "Sterna"]
    pairs = written(tmp_path, "1 Larus argentatus\n1 Sterna hirundo\n")
    assert Hierarchy.from_file(pairs).leaves == ["Larus argentatus", "Sterna hirundo"]


@pytest.mark.parametrize("seed", range(5))
def test_a_written_tree_reads_the_same(seed, tmp_path):
    tree = Hierarchy.from_pairs(
        [*random_pairs(seed), ("n0", "duck (male)"), ("n0", "duck (female)"), ("n0", "Xinae ?")]
    )
    tree.save(tmp_path / "new" / "tree.txt")
    read = Hierarchy.from_file(tmp_path / "new" / "tree.txt")
    assert read.parents == tree.parents
    assert read.nodes == tree.nodes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a b\nc b\na d\n", "tree.txt: 'b' .* 'a' and 'c'"),
        ("b a\nb c\nd a\n", "tree.txt: 'a' .* 'b' and 'd'"),
        ("r s\na b\nb c\nc a\n", "tree.txt has a cycle"),
        ("a a\n", "tree.txt has a cycle: a -> a"),
        ("a b\na c\nd e\nd f\n", "tree.txt has 2 roots.* 'a' and 'd'"),
        ("# nothing\n\n", "tree.txt holds no classes"),
        ("a b\nlonely\n", "tree.txt, line 2: 'lonely'"),
        ("r\n--- a\n", "tree.txt, line 2: '--- a'"),
        ("r\n--\n", "tree.txt, line 2: '--'"),
        ("r\n-- a\n------ b\n", "tree.txt, line 3: 'b' .* level 3"),
        ("-- a\n", "tree.txt, line 1: 'a' .* level 1"),
        ("r\n-- a\ns\n", "tree.txt, line 3: 's' .*'r'"),
        ("r\n-- a\n---- x\n-- b\n---- x\n", "tree.txt: 'x' .* 'a' and 'b'"),
    ],
)
def test_files_without_a_tree_are_refused(text, message, tmp_path):
    with pytest.raises(UserError, match=message):
        Hierarchy.from_file(written(tmp_path, text))


def test_unreadable_files_and_unknown_formats_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.txt"):
        Hierarchy.from_file(tmp_path / "nowhere.txt")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    for unreadable in (tmp_path, tmp_path / "bytes"):
        with pytest.raises(UserError, match=str(unreadable)):
            Hierarchy.from_file(unreadable)
    with pytest.raises(UserError, match="format is 'yaml'"):
        Hierarchy.from_file(written(tmp_path, PARENT_CHILD), "yaml")


# ------------------------------------------------------------------------------------------------ several parents


def test_of_several_parents_the_furthest_from_the_root_is_kept():
    """The first by name of equally far ones; an inner node that loses all its children is no class."""
    deep = [("root", "a"), ("a", "b"), ("b", "dog"), ("root", "pet"), ("pet", "dog")]
    tree = Hierarchy.from_pairs(
        [*deep, ("root", "cat"), ("z", "fox"), ("y", "fox"), ("root", "z"), ("root", "y")], allow_dag=True
    )
    assert tree.parents == {"a": "root", "b": "a", "dog": "b", "cat": "root", "fox": "y", "y": "root"}
    assert tree.leaves == ["cat", "dog", "fox"]
    with pytest.raises(UserError, match=r"'dog' .* 'b' and 'pet'"):
        Hierarchy.from_pairs(deep)
    with pytest.raises(UserError, match="cycle"):
        Hierarchy.from_pairs([("r", "a"), ("a", "b"), ("b", "a")], allow_dag=True)
    with pytest.raises(UserError, match="2 roots"):
        Hierarchy.from_pairs([("r", "a"), ("s", "a"), ("s", "b")], allow_dag=True)


@pytest.mark.parametrize("seed", range(5))
def test_the_tree_within_a_graph_does_not_depend_on_the_order_of_pairs(seed):
    chance = random.Random(seed)
    above = {child: chance.sample(range(child), k=min(child, 2)) for child in range(1, 30)}
    pairs = [(f"n{parent}", f"n{child}") for child, parents in above.items() for parent in parents]
    tree = Hierarchy.from_pairs(pairs, allow_dag=True)

    def furthest(node):
        return max((1 + furthest(parent) for parent, child in pairs if child == node), default=0)

    for child, parent in tree.parents.items():
        given = {other for other, node in pairs if node == child}
        assert parent == min(given, key=lambda node: (-furthest(node), node))
    assert set(tree.leaves) == {child for _, child in pairs} - {parent for parent, _ in pairs}
    for _ in range(3):
        chance.shuffle(pairs)
        assert Hierarchy.from_pairs(pairs, allow_dag=True).parents == tree.parents


# ----------------------------------------------------------------------------------------------- names of the classes


def test_classes_are_found_by_their_names(tmp_path):
    by_id = Hierarchy.from_pairs([("0", "2"), ("0", "1"), ("0", "17")])
    assert by_id.leaves_of(["17", "1"]) == ["17", "1"]
    assert by_id.leaves_of(["017.Cardinal", "001.Black_footed_Albatross"]) == ["17", "1"]
    assert by_id.leaves_of(["0017", "2_x"]) == ["17", "2"]

    pairs = written(tmp_path, "0 2\n0 1\n0 17\n")
    listed = written(tmp_path, "17 a gull\n1 crow\n2 jay\n0 bird\n", "names.txt")
    tree = Hierarchy.from_file(pairs, class_list=listed)
    assert tree.leaves_of(["jay", "a gull"]) == ["2", "17"]
    assert tree.leaves_of(["1", "2"]) == ["1", "2"]

    readable = written(tmp_path, "bird\n-- crow\n-- jay\n-- a gull\n")
    assert Hierarchy.from_file(readable, class_list=listed).leaves_of(["17", "2"]) == ["a gull", "jay"]


def test_numbers_are_written_with_or_without_zeros():
    padded = Hierarchy.from_pairs([("0", "001"), ("0", "017"), ("0", "200")])
    assert padded.leaves_of(["17", "1.x", "0200"]) == ["017", "001", "200"]
    both = Hierarchy.from_pairs([("0", "7"), ("0", "007")])
    assert both.leaves_of(["007", "7"]) == ["007", "7"]
    with pytest.raises(UserError, match="class '0007'"):  # ambiguous
        both.leaves_of(["0007"])


def test_comments_behind_names(tmp_path):
    """They belong to a name where a class has them too."""
    text = "birds\n-- ducks (a family) ?\n---- mallard (male)\n---- mallard (female)\n-- gull ?\n-- crow (a corvid) ?\n"
    tree = Hierarchy.from_file(written(tmp_path, text))
    names = ["crow", "gull ?", "mallard (female)", "mallard (male)"]
    leaves = tree.leaves_of(names)
    assert leaves == ["crow (a corvid) ?", "gull ?", "mallard (female)", "mallard (male)"]
    assert tree.lca_heights(leaves)[2].tolist() == [2, 2, 0, 1]
    with pytest.raises(UserError, match="class 'mallard'"):
        tree.leaves_of(["mallard"])
    listed = written(tmp_path, "1 crow\n2 gull\n", "names.txt")
    assert Hierarchy.from_file(tmp_path / "tree.txt", class_list=listed).leaves_of(["2", "1"]) == leaves[1::-1]


def test_names_of_inner_nodes_that_are_those_of_classes(tmp_path):
    """NABirds gives an order, a family and a species the same name."""
    pairs = written(tmp_path, "80 22\n433 80\n821 433\n22 0\n383 22\n937 383\n")
    listed = written(
        tmp_path, "0 Birds\n22 Perching Birds\n80 Verdin\n383 Shrike\n433 Verdin\n821 Verdin\n937 Shrike\n", "names.txt"
    )
    assert Hierarchy.from_file(pairs, class_list=listed).leaves_of(["Shrike", "Verdin"]) == ["937", "821"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a1", "x", "b1"], r"'x' is no leaf of .*tree.txt \(2 of 3 .* 'a2', 'c1', 'c2';"),
        (["a1", "C"], "'C' is an inner node"),
        (["cat", "dog"], r"'cat' .* \(0 of 2"),
        (["a1", "b1", "a1"], "'a1' and 'a1' .* 'a1'"),
        (["a1", "a2", "b1", "c1", "c2", "d", "e"], r"'e' .* \(6 of 7 .*: none;"),
    ],
)
def test_classes_that_are_no_leaves_are_refused(names, message, tmp_path):
    with pytest.raises(UserError, match=message):
        Hierarchy.from_file(written(tmp_path, PARENT_CHILD)).leaves_of(names)


def test_similar_names_are_suggested_first():
    birds = ["albatross", "crow", "jay", "malard", "gul", "wren", "finch"]
    numbered = {str(number): bird for number, bird in enumerate(birds, 1)}
    by_name = Hierarchy.from_pairs([("bird", bird) for bird in birds])
    by_list = Hierarchy.from_pairs([("0", number) for number in numbered], numbered)
    for tree in (by_name, by_list):
        with pytest.raises(UserError, match=r"'mallard' .*: 'malard', "):
            tree.leaves_of(["crow", "jay", "mallard"])


def test_two_classes_of_one_leaf():
    tree = Hierarchy.from_pairs([("0", "1"), ("0", "2")], {"x": "1", "1": "first"})
    with pytest.raises(UserError, match=r"classes '1a' and '01b' .* '1'"):
        tree.leaves_of(["1a", "01b", "2"])
    with pytest.raises(UserError, match=r"classes 'x' and 'first' .* '1'"):
        tree.leaves_of(["x", "first"])


def test_a_contradictory_class_list_is_refused(tmp_path):
    pairs = written(tmp_path, "0 2\n0 1\n")
    with pytest.raises(UserError, match=r"names.txt: '1' .* 'crow' and 'jay'"):
        Hierarchy.from_file(pairs, class_list=written(tmp_path, "1 crow\n1 jay\n", "names.txt"))
    tree = Hierarchy.from_file(pairs, class_list=written(tmp_path, "1 crow\n2 crow\n", "names.txt"))
    with pytest.raises(UserError, match=r"class list .*'crow' .* '1' and '2'"):
        tree.leaves_of(["crow"])
    with pytest.raises(UserError, match=r"class list .*gone.txt"):
        Hierarchy.from_file(pairs, class_list=tmp_path / "gone.txt")
