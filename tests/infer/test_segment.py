import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import QTable
from astropy.wcs import WCS
from photutils.segmentation import SegmentationImage

import probablend
from probablend.images import ImageData
from probablend.infer import segment as module
from probablend.infer.segment import segment


@pytest.fixture(scope="module")
def result(scene, small_weights):
    return segment(scene.image, rms=scene.rms, n_samples=4, seed=1, model=small_weights)


def test_probabilities_are_probabilities(result, scene):
    assert result.p_galaxy.shape == result.p_blend.shape == scene.image.shape
    assert result.p_galaxy.dtype == np.float32
    assert (result.p_blend >= 0).all()
    assert (result.p_blend <= result.p_galaxy + 1e-6).all()
    assert (result.p_galaxy <= 1).all()
    assert result.samples.shape == (4, *scene.image.shape)
    assert set(np.unique(result.samples)) <= {0, 1, 2}


@pytest.mark.parametrize("tile_size", [64, 100, 128])
def test_tiling_changes_nothing(result, scene, small_weights, tile_size):
    tiled = segment(
        scene.image, rms=scene.rms, n_samples=4, seed=1, model=small_weights, tile_size=tile_size
    )
    np.testing.assert_allclose(tiled.p_galaxy, result.p_galaxy, atol=1e-4)
    np.testing.assert_allclose(tiled.p_blend, result.p_blend, atol=1e-4)
    assert (tiled.samples != result.samples).mean() < 1e-3
    assert len(tiled.catalog) == len(result.catalog)


def test_the_seed_fixes_every_byte(result, scene, small_weights):
    again = segment(scene.image, rms=scene.rms, n_samples=4, seed=1, model=small_weights)
    assert again.p_blend.tobytes() == result.p_blend.tobytes()
    assert again.samples.tobytes() == result.samples.tobytes()
    other = segment(scene.image, rms=scene.rms, n_samples=4, seed=2, model=small_weights)
    assert other.samples.tobytes() != result.samples.tobytes()


def test_the_unit_of_the_image_does_not_matter(result, scene, small_weights):
    scaled = segment(
        1e-9 * scene.image.astype(float), rms=1e-9 * scene.rms, n_samples=4, seed=1,
        model=small_weights,
    )  # fmt: skip
    np.testing.assert_allclose(scaled.p_galaxy, result.p_galaxy, atol=1e-3)


def test_missing_pixels_are_nan_in_the_maps_and_nowhere_else(scene, small_weights):
    image = scene.image.copy()
    image[50:60, 70:90] = np.nan
    holed = segment(image, rms=scene.rms, n_samples=2, model=small_weights)
    hole = np.zeros(image.shape, dtype=bool)
    hole[50:60, 70:90] = True
    np.testing.assert_array_equal(np.isnan(holed.p_galaxy), hole)
    np.testing.assert_array_equal(np.isnan(holed.p_blend), hole)
    np.testing.assert_array_equal(holed.mask, hole)
    assert (holed.labels[hole] == 0).all()
    assert np.isfinite(holed.catalog["p_blend"]).all()


def test_the_labels_are_photutils_labels(result):
    assert isinstance(result.segmentation_image(), SegmentationImage)
    assert len(result.segmentation_image().labels) == len(result.catalog)


def test_the_products_say_what_the_result_says(result, tmp_path):
    result.write(tmp_path / "out", keep_samples=True)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "catalog.fits", "maps.fits", "quicklook.png", "samples.fits", "summary.json",
    ]  # fmt: skip
    with fits.open(tmp_path / "out" / "maps.fits") as hdus:
        assert [h.name for h in hdus[1:]] == ["P_GALAXY", "P_BLEND", "LABELS", "MASK"]
        np.testing.assert_array_equal(hdus["P_BLEND"].data, result.p_blend)
        assert hdus["LABELS"].data.dtype == np.dtype(">i4")
        header = hdus[0].header
        assert header["PBSEED"] == 1
        assert header["PBNSAMP"] == 4
        assert header["PBMODEL"] == "small"
        assert len(header["PBHASH"]) == 16
    with fits.open(tmp_path / "out" / "samples.fits") as hdus:
        np.testing.assert_array_equal(hdus["SAMPLES"].data, result.samples)
    catalog = QTable.read(tmp_path / "out" / "catalog.fits")
    assert catalog.colnames == ["id", "x", "y", "ra", "dec", "n_pixels", "p_blend", "flags"]
    assert len(catalog) == len(result.catalog)


def test_earlier_products_are_kept_unless_told(result, tmp_path):
    result.write(tmp_path, keep_samples=True)
    with pytest.raises(FileExistsError, match=r"holds maps\.fits.* already"):
        result.write(tmp_path)
    result.write(tmp_path, overwrite=True)
    assert not (tmp_path / "samples.fits").exists()


def test_a_failure_leaves_nothing_behind(result, tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.Segmentation, "plot", full)
    with pytest.raises(OSError, match="No space"):
        result.write(tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_the_world_coordinates_go_through(scene, wcs, small_weights, tmp_path):
    data = ImageData(data=scene.image, wcs=wcs)
    result = segment(data, rms=scene.rms, n_samples=1, model=small_weights)
    x, y = wcs.world_to_pixel_values(result.catalog["ra"], result.catalog["dec"])
    np.testing.assert_allclose(x, result.catalog["x"].value, atol=1e-6)
    np.testing.assert_allclose(y, result.catalog["y"].value, atol=1e-6)
    result.write(tmp_path)
    for name in ("P_GALAXY", "P_BLEND", "LABELS"):
        with fits.open(tmp_path / "maps.fits") as hdus:
            again = WCS(hdus[name].header)
        np.testing.assert_allclose(
            again.pixel_to_world_values(3, 4), wcs.pixel_to_world_values(3, 4)
        )


def test_a_tiny_image_works(small_weights, generator):
    result = segment(generator.normal(size=(5, 3)), rms=1.0, n_samples=2, model=small_weights)
    assert result.p_galaxy.shape == (5, 3)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"n_samples": 0}, "n_samples must be at least 1; got 0"),
        ({"device": "tpu"}, "device must be auto"),
        ({"tile_size": 0}, "tile_size"),
    ],
)
def test_bad_arguments_are_refused_in_words(scene, small_weights, wrong, said):
    with pytest.raises(ValueError, match=said):
        probablend.segment(scene.image, **{"rms": scene.rms, "model": small_weights, **wrong})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"n_samples": 2.5}, "n_samples must be a whole number; got 2.5"),
        ({"seed": None}, "seed must be a whole number; got None"),
        ({"zeropoint": "22.5"}, "zeropoint must be a plain number; got '22.5'"),
        ({"psf_fwhm": 1 * u.arcsec}, "psf_fwhm must be a plain number; got <Quantity 1. arcsec>"),
    ],
)
def test_what_is_no_number_is_refused_before_any_work(scene, small_weights, wrong, said):
    with pytest.raises(TypeError, match=said):
        probablend.segment(scene.image, **{"rms": scene.rms, "model": small_weights, **wrong})


@pytest.mark.data
@pytest.mark.parametrize(
    "name", ["field_hst_xdf/f160w.fits", "field_emmi_R/image.fits", "field_kids_viking/r.fits.fz"]
)
def test_real_fields_go_through(test_data, name, small_weights):
    image = probablend.read_image(test_data / name)
    cut = ImageData(data=image.data[:300, :300], wcs=image.wcs, name=name)
    result = segment(cut, n_samples=1, model=small_weights)
    assert np.isfinite(result.p_galaxy[~result.mask]).all()
