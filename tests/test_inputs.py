"""Whatever an image comes in, the answer is that of its pixels, noise, mask and coordinates."""

import logging

import astropy.units as u
import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.nddata import (
    CCDData,
    InverseVariance,
    NDData,
    StdDevUncertainty,
    UnknownUncertainty,
    VarianceUncertainty,
)
from astropy.nddata.utils import Cutout2D
from astropy.table import Table
from photutils.segmentation import SourceCatalog

from probablend import measure, read_image, segment
from probablend.inputs import as_image
from probablend.prepare import prepare_image


@pytest.fixture(scope="module")
def mask(scene):
    mask = np.zeros(scene.image.shape, dtype=bool)
    mask[40:60, 40:60] = True
    return mask


@pytest.fixture(scope="module")
def expected(scene, mask, field_weights):
    return segment(scene.image, rms=scene.rms, mask=mask, n_samples=2, model=field_weights)


def uncertainty(kind, rms, shape):
    std = np.full(shape, rms)
    if kind is VarianceUncertainty:
        return VarianceUncertainty(std**2)
    return InverseVariance(std**-2.0) if kind is InverseVariance else StdDevUncertainty(std)


@pytest.mark.parametrize("kind", [StdDevUncertainty, VarianceUncertainty, InverseVariance])
def test_ccddata_brings_mask_noise_coordinates_and_unit(
    scene, mask, wcs, expected, field_weights, kind
):
    ccd = CCDData(
        scene.image, unit="nJy", mask=mask, wcs=wcs,
        uncertainty=uncertainty(kind, scene.rms, scene.image.shape),
    )  # fmt: skip
    result = segment(ccd, n_samples=2, model=field_weights)
    np.testing.assert_allclose(result.p_blend, expected.p_blend, atol=1e-4)
    np.testing.assert_array_equal(result.mask, mask)
    catalog = result.catalog
    assert catalog["flux"].unit == catalog["flux_q05"].unit == u.nJy
    assert np.isfinite(catalog["ra"]).all()
    np.testing.assert_allclose(  # a nanojansky has a magnitude
        catalog["mag"].value, catalog["flux"].to(u.ABmag).value, atol=1e-3
    )
    assert catalog["flux"].info.description == expected.catalog["flux"].info.description


def test_an_inverse_variance_of_zero_is_a_missing_pixel(scene, field_weights):
    weight = np.full(scene.image.shape, scene.rms**-2.0)
    weight[10:15, 10:15] = 0
    image = NDData(scene.image, uncertainty=InverseVariance(weight))
    np.testing.assert_array_equal(
        segment(image, n_samples=2, model=field_weights).mask, weight == 0
    )


def test_what_the_caller_says_wins(scene, wcs):
    ccd = CCDData(
        scene.image, unit="adu", mask=scene.image > 0, wcs=wcs,
        uncertainty=StdDevUncertainty(np.ones(scene.image.shape)), meta={"MAGZERO": 25.0},
    )  # fmt: skip
    carried = as_image(ccd)
    assert carried.zeropoint == 25.0
    assert carried.unit == u.adu
    other = wcs.deepcopy()
    nothing = np.zeros(scene.image.shape, dtype=bool)
    data = as_image(ccd, rms=3.0, mask=nothing, wcs=other, zeropoint=30.0)
    assert data.rms == 3.0
    assert data.mask is nothing
    assert data.wcs is other
    assert data.zeropoint == 30.0


def test_sums_of_surface_brightness_claim_no_unit(scene):
    data = as_image(CCDData(scene.image, unit="MJy/sr"))
    assert data.unit is None
    assert data.zeropoint is None


def test_an_uncertainty_of_unknown_kind_is_not_guessed(scene, caplog):
    image = NDData(scene.image, uncertainty=UnknownUncertainty(np.ones(scene.image.shape)))
    with caplog.at_level(logging.WARNING, logger="probablend"):
        assert as_image(image).rms is None
    assert "not used" in caplog.text


@pytest.mark.parametrize("kind", [fits.PrimaryHDU, fits.ImageHDU, fits.CompImageHDU])
def test_an_hdu_is_what_its_file_is(scene, wcs, tmp_path, kind):
    header = wcs.to_header()
    header["MAGZERO"], header["SATURATE"] = 27.0, 5e4
    hdu = kind(scene.image, header)
    hdu.writeto(tmp_path / "image.fits")
    mine, file = as_image(hdu), read_image(tmp_path / "image.fits")
    assert mine.zeropoint == file.zeropoint == 27.0
    assert mine.saturation == file.saturation == 5e4
    assert as_image(hdu, saturation=3e4).saturation == 3e4
    assert mine.wcs.wcs.compare(file.wcs.wcs)
    assert mine.data.shape == file.data.shape


def test_tensors_are_detached_and_brought_home(scene, expected, mask, field_weights):
    tensor = torch.from_numpy(scene.image.copy()).requires_grad_()
    result = segment(
        tensor, rms=torch.tensor(scene.rms), mask=torch.from_numpy(mask), n_samples=2,
        model=field_weights,
    )  # fmt: skip
    np.testing.assert_array_equal(result.p_blend, expected.p_blend)
    assert as_image(tensor.bfloat16()).data.dtype == np.float32


def test_a_quantity_keeps_its_unit(scene):
    image = scene.image * u.nJy
    known = as_image(image, rms=1e-3 * scene.rms * u.uJy)
    assert known.unit == u.nJy
    assert known.zeropoint == pytest.approx(31.4, abs=1e-6)  # 3631 Jy have magnitude 0
    assert known.rms == pytest.approx(scene.rms)
    with pytest.raises(ValueError, match="rms is in nJy; the image has no unit"):
        as_image(scene.image, rms=scene.rms * u.nJy)
    with pytest.raises(TypeError, match="rms must be an array; got the name"):
        as_image(scene.image, rms="noise.fits")


def test_measure_takes_a_file_and_places_on_the_sky(scene, wcs, field_weights, tmp_path):
    how = {"rms": scene.rms, "wcs": wcs, "n_samples": 2, "model": field_weights}
    at = np.array([[40.0, 62.0], [91.0, 120.0]])
    expected = measure(scene.image, at, **how)
    Table(at, names=["x", "y"]).write(tmp_path / "at.csv")
    on_sky = wcs.pixel_to_world(*at.T).galactic
    for positions in (tmp_path / "at.csv", str(tmp_path / "at.csv"), on_sky):
        found = measure(scene.image, positions, **how)
        np.testing.assert_allclose(found["flux"], expected["flux"], rtol=1e-3)


def test_measure_takes_the_same(scene, mask, wcs, field_weights):
    noise = StdDevUncertainty(np.full(scene.image.shape, scene.rms))
    ccd = CCDData(scene.image, unit="nJy", mask=mask, wcs=wcs, uncertainty=noise)
    table = measure(ccd, np.array([[100.0, 120.0], [50.0, 50.0]]), n_samples=2, model=field_weights)
    assert table["flux"].unit == u.nJy
    np.testing.assert_array_equal(np.isfinite(table["flux"]), [True, False])


def test_what_is_no_image_is_refused_in_a_sentence(scene):
    with pytest.raises(TypeError, match="choose an extension"):
        as_image(fits.HDUList([fits.PrimaryHDU(scene.image)]))
    with pytest.raises(ValueError, match="holds no image"):
        as_image(fits.PrimaryHDU())
    with pytest.raises(ValueError, match="2-D image"):
        as_image(NDData(np.zeros((3, 4, 5))))


def test_maps_leave_as_nddata(expected):
    blend = expected.to_nddata()
    np.testing.assert_array_equal(blend.data, expected.p_blend)
    np.testing.assert_array_equal(blend.mask, expected.mask)
    assert blend.meta["model"] == "small-field"
    assert expected.to_nddata("labels").data.dtype == np.int32
    with pytest.raises(ValueError, match="plane must be one of"):
        expected.to_nddata("flux")


def test_photutils_measures_the_objects_of_the_catalogue(scene, expected):
    theirs = SourceCatalog(scene.image, expected.segmentation_image(), mask=expected.mask)
    assert len(theirs) > 5
    ours = expected.catalog[theirs.labels - 1]
    np.testing.assert_array_equal(ours["id"], theirs.labels)
    distance = np.hypot(ours["x"].value - theirs.x_centroid, ours["y"].value - theirs.y_centroid)
    assert np.nanmedian(distance) < 1.0


def test_masked_noise_is_missing_there(scene):
    rms = np.ma.array(np.full(scene.image.shape, scene.rms, np.float32), mask=False)
    rms[:20] = 1e-3
    rms.mask[:20] = True
    prepared = prepare_image(scene.image, rms=rms, background="none")
    assert prepared.mask[:20].all()
    assert not prepared.mask[20:].any()


def test_planes_of_a_stack_of_one_are_planes(scene):
    mask = np.zeros((1, *scene.image.shape), bool)
    mask[0, :5] = True
    noise = np.full(mask.shape, scene.rms)
    for image in (
        NDData(scene.image[None], mask=mask, uncertainty=StdDevUncertainty(noise)),
        as_image(scene.image[None], rms=noise, mask=mask),
        as_image(scene.image[None] * u.nJy, rms=noise * u.nJy, mask=mask),
    ):
        data = as_image(image)
        assert data.data.shape == data.rms.shape == data.mask.shape == scene.image.shape
        np.testing.assert_array_equal(data.mask, mask[0])


def test_noise_per_solid_angle_is_in_the_unit_of_the_image(scene):
    unit = u.MJy / u.sr
    data = as_image(scene.image * unit, rms=1e3 * scene.rms * (u.kJy / u.sr))
    assert data.rms == pytest.approx(scene.rms)
    with pytest.raises(ValueError, match="no unit"):
        as_image(scene.image, rms=scene.rms * unit)


def test_the_solid_angle_of_a_pixel_gives_magnitudes_however_the_file_is_read(scene, tmp_path):
    header = fits.Header([("BUNIT", "MJy/sr"), ("PIXAR_SR", 1e-13)])
    fits.writeto(tmp_path / "a.fits", scene.image, header)
    read = CCDData.read(tmp_path / "a.fits")
    said = [as_image(image).zeropoint for image in (tmp_path / "a.fits", read)]
    assert said == pytest.approx(2 * [8.9 + 2.5 * 7], abs=0.01)


def test_a_cutout_and_a_header_of_coordinates_are_understood(scene, wcs):
    cutout = Cutout2D(scene.image, (30, 20), 16, wcs=wcs)
    data = as_image(cutout)
    np.testing.assert_array_equal(data.data, cutout.data)
    one, other = (w.pixel_to_world(3, 4) for w in (data.wcs, cutout.wcs))
    assert one.separation(other).arcsec < 1e-6
    known = as_image(Cutout2D(scene.image * u.nJy, (30, 20), 16))
    assert (known.unit, known.zeropoint) == (u.nJy, pytest.approx(31.4, abs=1e-6))
    told = as_image(scene.image, wcs=wcs.to_header())
    assert told.wcs.pixel_to_world(3, 4).separation(wcs.pixel_to_world(3, 4)).arcsec < 1e-6
    with pytest.raises(TypeError, match=r"mask must be an array; got the name 'mask\.fits'"):
        as_image(scene.image, mask="mask.fits")
