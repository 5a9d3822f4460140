"""Loss modules: plain PyTorch loops, centers that move only by their rule, precision, checkpoints."""

import pytest
import torch
from torch import nn

from metricloss_pl.class_embeddings import simplex
from metricloss_pl.losses import CenterLoss, CosineLoss, StandaloneCenterLoss
from metricloss_pl.losses import functional as F

C, D = 5, 3


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, D, generator=generator), torch.tensor([0, 1, 1, 3, 0, 1, 3, 3])  # 2 and 4 are absent


def test_plain_loop_with_center_loss_trains():
    """Train as another project would: its own network, loop and two optimizers, no Lightning."""
    torch.manual_seed(0)
    means = 3 * torch.randn(C, 10)
    labels = torch.arange(200) % C
    images = means[labels] + torch.randn(200, 10)
    network, head = nn.Linear(10, D), nn.Linear(D, C)
    criterion = CenterLoss(C, D)
    start = criterion.centers.clone()
    optimizer = torch.optim.SGD([*network.parameters(), *head.parameters()], lr=0.05)
    center_optimizer = torch.optim.SGD(criterion.parameters(), lr=0.5)
    distances = []
    for _ in range(60):
        embeddings = network(images)
        center_loss = criterion(embeddings, labels)
        loss = nn.functional.cross_entropy(head(embeddings), labels) + 0.1 * center_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        criterion.assign_center_grad()
        center_optimizer.step()
        distances.append(center_loss.item())
    accuracy = (head(network(images)).argmax(1) == labels).float().mean()
    assert accuracy > 0.5  # chance is 0.2
    assert distances[-1] < 0.5 * distances[0]
    assert (criterion.centers - start).norm(dim=1).min() > 0.1


@pytest.mark.parametrize("weight", [0.0, 1e-3, 1e3, 65536.0])
def test_center_step_does_not_depend_on_the_loss_weight(batch, weight):
    torch.manual_seed(0)
    criterion = CenterLoss(C, D)
    before = criterion.centers.clone()
    embeddings, labels = batch
    embeddings = embeddings.clone().requires_grad_()
    (weight * criterion(embeddings, labels)).backward()
    criterion.assign_center_grad()
    torch.optim.SGD(criterion.parameters(), lr=0.5).step()
    classes, delta = F.center_delta(embeddings.detach(), labels, before)
    expected = before.clone()
    expected[classes] -= 0.5 * delta
    torch.testing.assert_close(criterion.centers.detach(), expected)
    assert torch.equal(criterion.centers[[2, 4]], before[[2, 4]])


@pytest.mark.parametrize("rule", ["wen", "gradient"])
def test_accumulated_batches_move_centers_as_one(batch, rule):
    embeddings, labels = batch
    moved = []
    for number in (1, 4):
        torch.manual_seed(0)
        criterion = CenterLoss(C, D, center_rule=rule)
        for x, y in zip(embeddings.chunk(number), labels.chunk(number), strict=True):
            criterion(x, y)
        criterion.assign_center_grad()
        torch.optim.SGD(criterion.parameters(), lr=0.5).step()
        moved.append(criterion.centers.detach().clone())
    torch.testing.assert_close(*moved, rtol=1e-5, atol=1e-5)


def test_gathered_rows_count(batch):
    """Two processes with half the batch each: `gather` joins the rows of both."""
    embeddings, labels = batch
    torch.manual_seed(0)
    whole, half = CenterLoss(C, D), CenterLoss(C, D)
    half.load_state_dict(whole.state_dict())
    whole(embeddings, labels)
    whole.assign_center_grad()
    half(embeddings[:4], labels[:4])
    offsets = (whole.centers[labels] - embeddings)[4:]
    half.assign_center_grad(lambda rows: torch.cat([rows, offsets if rows.ndim == 2 else labels[4:]]))
    torch.testing.assert_close(half.centers.grad.to_dense(), whole.centers.grad.to_dense())


def test_gradient_rule_has_pytorch_center_loss_value_and_step(batch):
    embeddings, labels = batch
    criterion = CenterLoss(C, D, center_rule="gradient")
    distances = (embeddings - criterion.centers[labels]).square().sum(1)
    torch.testing.assert_close(criterion(embeddings, labels), distances.mean())
    criterion.assign_center_grad()
    centers = criterion.centers.detach().clone().requires_grad_()
    (embeddings - centers[labels]).square().sum(1).mean().backward()
    torch.testing.assert_close(criterion.centers.grad.to_dense(), centers.grad)


def test_center_loss_remembers_only_in_training(batch):
    criterion = CenterLoss(C, D).eval()
    criterion(*batch)
    criterion.train()
    with torch.no_grad():
        criterion(*batch)
    with pytest.raises(RuntimeError, match="assign_center_grad"):
        criterion.assign_center_grad()


def test_labels_without_a_center_are_refused(batch):
    """`forward` refuses them: a sparse step for such a label would write anywhere."""
    embeddings, labels = batch
    for wrong in (-1, C):
        criterion = CenterLoss(C, D)
        with pytest.raises(IndexError):
            criterion(embeddings, torch.where(labels == 0, wrong, labels))


def test_forgotten_steps_warn(batch):
    criterion = CenterLoss(C, D)
    for _ in range(1023):
        criterion(*batch)
    with pytest.warns(UserWarning, match="1024 batches"):
        criterion(*batch)


@pytest.mark.parametrize(("init", "norm"), [("zeros", 0.0), ("normal", 1.0)])
def test_center_init(init, norm):
    torch.manual_seed(0)
    for criterion in (CenterLoss(400, 25, center_init=init), StandaloneCenterLoss(400, 25, center_init=init)):
        assert criterion.centers.square().mean().sqrt().item() == pytest.approx(norm, abs=0.05)


@pytest.mark.parametrize(
    "criterion", [CenterLoss(C, D), StandaloneCenterLoss(C, D, inter="softmax"), CosineLoss(simplex(C))]
)
def test_tensors_never_become_half(criterion):
    for cast in (criterion.half, criterion.bfloat16, lambda: criterion.to(torch.bfloat16)):
        cast()
        assert {t.dtype for t in criterion.state_dict().values()} == {torch.float32}
    criterion.double()
    assert {t.dtype for t in criterion.state_dict().values()} == {torch.float64}


def test_cosine_module_equals_the_function():
    x, labels = torch.randn(6, C - 1), torch.tensor([0, 1, 2, 3, 4, 0])
    criterion = CosineLoss(simplex(C))
    torch.testing.assert_close(criterion(x, labels), F.cosine_loss(x, labels, simplex(C)))
    prediction = criterion.similarities(simplex(C)).argmax(1)
    assert prediction.tolist() == list(range(C))


@pytest.mark.parametrize("intra", ["squared", "exp"])
@pytest.mark.parametrize("inter", ["log1p", "log", "margin", "negative", "centers", "softmax"])
def test_standalone_module_trains_its_centers(batch, intra, inter):
    torch.manual_seed(0)
    criterion = StandaloneCenterLoss(C, D, 0.5, 0.2, intra=intra, inter=inter, intra_scale=0.1)
    embeddings, labels = batch
    loss = criterion(embeddings.requires_grad_(), labels)
    loss.backward()
    intra_value, inter_value = criterion.parts(embeddings, labels)
    assert loss.item() == pytest.approx(0.5 * intra_value.item() - 0.2 * inter_value.item(), abs=1e-5)
    assert criterion.centers.grad[labels].norm(dim=1).min() > 0
    if inter == "softmax":
        logits = criterion.center_classifier(criterion.centers)
        expected = logits.log_softmax(1).diagonal().mean()
        assert inter_value.item() == pytest.approx(expected.item())
    assert criterion.scores(criterion.centers).argmax(1).tolist() == list(range(C))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CenterLoss(0, 2), r"centers of shape \(0, 2\)"),
        (lambda: CenterLoss(3, 2, center_rule="eq4"), "center_rule is 'eq4'"),
        (lambda: CenterLoss(3, 2, center_init="ones"), "center_init is 'ones'"),
        (lambda: StandaloneCenterLoss(3, 2, intra="l1"), "intra is 'l1'"),
        (lambda: StandaloneCenterLoss(3, 2, inter="l1"), "inter is 'l1'"),
        (lambda: StandaloneCenterLoss(3, 2, inter="centers", center_init="zeros"), "coincident centers"),
    ],
)
def test_errors(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_standalone_scores_export_with_a_dynamic_batch():
    """The graph has no `cdist`, which has no ONNX form."""

    class Scores(nn.Module):
        def __init__(self):
            super().__init__()
            self.criterion = StandaloneCenterLoss(C, D)

        def forward(self, embeddings):
            return self.criterion.scores(embeddings)

    model = Scores().eval()
    batch = {"embeddings": {0: torch.export.Dim("batch", max=4096)}}
    program = torch.export.export(model, (torch.randn(2, D),), dynamic_shapes=batch).run_decompositions()
    assert not [node for node in program.graph.nodes if "cdist" in str(node.target)]
    for size in (1, 2, 7):
        embeddings = torch.randn(size, D)
        torch.testing.assert_close(program.module()(embeddings), model(embeddings))
        slow = -(embeddings[:, None] - model.criterion.centers).square().sum(2)
        torch.testing.assert_close(model(embeddings), slow)
