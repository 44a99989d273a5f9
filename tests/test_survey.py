from dataclasses import replace

import astropy.units as u
import numpy as np
import pytest
from surveycodex.utilities import mag2counts, mean_sky_level

from probablend.emulate.psf import psf_image
from probablend.survey import available_surveys, get_survey

GOOD = 'name = "m"\npixel_scale = 0.2\nzeropoint = 27\ngain = 1\nsky_rms = 1\npsf_fwhm = 1\n'


@pytest.mark.parametrize("name", available_surveys())
def test_every_survey_is_complete(name):
    survey = get_survey(name)
    assert survey.name == name
    assert 0.02 < survey.scale < 0.5
    assert 0.7 < survey.psf_fwhm_pixels < 8
    assert 15 < survey.mag(5 * survey.sky_rms) < 35


@pytest.mark.parametrize(
    ("name", "codex"), [("euclid-vis", ("Euclid_VIS", "IE")), ("lsst-i", ("LSST", "i"))]
)
def test_counts_times_gain_are_the_electrons_of_surveycodex(name, codex):
    survey = get_survey(name)
    electrons = survey.flux(22.0) * survey.gain
    assert electrons == pytest.approx(float(mag2counts(22.0, *codex).value), rel=1e-3)
    sky = (survey.sky_rms * survey.gain) ** 2
    assert sky == pytest.approx(float(mean_sky_level(*codex).value), rel=1e-6)


def test_magnitude_and_flux_are_inverse():
    survey = get_survey("candels-f160w")
    assert survey.mag(survey.flux(23.4)) == pytest.approx(23.4)
    assert survey.mag(1.0) == pytest.approx(25.96)
    assert np.isnan(survey.mag(-1.0))


@pytest.mark.parametrize(
    ("alias", "name"), [("roman", "roman-f158"), ("des", "des-i"), ("EUCLID-VIS", "euclid-vis")]
)
def test_aliases(alias, name):
    assert get_survey(alias).name == name


def test_a_user_survey_is_read_from_toml(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'name = "mine"\npixel_scale = 0.2\nzeropoint = 27\ngain = 1.5\nsky_rms = 0.05\n'
        'psf_fwhm = 0.7\npsf_profile = "gaussian"\n'
    )
    survey = get_survey(path)
    assert survey.pixel_scale == 0.2 * u.arcsec
    assert survey.psf_fwhm_pixels == pytest.approx(3.5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('name = "m"\n', "lacks"),
        ("name =", "not valid TOML"),
        ('name = "m"\npixel_scale = 0.2\nzeropoint = 27\ngain = 1\nsky_rms = 0\npsf_fwhm = 1\n',
         "sky_rms must be positive"),
        ('name = "m"\npixel_scale = "x"\nzeropoint = 27\ngain = 1\nsky_rms = 1\npsf_fwhm = 1\n',
         "pixel_scale must be a number"),
        ('name = "m"\nzeropiont = 27\n', "unknown keys"),
        (GOOD + "psf_beta = 0.5\n", "psf_beta must be above"),
        (GOOD + "obscuration = 1.5\n", "obscuration must lie"),
        (GOOD + 'psf_profile = "airy"\ndiffraction_scale = -0.1\n', "diffraction_scale must be"),
    ],
)  # fmt: skip
def test_a_bad_survey_file_is_refused_in_words(tmp_path, text, said):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        get_survey(path)


def test_an_unknown_survey_is_refused():
    with pytest.raises(ValueError, match="unknown survey 'euclid-nir'; known: candels"):
        get_survey("euclid-nir")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        get_survey("nowhere.toml")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("psf_beta = 1e6", "psf_beta must be above 1.1 and at most 100"),
        ("psf_beta = inf", "psf_beta must be above"),
        ("diffraction_scale = inf", "diffraction_scale must be positive, arcsec"),
        ("psf_fwhm = 0.001", "psf_fwhm must be at least 0.2 of a pixel"),
        ("zeropoint = 100", "zeropoint must lie within 60 mag"),
        ("name = 'Überblick-ß'", "name must be plain text"),
        ("name = ' '", "name must be plain text"),
    ],
)
def test_what_no_survey_can_be_is_refused_at_once(said, message, tmp_path):
    key = said.split()[0]
    lines = [line for line in GOOD.splitlines() if line.split()[0] != key]
    (tmp_path / "m.toml").write_text("\n".join([*lines, said]) + "\n")
    with pytest.raises(ValueError, match=message):
        get_survey(tmp_path / "m.toml")


def test_whole_numbers_of_any_size_are_numbers(tmp_path):
    (tmp_path / "m.toml").write_text(GOOD.replace("sky_rms = 1", "sky_rms = 1" + 35 * "0"))
    assert get_survey(tmp_path / "m.toml").sky_rms == pytest.approx(1e35)


def test_a_sky_without_electrons_is_warned_of(tmp_path, caplog):
    for gain, warned in ((1, True), (1000, False)):
        caplog.clear()
        (tmp_path / "m.toml").write_text(GOOD.replace("gain = 1\n", f"gain = {gain}\n"))
        get_survey(tmp_path / "m.toml")
        assert ("electrons per count" in caplog.text) == warned


def test_the_depth_is_that_of_a_point_source_of_five_times_its_noise(survey):
    psf = psf_image(replace(survey, psf_profile="gaussian"), 65)
    flux = 5 * survey.sky_rms / np.sqrt((psf.astype(float) ** 2).sum())  # profile-weighted
    assert survey.depth == pytest.approx(float(survey.mag(flux)), abs=0.1)
