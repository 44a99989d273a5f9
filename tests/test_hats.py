"""A catalogue in pieces of the sky is the catalogue, and those who know the layout can read it."""

import numpy as np
import pytest
from astropy.table import QTable

from probablend.catalog import build_table, provenance_header, write_catalog

pytest.importorskip("pyarrow")
healpix = pytest.importorskip("astropy_healpix")
from probablend.hats import partition, read_hats, write_hats  # noqa: E402


@pytest.fixture(scope="module")
def table():
    generator = np.random.default_rng(0)
    n = 3000
    # Crowded in one place, thin elsewhere.
    ra = np.concatenate([generator.normal(150, 0.3, n), generator.uniform(0, 360, n // 10)])
    dec = np.concatenate([generator.normal(2, 0.3, n), generator.uniform(-90, 90, n // 10)])
    return build_table({"id": np.arange(len(ra)), "ra": ra, "dec": dec, "flux": ra + dec})


@pytest.fixture(scope="module")
def folder(table, tmp_path_factory):
    path = tmp_path_factory.mktemp("hats") / "catalog.hats"
    write_hats(table, path, max_rows=500)
    return path


def test_no_row_is_lost_and_no_file_is_too_large(folder, table):
    from pyarrow import dataset, parquet

    files = sorted(folder.rglob("Npix=*.parquet"))
    sizes = [parquet.read_metadata(f).num_rows for f in files]
    assert len(files) > 10
    assert max(sizes) <= 500
    read = dataset.dataset(folder / "dataset", partitioning="hive").to_table(["id", "flux", "ra"])
    order = np.argsort(read["id"])
    np.testing.assert_array_equal(read["id"].to_numpy()[order], table["id"])
    np.testing.assert_array_equal(read["flux"].to_numpy()[order], table["flux"])
    field = parquet.read_schema(files[0]).field("ra")
    assert field.metadata[b"unit"] == b"deg"


def test_every_row_lies_in_the_pixel_of_its_file(folder):
    import astropy.units as u
    from pyarrow import parquet

    for path in folder.rglob("Npix=*.parquet"):
        order, pixel = (int(p.partition("=")[2].removesuffix(".parquet"))
                        for p in (path.parts[-3], path.parts[-1]))  # fmt: skip
        rows = parquet.ParquetFile(path).read()
        ra, dec = (rows[k].to_numpy() * u.deg for k in ("ra", "dec"))
        assert set(healpix.lonlat_to_healpix(ra, dec, 2**order, order="nested")) == {pixel}
        assert (np.diff(rows["_healpix_29"].to_numpy()) >= 0).all()


def test_partition_divides_only_where_it_must():
    index = np.zeros(11, dtype=np.int64)
    index[10] = 5 << 58  # another pixel of order 0
    orders = partition(index, 10)
    assert set(orders) == {0}
    assert orders[10] == partition(index, 9)[10] == 0
    assert set(partition(index, 9)[:10]) == {12}  # all at one place: no order divides them


def test_rows_without_a_position_are_left_out_and_said(tmp_path, caplog):
    table = build_table({"id": np.arange(3), "ra": np.array([1, np.nan, 2]), "dec": np.zeros(3)})
    write_hats(table, tmp_path / "some")
    assert "1 of 3 rows have no sky position" in caplog.text
    assert sorted(read_hats(tmp_path / "some")["id"]) == [0, 2]
    with pytest.raises(ValueError, match="needs sky positions"):
        write_hats(table[1:2], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_write_catalog_takes_the_format_from_the_name(table, tmp_path):
    write_catalog(table, tmp_path / "catalog.hats", provenance_header({"seed": 7}))
    from pyarrow import parquet

    path = next(tmp_path.rglob("Npix=*.parquet"))
    assert parquet.read_schema(path).metadata[b"PBSEED"] == b"7"


def test_lsdb_finds_what_is_in_a_cone(folder, table):
    lsdb = pytest.importorskip("lsdb")
    found = lsdb.open_catalog(folder).cone_search(150.0, 2.0, 600.0).compute()
    from astropy.coordinates import SkyCoord

    sky = SkyCoord(QTable(table)["ra"], QTable(table)["dec"])
    near = sky.separation(SkyCoord(150.0, 2.0, unit="deg")).deg < 600 / 3600
    assert set(found["id"]) == set(np.asarray(table["id"])[near])
    assert near.sum() > 50
