import warnings

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from metricloss_pl.metrics import BalancedAccuracy


@pytest.mark.parametrize("absent", [None, 2])
def test_equals_scikit_learn_also_where_a_class_is_absent(absent):
    torch.manual_seed(0)
    scores, labels = torch.randn(60, 5), torch.randint(0, 5, (60,))
    if absent is not None:
        scores, labels = scores[labels != absent], labels[labels != absent]
        assert (scores.argmax(1) == absent).any()
    metric = BalancedAccuracy(5)
    for k in range(3):
        metric.update(scores[k::3], labels[k::3])
    with warnings.catch_warnings(action="ignore"):  # of a class that no image has
        expected = balanced_accuracy_score(labels, scores.argmax(1))
    assert metric.compute().item() == pytest.approx(expected)
