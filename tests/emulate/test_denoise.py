import galsim
import numpy as np
import pytest
from scipy import ndimage

from probablend.emulate.denoise import denoised, wavelets


def correlated(generator, side, rms):
    noise = ndimage.gaussian_filter(generator.standard_normal((side, side)), 0.8)
    return rms * noise / noise.std()


def galaxy(profile, side=96):
    seen = galsim.Convolve(profile, galsim.Moffat(beta=3, fwhm=2.0))
    return seen.drawImage(nx=side, ny=side, scale=1.0).array


def test_the_wavelets_of_an_image_are_the_image():
    image = np.random.default_rng(0).random((40, 50))
    np.testing.assert_allclose(wavelets(image).sum(axis=0), image, atol=1e-12)
    # Details of a smooth slope: none, away from the border.
    slope = np.add.outer(np.arange(80.0), 2 * np.arange(80.0))
    assert np.abs(wavelets(slope)[:3, 30:50, 30:50]).max() < 1e-9


@pytest.mark.parametrize("n", [0.7, 1.0, 2.0])
@pytest.mark.parametrize("flux", [3e3, 3e4])
def test_a_galaxy_keeps_its_light_and_its_footprint_and_loses_the_noise(n, flux):
    generator = np.random.default_rng(1)
    profile = galsim.Sersic(n=n, half_light_radius=3.0, flux=flux).shear(g1=0.3, g2=0.1)
    true, rms = galaxy(profile), 0.3  # of the noise of the survey
    levels = wavelets(correlated(generator, 256, rms)).std(axis=(1, 2))
    light, like, largest = [], [], []
    for _ in range(8):
        image = true + correlated(generator, 96, rms)
        found = denoised(image, levels)
        assert found.min() >= 0
        light.append(found.sum() / true.sum())
        a, b = found > 0.5, true > 0.5
        like.append((a & b).sum() / (a | b).sum())
        largest.append(np.bincount(ndimage.label(a)[0].ravel())[1:].max() / a.sum())
        assert np.abs(found - true).mean() < 0.4 * np.abs(image - true).mean()
    assert np.mean(light) == pytest.approx(1, abs=0.06)
    assert np.mean(like) > 0.87
    assert np.mean(largest) > 0.98  # of the footprint is one piece


@pytest.mark.parametrize("size", [1.0, 3.0])
@pytest.mark.parametrize(("snr", "off"), [(20, 0.2), (50, 0.06)])
def test_a_faint_galaxy_keeps_its_size(size, snr, off):
    generator = np.random.default_rng(4)
    true = galaxy(galsim.Exponential(half_light_radius=size), side=64)
    true *= snr / np.sqrt((true**2).sum())
    levels = wavelets(generator.standard_normal((256, 256))).std(axis=(1, 2))
    found = [denoised(true + generator.standard_normal(true.shape), levels) for _ in range(15)]
    within = np.hypot(*(np.indices(true.shape) - 31.5)) < 2 * size + 1
    shares = [f[within].sum() / f.sum() / (true[within].sum() / true.sum()) for f in found]
    assert np.median(shares) == pytest.approx(1, abs=off)
    assert np.median([f.sum() for f in found]) == pytest.approx(true.sum(), rel=1.25 * off)


def test_noise_alone_is_no_galaxy():
    generator = np.random.default_rng(2)
    levels = wavelets(correlated(generator, 256, 1.0)).std(axis=(1, 2))
    left = [denoised(correlated(generator, 64, 1.0), levels).sum() for _ in range(10)]
    assert np.median(left) < 25  # a source of 5 σ has that
