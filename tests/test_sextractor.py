"""Under SExtractor's names the catalogue means what SExtractor means."""

import astropy.units as u
import galsim
import numpy as np
import pytest
import sep
from astropy.io import fits
from astropy.io.votable.ucd import check_ucd
from astropy.table import QTable, Table

from probablend import cli
from probablend.catalog import COLUMNS, UCDS, build_table, set_flux_unit, write_table
from probablend.flags import Flag
from probablend.infer.measure import pixel_positions
from probablend.infer.segment import segment
from probablend.infer.sources import draws_table
from probablend.infer.stream import StreamSettings, stream
from probablend.models.source import PARAMETERS
from probablend.sextractor import EQUIVALENTS, named_columns


def table_of(n=1, **values):
    """A catalogue with all columns."""
    given = {name: np.ones(n) for name in COLUMNS} | {"g1": 0.1, "g2": 0.1} | values
    return build_table({name: np.broadcast_to(v, n) for name, v in given.items()})


@pytest.mark.parametrize(
    ("g1", "g2"), [(0.3, 0.0), (-0.2, 0.1), (0.1, 0.35), (-0.25, -0.2), (0.05, -0.3)]
)
def test_the_ellipse_is_the_one_that_sep_measures(g1, g2):
    galaxy = galsim.Gaussian(half_light_radius=6.0, flux=1e5).shear(g1=g1, g2=g2)
    stamp = galaxy.drawImage(nx=121, ny=121, scale=1.0, dtype=np.float32).array
    (truth,) = sep.extract(stamp, 0.01, filter_kernel=None)
    ours = named_columns(table_of(hlr=6.0, g1=g1, g2=g2), "sextractor")[0]
    theta = ours["THETA_IMAGE"].to_value(u.deg) - np.degrees(truth["theta"])
    assert abs((theta + 90) % 180 - 90) < 2
    np.testing.assert_allclose(1 - ours["ELLIPTICITY"], truth["b"] / truth["a"], rtol=0.01)
    np.testing.assert_allclose(ours["A_IMAGE"].value, truth["a"], rtol=0.02)
    np.testing.assert_allclose(ours["B_IMAGE"].value, truth["b"], rtol=0.02)
    radius, _ = sep.flux_radius(stamp, [truth["x"]], [truth["y"]], [50.0], 0.5, normflux=[1e5])
    # A circular aperture around an ellipse needs to be a little larger than its circle.
    np.testing.assert_allclose(ours["FLUX_RADIUS"].value, radius[0], rtol=0.08)


def test_flags_are_sextractors_bits():
    bits = [
        (0, 0.0, 0), (0, 0.9, 2), (Flag.MASKED_PIXELS, 0.0, 1), (Flag.SATURATED, 0.9, 4 + 2),
        (Flag.TRUNCATED, 0.0, 8), (Flag.NO_DATA, np.nan, 16), (Flag.CUT, 0.0, 16),
        (Flag.OUT_OF_RANGE, 0.0, 0),
    ]  # fmt: skip
    ours, p_blend, theirs = (np.array(column, dtype=float) for column in zip(*bits, strict=True))
    table = named_columns(table_of(len(bits), flags=ours, p_blend=p_blend), "sextractor")
    np.testing.assert_array_equal(table["FLAGS"], theirs)
    np.testing.assert_array_equal(table["PB_FLAGS"], ours)


def test_nothing_is_lost_and_nothing_said_twice():
    ours = table_of(3, x=[1.0, 2.0, 3.0])
    ours.meta["seed"] = 5
    theirs = named_columns(ours, "sextractor")
    np.testing.assert_array_equal(theirs["X_IMAGE"].value, [2.0, 3.0, 4.0])
    assert theirs.colnames[: len(EQUIVALENTS)] == list(EQUIVALENTS)
    rest = theirs.colnames[len(EQUIVALENTS) :]
    assert {"P_BLEND", "P_SOURCE", "G1", "FLUX_Q05", "X_ERR", "PB_FLAGS"} <= set(rest)
    assert not {"ID", "X", "FLUX", "HLR", "P_STAR"} & set(rest)
    assert theirs.meta["seed"] == 5
    assert named_columns(ours, "probablend") is ours
    np.testing.assert_array_equal(pixel_positions(theirs, None), pixel_positions(ours, None))
    with pytest.raises(ValueError, match="columns must be one of probablend, sextractor"):
        named_columns(ours, "photutils")


def test_a_model_that_knows_pixels_only_has_what_it_has():
    few = table_of()["id", "x", "y", "ra", "dec", "n_pixels", "p_blend", "flags"]
    assert named_columns(few, "sextractor").colnames == [
        "NUMBER", "X_IMAGE", "Y_IMAGE", "ALPHA_J2000", "DELTA_J2000", "ISOAREA_IMAGE", "FLAGS",
        "P_BLEND", "PB_FLAGS",
    ]  # fmt: skip


def test_every_column_has_a_word_that_the_virtual_observatory_knows(tmp_path):
    assert set(COLUMNS) <= set(UCDS)
    ours = table_of(2)
    set_flux_unit(ours, u.nJy)
    draws = draws_table(np.ones((4, 2, len(PARAMETERS))), np.zeros((2, 2)), [1, 2])
    for k, table in enumerate([ours, named_columns(ours, "sextractor"), draws]):
        write_table(table, tmp_path / f"{k}.fits")
        read = Table.read(tmp_path / f"{k}.fits", unit_parse_strict="raise")
        cards = fits.getheader(tmp_path / f"{k}.fits", 1)
        for number, name in enumerate(table.colnames, start=1):
            assert check_ucd(cards[f"TUCD{number}"], check_controlled_vocabulary=True), name
            assert cards[f"TCOMM{number}"]
            assert read[name].unit == table[name].unit, name


def test_a_unit_that_fits_has_no_word_for_is_said_in_words(tmp_path):
    ours = table_of()
    set_flux_unit(ours, u.Unit("0.3 nJy"))
    write_table(ours, tmp_path / "odd.fits")
    cards = fits.getheader(tmp_path / "odd.fits", 1)
    number = ours.colnames.index("flux") + 1
    assert f"TUNIT{number}" not in cards
    assert cards[f"TCOMM{number}"].endswith("0.3 nJy")


def test_ecsv_keeps_units_words_and_descriptors(tmp_path):
    write_table(table_of(), tmp_path / "catalog.ecsv")
    read = QTable.read(tmp_path / "catalog.ecsv")
    assert read["hlr"].unit == u.pix
    assert read["p_star"].info.meta["ucd"] == UCDS["p_star"]
    assert read["p_star"].info.description == COLUMNS["p_star"][2]


def test_both_ways_of_segmenting_write_the_same_columns(scene, field_weights, tmp_path):
    path = tmp_path / "image.fits"
    fits.PrimaryHDU(scene.image).writeto(path)
    settings = {"rms": float(scene.rms), "n_samples": 2, "model": str(field_weights)}
    result = segment(path, **settings)
    result.write(tmp_path / "whole", columns="sextractor")
    stream(StreamSettings(image=str(path), **settings), tmp_path / "blocks", columns="sextractor")
    whole, blocks = (Table.read(tmp_path / k / "catalog.fits") for k in ("whole", "blocks"))
    assert whole.colnames == blocks.colnames
    assert whole.colnames[0] == "NUMBER"
    np.testing.assert_allclose(blocks["X_IMAGE"], result.catalog["x"].value + 1, atol=0.1)


def test_unknown_columns_are_refused_before_any_work(monkeypatch, capsys, tmp_path):
    arguments = ["probablend", "segment", str(tmp_path / "no.fits"), "--columns", "cat"]
    monkeypatch.setattr("sys.argv", [*arguments, "-o", str(tmp_path / "out")])
    with pytest.raises(SystemExit):
        cli.main()
    assert "columns must be one of" in capsys.readouterr().err
