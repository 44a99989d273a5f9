from dataclasses import replace

import astropy.units as u
import numpy as np
import pytest

from probablend.emulate.psf import psf_image, psf_profile
from probablend.survey import get_survey


@pytest.mark.parametrize("name", ["euclid-vis", "lsst-i", "cosmos-f814w", "candels-f160w"])
def test_the_profile_has_the_survey_s_fwhm(name):
    survey = get_survey(name)
    fwhm = survey.psf_fwhm.to_value("arcsec")
    image = psf_profile(survey).drawImage(nx=400, ny=400, scale=fwhm / 50, method="no_pixel")
    assert image.calculateFWHM() == pytest.approx(fwhm, rel=0.06)


@pytest.mark.parametrize("profile", ["gaussian", "moffat", "kolmogorov"])
def test_analytic_profiles_have_the_fwhm_exactly(survey, profile):
    psf = psf_profile(replace(survey, psf_profile=profile, psf_fwhm=0.7 * u.arcsec))
    assert psf.calculateFWHM() == pytest.approx(0.7, rel=1e-3)


def test_the_image_is_centred_and_normalised(survey):
    image = psf_image(survey, 21)
    assert image.sum() == pytest.approx(1.0, abs=1e-6)
    assert np.unravel_index(image.argmax(), image.shape) == (10, 10)
    np.testing.assert_allclose(image, image[::-1, ::-1], atol=1e-6)


def test_an_even_size_is_refused(survey):
    with pytest.raises(ValueError, match="odd"):
        psf_image(survey, 20)
