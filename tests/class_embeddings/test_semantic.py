import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from metricloss_pl.class_embeddings import Hierarchy, are_embeddings, read_embeddings, semantic, stored
from metricloss_pl.errors import UserError
from tests.class_embeddings.trees import BY_HAND, LCA_HEIGHTS, LEAVES, balanced_pairs, random_pairs


def similarities(tree: Hierarchy) -> np.ndarray:
    return tree.similarities(tree.leaves)


def unit_sphere_by_hand(matrix: np.ndarray) -> np.ndarray:
    """Find, class by class, the point of the sphere with the given products with all points before."""
    points = np.zeros_like(matrix)
    for row in range(len(matrix)):
        for column in range(row):
            rest = matrix[row, column] - points[row, :column] @ points[column, :column]
            points[row, column] = rest / points[column, column]
        points[row, row] = np.sqrt(1 - np.square(points[row, :row]).sum())
    return points


@pytest.mark.parametrize("seed", range(6))
def test_products_are_the_similarities(seed):
    tree = Hierarchy.from_pairs(random_pairs(seed))
    embeddings = semantic(tree)
    assert embeddings.dtype == torch.float64
    assert embeddings.is_contiguous()
    embeddings = embeddings.numpy()
    assert embeddings.shape == (len(tree.leaves),) * 2
    np.testing.assert_allclose(embeddings @ embeddings.T, similarities(tree), rtol=0, atol=1e-12)
    np.testing.assert_allclose(embeddings, unit_sphere_by_hand(similarities(tree)), rtol=0, atol=1e-12)
    np.testing.assert_array_equal(embeddings, np.tril(embeddings))
    assert embeddings.min() >= -1e-12
    assert np.linalg.eigvalsh(similarities(tree)).min() >= 1 / tree.height - 1e-12


def test_rows_are_in_the_order_of_the_classes():
    tree = Hierarchy.from_pairs(BY_HAND)
    order = [4, 0, 5, 2]
    embeddings = semantic(tree, [LEAVES[k] for k in order])
    expected = 1 - torch.tensor(LCA_HEIGHTS, dtype=torch.float64)[order][:, order] / 3
    torch.testing.assert_close(embeddings @ embeddings.T, expected)
    assert torch.equal(embeddings, embeddings.tril())


@pytest.mark.parametrize(("branches", "height"), [(2, 3), (3, 3), (2, 5), (4, 2)])
def test_eigenvalues_of_a_balanced_tree(branches, height):
    """A difference between subtrees of a node at height h has (1 + b + ... + b^(h-1)) / H, at least 1 / H."""
    tree = Hierarchy.from_pairs(balanced_pairs(branches, height))
    expected = []
    for above in range(1, height + 1):
        value = sum(branches**k for k in range(above)) / height
        expected += [value] * (branches**height * (branches - 1) // branches**above)
    expected.append(expected[-1])  # all leaves together: s is 0 at the root, so as much again
    values = np.linalg.eigvalsh(similarities(tree))
    np.testing.assert_allclose(values, sorted(expected), atol=1e-12)
    assert values[0] == pytest.approx(1 / height)


def approximate_by_hand(matrix: np.ndarray, dim: int) -> tuple[np.ndarray, float]:
    """Return cosines between the rows of Q sqrt(Lambda), and the gap behind the eigenvalues kept."""
    values, vectors = np.linalg.eigh(matrix)
    rows = vectors[:, -dim:] * np.sqrt(values[-dim:])
    with np.errstate(invalid="ignore"):
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T, values[-dim] - values[-dim - 1]


@pytest.mark.parametrize("seed", range(6))
def test_fewer_dimensions_are_those_of_the_largest_eigenvalues(seed):
    tree = Hierarchy.from_pairs(
        [*random_pairs(seed), *[(f"n{k}", f"leaf {k} {i}") for k in (30, 35) for i in range(4)]]
    )
    matrix, compared = similarities(tree), 0
    for dim in range(1, len(matrix)):
        expected, gap = approximate_by_hand(matrix, dim)
        if gap < 1e-6 or np.isnan(expected).any():  # among equal eigenvalues any choice is as good
            continue
        try:
            embeddings = semantic(tree, dim=dim).numpy()
        except UserError:  # a class without a part in any direction
            continue
        compared += 1
        assert embeddings.shape == (len(matrix), dim)
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1)
        np.testing.assert_allclose(embeddings @ embeddings.T, expected, atol=1e-8)
    assert compared > 3
    np.testing.assert_allclose(semantic(tree, dim=len(matrix)), semantic(tree))


@pytest.mark.parametrize(
    ("dim", "message"), [(0, "^0 .* 1 to 6"), (7, "^7 .* 1 to 6"), (1, "class 'far' .* 1 dimensions")]
)
def test_impossible_dimensions_are_refused(dim, message):
    tree = Hierarchy.from_pairs([("root", "far"), ("root", "g"), *[("g", f"{k}") for k in range(5)]])
    with pytest.raises(UserError, match=message):
        semantic(tree, ["1", "far", "3", "0", "2", "4"], dim)


def test_one_class_is_refused():
    with pytest.raises(UserError, match="gives 1 class"):
        semantic(Hierarchy.from_pairs([("root", "only")]))


# ------------------------------------------------------------------------------------------------------ authors' files

ARRAY = np.arange(6.0).reshape(3, 2)


def test_npz_is_read(tmp_path):
    np.savez(tmp_path / "e.npz", embedding=ARRAY.astype(np.float32), ind2label=np.array(["x", "y", "z"]))
    names, array = read_embeddings(tmp_path / "e.npz")
    assert names == ["x", "y", "z"]
    np.testing.assert_array_equal(array, ARRAY)
    np.savez(tmp_path / "objects.npz", embedding=ARRAY, ind2label=np.array([1, "y", None], dtype=object))
    with pytest.raises(UserError, match="can't be read"):
        read_embeddings(tmp_path / "objects.npz")


@pytest.mark.parametrize("content", [b"", b"junk", b"PK junk"])
def test_broken_files_are_refused(content, tmp_path):
    (tmp_path / "e.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"e\.npz can't be read") as caught:
        read_embeddings(tmp_path / "e.npz")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"embedding": ARRAY}, "ind2label"),
        ({"embedding": np.array("x"), "ind2label": np.array([1])}, "can't be read"),
        ({"embedding": ARRAY, "ind2label": np.array([1, 2])}, r"\(3, 2\) numbers for 2 classes"),
        ({"embedding": ARRAY[0], "ind2label": np.array([1, 2])}, r"\(2,\) numbers for 2 classes"),
        ({"embedding": ARRAY * np.nan, "ind2label": np.array([1, 2, 3])}, "finite"),
        ({"embedding": ARRAY, "ind2label": np.array(["3", "3", "1"])}, "'3' has two rows"),
    ],
)
def test_wrong_arrays_are_refused(content, message, tmp_path):
    np.savez(tmp_path / "e.npz", **content)
    with pytest.raises(UserError, match=message):
        read_embeddings(tmp_path / "e.npz")


@pytest.mark.parametrize("labels", [[3, 1, 2], {1: 1, 0: 3, 2: 2}, np.array([3, 1, 2])])
def test_a_pickle_is_converted_by_the_command_in_the_message(labels, tmp_path):
    (tmp_path / "e.pickle").write_bytes(pickle.dumps({"embedding": ARRAY, "ind2label": labels}))
    with pytest.raises(UserError, match="to convert a pickle") as caught:
        read_embeddings(tmp_path / "e.pickle")
    code = str(caught.value).partition('python -c "')[2].rstrip('"')
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    names, array = read_embeddings(tmp_path / "e.npz")
    assert names == ["3", "1", "2"]
    np.testing.assert_array_equal(array, ARRAY)


def test_rows_are_found_by_the_classes(tmp_path):
    file = tmp_path / "e.npz"
    np.savez(file, embedding=ARRAY, ind2label=[3, 1, 20])
    assert are_embeddings(file)
    assert stored(file, ["1", "3"]).tolist() == ARRAY[[1, 0]].tolist()
    assert stored(file, ["020.Cardinal", "001.Albatross"]).tolist() == ARRAY[[2, 1]].tolist()
    (tmp_path / "names.txt").write_text("1 crow\n20 jay\n3 gull\n")
    assert stored(file, ["gull", "jay", "crow"], tmp_path / "names.txt").tolist() == ARRAY[[0, 2, 1]].tolist()
    message = r"class 'cow' is no row of embeddings .* \(1 of 2 classes are rows\); rows without a class: '3', '20';"
    with pytest.raises(UserError, match=message):
        stored(file, ["1", "cow"])
    assert not are_embeddings("tree.txt")


def test_no_file(tmp_path):
    with pytest.raises(UserError, match=r"embeddings .*nowhere:"):
        read_embeddings(tmp_path / "nowhere")


def test_a_bug_of_ours_is_no_broken_file(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise AttributeError("planted")

    np.savez(tmp_path / "e.npz", embedding=ARRAY, ind2label=[1, 2, 3])
    monkeypatch.setattr(np, "asarray", fail)
    with pytest.raises(AttributeError, match="planted"):
        read_embeddings(tmp_path / "e.npz")
