import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from probablend.models.prob_unet import ProbabilisticUNet, ProbabilisticUNetConfig


@pytest.fixture
def image():
    torch.manual_seed(2)
    return 2 * torch.randn(2, 1, 32, 32)


@pytest.fixture
def classes(image):
    return (image[:, 0] > 1).long() + (image[:, 0] > 3).long()


def torch_generator(seed=0):
    return torch.Generator().manual_seed(seed)


@torch.inference_mode()
def test_divergence_is_the_closed_form_of_two_gaussians(small_network, image, classes):
    distribution = small_network(image, classes)
    _, divergence = distribution.elbo_terms(classes, generator=torch_generator())
    q, p = distribution.posterior.base_dist, distribution.prior.base_dist
    expected = (
        torch.log(p.scale / q.scale) + (q.scale**2 + (q.loc - p.loc) ** 2) / (2 * p.scale**2) - 0.5
    ).sum(dim=(1, 2, 3))
    torch.testing.assert_close(divergence, expected)
    assert (divergence > 0).all()


@torch.inference_mode()
def test_cross_entropy_is_summed_over_pixels(small_network, image, classes):
    """By hand, with the same z: −Σ log p(true class)."""
    distribution = small_network(image, classes)
    got, _ = distribution.elbo_terms(classes, generator=torch_generator(4))
    q = distribution.posterior.base_dist
    z = q.loc + q.scale * torch.randn(q.loc.shape, generator=torch_generator(4))
    p = distribution.logits(z).softmax(dim=1)
    by_hand = -torch.log(p.gather(1, classes[:, None])).sum(dim=(1, 2, 3))
    torch.testing.assert_close(got, by_hand, rtol=1e-4, atol=1e-3)


@torch.inference_mode()
def test_log_prob_is_exact_where_the_latent_changes_nothing(small_network, image, classes):
    """A head that ignores z has log p(y|x) = Σ log p(class): any number of draws agrees."""
    weight = small_network.head.from_latent.weight
    kept = weight.clone()
    try:
        weight.zero_()
        distribution = small_network(image, classes)
        log_p = F.log_softmax(distribution.sample_logits(0, seed=0), dim=1)
        exact = log_p.gather(1, classes[:, None]).sum(dim=(1, 2, 3))
        # Importance weights p(z)/q(z) average to 1: what is left is their scatter.
        estimate = distribution.log_prob(classes, n=20_000, generator=torch_generator())
        spread = float(distribution.elbo_terms(classes, generator=torch_generator())[1].max())
        assert spread < 3, "q and p too far apart for this test to say anything"
        torch.testing.assert_close(estimate, exact, rtol=0, atol=0.2)
    finally:
        weight.copy_(kept)


@torch.inference_mode()
def test_log_prob_lies_above_the_evidence_lower_bound(small_network, image, classes):
    distribution = small_network(image, classes)
    bounds = torch.stack(
        [sum(distribution.elbo_terms(classes, generator=torch_generator(k))) for k in range(64)]
    )
    elbo = -bounds.mean(dim=0)
    estimate = distribution.log_prob(classes, n=64, generator=torch_generator(99))
    assert (estimate > elbo).all()


@torch.inference_mode()
def test_samples_are_fixed_by_the_seed_and_do_not_depend_on_their_number(small_network, image):
    distribution = small_network(image)
    four, six = distribution.sample(4, seed=3), distribution.sample(6, seed=3)
    assert torch.equal(four, six[:4])
    assert not torch.equal(four, distribution.sample(4, seed=4))
    assert not torch.equal(four[0], four[1])
    assert four.dtype == torch.uint8
    assert int(four.max()) <= 2


@torch.inference_mode()
def test_classes_are_drawn_with_their_own_probabilities(small_network, image):
    n = 1000
    distribution = small_network(image)
    expected = distribution.mean(n)
    samples = distribution.sample(n)
    for k in range(3):
        got = (samples == k).float().mean(dim=0)
        # Binomial scatter of n draws, 5 σ.
        assert float((got - expected[:, k]).abs().max()) < 5 * 0.5 / math.sqrt(n) + 0.01


@torch.inference_mode()
def test_neighbouring_pixels_are_drawn_together(small_network, image):
    distribution = small_network(image)
    samples = (distribution.sample(400)[:, 0] > 0).float()
    smooth = distribution.mean(50)[0, 1:].sum(dim=0)
    uncertain = (smooth[:, 1:] - 0.5).abs().maximum((smooth[:, :-1] - 0.5).abs()) < 0.3
    a, b = samples[:, :, 1:][:, uncertain], samples[:, :, :-1][:, uncertain]
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.3


@torch.inference_mode()
def test_a_tile_of_a_large_image_gives_the_large_image_s_answer(small_network):
    torch.manual_seed(3)
    halo, stride = small_network.halo, small_network.config.stride
    side = 2 * halo + 96
    image = 2 * torch.randn(1, 1, side, side)
    whole = small_network(image)
    start = 48 // stride * stride
    tile = small_network(image[..., start:, start:], sliding=True).at((start, start))
    for sample in range(3):
        a = whole.sample_logits(sample, seed=1)[..., start + halo :, start + halo :]
        b = tile.sample_logits(sample, seed=1)[..., halo:, halo:]
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
    inner_a = whole.sample(2, seed=1)[..., start + halo :, start + halo :]
    inner_b = tile.sample(2, seed=1)[..., halo:, halo:]
    assert (inner_a != inner_b).float().mean() < 1e-3
    with pytest.raises(ValueError, match="multiple of"):
        tile.at((1, 0))


@torch.inference_mode()
def test_the_head_is_not_affine_in_the_latent(small_network, image):
    """An affine head would make every sample nested in every other one."""
    distribution = small_network(image)
    z = distribution.latent(0, seed=0)
    zero = torch.zeros_like(z)
    bend = distribution.logits(z) + distribution.logits(-z) - 2 * distribution.logits(zero)
    assert float(bend.abs().max()) > 1e-2


@pytest.mark.parametrize(("n_bands", "shape"), [(1, (20, 37)), (5, (32, 16))])
def test_any_number_of_bands_and_any_size(n_bands, shape):
    config = ProbabilisticUNetConfig(n_bands=n_bands, channels=(4, 6), n_convs=1, patch_size=16)
    network = ProbabilisticUNet(config).eval()
    distribution = network(torch.randn(2, n_bands, *shape), torch.zeros(2, *shape).long())
    assert distribution.mean(2).shape == (2, 3, *shape)
    cross_entropy, divergence = distribution.elbo_terms(
        torch.zeros(2, *shape).long(), generator=torch_generator()
    )
    assert cross_entropy.shape == divergence.shape == (2,)


def test_without_the_truth_there_is_no_bound(small_network, image, classes):
    with pytest.raises(ValueError, match="needs the truth"):
        small_network(image).elbo_terms(classes, generator=torch_generator())
    with pytest.raises(ValueError, match="at least 1"):
        small_network(image).sample(0)


def test_a_seed_that_differs_from_the_default_reaches_the_posterior(small_network, image, classes):
    distribution = small_network(image, classes)
    first, again, other = (
        distribution.elbo_terms(classes, generator=torch_generator(k))[0] for k in (1, 1, 2)
    )
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first, other)
