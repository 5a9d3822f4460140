"""Formulas against slow loops in plain Python floats; gradients against finite differences (gradcheck)."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from metricloss_pl.class_embeddings import one_hot, simplex
from metricloss_pl.losses import functional as F

B, C, D = 7, 4, 3


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(B, D, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 2, 2, 1, 0, 2, 1])  # class 3 is absent
    centers = torch.randn(C, D, generator=generator, dtype=torch.float64)
    return embeddings, labels, centers


def norm(v):
    return math.sqrt(sum(a * a for a in v))


def slow_cosine(x, phi):
    return 1 - sum(a * b for a, b in zip(x, phi, strict=True)) / norm(x)


def slow_squared_distance(x, y):
    return sum((a - b) ** 2 for a, b in zip(x, y, strict=True))


def slow_cross_entropy(logits, target):
    """Sum of -target_k log softmax_k, target a distribution."""
    log_z = math.log(sum(math.exp(a) for a in logits))
    return sum(t * (log_z - a) for a, t in zip(logits, target, strict=True))


# ------------------------------------------------------------------------------------------------------------- cosine


def test_cosine_loss_equals_loop(batch):
    embeddings, labels, _ = batch
    phi = simplex(C).double()
    expected = [slow_cosine(x, phi[y].tolist()) for x, y in zip(embeddings.tolist(), labels.tolist(), strict=True)]
    values = F.cosine_loss(embeddings, labels, phi, "none")
    assert values.tolist() == pytest.approx(expected, abs=1e-7)
    assert F.cosine_loss(embeddings, labels, phi).item() == pytest.approx(sum(expected) / B, abs=1e-7)
    assert F.cosine_loss(embeddings, labels, phi, "sum").item() == pytest.approx(sum(expected), abs=1e-6)


def test_one_hot_cosine_loss_equals_the_identity_matrix_and_torch():
    x, labels = torch.randn(6, 5, dtype=torch.float64), torch.tensor([0, 4, 3, 3, 1, 2])
    implicit = F.cosine_loss(x, labels, reduction="none")
    torch.testing.assert_close(implicit, F.cosine_loss(x, labels, one_hot(5).double(), "none"))
    target = torch.eye(5, dtype=torch.float64)[labels]
    torch.testing.assert_close(
        implicit, torch.nn.functional.cosine_embedding_loss(x, target, torch.ones(6), reduction="none")
    )


def test_cosine_loss_ignores_the_norm_and_its_gradient_is_orthogonal(batch):
    embeddings, labels, _ = batch
    phi = simplex(C).double()
    x = embeddings.clone().requires_grad_()
    loss = F.cosine_loss(x, labels, phi)
    for scale in (1e-8, 1e-4, 1e4, 1e200):
        torch.testing.assert_close(F.cosine_loss(scale * embeddings, labels, phi), loss.detach())
    loss.backward()
    assert (x.grad * embeddings).sum(1).abs().max() < 1e-12
    assert x.grad.abs().max() > 1e-3


def test_cosine_losses_are_finite_at_a_zero_vector():
    x = torch.zeros(2, 3, requires_grad=True)
    labels = torch.tensor([0, 2])
    value = F.cosine_loss(x, labels) + 0.1 * F.cosine_cross_entropy(x, labels)
    value.backward()
    assert value.item() == pytest.approx(1 + 0.1 * math.log(3))
    assert torch.equal(x.grad, torch.zeros(2, 3))


def test_cosine_cross_entropy_equals_loop_and_its_bound():
    x, labels = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 3, 0])
    expected = []
    for row, label in zip(x.tolist(), labels.tolist(), strict=True):
        target = [float(k == label) for k in range(4)]
        expected.append(slow_cross_entropy([a / norm(row) for a in row], target))
    assert F.cosine_cross_entropy(x, labels, reduction="none").tolist() == pytest.approx(expected)
    # The best direction leans away from the other classes: cosines (a, b, ..., b) with a^2 + (C - 1) b^2 = 1.
    for classes, bound in ((2, 0.2176), (10, 1.4199), (1000, 5.9090)):
        a = math.sqrt((classes - 1) / classes)
        best = torch.full((1, classes), -a / (classes - 1), dtype=torch.float64)
        best[0, 0] = a
        value = F.cosine_cross_entropy(best, torch.tensor([0])).item()
        assert value == pytest.approx(math.log(1 + (classes - 1) * math.exp(-math.sqrt(classes / (classes - 1)))))
        assert value == pytest.approx(bound, abs=1e-4)
    # Perfect one_hot directions: log(1 + (C - 1) / e).
    perfect = F.cosine_cross_entropy(torch.eye(1000), torch.arange(1000))
    assert perfect.item() == pytest.approx(math.log(1 + 999 / math.e), abs=1e-4)


# ------------------------------------------------------------------------------------------- softmax, squared error


@pytest.mark.parametrize("smoothing_target", ["all", "non_target"])
def test_cross_entropy_with_label_smoothing_equals_loop(smoothing_target):
    logits, labels, epsilon = torch.randn(5, C, dtype=torch.float64), torch.tensor([0, 3, 1, 1, 2]), 0.1
    expected = []
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        if smoothing_target == "all":
            target = [epsilon / C + (1 - epsilon) * (k == label) for k in range(C)]
        else:
            target = [1 - epsilon if k == label else epsilon / (C - 1) for k in range(C)]
        expected.append(slow_cross_entropy(row, target))
    assert F.cross_entropy(logits, labels, epsilon, smoothing_target, "none").tolist() == pytest.approx(expected)


def test_cross_entropy_worked_example():
    logits = torch.log(torch.tensor([[0.1, 0.8, 0.1]]))
    assert F.cross_entropy(logits, torch.tensor([1])).item() == pytest.approx(0.2231, abs=1e-4)


def test_squared_error_equals_loop(batch):
    embeddings, labels, centers = batch
    pairs = list(zip(embeddings.tolist(), labels.tolist(), strict=True))
    expected = [slow_squared_distance(x, centers[y].tolist()) for x, y in pairs]
    assert F.squared_error(embeddings, labels, centers, "none").tolist() == pytest.approx(expected)
    expected = [slow_squared_distance(x, [float(k == y) for k in range(D)]) for x, y in pairs]
    assert F.squared_error(embeddings, labels, reduction="none").tolist() == pytest.approx(expected)


# ------------------------------------------------------------------------------------------------------------- center


def test_center_loss_and_both_rules_equal_loops(batch):
    embeddings, labels, centers = batch
    x, y, c = embeddings.tolist(), labels.tolist(), centers.tolist()
    expected = [0.5 * slow_squared_distance(a, c[k]) for a, k in zip(x, y, strict=True)]
    assert F.center_loss(embeddings, labels, centers, "none").tolist() == pytest.approx(expected)

    sums = {k: [0.0] * D for k in set(y)}
    for a, k in zip(x, y, strict=True):
        sums[k] = [s + ck - ak for s, ck, ak in zip(sums[k], c[k], a, strict=True)]
    classes, delta = F.center_delta(embeddings, labels, centers)
    assert classes.tolist() == sorted(sums)
    for k, row in zip(classes.tolist(), delta.tolist(), strict=True):
        assert row == pytest.approx([s / (1 + y.count(k)) for s in sums[k]])
    classes, gradient = F.center_gradient(embeddings, labels, centers)
    for k, row in zip(classes.tolist(), gradient.tolist(), strict=True):
        assert row == pytest.approx([2 * s / B for s in sums[k]])


def test_center_gradient_is_the_gradient_of_the_mean_squared_distance(batch):
    embeddings, labels, centers = batch
    centers.requires_grad_()
    (2 * F.center_loss(embeddings, labels, centers)).backward()
    classes, gradient = F.center_gradient(embeddings, labels, centers.detach())
    torch.testing.assert_close(centers.grad[classes], gradient)
    assert centers.grad[3].abs().max() == 0


def test_center_worked_example():
    """The closed-form example of the sources: loss 12, deltas 2/3 c_0, 1/2 c_1, 1/2 c_2."""
    centers = torch.arange(1.0, 21.0).view(10, 2)
    embeddings, labels = torch.zeros(4, 2), torch.tensor([0, 0, 2, 1])
    assert F.center_loss(embeddings, labels, centers).item() == pytest.approx(12.0)
    classes, delta = F.center_delta(embeddings, labels, centers)
    assert classes.tolist() == [0, 1, 2]
    torch.testing.assert_close(delta, torch.tensor([[2 / 3], [1 / 2], [1 / 2]]) * centers[:3])


def test_distance_to_the_own_center_keeps_its_digits():
    """x^2 + c^2 - 2xc would lose all of them at this scale."""
    centers = torch.full((2, 4), 1e4)
    embeddings = centers[:1] + torch.tensor([[0.0, 0.0, 0.0, 1 / 64]])
    expected = 0.5 / 64**2
    assert F.center_loss(embeddings, torch.tensor([0]), centers).item() == pytest.approx(expected)
    assert F.squared_distances(embeddings, centers)[0, 0].item() == pytest.approx(2 * expected)
    assert F.squared_distances(embeddings, centers[:0]).shape == (len(embeddings), 0)
    centers = 1e4 + torch.randn(5, 4, dtype=torch.float64)
    near = centers + 0.01 * torch.randn(5, 4)
    exact = (near[:, None] - centers).square().sum(2)
    torch.testing.assert_close(F.squared_distances(near, centers), exact, rtol=1e-6, atol=0)


# --------------------------------------------------------------------------------------------------------- standalone


TERMS = {
    "log1p": lambda d: math.log(1 + d),
    "log": math.log,
    "margin": lambda d: min(d, 2.0),
    "negative": lambda d: d,
}


@pytest.mark.parametrize("inter", TERMS)
@pytest.mark.parametrize("pairs", ["sum", "mean"])
def test_standalone_center_loss_equals_loop(batch, inter, pairs):
    embeddings, labels, centers = batch
    x, y, c = embeddings.tolist(), labels.tolist(), centers.tolist()
    intra = [slow_squared_distance(a, c[k]) for a, k in zip(x, y, strict=True)]
    push = [sum(TERMS[inter](slow_squared_distance(x[i], x[j])) for j in range(B) if y[i] != y[j]) for i in range(B)]
    different = sum(y[i] != y[j] for i in range(B) for j in range(B))
    expected = sum(push) / (B if pairs == "sum" else different)
    values = F.standalone_center_loss(embeddings, labels, centers, inter=inter, margin=2.0, pairs=pairs)
    assert values[0].item() == pytest.approx(sum(intra) / B)
    assert values[1].item() == pytest.approx(expected)
    each = F.standalone_center_loss(embeddings, labels, centers, inter=inter, margin=2.0, pairs=pairs, reduction="none")
    assert each[0].tolist() == pytest.approx(intra)
    assert each[1].mean().item() == pytest.approx(expected)


def test_standalone_inter_is_zero_within_one_class_and_mean_pairs_does_not_grow_with_the_batch():
    x, centers = torch.randn(5, D), torch.zeros(C, D)
    for pairs in ("sum", "mean"):
        _, inter = F.standalone_center_loss(x, torch.zeros(5, dtype=torch.long), centers, pairs=pairs)
        assert inter.item() == 0
    labels = torch.tensor([0, 1, 2, 3, 0])
    doubled = torch.cat([x, x]), torch.cat([labels, labels])
    once, twice = (F.standalone_center_loss(*b, centers, pairs="mean")[1] for b in ((x, labels), doubled))
    assert twice.item() == pytest.approx(once.item(), rel=1e-5)
    once, twice = (F.standalone_center_loss(*b, centers, pairs="sum")[1] for b in ((x, labels), doubled))
    assert twice.item() == pytest.approx(2 * once.item(), rel=1e-5)


@pytest.mark.parametrize("inter", TERMS)
def test_standalone_is_finite_at_coincident_points(inter):
    x = torch.ones(4, D, requires_grad=True)
    centers = torch.ones(C, D, requires_grad=True)
    intra, inter_value = F.standalone_center_loss(x, torch.tensor([0, 1, 0, 1]), centers, inter=inter)
    (intra - inter_value).backward()
    assert torch.isfinite(intra - inter_value)
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(centers.grad).all()


def test_exponential_intra_and_center_inter_equal_loops(batch):
    embeddings, labels, centers = batch
    x, y, c = embeddings.tolist(), labels.tolist(), centers.tolist()
    expected = [math.exp(0.3 * slow_squared_distance(a, c[k])) for a, k in zip(x, y, strict=True)]
    assert F.exponential_intra(embeddings, labels, centers, 0.3, "none").tolist() == pytest.approx(expected)
    logs = [math.log(slow_squared_distance(c[i], c[j])) for i in range(C) for j in range(C) if i != j]
    assert F.center_inter(centers).item() == pytest.approx(sum(logs) / C)
    assert torch.isfinite(F.exponential_intra(1e3 * torch.ones(1, D), torch.tensor([0]), torch.zeros(C, D)))
    assert torch.isfinite(F.center_inter(torch.zeros(C, D)))


# ------------------------------------------------------------------------------------------- gradients and precision


def all_losses(labels, phi):
    return {
        "cosine": lambda x, c: F.cosine_loss(x, labels, phi),
        "cosine_cross_entropy": lambda x, c: F.cosine_cross_entropy(x, labels, phi),
        "cross_entropy": lambda x, c: F.cross_entropy(x, labels % D, 0.1, "non_target"),
        "squared_error": lambda x, c: F.squared_error(x, labels, phi),
        "center": lambda x, c: F.center_loss(x, labels, c),
        "exponential": lambda x, c: F.exponential_intra(x, labels, c, 0.3),
        "center_inter": lambda x, c: F.center_inter(c) + 0 * x.sum(),
        **{
            f"standalone_{inter}": lambda x, c, inter=inter: torch.stack(
                F.standalone_center_loss(x, labels, c, inter=inter, margin=2.0)
            )
            for inter in TERMS
        },
    }


NAMES = list(all_losses(torch.zeros(1, dtype=torch.long), torch.ones(1, 1)))


@pytest.mark.parametrize("name", NAMES)
def test_gradients(batch, name):
    embeddings, labels, centers = batch
    loss = all_losses(labels, simplex(C).double())[name]
    assert gradcheck(loss, (embeddings.requires_grad_(), centers.requires_grad_()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_lifted_and_autocast_is_off_inside(batch, name, dtype):
    embeddings, labels, centers = batch
    x = embeddings.to(dtype)
    loss = all_losses(labels, simplex(C))[name]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(x, centers.float())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(x.float(), centers.float()), rtol=0, atol=0)
    assert loss(embeddings, centers).dtype == torch.float64


def test_arguments_may_be_named(batch):
    embeddings, labels, centers = batch
    value = F.center_loss(embeddings=embeddings, labels=labels, centers=centers)
    torch.testing.assert_close(value, F.center_loss(embeddings, labels, centers))


def test_half_embeddings_do_not_overflow():
    x = torch.full((2, 512), 12.0, dtype=torch.float16)
    assert F.center_loss(x, torch.tensor([0, 1]), torch.zeros(2, 512)).item() == pytest.approx(0.5 * 512 * 144)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y, c: F.center_loss(x, y, c[:, :2]), r"\(7, 3\) .*\(4, 2\)"),
        (lambda x, y, c: F.cosine_loss(x, y, c[:, :2]), r"\(7, 3\) .*\(4, 2\)"),
        (lambda x, y, c: F.center_loss(x, y, c, "avg"), "reduction is 'avg'"),
        (lambda x, y, c: F.cross_entropy(x, y, 0.1, "otters"), "smoothing_target is 'otters'"),
        (lambda x, y, c: F.center_loss(x, y[:, None], c), r"int64 of shape \(7, 1\)"),
        (lambda x, y, c: F.cosine_loss(x, y[:3]), r"int64 of shape \(3,\)"),
        (lambda x, y, c: F.squared_error(x, y.byte(), c), "labels are torch.uint8"),
        (lambda x, y, c: F.standalone_center_loss(x, y[:1], c), r"of shape \(1,\)"),
        (lambda x, y, c: F.standalone_center_loss(x, y, c, inter="exp"), "inter is 'exp'"),
        (lambda x, y, c: F.standalone_center_loss(x, y, c, pairs="all"), "pairs is 'all'"),
    ],
)
def test_errors(batch, call, message):
    with pytest.raises(ValueError, match=message):
        call(*batch)


def test_nearest_center_equals_a_loop_and_keeps_rows_apart():
    x, centers = torch.randn(7, 3), torch.randn(50, 3)
    expected = [min(range(50), key=lambda j: (row - centers[j]).double().square().sum().item()) for row in x]
    for chunk_size in (1, 7, 64):
        assert F.nearest_center(x, centers, chunk_size).tolist() == expected
    for bad in (torch.inf, torch.nan, 1e10):  # does not affect the others
        among = torch.cat([x, torch.full((1, 3), bad)])
        assert F.nearest_center(among, centers)[:7].tolist() == expected
    grid = torch.tensor([[1.0, 0], [-3, -1], [-2, -1], [3, 0], [1, 2], [-1, -3]])
    batch = torch.tensor([[-2.0, 2], [-1, 1], [1, -1], [3, -1]])
    assert F.nearest_center(batch, grid)[0].item() == F.nearest_center(batch[:1], grid)[0].item() == 2  # the first


def test_pairs_far_from_the_origin_keep_their_digits():
    """They equal differences in float64; the expansion in float32 would be off by far more than the value."""
    x = 1000 + 0.01 * torch.randn(6, 4)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    _, inter = F.standalone_center_loss(x, labels, torch.zeros(3, 4), inter="negative")
    _, exact = F.standalone_center_loss(x.double(), labels, torch.zeros(3, 4).double(), inter="negative")
    slow = sum(
        (x[i].double() - x[j].double()).square().sum() for i in range(6) for j in range(6) if labels[i] != labels[j]
    )
    assert inter.item() == pytest.approx(slow.item() / 6, rel=1e-5)
    assert exact.item() == pytest.approx(slow.item() / 6, rel=1e-9)


def test_smoothing_over_other_classes_is_exact_for_every_epsilon():
    logits, labels = torch.tensor([[0.3, -0.2]], dtype=torch.float64), torch.tensor([0])
    first, second = torch.log_softmax(logits, 1)[0].tolist()
    assert F.cross_entropy(logits, labels, 0.9, "non_target").item() == pytest.approx(-0.1 * first - 0.9 * second)
