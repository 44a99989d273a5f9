"""Profiles fitted to sources, beside those that GalSim draws."""

import math
from dataclasses import replace

import galsim
import numpy as np
import pytest
import torch

from probablend.emulate.psf import psf_image, survey_psf
from probablend.models.fit import fit_sources
from probablend.models.profiles import moffat_images
from probablend.models.window import Guess
from probablend.psf import SIDE, light_in_wings
from probablend.survey import get_survey

SIZE, FWHM, BETA = 120, 2.4, 3.3


def drawn(*galaxies, size=SIZE, lobes=False):
    """Noiseless Sérsic galaxies (flux, hlr, g1, g2, y, x, n) under a Moffat PSF, pixels."""
    psf = point_spread(lobes=lobes)
    total = np.zeros((size, size))
    middle = (size - 1) / 2
    for flux, hlr, g1, g2, y, x, n in galaxies:
        profile = galsim.Sersic(n=n, half_light_radius=hlr, flux=flux, trunc=8 * hlr)
        profile = galsim.Convolve(profile.shear(g1=g1, g2=g2), psf).shift(x - middle, y - middle)
        total += profile.drawImage(nx=size, ny=size, scale=1.0).array
    return torch.from_numpy(total.astype(np.float32))[None]


def point_spread(*, lobes):
    moffat = galsim.Moffat(beta=BETA, fwhm=FWHM)
    if not lobes:
        return moffat
    sides = [(0.12 * moffat).shift(dx, dy) for dx, dy in ((4.5, 0.0), (-2.3, 4.0), (-2.3, -4.0))]
    return 0.64 * moffat + galsim.Sum(sides)


def image_of_psf(*, lobes=False):
    image = point_spread(lobes=lobes).drawImage(nx=SIDE, ny=SIDE, scale=1.0).array
    return torch.from_numpy(image / image.sum())[None]


def guess(*galaxies, off=0.0, generator=None):
    """Where a fit of these galaxies starts, wrong by about ``off``."""
    table = torch.tensor(galaxies, dtype=torch.float32)
    wrong = off * torch.randn(table.shape, generator=generator)
    flux, hlr, _, _, y, x, _ = table.unbind(1)
    zero = torch.zeros(len(table))
    return Guess(
        zero.long(), y + wrong[:, 0], x + wrong[:, 1], flux.log() + wrong[:, 2],
        hlr.log() + wrong[:, 3], zero, zero, torch.full_like(zero, FWHM),
    )  # fmt: skip


GALAXIES = [
    (3000.0, 2.5, 0.2, -0.1, 59.3, 60.6, 1.0),
    (20000.0, 6.0, -0.3, 0.2, 60.2, 59.7, 2.0),
    (90000.0, 14.0, 0.1, 0.3, 58.0, 61.0, 1.0),
]


@pytest.mark.parametrize("galaxy", GALAXIES)
def test_a_profile_is_found_again(galaxy):
    start = guess(galaxy, off=0.2, generator=torch.Generator().manual_seed(1))
    found = fit_sources(drawn(galaxy), start, start, image_of_psf())
    flux, hlr, g1, g2, y, x, n = galaxy
    value = found.value[0]
    assert value[0] == pytest.approx(math.log(flux), abs=0.02)
    assert value[1] == pytest.approx(math.log(hlr), abs=0.03)
    assert value[2:4].tolist() == pytest.approx([g1, g2], abs=0.02)
    place = [float(start.y + value[4]), float(start.x + value[5])]
    assert place == pytest.approx([y, x], abs=0.03)
    assert value[6] == pytest.approx(math.log(n), abs=0.15)
    assert found.misfit[0] < 0.3  # there is no noise
    assert found.known[0] == 1
    assert found.bins[0] == {2.5: 1, 6.0: 2, 14.0: 4}[hlr]  # larger windows of coarser pixels


def test_blended_profiles_share_the_light():
    pair = [(4000.0, 3.0, 0.3, 0.0, 58.0, 57.0, 1.0), (1500.0, 2.0, 0.0, -0.2, 62.0, 63.0, 1.5)]
    start = guess(*pair, off=0.15, generator=torch.Generator().manual_seed(2))
    found = fit_sources(drawn(*pair), start, start, image_of_psf())
    light = [drawn(one)[0] for one in pair]
    for k, (flux, *_) in enumerate(pair):
        assert found.value[k, 0] == pytest.approx(math.log(flux), abs=0.04)
        own, both = light[k], light[0] + light[1]
        blendedness = 1 - float((own**2).sum() / (own * both).sum())
        assert found.blendedness[k] == pytest.approx(blendedness, abs=0.02)


def test_what_is_near_but_not_fitted_is_taken_away():
    """Of a dozen around a galaxy two are fitted with it; with the rest left in it is too bright."""
    angle = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    ring = [
        (2500.0, 2.0, 0.0, 0.0, 60 + 11 * np.sin(a), 60 + 11 * np.cos(a), 1.4)
        for a in angle.tolist()
    ]
    middle = (2000.0, 3.0, 0.0, 0.0, 60.0, 60.0, 1.0)
    start = guess(middle, *ring)
    image = drawn(middle, *ring)
    known = fit_sources(image, start.keep(torch.tensor([0])), start, image_of_psf())
    alone = fit_sources(image, start.keep(torch.tensor([0])), start.keep(torch.tensor([0])))
    assert known.value[0, 0] == pytest.approx(math.log(2000.0), abs=0.05)
    assert alone.value[0, 0] > math.log(2000.0) + 0.3


def test_errors_are_those_of_the_noise():
    """Truths of Sérsic galaxies in white noise lie within one standard deviation in 68 %."""
    generator = torch.Generator().manual_seed(3)
    galaxy = (1500.0, 2.5, 0.15, -0.1, 60.0, 60.0, 1.4)
    image = drawn(galaxy)
    n = 400
    noisy = image + torch.randn(n, SIZE, SIZE, generator=generator)
    start = guess(*[galaxy] * n)
    start = Guess(torch.arange(n), *(getattr(start, f) for f in
                  ("y", "x", "ln_flux", "ln_hlr", "g1", "g2", "fwhm")))  # fmt: skip
    found = fit_sources(noisy, start, start, image_of_psf().expand(n, -1, -1))
    truth = torch.tensor([math.log(1500.0), math.log(2.5), 0.15, -0.1, 0.0, 0.0])
    pull = (found.value[:, :6] - truth) / found.error[:, :6]
    share = (pull.abs() < 1).float().mean(dim=0)
    assert (share > 0.6).all()  # a prior makes some of them a little better than that
    assert (share < 0.85).all()
    assert found.misfit.mean() == pytest.approx(1.0, abs=0.1)


def test_lobes_of_a_psf_are_no_companions_if_it_is_known():
    galaxy = (20000.0, 2.5, 0.0, 0.0, 60.0, 60.0, 1.0)
    image = drawn(galaxy, lobes=True)
    start = guess(galaxy)
    known = fit_sources(image, start, start, image_of_psf(lobes=True))
    assumed = fit_sources(image, start, start)
    assert known.value[0, 0] == pytest.approx(math.log(20000.0), abs=0.02)
    assert known.misfit[0] < 0.3
    assert assumed.misfit[0] > 5
    assert [float(f.known[0]) for f in (known, assumed)] == [1, 0]


def test_masked_pixels_do_not_count():
    galaxy = (5000.0, 3.0, 0.0, 0.0, 60.0, 60.0, 1.0)
    start = guess(galaxy)
    image = drawn(galaxy)
    image[:, 63:66, 50:70] = 0.0
    found = fit_sources(image, start, start, image_of_psf())
    assert found.value[0, 0] == pytest.approx(math.log(5000.0), abs=0.03)


def test_scenes_of_a_batch_do_not_see_each_other():
    a, b = (3000.0, 3.0, 0.1, 0.0, 60.0, 60.0, 1.0), (9000.0, 4.0, 0.0, 0.0, 62.0, 66.0, 1.0)
    both = guess(a, b)
    apart = Guess(torch.tensor([0, 1]), *(getattr(both, f) for f in
                  ("y", "x", "ln_flux", "ln_hlr", "g1", "g2", "fwhm")))  # fmt: skip
    images = torch.cat([drawn(a), drawn(b)])
    together = fit_sources(images, apart, apart, image_of_psf().expand(2, -1, -1))
    alone = fit_sources(images[:1], guess(a), guess(a), image_of_psf())
    torch.testing.assert_close(together.value[:1], alone.value, atol=1e-4, rtol=1e-4)


def test_threads_change_nothing():
    generator = torch.Generator().manual_seed(1)
    image = drawn(*GALAXIES[:2]) + torch.randn(1, SIZE, SIZE, generator=generator)
    start = guess(*GALAXIES[:2] * 20, off=0.3, generator=generator)
    n_threads = torch.get_num_threads()
    said = []
    with torch.inference_mode():
        for n in (1, 4):
            torch.set_num_threads(n)
            try:
                said.append(fit_sources(image, start, start.keep(torch.arange(2))).summary)
                assert torch.get_num_threads() == n
            finally:
                torch.set_num_threads(n_threads)
    torch.testing.assert_close(said[0], said[1], atol=1e-4, rtol=1e-4)


def test_nothing_is_fitted_to_nothing():
    none = guess((1.0,) * 7).keep(torch.zeros(1, dtype=torch.bool))
    assert len(fit_sources(torch.zeros(1, 40, 40), none, none).value) == 0
    empty = guess((50.0, 2.0, 0.0, 0.0, 2.0, 39.0, 1.0))
    found = fit_sources(torch.zeros(1, 40, 40), empty, none)  # no pixel holds anything
    assert found.value.isfinite().all()
    assert found.summary.isfinite().all()


def test_what_is_beyond_all_numbers_gives_numbers():
    wild = guess((1e20, 1e9, 0.0, 0.0, 20.0, 20.0, 1.0), (1.0, 1e-9, 0.0, 0.0, 22.0, 21.0, 1.0))
    image = torch.full((1, 40, 40), 1e30)
    image[0, 20, 20] = -1e30
    assert fit_sources(image, wild, wild).summary.isfinite().all()


@pytest.mark.parametrize("beta", [2.2, 3.3, 7.0])
def test_a_psf_is_made_of_its_width_and_its_wings(beta):
    moffat = galsim.Moffat(beta=beta, fwhm=FWHM)
    large = galsim.Moffat(beta=beta, fwhm=8.0).drawImage(nx=401, ny=401, scale=1.0).array
    wings = light_in_wings(large, 8.0, total=1.0)[0]
    made = moffat_images(torch.tensor([FWHM]), torch.tensor([wings], dtype=torch.float32))[0]
    wanted = moffat.drawImage(nx=SIDE, ny=SIDE, scale=1.0).array
    np.testing.assert_allclose(made, wanted / wanted.sum(), atol=0.004)


@pytest.mark.parametrize("name", ["euclid-vis", "lsst-i"])
def test_the_psf_of_a_survey_comes_with_its_image(name):
    survey = get_survey(name)
    np.testing.assert_array_equal(survey_psf(survey).image, psf_image(survey, SIDE))


def test_a_galaxy_far_from_the_corner_is_fitted_as_one_that_is_near():
    image, away = drawn((3000.0, 2.5, 0.2, -0.1, 59.3, 60.6, 1.0)), 24_576
    wide = torch.cat([torch.zeros(1, SIZE, away), image], dim=2)
    near = guess((3000.0, 2.5, 0.2, -0.1, 59.3, 60.6, 1.0))
    near = replace(near, y=near.y.double() + 0.123, x=near.x.double() + 0.057)
    far = replace(near, x=near.x + away)
    fits = [
        fit_sources(one, start, start, image_of_psf())
        for one, start in ((image, near), (wide, far))
    ]
    torch.testing.assert_close(fits[1].value, fits[0].value, rtol=0, atol=1e-5)
