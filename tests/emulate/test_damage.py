from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from probablend.correlation import FAR, NEAR
from probablend.emulate.bank import draw_bank
from probablend.emulate.compose import draw_batch
from probablend.emulate.damage import IGNORED, _waves, damage, seam, tilt_sky
from probablend.emulate.noise import wave_strengths
from probablend.emulate.scenes import SceneBatch, SceneConfig, Sources
from probablend.survey import PSF_RANGE, draw_survey


@pytest.fixture(scope="module")
def batch():
    bank = draw_bank(
        "parametric", ["euclid-vis"], "train", n_galaxies=60, n_stars=20, mag_range=(18.0, 25.0),
        seed=1,
    )  # fmt: skip
    config = SceneConfig(size=64, mag_range=(18.0, 25.0), star_density=100.0, crowded_share=0.0)
    return draw_batch(bank, config, n=80, seed=2, index=0)


def generator():
    return torch.Generator().manual_seed(4)


def test_damage_leaves_the_truth_alone(batch):
    spoilt = damage(batch, fraction=1.0, generator=generator())
    hidden = spoilt.classes == IGNORED
    assert 0.001 < hidden.float().mean() < 0.2
    assert torch.equal(spoilt.classes[~hidden], batch.classes[~hidden])
    assert (spoilt.image[:, 0][hidden] == 0).all()
    assert torch.equal(spoilt.noiseless, batch.noiseless)
    changed = (spoilt.image != batch.image).any(dim=1).flatten(1).float().mean(dim=1)
    assert changed.max() < 0.9
    assert (changed > 0).float().mean() > 0.9


def test_masked_sources_are_not_looked_for(batch):
    spoilt = damage(batch, fraction=1.0, generator=generator())
    s = spoilt.sources
    gone = (s.n_pixels == 0) & (batch.sources.n_pixels > 0)
    assert gone.any()
    inside = (s.y >= 0) & (s.y <= 63) & (s.x >= 0) & (s.x <= 63) & (batch.sources.n_pixels > 0)
    centre = spoilt.classes[s.scene[inside], s.y[inside].round().long(), s.x[inside].round().long()]
    assert torch.equal(centre == IGNORED, gone[inside])


def test_only_the_share_asked_for_is_damaged(batch):
    spoilt = damage(batch, fraction=0.3, generator=generator())
    touched = (spoilt.image != batch.image).flatten(1).any(dim=1).float().mean()
    assert 0.1 < touched < 0.5
    same = damage(batch, fraction=0.3, generator=generator())
    assert torch.equal(same.image, spoilt.image)


def test_a_saturated_star_is_flat_and_bleeds_along_its_column():
    n = 1
    zero = torch.zeros(n)
    star = Sources(
        scene=zero.long(), y=zero + 30.0, x=zero + 40.0, flux=zero + 1e6, hlr=zero,
        g1=zero, g2=zero, is_star=zero == 0, n_pixels=zero + 900, e1=zero, e2=zero, snr=zero + 1e5,
        blended=zero > 0, blendedness=zero,
    )  # fmt: skip
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    light = 1e5 * torch.exp(-0.5 * ((y - 30) ** 2 + (x - 40) ** 2) / 1.5**2)
    blank = SceneBatch(
        image=light[None, None], noiseless=light[None], psf_fwhm=zero + 3.5, sources=star,
        classes=torch.zeros(1, 64, 64, dtype=torch.int64),
    )  # fmt: skip
    flat = []
    for seed in range(40):
        spoilt = damage(blank, fraction=1.0, generator=torch.Generator().manual_seed(seed))
        top = spoilt.image.max()
        if top < 5000 and spoilt.image[0, 0, 30, 40] == top:  # saturated this time, not masked
            rows, columns = torch.nonzero(spoilt.image[0, 0] == top, as_tuple=True)
            flat.append((len(rows), int(rows.max() - rows.min()), float(columns.median())))
    assert len(flat) > 5
    assert min(one[0] for one in flat) > 20
    # A trail across the star may hide one side of it.
    assert all(abs(one[2] - 40) <= 1 for one in flat)
    assert np.median([one[2] for one in flat]) == 40
    assert np.median([one[1] for one in flat]) > 40  # a column, not a row


def test_what_is_left_of_the_sky_is_little_and_smooth(batch):
    tilted = tilt_sky(batch, fraction=1.0, generator=generator())
    rest = (tilted.image - batch.image)[:, 0]
    assert 0.05 < rest.std() < 0.3
    # A plane has no second differences, and waves hardly any from one pixel to the next.
    assert rest.diff(n=2, dim=1).std() < 0.1 * rest.std()
    # Hidden under the noise of a pixel, they count over the area of a galaxy.
    middle = rest - rest.mean(dim=(1, 2), keepdim=True)
    boxes = torch.nn.functional.avg_pool2d(middle[:, None], 8) * 8  # unit noise, were it white
    assert 0.2 < boxes.std() < 2.0
    # What is told of them is what they add to white noise on the larger scale.
    told = tilt_sky(
        replace(batch, noise_factors=torch.ones(len(batch.image), 2)), fraction=1.0,
        generator=generator(),
    ).noise_factors  # fmt: skip
    noise = torch.randn(rest.shape, generator=generator())
    narrow, wide = (
        np.array([[gaussian_filter(one.numpy(), width, mode="wrap") for one in many]
                  for many in (noise + rest, noise)])
        for width in (4, 16)
    )  # fmt: skip
    with_waves, without = (narrow - wide).var(axis=(1, 2, 3))
    assert float((told[:, 1] ** 2).mean()) == pytest.approx(with_waves / without, rel=0.25)
    some = tilt_sky(batch, fraction=0.5, generator=generator())
    share = (some.image != batch.image).flatten(1).any(dim=1).float().mean()
    assert 0.25 < share < 0.75


@pytest.mark.parametrize("width", [3.0, 8.0, 16.0])
def test_waves_are_as_strong_on_every_scale_as_is_said(width):
    many = torch.full((400,), width)
    waves, white = (
        field.numpy()
        for field in (
            _waves(many, 128, 128, generator()),
            torch.randn(400, 128, 128, generator=generator()),
        )
    )
    assert waves.var() == pytest.approx(1, abs=0.1)  # of many, though not of each

    def smooth(fields, sigma):
        return gaussian_filter(fields, (0, sigma, sigma), mode="wrap")

    pairs = [[smooth(each, NEAR) for each in (waves, white)]]
    pairs += [[smooth(each, FAR[0]) - smooth(each, FAR[1]) for each in (waves, white)]]
    found = [one.var() / other.var() for one, other in pairs]
    assert found == pytest.approx(wave_strengths(many)[0].tolist(), rel=0.12)


def test_surveys_that_might_be_are_within_their_range():
    surveys = [draw_survey(np.random.default_rng(k)) for k in range(200)]
    width = np.array([s.psf_fwhm_pixels for s in surveys])
    assert (width > PSF_RANGE[0]).all()
    assert (width < PSF_RANGE[1]).all()
    assert np.ptp(width) > 5
    assert {s.psf_profile for s in surveys} == {"gaussian", "moffat", "kolmogorov", "airy"}
    assert max(np.hypot(s.psf_g1, s.psf_g2) for s in surveys) > 0.08
    moffats = np.array([1 / s.psf_beta for s in surveys if s.psf_profile == "moffat"])
    assert 0.3 < len(moffats) / len(surveys) < 0.5
    assert (moffats > 1 / 4.5).all()
    assert (moffats < 1 / 1.8).all()
    assert np.median(moffats) == pytest.approx((1 / 4.5 + 1 / 1.8) / 2, abs=0.05)


def test_a_bank_of_surveys_that_might_be_is_another_one_with_another_seed():
    banks = [
        draw_bank("parametric", ["euclid-vis"], "train", n_galaxies=20, n_stars=2,
                  mag_range=(20.0, 24.0), seed=seed, n_random_surveys=2)
        for seed in (1, 1, 2)
    ]  # fmt: skip
    assert [len(b.surveys) for b in banks] == [3, 3, 3]
    assert banks[0].surveys == banks[1].surveys
    assert banks[0].surveys[1:] != banks[2].surveys[1:]
    assert torch.equal(banks[0].pixels, banks[1].pixels)
    config = SceneConfig(size=32, mag_range=(20.0, 24.0))
    widths = draw_batch(banks[0], config, n=60, seed=1, index=0).psf_fwhm.unique()
    assert len(widths) == 3


def test_a_seam_changes_level_and_noise_and_no_truth(batch):
    joined = seam(batch, fraction=1.0, generator=generator())
    assert joined.sources is batch.sources
    assert joined.classes is batch.classes
    change = (joined.image - batch.image)[:, 0]
    # What changes, changes on one side of a row or of a column, or in a band.
    along = torch.minimum(
        (change.abs().sum(dim=2) > 1e-6).float().mean(dim=1),
        (change.abs().sum(dim=1) > 1e-6).float().mean(dim=1),
    )
    assert float(along.mean()) < 0.8
    assert float((along > 0).float().mean()) > 0.95  # some seams lie on the border
    assert 0.05 < float(change.abs().amax(dim=(1, 2)).median()) < 5
    untouched = seam(batch, fraction=0.0, generator=generator())
    assert torch.equal(untouched.image, batch.image)


def test_every_third_survey_that_might_be_has_a_real_psf():
    drawn = [draw_survey(np.random.default_rng(k), psf_files=["a.fits[1]"]) for k in range(100)]
    assert 22 < sum(s.psf_profile == "image" for s in drawn) < 45
    assert {s.psf_file for s in drawn} == {"", "a.fits[1]"}
