import galsim
import numpy as np
import pytest

from probablend.images import read_image
from probablend.infer.psf import measure_psf
from probablend.infer.segment import sure_psf
from probablend.prepare import prepare_image
from probablend.psf import PSF, light_in_wings

PROFILES = {
    "gaussian": galsim.Gaussian,
    "kolmogorov": galsim.Kolmogorov,
    "moffat": lambda fwhm: galsim.Moffat(beta=2.5, fwhm=fwhm),
}


def sky_with_stars(psf, n=90, side=600, star_every=3, seed=1):
    rng = np.random.default_rng(seed)
    image = galsim.ImageF(side, side)
    for k in range(n):
        flux = 10 ** rng.uniform(3.3, 4.5)
        profile = psf
        if k % star_every:
            size = rng.uniform(0.7, 2.5) * psf.calculateFWHM()
            profile = galsim.Convolve(galsim.Exponential(half_light_radius=size), psf)
        x, y = rng.uniform(20, side - 20, 2)
        stamp = (profile * flux).drawImage(
            nx=128, ny=128, scale=1.0, center=galsim.PositionD(x, y)
        )  # fmt: skip
        both = stamp.bounds & image.bounds
        image[both] += stamp[both]
    return image.array + rng.standard_normal(image.array.shape)


def true_wings(psf, fwhm):
    drawn = psf.drawImage(nx=289, ny=289, scale=fwhm / 12, method="no_pixel").array
    return light_in_wings(drawn, 12.0, total=1.0, pixel=0.0)


def measured(signal):
    return measure_psf(signal, np.zeros(signal.shape, bool))


@pytest.mark.parametrize("fwhm", [2.0, 3.5, 6.0])
@pytest.mark.parametrize("name", PROFILES)
def test_stars_among_galaxies_say_how_wide_the_psf_is_and_what_wings_it_has(name, fwhm):
    psf = PROFILES[name](fwhm=fwhm)
    said = measured(sky_with_stars(psf, side=round(200 * fwhm)))
    assert said.fwhm == pytest.approx(fwhm, rel=0.05)
    for one, true, off in zip(said.wings, true_wings(psf, fwhm), (0.05, 0.04, 0.03), strict=True):
        assert one == pytest.approx(true, abs=off)


def test_more_wings_are_said_to_be_more():
    said = [measured(sky_with_stars(PROFILES[name](fwhm=3.0), side=900)).wings for name in PROFILES]
    assert (np.diff(said, axis=0) < [-0.04, -0.015, -0.003]).all()


@pytest.mark.parametrize("fwhm", [1.6, 2.0, 3.0])
def test_the_width_of_an_elongated_psf_is_the_mean_of_its_axes(fwhm):
    psf = galsim.Moffat(beta=3, fwhm=fwhm).shear(q=0.85, beta=0.4 * galsim.radians)
    assert measured(sky_with_stars(psf)).fwhm == pytest.approx(fwhm, rel=0.05)


def test_noise_that_knows_of_the_stars_does_not_flatten_them():
    image = 10 * sky_with_stars(galsim.Moffat(beta=3, fwhm=3.0))
    mask = np.zeros(image.shape, bool)
    plain = measure_psf(image / 10, mask)
    rms = np.sqrt(100 + np.clip(image, 0, None))
    said = measure_psf(image / rms, mask, rms)
    assert said.fwhm == pytest.approx(plain.fwhm, rel=0.02)


def test_a_level_of_sky_is_not_taken_for_wings():
    signal = sky_with_stars(galsim.Gaussian(fwhm=3.0))
    level = measured(signal + 0.5)
    np.testing.assert_allclose(level.wings, measured(signal).wings, atol=0.02)
    assert level.wings[0] > -0.06


def test_what_is_masked_does_not_count():
    signal = sky_with_stars(galsim.Kolmogorov(fwhm=3.0))
    mask = np.zeros(signal.shape, bool)
    mask[:, 300:420] = True
    clean = measure_psf(signal, mask)
    assert clean.fwhm == pytest.approx(3.0, rel=0.03)
    signal[mask] = 1e4
    assert measure_psf(signal, mask) == clean


def test_stars_that_are_too_few_say_nothing_of_the_wings():
    few = measured(sky_with_stars(galsim.Kolmogorov(fwhm=3.0), n=32, star_every=8))
    assert few.fwhm == pytest.approx(3.0, rel=0.05)
    assert few.wings is None


def few_alike(shapes, noise=1.0, side=300):
    """Nine bright sources, of which the narrowest five have these shapes."""
    rng = np.random.default_rng(7)
    image = galsim.ImageF(side, side)
    psf = galsim.Moffat(beta=3, fwhm=3.0)
    for k in range(9):
        shape = shapes[k] if k < 5 else (0.3, 0.0)
        galaxy = galsim.Exponential(half_light_radius=1.2 if k < 5 else 4.0 + k, flux=2e4)
        profile = galsim.Convolve(galaxy.shear(g1=shape[0], g2=shape[1]), psf)
        at = galsim.PositionD(60 + 90 * (k % 3), 60 + 90 * (k // 3))
        stamp = profile.drawImage(nx=80, ny=80, scale=1.0, center=at)
        image[stamp.bounds] += stamp
    return image.array + noise * rng.standard_normal(image.array.shape)


def test_a_few_sources_of_many_shapes_are_no_stars(caplog):
    alike = measured(few_alike([(0.05, 0.02)] * 5))
    assert alike is not None
    assert "if they are galaxies it is less" in caplog.text
    shapes = [(0.3, 0.0), (-0.3, 0.0), (0.0, 0.3), (0.0, -0.3), (0.2, 0.2)]
    with caplog.at_level("INFO", logger="probablend"):
        bound = measured(few_alike(shapes))
    assert "differ as galaxies do" in caplog.text
    assert bound.origin == "assumed"
    assert bound.fwhm > 1.2 * 3.0  # of the PSF: galaxies are wider
    # What weights assume, but nothing wider than what is seen.
    assert sure_psf(bound, {"psf_fwhm_pixels": [2.0, 2.6, 9.0]}).fwhm == 2.6
    wide = sure_psf(bound, {"psf_fwhm_pixels": [8.0, 9.0]})
    assert (wide.fwhm, wide.origin) == (bound.fwhm, "assumed")
    assert sure_psf(alike, {"psf_fwhm_pixels": [2.0]}) is alike


@pytest.mark.parametrize("fwhm", [2.6, 4.0])
def test_what_stars_look_like_is_seen_and_not_only_how_wide_they_are(fwhm):
    psf = galsim.OpticalPSF(
        lam_over_diam=0.8 * fwhm, obscuration=0.3, coma1=0.03, trefoil2=0.04, astig1=0.04
    )
    psf = galsim.Convolve(psf, galsim.Gaussian(fwhm=0.4 * fwhm))
    said = measured(sky_with_stars(psf, side=round(220 * fwhm), n=150))
    true = PSF.of(psf.drawImage(nx=81, ny=81, scale=1.0).array).image
    assert said.image.sum() == pytest.approx(1, abs=1e-5)

    def off(image):
        return np.sqrt(((image - true) ** 2).sum() / (true**2).sum())

    round_ = galsim.Moffat(beta=3, fwhm=said.fwhm).drawImage(nx=41, ny=41, scale=1.0).array
    assert off(said.image) < 0.05
    assert off(said.image) < 0.3 * off(round_)


def test_masked_pixels_beside_stars_do_not_hide_what_stars_look_like():
    signal = sky_with_stars(galsim.Moffat(beta=3, fwhm=3.0), side=800)
    mask = np.random.default_rng(5).random(signal.shape) < 0.002
    whole, holes = measured(signal).image, measure_psf(signal, mask).image
    assert np.abs(whole - holes).max() < 0.02 * whole.max()


def test_a_psf_that_few_pixels_sample_has_no_image():
    assert measured(sky_with_stars(galsim.Moffat(beta=3, fwhm=1.6))).image is None


def test_an_empty_image_tells_nothing():
    assert measured(np.random.default_rng(0).standard_normal((200, 200))) is None


# KiDS and VIKING: FWHM of Moffat profiles fitted to stars, 0.339″ pixels, as others measured it.
@pytest.mark.data
@pytest.mark.parametrize(("band", "arcsec"), [("r", 0.81), ("Y", 1.13), ("J", 1.15), ("Ks", 1.06)])
def test_stars_of_a_real_sky(test_data, band, arcsec):
    image = read_image(test_data / "field_kids_viking" / f"{band}.fits.fz")
    prepared = prepare_image(image.data)
    said = measure_psf(prepared.signal, prepared.mask)
    assert said.fwhm == pytest.approx(arcsec / 0.339, rel=0.04)
    assert -0.45 < said.wings[0] < -0.2  # more than Kolmogorov's turbulence alone gives
