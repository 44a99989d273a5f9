import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.table import QTable
from astropy.wcs import WCS
from scipy.ndimage import center_of_mass

from probablend.catalog import (
    COLUMNS,
    blend_probability,
    build_table,
    catalog_of_labels,
    read_catalog,
    set_flux_unit,
    write_catalog,
)
from probablend.flags import Flag, flag_table
from probablend.infer.objects import find_objects


@pytest.fixture
def labels():
    labels = np.zeros((40, 50), dtype=np.int32)
    labels[5:12, 6:20] = 1
    labels[20:30, 20:24] = 2
    labels[35:40, 40:45] = 3
    return labels


def blended_pixels(samples):
    return [np.nonzero(sample == 2) for sample in samples]


def blob(y, x, peak, sigma):
    rows, columns = np.mgrid[:40, :50]
    return peak * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * sigma**2))


def test_centres_are_those_of_the_galaxies_even_on_a_wing():
    bright, faint = blob(20.3, 15.6, 100, 4.0), blob(20.3, 29.2, 10, 1.5)
    labels = find_objects((bright + faint > 0.5).astype(float), bright + faint)
    assert labels.max() == 2
    samples = np.zeros((1, 40, 50), dtype=np.uint8)
    table = catalog_of_labels(labels, bright + faint, blended_pixels(samples), labels < 0)
    np.testing.assert_allclose(table["y"].value, 20.3, atol=0.3)
    np.testing.assert_allclose(table["x"].value, [15.6, 29.2], atol=0.5)
    np.testing.assert_array_equal(table["n_pixels"].value, np.bincount(labels.ravel())[1:])
    assert np.isnan(table["ra"]).all()


def test_p_blend_is_the_share_of_samples_with_an_overlap(labels):
    samples = np.zeros((4, *labels.shape), dtype=np.uint8)
    samples[:, labels > 0] = 1
    samples[0, 6, 7] = 2
    samples[2, 10, 15] = 2
    samples[:, 25, 22] = 2
    np.testing.assert_allclose(blend_probability(labels, blended_pixels(samples)), [0.5, 1.0, 0.0])


def test_flags_say_what_happened(labels):
    mask = np.zeros(labels.shape, dtype=bool)
    mask[19, 22] = True
    samples = np.zeros((1, *labels.shape), dtype=np.uint8)
    flags = catalog_of_labels(labels, labels.astype(float), blended_pixels(samples), mask)["flags"]
    np.testing.assert_array_equal(flags, [0, Flag.MASKED_PIXELS, Flag.TRUNCATED])
    assert set(flag_table()["bit"]) == {int(flag) for flag in Flag}


def test_an_object_of_one_level_is_centred_on_its_pixels(labels):
    draws = blended_pixels(np.zeros((1, *labels.shape)))
    table = catalog_of_labels(labels, np.zeros(labels.shape), draws, labels < 0)
    expected = np.array(center_of_mass(labels > 0, labels, [1, 2, 3]))
    np.testing.assert_allclose(table["y"].value, expected[:, 0])
    np.testing.assert_allclose(table["x"].value, expected[:, 1])


def test_no_objects_are_an_empty_table_with_all_columns():
    empty = np.zeros((10, 12), dtype=np.int32)
    table = catalog_of_labels(
        empty, empty, blended_pixels(np.zeros((2, 10, 12))), empty.astype(bool)
    )
    assert len(table) == 0
    assert set(table.colnames) <= set(COLUMNS)
    assert {"id", "x", "y", "ra", "dec", "n_pixels", "p_blend", "flags"} <= set(table.colnames)


def test_few_digits_are_printed_and_all_are_written(tmp_path):
    table = build_table({"x": [1 / 3], "ra": [1 / 3], "flux": [1e-20 / 3], "p_blend": [1 / 3]})
    set_flux_unit(table, u.erg)
    printed = table.pformat(show_unit=False)[-1].split()
    assert printed == ["0.3333", "0.3333333", "3.33333e-21", "0.3333"]
    for kind in ("fits", "ecsv"):
        write_catalog(table, tmp_path / f"catalog.{kind}", fits.Header())
        read = read_catalog(tmp_path / f"catalog.{kind}")
        for name in table.colnames:
            assert read[name][0] == table[name][0]
        assert read.pformat(show_unit=False)[-1].split() == printed


def test_tables_of_others_keep_what_they_say(tmp_path):
    table = QTable({"flux": [1.0, 2.0]})
    table["flux"].info.description = "hello"
    table.write(tmp_path / "theirs.fits")
    assert read_catalog(tmp_path / "theirs.fits")["flux"].info.description == "hello"


def test_both_sides_of_an_overlap_are_blended():
    """A faint galaxy on a bright one's wing: the overlap lies in the faint one's part."""
    labels = np.zeros((20, 20), dtype=np.int32)
    labels[4:16, 2:12] = 1
    labels[8:12, 12:16] = 2
    labels[17:20, 17:20] = 3
    samples = np.zeros((2, 20, 20), dtype=np.uint8)
    samples[0, 8:12, 12:14] = 2
    np.testing.assert_allclose(blend_probability(labels, blended_pixels(samples)), [0.5, 0.5, 0.0])


def test_coordinates_that_are_not_of_the_sky_are_nan(labels, caplog):
    solar = WCS(naxis=2)
    solar.wcs.ctype = ["HPLN-TAN", "HPLT-TAN"]
    solar.wcs.cunit = ["deg", "deg"]
    samples = np.zeros((1, *labels.shape), dtype=np.uint8)
    table = catalog_of_labels(
        labels, labels.astype(float), blended_pixels(samples), labels < 0, wcs=solar
    )
    assert np.isnan(table["ra"]).all()
    assert "ICRS" in caplog.text
