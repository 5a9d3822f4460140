import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from metricloss_pl.metrics import chance_accuracy

COUNTS = [12, 30, 0, 8]


@pytest.mark.parametrize(("balanced", "score"), [(False, accuracy_score), (True, balanced_accuracy_score)])
def test_equals_the_score_of_always_predicting_the_largest_class(balanced, score):
    labels = np.repeat(np.arange(4), COUNTS)
    constant = DummyClassifier(strategy="most_frequent").fit(labels, labels)
    assert chance_accuracy(COUNTS, balanced)[0] == pytest.approx(score(labels, constant.predict(labels)))


def test_error_is_the_spread_of_guessers():
    """A guesser gets each image right with the probability that is chance."""
    draws = np.random.default_rng(0)
    chance, error = chance_accuracy(COUNTS)
    assert error == pytest.approx(draws.binomial(50, chance, 20000).std() / 50, rel=0.02)
    chance, error = chance_accuracy(COUNTS, balanced=True)
    recalls = [draws.binomial(count, chance, 20000) / count for count in COUNTS if count]
    assert error == pytest.approx(np.mean(recalls, axis=0).std(), rel=0.02)
