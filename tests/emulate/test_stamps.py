import galsim
import numpy as np
import pytest
from scipy.ndimage import center_of_mass

from probablend.emulate.stamps import SPLITS, split_indices, turn_stamp


def brightest_round(galaxies):
    """Row of a bright, smooth galaxy: its moments are clean."""
    table = galaxies.table
    smooth = (table["kind"] == "sersic") & (table["sersic_n"] <= 1.5) & ~table["is_star"]
    elongated = np.hypot(table["g1"], table["g2"]) > 0.2
    compact = table["hlr"] < 0.6  # large faint discs lose light below the noise
    rows = np.flatnonzero(smooth & elongated & compact)
    return int(rows[np.argmin(table["mag"][rows])])


def test_splits_are_disjoint_and_cover_the_set():
    parts = [split_indices(2001, split) for split in SPLITS]
    assert sorted(np.concatenate(parts)) == list(range(2001))
    np.testing.assert_allclose([len(p) / 2001 for p in parts], [0.8, 0.1, 0.1], atol=0.001)
    with pytest.raises(ValueError, match="split must be one of"):
        split_indices(10, "training")


def test_a_stamp_holds_the_flux_of_its_profile(galaxies, generator):
    index = brightest_round(galaxies)
    stamp = galaxies.draw(index, 21.0, generator=generator)
    assert stamp.image.sum() == pytest.approx(stamp.flux, rel=0.02)
    y, x = center_of_mass(stamp.image)
    assert (y, x) == pytest.approx((stamp.y, stamp.x), abs=0.02)


def test_a_turned_stamp_is_what_galsim_measures(galaxies, generator):
    """Flux, position and shape of the eight views against GalSim's adaptive moments."""
    index = brightest_round(galaxies)
    seen = set()
    drawn = galaxies.draw(index, 21.0, generator=generator)
    for _ in range(40):
        stamp = turn_stamp(drawn, 1.0, generator=generator)
        assert stamp.image.sum() == pytest.approx(stamp.flux, rel=0.02)
        moments = galsim.hsm.FindAdaptiveMom(galsim.Image(np.ascontiguousarray(stamp.image)))
        centre = (moments.moments_centroid.y - 1, moments.moments_centroid.x - 1)
        assert centre == pytest.approx((stamp.y, stamp.x), abs=0.02)
        shape = np.array([moments.observed_shape.g1, moments.observed_shape.g2])
        truth = np.array([stamp.g1, stamp.g2])
        # The PSF makes it rounder, but does not turn it.
        cosine = shape @ truth / np.linalg.norm(shape) / np.linalg.norm(truth)
        assert cosine > 0.98
        seen.add((np.sign(stamp.g1), np.sign(stamp.g2), round(stamp.y % 1, 2)))
    assert len(seen) == 8


def test_choose_returns_a_galaxy_of_about_that_magnitude(galaxies, generator):
    for mag in (20.5, 22.0, 25.5):
        rows = [galaxies.choose(mag, generator=generator) for _ in range(20)]
        np.testing.assert_allclose(np.asarray(galaxies.table["mag"][rows]), mag, atol=1.2)
        assert not np.asarray(galaxies.table["is_star"][rows]).any()
    star = galaxies.choose(22.0, generator=generator, is_star=True)
    assert galaxies.table["is_star"][star]


def test_no_footprint_is_cut_by_its_stamp(galaxies, survey, generator):
    for index in range(len(galaxies.table)):
        stamp = galaxies.draw(index, float(galaxies.table["mag"][index]), generator=generator)
        border = np.concatenate(
            [stamp.image[0], stamp.image[-1], stamp.image[:, 0], stamp.image[:, -1]]
        )
        assert border.max() < 0.5 * survey.sky_rms
