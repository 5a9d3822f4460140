"""The cosine regime on the class embeddings of a hierarchy."""

import numpy as np
import pytest
import torch

from metricloss_pl.class_embeddings import Hierarchy, semantic
from metricloss_pl.errors import UserError
from metricloss_pl.regimes import CosineClassifier
from tests.regimes.blobs import C, Flat, loader, trainer

NAMES = ["cat", "car", "dog"]
SIMILARITIES = torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 0.0], [0.5, 0.0, 1.0]])


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "tree.txt").write_text("thing\n-- pet\n---- dog\n---- cat\n-- car\n")
    return tmp_path / "tree.txt"


def test_products_are_the_similarities_of_the_classes(tree):
    model = CosineClassifier(C, Flat(), NAMES, class_embeddings=tree)
    assert model.embedding_dim == C
    targets = model.class_anchors
    assert targets.dtype == torch.float32
    torch.testing.assert_close(targets @ targets.T, SIMILARITIES)
    torch.testing.assert_close(targets, semantic(Hierarchy.from_file(tree), NAMES).float())
    labels = torch.arange(C)
    assert model.losses(targets, labels)["cosine_loss"].abs() < 1e-6
    torch.testing.assert_close(model.criterion.similarities(5 * targets), SIMILARITIES)


def test_an_integer_embedding_dim_is_that_of_approximate_embeddings(tree):
    model = CosineClassifier(C, Flat(num_features=7), NAMES, class_embeddings=str(tree), embedding_dim=2)
    assert model.embedding.weight.shape == (2, 7)
    expected = semantic(Hierarchy.from_file(tree), NAMES, 2).float()
    assert torch.equal(model.class_anchors, expected)
    network = Flat(num_features=C)
    assert CosineClassifier(C, network, NAMES, class_embeddings=tree, embedding_dim=None).embedding_dim == C


def test_names_of_ones_own(tmp_path):
    (tmp_path / "pairs.txt").write_text("9 0\n9 1\n8 9\n8 2\n")
    (tmp_path / "names.txt").write_text("0 cat\n1 dog\n2 car\n9 pet\n")
    listed = CosineClassifier(
        C, Flat(), NAMES, class_embeddings=tmp_path / "pairs.txt", class_list=tmp_path / "names.txt"
    )
    torch.testing.assert_close(listed.class_anchors @ listed.class_anchors.T, SIMILARITIES)
    unnamed = CosineClassifier(C, Flat(), class_embeddings=tmp_path / "pairs.txt")
    order = [0, 2, 1]
    torch.testing.assert_close(unnamed.class_anchors @ unnamed.class_anchors.T, SIMILARITIES[order][:, order])


@pytest.mark.parametrize(("given", "embedding_dim"), [("file", "auto"), ("file", 2), ("tensor", None)])
def test_a_checkpoint_needs_neither_file_nor_tensor(given, embedding_dim, tree, tmp_path):
    embeddings = semantic(Hierarchy.from_file(tree), NAMES, None if embedding_dim in ("auto", None) else embedding_dim)
    backbone = {"num_features": C}
    targets = tree if given == "file" else embeddings
    model = CosineClassifier(C, Flat(**backbone), NAMES, embedding_dim, class_embeddings=targets)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(model, loader(), loader())
    path = tmp_path / "model.ckpt"
    run.save_checkpoint(path)
    tree.unlink()
    settings = torch.load(path, weights_only=True)["hyper_parameters"]
    assert settings["class_embeddings"] is None
    loaded = CosineClassifier.load_from_checkpoint(path, backbone=Flat(**backbone)).eval()
    assert torch.equal(loaded.class_anchors, embeddings.float())
    images, _ = next(iter(loader()))
    torch.testing.assert_close(loaded(images), model.eval()(images))
    resumed = CosineClassifier(**{**settings, "backbone": Flat(**backbone)})
    trainer(tmp_path, max_epochs=2).fit(resumed, loader(), ckpt_path=path, weights_only=True)
    assert torch.equal(resumed.class_anchors, embeddings.float())
    if given == "file":
        assert resumed.class_hierarchy.lines() == loaded.class_hierarchy.lines() == model.class_hierarchy.lines()
    forged = torch.load(path, weights_only=True) | {"class_hierarchy": {"parents": {"a": "b", "b": "a"}}}
    torch.save(forged, path)
    with pytest.raises(UserError, match=r"the checkpoint's class hierarchy can't be read .*cycle"):
        CosineClassifier.load_from_checkpoint(path, backbone=Flat(**backbone))


def test_a_checkpoint_of_named_class_embeddings_goes_on_naming_them(tmp_path):
    for name in ("one_hot", "simplex"):
        run = trainer(tmp_path, max_epochs=1)
        run.fit(CosineClassifier(C, Flat(), NAMES, class_embeddings=name), loader())
        run.save_checkpoint(tmp_path / "model.ckpt")
        assert torch.load(tmp_path / "model.ckpt", weights_only=True)["hyper_parameters"]["class_embeddings"] == name


def test_those_of_a_checkpoint_without_one_are_refused(tmp_path):
    model = CosineClassifier(C, Flat(), NAMES, class_embeddings=None, embedding_dim=5)
    run = trainer(tmp_path)
    for begin in (run.fit, run.validate, run.test, run.predict):
        with pytest.raises(UserError, match="class_embeddings is null"):
            begin(model, loader())
    with pytest.raises(UserError, match="embedding_dim is -5; it must be at least 1"):
        CosineClassifier(C, Flat(), NAMES, class_embeddings=None, embedding_dim=-5)
    with pytest.raises(UserError, match=r"class_embeddings is '10'.* 'one_hot'"):
        CosineClassifier(C, Flat(), NAMES, class_embeddings=10)


def test_embeddings_from_a_file_agree_with_the_embedding_dim_and_have_norm_1(tmp_path):
    rows = torch.tensor([[0.6, 0.8], [1.0, 0.0], [0.0, 1.0]]).numpy()
    file = tmp_path / "e.npz"
    np.savez(file, embedding=rows, ind2label=["dog", "car", "cat"])
    assert CosineClassifier(C, Flat(), NAMES, class_embeddings=file).class_anchors.tolist() == rows[[2, 1, 0]].tolist()
    assert CosineClassifier(C, Flat(), NAMES, class_embeddings=file, embedding_dim=2).embedding_dim == 2
    with pytest.raises(UserError, match="embedding_dim are 3 wide and the class embeddings 2"):
        CosineClassifier(C, Flat(), NAMES, class_embeddings=file, embedding_dim=3)
    np.savez(file, embedding=2 * rows, ind2label=["dog", "car", "cat"])
    with pytest.raises(UserError, match=r"embeddings .*e.npz have rows whose norm is not 1: divide each by its norm"):
        CosineClassifier(C, Flat(), NAMES, class_embeddings=file)
    with pytest.raises(UserError, match=r"class_embeddings is 'gone.npz'"):
        CosineClassifier(C, Flat(), NAMES, class_embeddings="gone.npz")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_embeddings": "onehot"}, "class_embeddings is 'onehot'.* 'one_hot', 'simplex', 'semantic', 'cifar100'"),
        ({"class_names": ["cat", "car", "cow"]}, r"class 'cow' is no leaf of hierarchy .*tree.txt \(2 of 3 classes"),
        ({"class_names": ["cat", "dog", "pet"]}, "class 'pet' is an inner node"),
        ({"embedding_dim": 4}, "4 dimensions of semantic class embeddings: they must be 1 to 3, the classes"),
        ({"embedding_dim": None}, "the backbone's features are 4 wide and the class embeddings 3"),
        ({"class_list": "gone.txt"}, "class list gone.txt: there is no such file"),
        (
            {"class_embeddings": "simplex", "class_list": "names.txt"},
            "class_list is 'names.txt'.* 'simplex'",
        ),
    ],
)
def test_mistakes(options, message, tree):
    settings = {"class_names": NAMES, "class_embeddings": tree, **options}
    with pytest.raises(UserError, match=message):
        CosineClassifier(C, Flat(), **settings)
