"""What must hold for every network that `segment` can use."""

import numpy as np
import pytest
import torch

from probablend.models import MODELS, build_model
from probablend.models.distribution import SegmentationDistribution, SegmentationNetwork

SMALL = {
    "field": {"context": 12, "flow_hidden": [16], "head_width": 6, "n_draws": 2},
    "unet": {},
    "punet": {"latent_dim": 3},
    "hpunet": {"n_latent_levels": 2},
    "ssn": {"rank": 3, "n_samples": 4},
}


SEGMENTERS = [kind for kind, (_, m) in MODELS.items() if issubclass(m, SegmentationNetwork)]


@pytest.fixture(params=SEGMENTERS)
def network(request, batch_of):
    torch.manual_seed(3)
    settings = {"kind": request.param, "channels": [4, 6, 8], "n_convs": 1, "patch_size": 32}
    model = build_model(settings | SMALL[request.param])
    model.train()  # a step that moves the normalisation statistics off their start
    image = 3 * torch.randn(6, 1, 32, 32)
    generator = torch.Generator().manual_seed(0)
    model.training_loss(batch_of(image, (image[:, 0] > 2).long()), generator=generator, beta=1.0)
    return model.eval()


def test_the_loss_reaches_every_weight(network, batch_of):
    image = 3 * torch.randn(4, 1, 32, 32)
    classes = (image[:, 0] > 1).long() + (image[:, 0] > 3).long()
    generator = torch.Generator().manual_seed(0)
    batch = batch_of(image, classes, n_sources=30)
    for name, parameter in network.named_parameters():
        if name == "heat.2.bias":  # so that there are peaks to learn from
            parameter.data.fill_(-1.0)
    terms = network.training_loss(batch, generator=generator, beta=1.0)
    network.zero_grad()
    terms["loss"].backward()
    untouched = [n for n, p in network.named_parameters() if p.grad is None]
    assert not untouched
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())
    assert {"loss", "cross_entropy"} <= set(terms)


@torch.inference_mode()
def test_the_loss_is_fixed_by_its_generator(network, batch_of):
    image = 3 * torch.randn(2, 1, 32, 32)
    classes = (image[:, 0] > 1).long()
    batch = batch_of(image, classes, n_sources=10)
    first, again = (
        network.training_loss(batch, generator=torch.Generator().manual_seed(5), beta=1.0)
        for _ in range(2)
    )
    assert torch.equal(first["loss"], again["loss"])


@torch.inference_mode()
def test_peaks_of_an_empty_sky_are_learnt_from(network, batch_of):
    for name, parameter in network.named_parameters():
        if name == "heat.2.bias":
            parameter.data.fill_(-1.0)
    batch = batch_of(torch.randn(2, 1, 32, 32), torch.zeros(2, 32, 32).long(), n_sources=0)
    terms = network.training_loss(batch, generator=torch.Generator().manual_seed(5), beta=1.0)
    assert torch.isfinite(terms["loss"])
    if "existence" in terms:  # a field model
        assert terms["existence"] > 0


@pytest.mark.parametrize("shape", [(32, 32), (33, 47), (1, 1)])
@torch.inference_mode()
def test_any_size_comes_back_as_it_went_in(network, shape):
    distribution = network(torch.randn(2, 1, *shape))
    probabilities = distribution.class_probabilities(2)
    assert probabilities.shape == (2, 2, 3, *shape)
    torch.testing.assert_close(probabilities.sum(dim=2), torch.ones(2, 2, *shape))
    assert distribution.sample(2).shape == (2, 2, *shape)


@torch.inference_mode()
def test_draws_are_fixed_by_the_seed(network):
    distribution = network(torch.randn(1, 1, 40, 40))
    four, six = distribution.sample(4, seed=3), distribution.sample(6, seed=3)
    assert torch.equal(four, six[:4])
    assert not torch.equal(four, distribution.sample(4, seed=4))


@torch.inference_mode()
def test_a_tile_gives_the_answer_of_the_whole_image(network):
    torch.manual_seed(4)
    halo, stride = network.halo, network.config.stride
    side = 2 * halo + 96
    image = 2 * torch.randn(1, 1, side, side)
    whole = network(image, sliding=True)
    start = 48 // stride * stride
    tile = network(image[..., start:, start:], sliding=True).at((start, start))
    for sample in range(2):
        a = whole.sample_logits(sample, seed=1)[..., start + halo :, start + halo :]
        b = tile.sample_logits(sample, seed=1)[..., halo:, halo:]
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


@torch.inference_mode()
def test_more_draws_blend_as_often_as_the_probabilities_say(network):
    distribution = network(torch.randn(1, 1, 24, 24)).at((64, 128))
    p_blend = next(iter(distribution.draws(1, seed=2)))[0][0, 2].numpy()
    maps = distribution.more_blends(p_blend, 0, 1500, seed=2)
    count = np.zeros((24, 24))
    for y, x in maps:
        count[y, x] += 1
    seen = p_blend > 0.01
    np.testing.assert_allclose((count / 1500)[seen], p_blend[seen], atol=0.07)


@torch.inference_mode()
def test_drawing_a_part_at_once_is_drawing_it_map_by_map(network):
    stride = network.config.stride
    n = 6 * stride + stride // 2
    image = 4 * torch.randn(1, 1, n, n, generator=torch.Generator().manual_seed(3))
    distribution = network(image, sliding=True).at((4 * stride, 2 * stride))
    inner = (slice(stride, n - 1), slice(2 * stride, n))
    drawn = distribution.draw(3, 4, inner=inner, seed=5)
    slow = SegmentationDistribution.draw(distribution, 3, 4, inner=inner, seed=5)
    np.testing.assert_allclose(drawn.mean, slow.mean, atol=1e-6)
    assert drawn.samples.dtype == np.uint8
    # One pixel in a million lies so close to a limit that rounding decides.
    assert (drawn.samples != slow.samples).mean() < 1e-3
    assert len(drawn.blends) == len(slow.blends) == 12
    for (y, x), (v, u) in zip(drawn.blends, slow.blends, strict=True):
        assert len({*zip(y.tolist(), x.tolist(), strict=True)}
                   ^ {*zip(v.tolist(), u.tolist(), strict=True)}) <= 1  # fmt: skip
