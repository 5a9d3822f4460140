"""The views of an image count as one: beside closed forms, with a network that a mirror image changes."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from metricloss_pl.class_embeddings import simplex
from metricloss_pl.regimes import (
    CenterSoftmaxClassifier,
    CosineClassifier,
    SoftmaxClassifier,
    StandaloneCenterClassifier,
)
from tests.regimes.blobs import C, Flat, blobs, trainer

REGIMES = {
    "softmax": lambda: SoftmaxClassifier(C, Flat()),
    "cosine": lambda: CosineClassifier(C, Flat()),
    "cosine_alone": lambda: CosineClassifier(C, Flat(), ce_weight=0, class_embeddings=simplex(C)),
    "center": lambda: CenterSoftmaxClassifier(C, Flat()),
    "standalone": lambda: StandaloneCenterClassifier(C, Flat()),
}


def both(images):
    """(B, C, H, W) to the image and its mirror image, (B, 2, C, H, W)."""
    return torch.stack([images, images.flip(-1)], dim=1)


@pytest.fixture(params=REGIMES)
def model(request):
    torch.manual_seed(0)
    return REGIMES[request.param]().eval()


@torch.no_grad()
def test_scores_are_the_views_mean_scores_where_that_is_a_closed_form(model):
    """Logits: equal. Squared distances: up to a term, cosines: up to a factor, that all classes have in common."""
    images = blobs(30)[:][0]
    views = both(images)
    embeddings = model.embed_views(views)
    each = [model.class_scores(model.embed(view)) for view in (images, images.flip(-1))]
    assert not torch.allclose(each[0], each[1], atol=0.1)  # the network sees the difference
    scores, mean = model.class_scores(embeddings), sum(each) / 2
    if isinstance(model, CosineClassifier) and model.criterion.head is None:
        ratio = scores / mean
        torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-4, atol=1e-4)
    elif isinstance(model, CosineClassifier):
        directions = sum(model.metric_embeddings(model.embed(view)) for view in (images, images.flip(-1))) / 2
        torch.testing.assert_close(embeddings, directions)
        return  # its head is not linear
    elif isinstance(model, StandaloneCenterClassifier):
        offset = scores - mean
        torch.testing.assert_close(offset, offset[:, :1].expand_as(offset), rtol=1e-4, atol=1e-4)
    else:
        torch.testing.assert_close(scores, mean)
    assert torch.equal(scores.argmax(1), mean.argmax(1))


def test_a_linear_network_sees_the_mean_image(tmp_path):
    """Test and predict over views are those over (x + mirrored x) / 2: every metric, loss and probability."""
    torch.manual_seed(0)
    model = SoftmaxClassifier(C, Flat())
    images, labels = blobs(30)[:]
    found, expected, plain = (
        DataLoader(TensorDataset(given, labels), batch_size=8)
        for given in (both(images), (images + images.flip(-1)) / 2, images)
    )
    run = trainer(tmp_path)
    tested, by_hand, unlike = (run.test(model, loader, verbose=False)[0] for loader in (found, expected, plain))
    assert tested == pytest.approx(by_hand, rel=1e-5)
    assert tested != pytest.approx(unlike, rel=1e-2)
    for one, other in zip(run.predict(model, found), run.predict(model, expected), strict=True):
        for key in ("probabilities", "embeddings"):
            torch.testing.assert_close(one[key], other[key])
