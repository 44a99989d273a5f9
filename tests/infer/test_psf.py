import galsim
import numpy as np
import pytest

from probablend.infer.psf import estimate_psf_fwhm


@pytest.mark.parametrize("fwhm", [2.0, 3.5, 6.0])
def test_the_fwhm_is_that_of_the_stars_among_galaxies(fwhm):
    rng = np.random.default_rng(1)
    image = galsim.ImageF(600, 600)
    psf = galsim.Kolmogorov(fwhm=fwhm)
    for k in range(90):
        flux = 10 ** rng.uniform(3.3, 4.5)
        profile = psf
        if k % 3:
            galaxy = galsim.Exponential(half_light_radius=rng.uniform(0.7, 2.5) * fwhm)
            profile = galsim.Convolve(galaxy, psf)
        x, y = rng.uniform(20, 580, 2)
        stamp = (profile * flux).drawImage(
            nx=64, ny=64, scale=1.0, center=galsim.PositionD(x, y)
        )  # fmt: skip
        both = stamp.bounds & image.bounds
        image[both] += stamp[both]
    signal = image.array + rng.standard_normal(image.array.shape)
    assert estimate_psf_fwhm(signal, np.zeros(signal.shape, bool)) == pytest.approx(fwhm, rel=0.07)


def test_an_empty_image_tells_nothing():
    signal = np.random.default_rng(0).standard_normal((200, 200))
    assert estimate_psf_fwhm(signal, np.zeros(signal.shape, bool)) is None
