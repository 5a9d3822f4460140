"""Every loss is one graph for torch.compile: its flow does not depend on values."""

import pytest
import torch

from metricloss_pl.losses import CosineLoss, StandaloneCenterLoss
from metricloss_pl.losses import functional as F

C, D = 5, 5
CENTERS = torch.randn(C, D, generator=torch.Generator().manual_seed(0))
CALLS = {
    "cosine": lambda x, y: F.cosine_loss(x, y),
    "cosine to class embeddings": CosineLoss(F.normalize(CENTERS)),
    "cosine cross-entropy": lambda x, y: F.cosine_cross_entropy(x, y),
    "cross-entropy": lambda x, y: F.cross_entropy(x, y, 0.1, "non_target"),
    "squared error": lambda x, y: F.squared_error(x, y),
    "center": lambda x, y: F.center_loss(x, y, CENTERS),
    "center delta": lambda x, y: F.center_delta(x, y, CENTERS)[1],
    "center gradient": lambda x, y: F.center_gradient(x, y, CENTERS)[1],
    "exponential": lambda x, y: F.exponential_intra(x, y, CENTERS),
    "center inter": lambda x, y: F.center_inter(CENTERS) + x.sum(),
    **{
        f"standalone {inter}, {pairs}": lambda x, y, inter=inter, pairs=pairs: torch.stack(
            F.standalone_center_loss(x, y, CENTERS, inter=inter, pairs=pairs)
        )
        for inter in ("log1p", "log", "margin", "negative")
        for pairs in ("sum", "mean")
    },
    "nearest center": lambda x, y: F.nearest_center(x, CENTERS, chunk_size=2),
}
PER_CLASS = ("center delta", "center gradient")


@pytest.mark.parametrize("name", CALLS)
def test_one_graph(name):
    """Trace each whole, also under autocast and for another batch size, without a C++ compiler.

    The terms per class break the graph where torch counts the classes of a batch.
    """
    torch.compiler.reset()
    compiled = torch.compile(CALLS[name], fullgraph=name not in PER_CLASS, backend="eager")
    for batch_size in (6, 9):
        x = torch.randn(batch_size, D)
        y = torch.arange(batch_size) % (C - 1)
        torch.testing.assert_close(compiled(x, y), CALLS[name](x, y))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(compiled(x.bfloat16(), y), CALLS[name](x.bfloat16(), y))


def test_the_module_with_centers_is_one_graph():
    torch.compiler.reset()
    criterion = StandaloneCenterLoss(C, D)
    x, y = torch.randn(8, D), torch.arange(8) % C
    compiled = torch.compile(criterion, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, y), criterion(x, y))
