from dataclasses import replace

import astropy.units as u
import galsim
import numpy as np
import pytest
from astropy.io import fits

from probablend.emulate.psf import moffat_beta, psf_image, psf_images_in, psf_profile, survey_psf
from probablend.psf import PSF, clean_psf
from probablend.survey import get_survey, survey_from


@pytest.mark.parametrize("name", ["euclid-vis", "lsst-i", "cosmos-f814w", "candels-f160w"])
def test_the_profile_has_the_survey_s_fwhm(name):
    survey = get_survey(name)
    fwhm = survey.psf_fwhm.to_value("arcsec")
    image = psf_profile(survey).drawImage(nx=400, ny=400, scale=fwhm / 50, method="no_pixel")
    assert image.calculateFWHM() == pytest.approx(fwhm, rel=0.006)


@pytest.mark.parametrize("obscuration", [0.0, 0.33, 0.6])
@pytest.mark.parametrize("wider", [0.8, 1.2, 2.5])  # than wavelength over diameter
def test_a_diffraction_pattern_is_widened_or_narrowed_to_the_fwhm(survey, obscuration, wider):
    psf = psf_profile(
        replace(
            survey, psf_profile="airy", obscuration=obscuration,
            psf_fwhm=0.1 * wider * u.arcsec, diffraction_scale=0.1 * u.arcsec,
        )
    )  # fmt: skip
    fine = psf.drawImage(nx=201, ny=201, scale=0.1 * wider / 40, method="no_pixel").array
    assert fine[100, 119] > 0.5 * fine[100, 100] > fine[100, 121]


@pytest.mark.parametrize("profile", ["gaussian", "moffat", "kolmogorov"])
def test_analytic_profiles_have_the_fwhm_exactly(survey, profile):
    psf = psf_profile(replace(survey, psf_profile=profile, psf_fwhm=0.7 * u.arcsec))
    assert psf.calculateFWHM() == pytest.approx(0.7, rel=1e-3)


@pytest.mark.parametrize("beta", [1.9, 2.5, 4.0])
def test_the_moffat_profile_that_has_such_wings_is_found(survey, beta):
    psf = survey_psf(replace(survey, psf_profile="moffat", psf_beta=beta))
    assert moffat_beta(psf.wings[0]) == pytest.approx(beta, rel=0.01)


def test_wings_that_no_moffat_profile_has_give_the_nearest_one():
    assert (moffat_beta(-2.0), moffat_beta(0.0)) == (1.8, 10.0)


def test_the_image_is_centred_and_normalised(survey):
    image = psf_image(survey, 21)
    assert image.sum() == pytest.approx(1.0, abs=1e-6)
    assert np.unravel_index(image.argmax(), image.shape) == (10, 10)
    np.testing.assert_allclose(image, image[::-1, ::-1], atol=1e-6)


def test_an_even_size_is_refused(survey):
    with pytest.raises(ValueError, match="odd"):
        psf_image(survey, 20)


@pytest.fixture
def psf_file(survey, tmp_path):
    """An elongated PSF, off its middle and on a pedestal, in the second extension."""
    y, x = np.indices((41, 41)) - 20.0
    image = np.exp(-0.5 * ((x - 0.7) ** 2 / 9 + (y + 0.4) ** 2 / 4)) + 0.01
    path = tmp_path / "psf.fits"
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(image * 50)]).writeto(path)
    return path


def test_the_image_of_a_psf_is_stretched_to_the_width_and_keeps_its_shape(survey, psf_file):
    assert psf_images_in(psf_file) == [f"{psf_file}[1]"]
    own = replace(survey, psf_profile="image", psf_file=str(psf_file), psf_fwhm=0.8 * u.arcsec)
    image = psf_profile(own).drawImage(nx=200, ny=200, scale=0.02, method="no_pixel")
    area = (image.array > image.array.max() / 2).sum() * 0.02**2
    assert 2 * np.sqrt(area / np.pi) == pytest.approx(0.8, rel=0.03)
    moments = image.FindAdaptiveMom()
    # σ of 3 and 2 pixels: e = (9 − 4) / (9 + 4).
    assert moments.observed_shape.e1 == pytest.approx(5 / 13, abs=0.02)
    assert moments.moments_centroid.x == pytest.approx(100.5, abs=0.3)
    assert image.array.sum() == pytest.approx(1, abs=0.01)
    border = np.concatenate([image.array[[0, -1]].ravel(), image.array[:, [0, -1]].ravel()])
    assert np.median(np.abs(border)) < 1e-4 * image.array.max()


@pytest.mark.parametrize(("name", "off"), [("candels-f160w", 0.005), ("euclid-vis", 0.03)])
def test_what_pixels_saw_is_seen_again(name, off, tmp_path):
    """The response of the pixels is in the image of a PSF, and is not put in twice."""
    survey = get_survey(name)
    seen = psf_image(survey, 65)
    fits.writeto(tmp_path / "psf.fits", seen)
    width = PSF.of(seen).fwhm * survey.pixel_scale
    own = replace(
        survey, psf_profile="image", psf_file=str(tmp_path / "psf.fits"), psf_fwhm=width
    )  # fmt: skip
    again = psf_image(own, 65)
    seen = clean_psf(seen, "seen")  # falling to zero at its border
    seen /= seen.sum()
    assert np.abs(again - seen).max() < off * seen.max()
    assert (again**2).sum() == pytest.approx((seen**2).sum(), rel=0.01)


@pytest.mark.parametrize("sampling", [0.5, 0.25, 0.2])
def test_noise_of_a_psf_on_finer_pixels_is_not_blown_up(survey, sampling, tmp_path):
    own = replace(survey, psf_profile="moffat", psf_fwhm=3 * survey.pixel_scale)
    n = 2 * round(15 / sampling) + 1
    pixel = galsim.Convolve(psf_profile(own), galsim.Pixel(survey.scale))
    fine = pixel.drawImage(nx=n, ny=n, scale=survey.scale * sampling, method="no_pixel").array
    fine += 1e-3 * fine.max() * np.random.default_rng(0).standard_normal(fine.shape)
    column = fits.Column("PSF_MASK", format=f"{n * n}E", dim=f"({n},{n},1)", array=fine[None, None])
    table = fits.BinTableHDU.from_columns([column])
    table.header["PSF_SAMP"] = sampling
    table.writeto(tmp_path / "mine.psf")
    seen = psf_image(replace(own, psf_profile="image", psf_file=str(tmp_path / "mine.psf")))
    assert np.abs(seen - psf_image(own)).max() < 0.05 * seen.max()


def test_the_image_of_a_psf_is_named_in_toml_and_read_back(survey, psf_file):
    own = replace(survey, psf_profile="image", psf_file=str(psf_file))
    assert survey_from(own.as_dict(), where="here") == own
    assert "psf_file" not in survey.as_dict()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"psf_profile": "image"}, "psf_file belongs to psf_profile 'image'"),
        ({"psf_file": "x.fits"}, "psf_file belongs to psf_profile 'image'"),
    ],
)
def test_half_a_description_of_a_psf_is_refused(survey, change, said):
    with pytest.raises(ValueError, match=said):
        replace(survey, **change)


def test_a_psf_that_is_not_there_is_said_to_be_so(survey, psf_file, tmp_path):
    missing = replace(survey, psf_profile="image", psf_file=str(tmp_path / "no.fits"))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        psf_profile(missing)
    with pytest.raises(ValueError, match="no extension 7"):
        psf_profile(replace(missing, psf_file=f"{psf_file}[7]"))
    (tmp_path / "text.fits").write_text("no FITS")
    with pytest.raises(ValueError, match="not a FITS file"):
        psf_images_in(tmp_path / "text.fits")
