import galsim
import numpy as np
import pytest
from scipy import ndimage

from probablend.emulate.sources import open_source
from probablend.emulate.structured import paint_disc
from probablend.survey import get_survey


@pytest.mark.parametrize("k", range(8))
def test_half_of_the_light_lies_within_the_half_light_radius(k):
    light = paint_disc(np.random.default_rng(k))
    assert light.min() >= 0
    assert light.sum() == pytest.approx(1)
    np.testing.assert_allclose(ndimage.center_of_mass(light), 80, atol=0.5)
    y, x = np.indices(light.shape) - 80
    pixels = 161 / 9  # of one half-light radius
    assert light[np.hypot(y, x) < pixels].sum() == pytest.approx(0.5, abs=0.02)


def test_discs_differ():
    first, second = (paint_disc(np.random.default_rng(k)) for k in (0, 1))
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] < 0.98


@pytest.fixture(scope="module")
def galaxies():
    return open_source(
        "structured", get_survey("cosmos-f814w"), "test", n_galaxies=120, n_stars=3,
        mag_range=(20.0, 23.0), seed=4,
    )  # fmt: skip


def test_some_galaxies_have_structure_and_all_have_their_flux_size_and_shape(galaxies):
    kind = np.asarray(galaxies.table["kind"])
    share = (kind == "structured").mean()
    assert 0.15 < share < 0.45
    for row in np.flatnonzero(kind == "structured")[:5]:
        profile = galaxies.profile(row)
        assert profile.flux == pytest.approx(1)
        # Undo the shear: the circle that holds half of the light is the one of the catalogue.
        hlr, g1, g2 = galaxies.shape(row)
        round_one = profile.shear(galsim.Shear(g1=-g1, g2=-g2))
        image = round_one.drawImage(nx=200, ny=200, scale=hlr / 20, method="no_pixel").array
        y, x = np.indices(image.shape) - 99.5
        assert image[np.hypot(y, x) < 20].sum() == pytest.approx(0.5, abs=0.03)


def test_irregular_are_all_galaxies_that_are_no_spheroids():
    settings = {"n_galaxies": 120, "n_stars": 0, "mag_range": (20.0, 23.0), "seed": 4}
    survey = get_survey("cosmos-f814w")
    irregular = open_source("irregular", survey, "test", **settings)
    smooth = open_source("parametric", survey, "test", **settings)
    n = np.where(smooth.table["kind"] == "sersic", smooth.table["sersic_n"], 1.0)
    np.testing.assert_array_equal(irregular.table["kind"] == "structured", n < 2.5)


def test_what_is_irregular_is_less_symmetric():
    def asymmetry(irregular):
        lights = [paint_disc(np.random.default_rng(k), irregular=irregular) for k in range(12)]
        return np.mean([np.abs(light - light[::-1, ::-1]).sum() for light in lights])

    assert asymmetry(1.0) > 1.3 * asymmetry(0.0)


def test_stamps_hold_the_light(galaxies):
    generator = np.random.default_rng(0)
    rows = np.flatnonzero(np.asarray(galaxies.table["kind"]) == "structured")[:6]
    for row in rows:
        stamp = galaxies.draw(row, float(galaxies.table["mag"][row]), generator=generator)
        assert stamp.image.sum() / stamp.flux == pytest.approx(1, abs=0.05)


def test_a_galaxy_looks_the_same_to_every_survey():
    sources = [
        open_source("structured", get_survey(name), "test", n_galaxies=40, n_stars=0,
                    mag_range=(20.0, 23.0), seed=4)
        for name in ("euclid-vis", "lsst-i")
    ]  # fmt: skip
    row = int(np.flatnonzero(np.asarray(sources[0].table["kind"]) == "structured")[0])
    first, second = (
        s.profile(row).drawImage(nx=64, ny=64, scale=0.05, method="no_pixel").array for s in sources
    )
    np.testing.assert_array_equal(first, second)
