"""Whatever the format, a folder of products opens as the same maps, samples and catalogue."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import QTable

from probablend import cli
from probablend.infer.stream import StreamSettings, stream
from probablend.products import Products
from probablend.view.layers import open_view


@pytest.fixture(scope="module")
def settings(scene, wcs, field_weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "image.fits"
    fits.writeto(path, scene.image, wcs.to_header())
    return {
        "image": str(path), "rms": float(scene.rms), "background": "none", "n_samples": 2,
        "psf_fwhm": 1.7, "model": str(field_weights), "keep_samples": True, "keep_posterior": 8,
    }  # fmt: skip


@pytest.fixture(scope="module")
def plain(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    stream(StreamSettings(**settings), folder)
    return folder


@pytest.mark.parametrize(
    ("maps", "how"),
    [
        ("fits", {"columns": "sextractor"}),
        ("fits", {"catalog_format": "ecsv", "columns": "sextractor"}),
        ("fits", {"catalog_format": "parquet"}),
        ("fits", {"catalog_format": "hats"}),
        ("zarr", {}),
    ],
)
def test_every_format_opens_as_the_same(settings, plain, tmp_path, maps, how, monkeypatch):
    if "parquet" in how.values() or "hats" in how.values():
        pytest.importorskip("pyarrow")
        pytest.importorskip("astropy_healpix")
    if maps == "zarr":
        pytest.importorskip("zarr")
    stream(StreamSettings(**settings, maps_format=maps), tmp_path / "out", **how)
    ours, wanted = Products(tmp_path / "out"), Products(plain)
    assert len(ours.catalog) > 10
    assert ours.catalog.colnames == wanted.catalog.colnames
    for name in wanted.catalog.colnames:
        np.testing.assert_allclose(ours.catalog[name], wanted.catalog[name], rtol=1e-12)
        assert ours.catalog[name].unit == wanted.catalog[name].unit
    box = (slice(20, 70), slice(30, 130))
    for name in ("P_GALAXY", "P_BLEND", "LABELS", "MASK"):
        np.testing.assert_array_equal(ours.plane(name)[box], wanted.plane(name)[box])
    np.testing.assert_array_equal(ours.samples[(1, *box)], wanted.samples[(1, *box)])
    np.testing.assert_array_equal(ours.ellipses.radius, wanted.ellipses.radius)
    assert ours.header["PBHASH"] == wanted.header["PBHASH"]
    assert ours.wcs.wcs == wanted.wcs.wcs
    shown, before = (open_view(k).pyramids for k in (tmp_path / "out", plain))
    assert list(shown) == list(before)
    for name in ("entropy", "sample-1"):
        np.testing.assert_array_equal(shown[name].values(0, 0, 0), before[name].values(0, 0, 0))
    # … and the command draws it.
    said = ["plot", tmp_path / "out", "--image", settings["image"], "--id", 3]
    monkeypatch.setattr("sys.argv", ["probablend", *map(str, said), "-o", str(tmp_path / "drawn")])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    assert (tmp_path / "drawn" / "card-3.png").exists()


def test_a_folder_without_maps_is_refused_in_one_sentence(plain, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no maps\.fits: run 'probablend segment"):
        Products(tmp_path)
    (tmp_path / "catalog.fits").symlink_to(plain / "catalog.fits")
    with pytest.raises(FileNotFoundError, match="--cutouts makes no maps"):
        Products(tmp_path)
    (tmp_path / "tile").symlink_to(plain)
    with pytest.raises(FileNotFoundError, match=r"several images: name one, as .*tile"):
        Products(tmp_path)


def test_what_does_not_belong_together_is_refused(plain, tmp_path):
    (tmp_path / "maps.fits").symlink_to(plain / "maps.fits")
    with pytest.raises(FileNotFoundError, match="holds no catalogue"):
        Products(tmp_path)
    (tmp_path / "catalog.fits").symlink_to(plain / "catalog.fits")
    cube = fits.ImageHDU(np.zeros((2, 20, 30), np.uint8), name="SAMPLES")
    cube.writeto(tmp_path / "samples.fits")
    with pytest.raises(ValueError, match=r"samples.fits has shape \(2, 20, 30\)"):
        Products(tmp_path)
    (tmp_path / "samples.fits").unlink()
    posterior = QTable.read(plain / "posterior.fits")[:1]
    fits.BinTableHDU(posterior, name="POSTERIOR").writeto(tmp_path / "posterior.fits")
    with pytest.raises(ValueError, match="has 1 sources"):
        Products(tmp_path)
