"""Many images give what each gives alone, and one that is broken costs a sentence."""

import json

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import QTable

from probablend.catalog import COLUMNS, UCDS, read_catalog
from probablend.emulate.blend import FieldConfig, draw_field
from probablend.infer import stream as module
from probablend.infer.many import stem, stream_many
from probablend.infer.segment import segment
from probablend.infer.stream import StreamSettings, stream

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def settings(galaxies, wcs_at, field_weights, tmp_path_factory):
    """Three small images at three places of the sky."""
    folder = tmp_path_factory.mktemp("images")
    some = []
    for k in range(3):
        config = FieldConfig(size=96, mag_range=(20.5, 24.5), companion_fraction=0.4)
        scene = draw_field(galaxies, config, generator=np.random.default_rng(k))
        path = folder / f"tile-{k}.fits"
        fits.writeto(path, scene.image, wcs_at(10.0 + 40 * k, x=47, y=47).to_header())
        some.append(
            StreamSettings(
                image=str(path), rms=scene.rms, background="none", n_samples=2, psf_fwhm=1.7,
                model=str(field_weights),
            )
        )  # fmt: skip
    return some


def test_each_gives_what_it_gives_alone(settings, tmp_path):
    seen = []
    summary = stream_many(
        settings, tmp_path / "all", progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert summary == json.loads((tmp_path / "all" / "summary.json").read_text())
    assert summary["images"] == 3
    assert summary["failed"] == {}
    rows = QTable.read(tmp_path / "all" / "catalog.fits")
    flux = read_catalog(tmp_path / "all" / "catalog.fits")["flux"]
    assert flux.info.description == COLUMNS["flux"][2]
    assert flux.info.meta["ucd"] == UCDS["flux"]
    assert len(rows) == summary["objects"] > 5
    for one in settings:
        name = stem(one.image).rpartition("/")[2]
        stream(one, tmp_path / name)
        for product, ext in (("maps.fits", "P_BLEND"), ("catalog.fits", 1)):
            a, b = (fits.getdata(f / name / product, ext) for f in (tmp_path / "all", tmp_path))
            assert a.tobytes() == b.tobytes()
        mine = rows[np.asarray(rows["image"]).astype(str) == name]
        np.testing.assert_array_equal(
            mine["flux"], QTable.read(tmp_path / name / "catalog.fits")["flux"]
        )


def test_a_broken_image_costs_a_sentence(settings, tmp_path):
    bad = tmp_path / "bad.fits"
    bad.write_bytes(b"SIMPLE  =")
    wrong = StreamSettings(image=str(bad), model=settings[0].model)
    summary = stream_many([wrong, settings[0]], tmp_path / "out")
    assert summary["images"] == 1
    ((path, why),) = summary["failed"].items()
    assert path == str(bad)
    assert "cannot be read" in why
    with pytest.raises(ValueError, match="none of 1 images"):
        stream_many([wrong], tmp_path / "none")
    with pytest.raises(ValueError, match="tile-0 comes twice"):
        stream_many([settings[0], settings[0]], tmp_path / "twice")
    with pytest.raises(FileExistsError, match="already"):
        stream_many([settings[0]], tmp_path / "out")


def test_a_run_goes_on_where_it_stopped(settings, tmp_path, monkeypatch):
    wanted = stream_many(settings, tmp_path / "wanted")
    begun = []
    real = module.process_block

    def dying(folder, number):
        begun.append(folder)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return real(folder, number)

    monkeypatch.setattr(module, "process_block", dying)
    with pytest.raises(KeyboardInterrupt):
        stream_many(settings, tmp_path / "out")
    with pytest.raises(FileExistsError, match="unfinished run"):
        stream_many(settings, tmp_path / "out")
    assert stream_many(settings, tmp_path / "out", resume=True) == wanted
    assert len(begun) == 2 + 2  # the first image was not done again
    for name in ("catalog.fits", "tile-1/catalog.fits"):
        a, b = (fits.getdata(tmp_path / k / name) for k in ("out", "wanted"))
        assert a.tobytes() == b.tobytes()
    stream_many(settings, tmp_path / "out", overwrite=True)
    assert len(begun) == 4 + 3


def test_what_was_written_otherwise_is_not_taken_for_a_run(settings, tmp_path):
    one = settings[0]
    result = segment(one.image, rms=one.rms, n_samples=1, psf_fwhm=1.7, model=one.model)
    result.write(tmp_path / "tile-0")
    summary = stream_many(settings, tmp_path, resume=True)
    assert summary["images"] == 2
    assert "was begun with another image" in summary["failed"][one.image]


@pytest.mark.slow
def test_workers_give_the_same_bytes(settings, tmp_path):
    pytest.importorskip("dask.distributed")
    stream_many(settings, tmp_path / "here")
    stream_many(settings, tmp_path / "there", dask="local:2")
    a, b = (fits.getdata(tmp_path / k / "catalog.fits") for k in ("here", "there"))
    assert a.tobytes() == b.tobytes()


def test_one_catalogue_on_the_sky(settings, tmp_path):
    pytest.importorskip("pyarrow")
    pytest.importorskip("astropy_healpix")
    from pyarrow import dataset

    for _ in range(2):
        summary = stream_many(settings, tmp_path, catalog_format="hats", overwrite=True)
    rows = dataset.dataset(tmp_path / "catalog.hats" / "dataset").to_table()
    assert rows.num_rows == summary["objects"]
    assert set(rows["image"].to_pylist()) == {"tile-0", "tile-1", "tile-2"}


def test_one_catalogue_in_parquet(settings, tmp_path):
    pytest.importorskip("pyarrow")
    summary = stream_many(settings[:2], tmp_path, catalog_format="parquet")
    rows = read_catalog(tmp_path / "catalog.parquet")
    assert len(rows) == summary["objects"]
    assert set(rows["image"]) == {"tile-0", "tile-1"}


def test_the_stem_of_a_name():
    assert stem("a.b/tile.1.fits.fz[SCI]") == "a.b/tile.1"
    assert stem("deep.fits.gz") == "deep"
    assert stem("deep.zarr[SCI]") == "deep"
