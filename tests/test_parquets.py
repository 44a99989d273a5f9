"""A Parquet table is read with its units and words; pandas is not asked for (nor installed)."""

import astropy.units as u
import numpy as np
import pytest
from astropy.table import Table

from probablend.catalog import build_table, read_catalog, write_table
from probablend.infer.measure import pixel_positions, read_positions

pyarrow = pytest.importorskip("pyarrow")


def test_what_was_written_is_read(tmp_path):
    table = build_table({"id": [1, 2], "x": [0.5, np.nan], "y": [3.0, 4.0], "p_blend": [0.1, 0.9]})
    table["image"] = ["one", "another"]
    write_table(table, tmp_path / "some.parquet")
    read = read_catalog(tmp_path / "some.parquet")
    assert read.colnames == table.colnames
    assert read["x"].unit == u.pix
    assert read["p_blend"].dtype == np.float32
    assert list(read["image"]) == ["one", "another"]
    for name in ("id", "x"):
        np.testing.assert_array_equal(read[name], table[name])
        assert read[name].info.description == table[name].info.description
        assert read[name].info.meta == table[name].info.meta


def test_positions_of_other_programs_are_read(tmp_path):
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"x": [1.0, 2.0], "y": [3, None]}), tmp_path / "p.parquet")
    table = read_positions(tmp_path / "p.parquet")
    assert isinstance(table, Table)
    np.testing.assert_array_equal(pixel_positions(table, None), [[3, 1], [np.nan, 2]])
