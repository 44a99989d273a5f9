import galsim
import numpy as np
import pytest
from astropy.table import Table

from probablend.emulate.parametric import ParametricGalaxies, half_light_radius


@pytest.fixture(scope="module")
def population(survey):
    return ParametricGalaxies(survey, "train", n_galaxies=4000, n_stars=0)


def major_axis(table):
    g = np.hypot(table["g1"], table["g2"])
    return table["scale_radius"] * np.sqrt((1 + g) / (1 - g))


def test_sizes_fall_with_magnitude_as_published(population):
    table = population.table
    for mag in (21.0, 23.0, 25.0):
        near = np.abs(table["mag"] - mag) < 0.5
        median = np.median(major_axis(table)[near])
        assert median == pytest.approx(0.434 * np.exp(-0.269 * (mag - 23)), rel=0.08)


@pytest.mark.data
def test_sizes_and_indices_are_those_of_real_galaxies(population, test_data):
    real = Table.read(test_data / "catalogs" / "cosmos_parametric_fits_23.5.ecsv")
    table = population.table
    for low, high in ((20.0, 22.0), (22.0, 23.5)):
        ours = (table["mag"] > low) & (table["mag"] < high)
        theirs = (real["mag_auto"] > low) & (real["mag_auto"] < high)
        sizes = np.percentile(0.03 * real["sersic_hlr_pix"][theirs], [16, 50, 84])
        np.testing.assert_allclose(
            np.percentile(major_axis(table)[ours], [16, 50, 84]), sizes, rtol=0.3
        )
    sersic = table["kind"] == "sersic"
    assert np.median(table["sersic_n"][sersic]) == pytest.approx(
        np.median(real["sersic_n"]), rel=0.3
    )


def test_axis_ratios_are_those_of_real_galaxies(population):
    g = np.hypot(population.table["g1"], population.table["g2"])
    q = (1 - g) / (1 + g)
    assert 0.1 < q.min() < 0.2
    assert np.median(q) == pytest.approx(0.56, abs=0.08)


@pytest.mark.parametrize("fraction", [0.0, 0.15, 0.5, 1.0])
def test_half_light_radius_agrees_with_galsim(fraction):
    disc = galsim.Exponential(half_light_radius=1.0)
    bulge = galsim.DeVaucouleurs(half_light_radius=1 / 1.678)
    profile = fraction * bulge + (1 - fraction) * disc
    image = profile.drawImage(nx=800, ny=800, scale=0.05, method="no_pixel")
    measured = image.calculateHLR(flux=1.0)
    assert half_light_radius(fraction) == pytest.approx(measured, rel=0.05)


def test_splits_share_no_galaxy(survey):
    ids = [
        set(ParametricGalaxies(survey, split, n_galaxies=50, n_stars=5).table["galaxy"])
        for split in ("train", "validation", "test")
    ]
    assert not ids[0] & ids[1]
    assert not ids[0] & ids[2]
    assert not ids[1] & ids[2]


def test_the_seed_fixes_the_population(survey):
    first, again, other = (
        ParametricGalaxies(survey, "train", n_galaxies=20, seed=s).table["mag"] for s in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"split": "all"}, "split must"), ({"mag_range": (25, 20)}, "bright to faint"),
     ({"n_galaxies": 0}, "at least 1")],
)  # fmt: skip
def test_bad_arguments_are_refused(survey, wrong, said):
    with pytest.raises(ValueError, match=said):
        ParametricGalaxies(survey, **wrong)
