"""A PSF in numbers: against analytic profiles, whatever the pixels, and what is told of it."""

import galsim
import numpy as np
import pytest
import torch
from astropy.io import fits
from scipy.integrate import quad

from probablend.emulate.psf import psf_image, survey_psf
from probablend.infer.segment import segment
from probablend.infer.stream import StreamSettings, stream
from probablend.models import build_model
from probablend.psf import PSF, as_psf
from probablend.survey import get_survey

SMALL = {
    "kind": "field", "channels": [4, 6], "n_convs": 1, "context": 8, "gather_hidden": [8],
    "flow_hidden": [8], "photometry": True, "knows_noise": True,
}  # fmt: skip


def drawn(profile, side=101, scale=1.0):
    return profile.drawImage(nx=side, ny=side, scale=scale).array


def within(profile, sigma, reach=200.0):
    """Light within a Gaussian weight, by quadrature over radii."""
    return quad(
        lambda r: 2 * np.pi * r * profile.xValue(r, 0) * np.exp(-0.5 * (r / sigma) ** 2), 0, reach,
        limit=400,
    )[0]  # fmt: skip


@pytest.mark.parametrize("fwhm", [2.2, 3.5, 5.0])
@pytest.mark.parametrize("beta", [2.5, 4.0])
def test_wings_are_the_light_that_a_gaussian_would_hold(fwhm, beta):
    profile = galsim.Moffat(beta=beta, fwhm=fwhm)
    said = PSF.of(drawn(profile, 201))
    assert said.fwhm == pytest.approx(fwhm, rel=0.06)
    for wings, weight in zip(said.wings, (1, 2, 4), strict=True):
        sigma2, width2 = (weight * fwhm) ** 2, (fwhm / 2.3548) ** 2
        expected = np.log(within(profile, weight * fwhm) * (sigma2 + width2) / sigma2)
        assert wings == pytest.approx(expected, abs=0.25 * abs(expected) + 0.005)
        assert wings < 0


@pytest.mark.parametrize("fwhm", [1.6, 3.0, 6.0])
def test_a_gaussian_has_none(fwhm):
    said = PSF.of(drawn(galsim.Gaussian(fwhm=fwhm), 61))
    assert said.fwhm == pytest.approx(fwhm, rel=0.05)
    np.testing.assert_allclose(said.wings, 0, atol=0.012)


@pytest.mark.parametrize("fwhm", [1.3, 1.7, 2.2, 3.3])
def test_neither_flux_nor_place_matters(fwhm):
    profile = galsim.Moffat(beta=3, fwhm=fwhm)
    one = PSF.of(drawn(profile, 61))
    assert one.fwhm == pytest.approx(fwhm, rel=0.05)
    for shift in ((0.4, -0.3), (0.5, 0.5)):
        other = PSF.of(1e4 * drawn(profile.shift(*shift), 61))
        assert other.fwhm == pytest.approx(one.fwhm, rel=0.02)
        np.testing.assert_allclose(other.wings, one.wings, atol=0.01)


@pytest.mark.parametrize("side", [41, 101])
@pytest.mark.parametrize("depth", [1000, 300])
def test_noise_is_not_taken_for_wings(side, depth):
    image = drawn(galsim.Moffat(beta=3, fwhm=3.0), side)
    noise = np.random.default_rng(2).normal(size=image.shape) * image.max() / depth
    one, other = PSF.of(image), PSF.of(image + noise)
    assert other.fwhm == pytest.approx(one.fwhm, rel=0.02)
    np.testing.assert_allclose(other.wings, one.wings, atol=0.02)


def test_a_finer_sampling_is_the_same_psf():
    pixel = galsim.Convolve(galsim.Moffat(beta=3, fwhm=2.5), galsim.Pixel(1.0))
    fine = pixel.drawImage(nx=183, ny=183, scale=1 / 3, method="no_pixel").array
    one, other = PSF.of(drawn(galsim.Moffat(beta=3, fwhm=2.5), 61)), PSF.of(fine, sampling=1 / 3)
    assert other.fwhm == pytest.approx(one.fwhm, rel=0.04)
    np.testing.assert_allclose(other.wings, one.wings, atol=0.02)


@pytest.mark.parametrize("name", ["euclid-vis", "lsst-i", "cosmos-f814w", "candels-f160w"])
def test_the_image_of_a_survey_s_psf_says_what_the_survey_says(name):
    survey = get_survey(name)
    known, seen = survey_psf(survey), PSF.of(psf_image(survey, 65))
    assert known.fwhm == survey.psf_fwhm_pixels
    assert seen.fwhm == pytest.approx(known.fwhm, rel=0.06)
    np.testing.assert_allclose(seen.wings, known.wings, rtol=0.35)
    np.testing.assert_allclose(seen.wings[0], known.wings[0], rtol=0.15)


def test_files_of_images_and_of_psfex_are_read(tmp_path):
    image = drawn(galsim.Moffat(beta=3, fwhm=3.0), 41)
    expected = PSF.of(image)
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(image, name="PSF")]).writeto(tmp_path / "a.fits")
    assert as_psf(tmp_path / "a.fits").wings == pytest.approx(expected.wings, abs=1e-6)
    assert as_psf(f"{tmp_path}/a.fits[PSF]").fwhm == pytest.approx(expected.fwhm)
    planes = np.stack([image, np.zeros_like(image)])[None]
    column = fits.Column(
        name="PSF_MASK", format=f"{planes.size}E", dim="(41,41,2)", array=planes.astype("f4")
    )
    table = fits.BinTableHDU.from_columns([column], name="PSF_DATA")
    table.header["PSF_SAMP"] = 0.5
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(tmp_path / "a.psf")
    half = PSF.of(image, sampling=0.5)
    assert as_psf(tmp_path / "a.psf") == half
    assert half.fwhm < 0.52 * expected.fwhm
    fits.HDUList([fits.PrimaryHDU(), table, table.copy()]).writeto(tmp_path / "two.psf")
    with pytest.raises(ValueError, match=r"PSFs of 2 chips: name one, .*two\.psf\[1\]"):
        PSF.read(tmp_path / "two.psf")
    assert PSF.read(f"{tmp_path}/two.psf[2]") == half
    table.header["PSF_SAMP"] = -1.0
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(tmp_path / "odd.psf")
    with pytest.raises(ValueError, match=r"sampling of .* must be positive; got -1"):
        PSF.read(tmp_path / "odd.psf")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (drawn(galsim.Gaussian(fwhm=3), 31) + 0.001, "must have no background"),
        (np.ones(7), "at least 5 x 5"),
        (np.full((9, 9), np.nan), "finite"),
        (np.zeros((9, 9)), "stands out"),
        (-drawn(galsim.Gaussian(fwhm=3), 31), "bright on dark"),
        (np.pad([[1.0]], 7), "hardly wider than a pixel"),
        (
            np.pad(psf_image(get_survey("lsst-i"), 21), ((0, 40), (9, 9))),
            "middle; .* 10, 19 ",
        ),
    ],
)
def test_what_is_no_psf_is_refused(image, message):
    with pytest.raises(ValueError, match=message):
        PSF.of(image)


def test_a_masked_pixel_is_no_light():
    image = np.ma.masked_array(drawn(galsim.Gaussian(fwhm=3), 31))
    image[15, 15] = np.ma.masked
    with pytest.raises(ValueError, match="1 pixels are not"):
        as_psf(image)


def test_a_file_that_is_not_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        PSF.read(tmp_path / "none.fits")


@torch.inference_mode()
def test_wings_move_what_is_said_of_sources_and_nothing_else():
    torch.manual_seed(4)
    network = build_model(SMALL | {"knows_psf": True}).eval()
    for parameter in network.parameters():
        parameter.normal_(std=0.3)
    image = 3 * torch.randn(1, 1, 32, 32)
    at = torch.tensor([0]), torch.tensor([15.0]), torch.tensor([12.0])
    wings = torch.tensor([[-0.2, -0.1, -0.05]])
    unsaid, unknown, none, some = (
        network(image, **told)
        for told in (
            {}, {"psf_wings": torch.full((1, 3), torch.nan)}, {"psf_wings": 0 * wings},
            {"psf_wings": wings},
        )
    )  # fmt: skip
    for other in (unknown, none, some):
        assert torch.equal(other.heat_logits, unsaid.heat_logits)
    context = [said.context(*at, detected=True) for said in (unsaid, unknown, none, some)]
    assert torch.equal(context[0], context[1])
    assert not torch.equal(context[1], context[2])  # no wings is something to know
    assert not torch.equal(context[2], context[3])
    deaf = build_model(SMALL).eval()
    contexts = [deaf(image, **told).context(*at, detected=True)
                for told in ({}, {"psf_wings": wings})]  # fmt: skip
    assert torch.equal(*contexts)


@pytest.fixture(scope="module")
def psf_weights(tmp_path_factory):
    from probablend.checkpoint import save_weights

    torch.manual_seed(6)
    network = build_model(SMALL | {"knows_psf": True, "patch_size": 64})
    network.heat[-1].bias.data.fill_(0.0)  # untrained, it would see nothing anywhere
    network.gather[0].weight.data.normal_(std=0.5)
    path = tmp_path_factory.mktemp("psf") / "told.safetensors"
    meta = {"name": "told", "model": {"kind": "field"} | _settings(network)}
    save_weights(path, network, meta, half=False)
    return path


def _settings(network):
    from dataclasses import asdict

    return asdict(network.config)


def test_an_image_of_the_psf_counts_in_memory_and_block_by_block(psf_weights, tmp_path):
    rng = np.random.default_rng(3)
    image = rng.normal(size=(112, 112)).astype(np.float32)
    y, x = np.indices(image.shape)
    for _ in range(20):
        a, b = rng.uniform(10, 102, 2)
        image += 40 * np.exp(-0.5 * ((y - a) ** 2 + (x - b) ** 2) / 4)
    psf = drawn(galsim.Moffat(beta=2.5, fwhm=3.1), 41)
    fits.writeto(tmp_path / "image.fits", image)
    fits.writeto(tmp_path / "psf.fits", psf)
    how = {"rms": 1.0, "model": psf_weights, "background": "none", "n_samples": 1}
    how["min_p_source"] = 0.0
    told = segment(image, psf=psf, **how)
    width = PSF.of(psf).fwhm
    untold = segment(image, psf_fwhm=width, **how)
    assert told.meta["psf_fwhm"] == untold.meta["psf_fwhm"] == pytest.approx(width)
    assert untold.meta["psf_wings"] is None
    assert untold.psf.wings is None
    assert told.psf == PSF.of(psf)
    assert told.meta["psf_wings"] == pytest.approx(PSF.of(psf).wings[0])
    assert len(told.catalog) == len(untold.catalog) > 0
    assert not np.allclose(told.catalog["flux"], untold.catalog["flux"], rtol=1e-4)
    settings = StreamSettings(
        image=str(tmp_path / "image.fits"), psf=str(tmp_path / "psf.fits"), block=64,
        **how | {"model": str(psf_weights)},
    )  # fmt: skip
    stream(settings, tmp_path / "out")
    header = fits.getheader(tmp_path / "out" / "maps.fits")
    assert header["PBWINGS"] == pytest.approx(told.meta["psf_wings"])
    with fits.open(tmp_path / "out" / "catalog.fits") as hdus:
        streamed = hdus[1].data["flux"]
    np.testing.assert_allclose(streamed, np.asarray(told.catalog["flux"]), rtol=2e-3)


@pytest.mark.parametrize(
    "wrong", [{"fwhm": np.nan}, {"fwhm": -1.0}, {"fwhm": 2.0, "wings": (1.0,)}]
)
def test_numbers_that_are_no_psf_are_refused(wrong):
    with pytest.raises(ValueError, match="of a PSF"):
        PSF(**wrong)


def test_stars_of_the_image_say_it_where_nothing_is_given(psf_weights, tmp_path):
    rng = np.random.default_rng(5)
    psf = galsim.Moffat(beta=2.5, fwhm=2.6)
    image = rng.normal(size=(400, 400)).astype(np.float32)
    for _ in range(24):
        a, b = rng.integers(30, 370, 2)
        stamp = psf.drawImage(nx=61, ny=61, scale=1, offset=tuple(rng.uniform(-0.5, 0.5, 2)))
        bright = 10 ** rng.uniform(3, 4)
        image[a - 30 : a + 31, b - 30 : b + 31] += bright * stamp.array
    fits.writeto(tmp_path / "image.fits", image)
    how = {"rms": 1.0, "model": psf_weights, "background": "none", "n_samples": 1}
    how["min_p_source"] = 1.0  # untrained, it sees sources everywhere
    said = segment(image, **how)
    assert said.meta["psf_fwhm"] == pytest.approx(2.6, rel=0.05)
    assert said.meta["psf_wings"] == pytest.approx(-0.19, abs=0.05)
    settings = StreamSettings(
        image=str(tmp_path / "image.fits"), block=128, **how | {"model": str(psf_weights)}
    )
    stream(settings, tmp_path / "out")
    header = fits.getheader(tmp_path / "out" / "maps.fits")
    assert header["PBWINGS"] == pytest.approx(said.meta["psf_wings"])
    assert header["PBFWHM"] == pytest.approx(said.meta["psf_fwhm"])
    assert said.psf.origin == header["PBPSF"] == "measured"


def test_a_psf_that_is_assumed_is_no_measured_one(psf_weights, tmp_path):
    empty = np.random.default_rng(1).normal(size=(96, 96)).astype(np.float32)
    how = {"rms": 1.0, "background": "none", "n_samples": 1, "min_p_source": 1.0}
    assert segment(empty, model=psf_weights, **how).psf.origin == "assumed"
    fits.writeto(tmp_path / "empty.fits", empty)
    for psf_fwhm, origin in ((None, "assumed"), (3.0, "given")):
        settings = StreamSettings(
            image=str(tmp_path / "empty.fits"), block=64, psf_fwhm=psf_fwhm,
            model=str(psf_weights), **how,
        )  # fmt: skip
        stream(settings, tmp_path / origin)
        assert fits.getheader(tmp_path / origin / "maps.fits")["PBPSF"] == origin
    given = segment(empty, model=psf_weights, psf_fwhm=3.0, **how)
    assert given.psf.origin == given.meta["psf_from"] == "given"
    # What one image was taken to have is given to the next one.
    other = segment(empty, model=psf_weights, psf=PSF(fwhm=3.0, origin="measured"), **how)
    assert other.meta["psf_from"] == "given"
    with pytest.raises(ValueError, match="origin of a PSF"):
        PSF(fwhm=3.0, origin="guessed")


def test_a_network_that_knows_no_wings_says_so(field_weights, caplog):
    image = np.random.default_rng(1).normal(size=(64, 64))
    psf = drawn(galsim.Gaussian(fwhm=3.0), 31)
    said = segment(
        image, rms=1.0, psf=psf, model=field_weights, background="none", n_samples=1
    )  # fmt: skip
    assert said.meta["psf_wings"] is None
    assert said.meta["psf_fwhm"] == pytest.approx(3.0, rel=0.05)
    assert "its wings count for nothing" in caplog.text


def test_a_width_that_is_given_beside_the_psf_wins(psf_weights):
    image = np.random.default_rng(1).normal(size=(64, 64))
    psf = drawn(galsim.Gaussian(fwhm=3.0), 31)
    said = segment(
        image, rms=1.0, psf=psf, psf_fwhm=2.5, model=psf_weights, background="none", n_samples=1
    )
    assert said.meta["psf_fwhm"] == 2.5
