import pytest
import torch
from torch import nn

from metricloss_pl.batch_norms import frozen_batch_statistics
from metricloss_pl.errors import UserError
from metricloss_pl.mixing import CutMix, MixUp

PARTNERS = torch.tensor([2, 0, 1, 3])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("share", [0.75, 0.3, 0.0, 1.0])
def test_cutmix_pixel_by_pixel(share, dtype):
    """The box is cropped at the border, and lambda is the share of the remaining pixels."""
    height, width, cut_off = 6, 10, 0
    images = torch.arange(4 * 3 * height * width).reshape(4, 3, height, width).remainder(251).to(dtype)
    before = images.clone()
    rows, columns = round((1 - share) ** 0.5 * height), round((1 - share) ** 0.5 * width)
    for seed in range(20):
        torch.manual_seed(seed)
        top, left = torch.randint(height, ()) - rows // 2, torch.randint(width, ()) - columns // 2
        torch.manual_seed(seed)
        mixed, found = CutMix().mix(images, PARTNERS, share)
        own = 0
        for y in range(height):
            for x in range(width):
                pasted = top <= y < top + rows and left <= x < left + columns
                own += not pasted
                assert torch.equal(mixed[:, :, y, x], (images[PARTNERS] if pasted else images)[:, :, y, x])
        assert found == pytest.approx(own / (height * width))
        assert mixed.dtype == dtype
        cut_off += own > height * width - rows * columns
    assert torch.equal(images, before)
    assert bool(cut_off) == (share < 1)


def test_mixup_does_not_round():
    """Integers become floats in [0, 1]; floats keep their type."""
    images = torch.randint(0, 256, (4, 3, 5, 5), dtype=torch.uint8)
    mixed, share = MixUp().mix(images, PARTNERS, 0.3)
    exact = (0.3 * images.double() + 0.7 * images[PARTNERS].double()) / 255
    torch.testing.assert_close(mixed.double(), exact, rtol=0, atol=1e-6)
    assert (mixed.dtype, share) == (torch.float32, 0.3)
    same, _ = MixUp().mix((images.double() / 255), PARTNERS, 0.3)
    assert same.dtype == torch.float64
    torch.testing.assert_close(same, exact)
    assert torch.equal(MixUp().mix(images.float(), PARTNERS, 1.0)[0], images.float())


@pytest.mark.parametrize(("alpha", "probability"), [(1.0, 1.0), (0.2, 1.0), (2.0, 0.25), (1e-3, 1.0)])
def test_draws(alpha, probability):
    """The variance of Beta(a, a) is 1 / (4 (2 a + 1)); partners are a permutation; unmixed images are unchanged."""
    torch.manual_seed(0)
    mixing, images, labels = MixUp(alpha, probability), torch.rand(5, 1, 2, 2), torch.arange(5)
    drawn = [mixing(images, labels) for _ in range(2000)]
    for mixed, partners, share in drawn:
        assert sorted(partners.tolist()) == list(range(5))
        assert 0 <= share <= 1
        if share == 1 and mixed is images:
            assert partners.tolist() == list(range(5))
    shares = torch.tensor([share for mixed, _, share in drawn if mixed is not images])
    assert len(shares) == pytest.approx(2000 * probability, abs=80)
    assert shares.mean().item() == pytest.approx(0.5, abs=0.04)
    assert shares.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.15)


def test_partners_of_the_same_class():
    """Another image of the class, if there is one, each equally often; the labels need not be sorted."""
    torch.manual_seed(0)
    labels = torch.tensor([5, 2, 5, 0, 2, 5, 7, 5])
    images = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 1, 4, 4)
    counts = torch.zeros(8, 8)
    for _ in range(1200):
        mixed, partners, share = MixUp(same_class=True)(images, labels)
        assert torch.equal(labels[partners], labels)
        assert torch.equal(partners.sort().values, torch.arange(8))
        torch.testing.assert_close(mixed, share * images + (1 - share) * images[partners])
        counts[torch.arange(8), partners] += 1
    others = ((labels == labels[:, None]) & ~torch.eye(8, dtype=torch.bool)).float()
    alone = others.sum(1) == 0
    assert torch.equal(counts[alone], 1200 * torch.eye(8)[alone])
    expected = 1200 * others[~alone] / others[~alone].sum(1, keepdim=True)
    torch.testing.assert_close(counts[~alone], expected, rtol=0, atol=80)


@pytest.mark.parametrize("probability", [1.0, 0.002])
def test_draws_do_not_depend_on_the_default_type(probability):
    """The default type is a half type during steps in half precision."""
    found, images, labels = [], torch.zeros(3, 1, 1, 1, dtype=torch.uint8), torch.arange(3)
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        torch.set_default_dtype(dtype)
        try:
            found.append([MixUp(probability=probability)(images, labels)[2] for _ in range(1000)])
        finally:
            torch.set_default_dtype(torch.float32)
    assert found[0] == found[1]


def test_batch_norms_keep_their_statistics():
    network = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3).eval())
    batch = torch.randn(8, 3) + 5
    with frozen_batch_statistics(network):
        inside = network(batch)
    assert network[0].num_batches_tracked == 0
    torch.testing.assert_close(network(batch), inside)
    assert network[0].num_batches_tracked == 1
    assert network[0].running_mean.min() > 0.3
    assert network[1].num_batches_tracked == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.0}, "alpha of CutMix is 0.0; it must be above 0 and finite"),
        ({"alpha": float("nan")}, "alpha of CutMix is nan"),
        ({"probability": 1.5}, r"probability of CutMix is 1.5; it must be in \[0, 1\]"),
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(UserError, match=message):
        CutMix(**options)
