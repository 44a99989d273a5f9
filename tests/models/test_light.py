"""What a field network sums up around a position, and what it is told of the noise."""

import math

import galsim
import numpy as np
import pytest
import torch

from probablend.models import build_model
from probablend.models.light import light, light_by_sector, symmetric

WIDTHS = (1.0, 2.0, 4.0, 8.0)
SMALL = {"kind": "field", "channels": [4, 6, 8], "context": 12, "flow_hidden": [16]}


def galaxy(y, x, *, shear=(0.0, 0.0), flux=1000.0, size=99):
    """A disc at a position of an image, pixels."""
    profile = galsim.Exponential(half_light_radius=3.0, flux=flux).shear(g1=shear[0], g2=shear[1])
    profile = galsim.Convolve(profile, galsim.Gaussian(fwhm=2.5))
    middle = (size - 1) / 2
    image = profile.shift(x - middle, y - middle).drawImage(nx=size, ny=size, scale=1.0).array
    return torch.from_numpy(image.astype(np.float32))[None]


def sums(image, y, x, n_sectors=8):
    at = (torch.zeros(1, dtype=torch.int64), torch.tensor([y]), torch.tensor([x]))
    by_sector = light_by_sector(image, *at, WIDTHS, n_sectors)
    return by_sector.sum(dim=2)[0], symmetric(by_sector, WIDTHS)[0]


def noise_term(n_sectors=8):
    """What is added for the lesser of two noisy numbers, in units of the noise."""
    noise = 2 * math.sqrt(math.pi) * torch.tensor(WIDTHS) / math.sqrt(n_sectors)
    return n_sectors / math.sqrt(math.pi) * noise


def test_sectors_add_up_to_all_light():
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(3, 60, 50, generator=generator)
    scene = torch.randint(3, (40,), generator=generator)
    y, x = 60 * torch.rand(40, generator=generator), 50 * torch.rand(40, generator=generator)
    every = light_by_sector(image, scene, y, x, WIDTHS, 6).sum(dim=2)
    torch.testing.assert_close(every, light(image, scene, y, x, WIDTHS), rtol=1e-4, atol=1e-4)


def test_wide_sums_are_twice_the_flux():
    lone, _ = sums(galaxy(49.0, 49.0, flux=700.0), 49.0, 49.0)
    assert float(lone[-1]) == pytest.approx(2 * 700, rel=0.15)


@pytest.mark.parametrize("y", [49.0, 49.3])
@pytest.mark.parametrize("shear", [(0.0, 0.0), (0.4, 0.0), (-0.2, 0.3)])
def test_a_lone_galaxy_is_symmetric_whatever_its_shape(shear, y):
    light, symmetric = sums(galaxy(y, 48.6, shear=shear), y, 48.6)
    assert symmetric - noise_term() == pytest.approx(light, rel=0.03)


def test_light_of_a_companion_has_no_counterpart():
    at, beside = galaxy(49.0, 49.0), galaxy(55.0, 57.0, flux=600.0)
    alone, _ = sums(at, 49.0, 49.0)
    light, symmetric = sums(at + beside, 49.0, 49.0)
    excess, left = light - alone, symmetric - noise_term() - alone
    assert float(excess[-1]) > 0.3 * float(alone[-1])
    assert (left.abs() < 0.1 * excess)[2:].all()  # the companion hardly reaches the narrow ones


def test_noise_alone_has_as_much_counterpart_as_light_on_average():
    generator = torch.Generator().manual_seed(4)
    image = torch.randn(1, 400, 400, generator=generator)
    y, x = (40 + 320 * torch.rand(2, 3000, generator=generator)).round()
    scene = torch.zeros(3000, dtype=torch.int64)
    by_sector = light_by_sector(image, scene, y, x, WIDTHS, 8)
    noise = by_sector.sum(dim=2).std(dim=0)
    # At the centre the few pixels are shared between the sectors.
    assert (symmetric(by_sector, WIDTHS).mean(dim=0).abs() < noise).all()
    assert float(symmetric(by_sector, WIDTHS)[:, -1].mean()) == pytest.approx(
        0, abs=0.3 * float(noise[-1])
    )


def test_sectors_come_in_pairs():
    with pytest.raises(ValueError, match="even"):
        build_model(SMALL | {"n_sectors": 3})


@torch.inference_mode()
def test_only_a_network_that_knows_noise_listens_to_it():
    torch.manual_seed(1)
    image = 2 * torch.randn(1, 1, 48, 48)
    factors = [torch.tensor([pair]) for pair in ([1.0, 1.0], [1.8, 1.0], [1.0, 1.8])]
    for knows in ({}, {"knows_noise": True}, {"knows_noise": True, "knows_sky": True}):
        network = build_model(SMALL | knows).eval()
        white, unsaid, correlated, rough = (
            network(image, **told).heat_logits
            for told in (
                {"noise_factors": factors[0]},
                {},
                *({"noise_factors": f} for f in factors[1:]),
            )
        )
        assert torch.equal(white, unsaid)
        assert torch.equal(white, correlated) != ("knows_noise" in knows)
        assert torch.equal(white, rough) != ("knows_sky" in knows)
    with pytest.raises(ValueError, match="set both"):
        build_model(SMALL | {"knows_sky": True})
