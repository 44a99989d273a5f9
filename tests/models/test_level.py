"""The level of the sky around sources, and what a network makes of it."""

import numpy as np
import pytest
import torch

from probablend.emulate.blend import FieldConfig, draw_field
from probablend.models import build_model
from probablend.models.level import LEVEL_REACH, sky_level, without_level

SMALL = {"kind": "field", "channels": [4, 6, 8], "context": 12, "flow_hidden": [16]}
WHITE = torch.ones(1)


def noise(n=320, seed=1):
    return torch.randn(1, n, n, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("level", [-0.1, 0.0, 0.1])
def test_an_empty_sky_has_its_own_level(level):
    found, n = sky_level(noise() + level, WHITE)[0]
    inner = slice(24, -24)
    # The weights are those of 4πσ² pixels, σ = 32, but for places near a peak of the noise.
    assert 6_000 < n[inner, inner].median() < 4 * np.pi * 32**2
    # Peaks of the noise hide, as faint galaxies do, and more of them where the level is high.
    low = {-0.1: 0.005, 0.0: 0.015, 0.1: 0.04}[level]
    assert level - low < found[inner, inner].mean() < level + 0.01
    assert found[inner, inner].std() < 0.015


def test_galaxies_do_not_count(galaxies):
    """Levels with and without galaxies differ by what lies outside of all their visible light."""
    config = FieldConfig(size=256, mag_range=(20.5, 26.0), companion_fraction=0.3)
    scene = draw_field(galaxies, config, generator=np.random.default_rng(3))
    image = torch.from_numpy((scene.image / scene.rms).astype(np.float32))[None]
    assert image.mean() > 0.15  # what a mean would say
    level = sky_level(image, WHITE)[0, 0]
    assert level.abs().mean() < 0.03
    assert level.abs().max() < 0.08
    moved = sky_level(image + 0.1, WHITE)[0, 0] - level
    assert 0.05 < moved.mean() < 0.1


def test_nothing_is_said_where_nothing_is_empty():
    image = torch.full((1, 64, 64), 50.0)
    image[:, :30] = 0  # masked
    level = sky_level(image, WHITE)
    assert torch.equal(level, torch.zeros(1, 2, 16, 16))
    assert torch.equal(without_level(image, level), image)


def test_what_is_masked_stays_masked():
    image = noise(70) - 0.2
    image[:, 10:20, 5:9] = 0
    level = sky_level(image, WHITE)
    assert level.shape == (1, 2, 18, 18)
    flat = without_level(image, level)
    assert torch.equal(flat == 0, image == 0)
    assert (image - flat)[image != 0].max() < -0.05


def test_a_part_of_an_image_says_the_same_beyond_its_reach():
    image = noise(448)
    image[0, 200:230, 180:240] += 8
    whole = sky_level(image, WHITE)
    first = 16
    part = sky_level(image[:, first:, first : first + 320], WHITE)
    edge = LEVEL_REACH // 4
    rows, columns = slice(edge, None), slice(edge, 80 - edge)
    wanted = whole[:, :, first // 4 :, first // 4 : first // 4 + 80]
    torch.testing.assert_close(
        part[:, :, rows, columns], wanted[:, :, rows, columns], rtol=1e-4, atol=1e-5
    )


def test_noise_that_is_correlated_tells_less():
    white = sky_level(noise(), WHITE)[0, 1]
    correlated = sky_level(noise(), 2 * WHITE)[0, 1]
    assert (correlated <= white / 2).all()


@torch.inference_mode()
def test_it_changes_what_is_said_of_sources_and_nothing_else():
    torch.manual_seed(4)
    network = build_model(SMALL | {"knows_level": True}).eval()
    image = noise(64)[None]
    at = torch.tensor([0]), torch.tensor([31.0]), torch.tensor([20.0])
    said = network(image)
    other = network(image, level=said.level + torch.tensor([0.3, 0.0])[:, None, None])
    assert torch.equal(other.heat_logits, said.heat_logits)
    assert torch.equal(other.sample_logits(0, seed=1), said.sample_logits(0, seed=1))
    assert not torch.equal(other.seen(*at), said.seen(*at))
    # Light is summed above the level: with as much more sky, sums are the same.
    n = len(network.config.apertures)
    raised = network(image + 0.3, level=other.level)
    wanted, found = (torch.sinh(d.seen(*at)[:, -n - 3 : -3]) for d in (said, raised))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    deaf = build_model(SMALL).eval()
    assert deaf(image).level is None
