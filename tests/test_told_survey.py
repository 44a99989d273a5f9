"""What a model is told of the survey that an image is of: pixel scale and depth."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.nddata import CCDData
from astropy.wcs import WCS

from probablend import cli, segment
from probablend.checkpoint import load_model, save_weights
from probablend.emulate.bank import draw_bank
from probablend.emulate.compose import draw_batch
from probablend.emulate.scenes import SceneConfig
from probablend.images import ImageData
from probablend.infer.measure import measure
from probablend.infer.plan import StreamSettings
from probablend.infer.stream import stream
from probablend.models.field import FieldNetwork
from probablend.models.start import take_over
from probablend.survey import get_survey

SCALE, ZEROPOINT, RMS = 0.2, 27.0, 0.1
FACTS = (SCALE, ZEROPOINT - 2.5 * np.log10(RMS))  # arcsec per pixel, magnitude of the noise


@pytest.fixture(scope="module")
def survey_weights(field_weights, tmp_path_factory):
    """The small field model, to which the survey says something, whatever it is."""
    before, meta = load_model(field_weights)
    network = FieldNetwork(replace(before.config, knows_survey=True))
    take_over(network, before, [])
    with torch.no_grad():
        for layer in (network.gather[0], network.photometry.inner[0]):
            new = layer.weight[:, -4:]
            assert not new.any()  # to a network that starts it says nothing
            new.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    path = tmp_path_factory.mktemp("survey") / "told.safetensors"
    meta = meta | {"name": "told", "model": {"kind": "field", **asdict(network.config)}}
    save_weights(path, network.eval(), meta, half=False)
    return path


@pytest.fixture(scope="module")
def pixels():
    rng = np.random.default_rng(4)
    image = rng.normal(size=(96, 112)).astype(np.float32)
    y, x = np.indices(image.shape)
    for _ in range(12):
        a, b = rng.uniform(10, 86), rng.uniform(10, 102)
        image += 60 * np.exp(-0.5 * ((y - a) ** 2 + (x - b) ** 2) / 3).astype(np.float32)
    return image * RMS


@pytest.fixture(scope="module")
def how(survey_weights):
    return {
        "rms": RMS, "background": "none", "n_samples": 1, "psf_fwhm": 3.0, "min_p_source": 0.0,
        "model": survey_weights,
    }  # fmt: skip


@pytest.fixture(scope="module")
def coordinates():
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval, wcs.wcs.crpix = [150.0, 2.0], [50.0, 40.0]
    wcs.wcs.cdelt = [-SCALE / 3600, SCALE / 3600]
    return wcs


def seen(network, image, **told):
    at = torch.tensor([0]), torch.tensor([20.0]), torch.tensor([22.0])
    said = network(image, **told)
    return said.heat_logits, said.context(*at, detected=True)


@torch.inference_mode()
def test_it_counts_for_sources_and_not_for_class_maps(survey_weights, field_weights):
    network, _ = load_model(survey_weights)
    image = 3 * torch.randn(1, 1, 40, 40, generator=torch.Generator().manual_seed(2))
    heat, context = seen(network, image)
    known = torch.tensor([FACTS])
    for told in (known, known.where(torch.tensor([True, False]), torch.nan)):
        other_heat, other = seen(network, image, survey_facts=told)
        assert torch.equal(other_heat, heat)
        assert not torch.equal(other, context)
    deaf, _ = load_model(field_weights)
    assert torch.equal(seen(deaf, image)[1], seen(deaf, image, survey_facts=known)[1])


@torch.inference_mode()
@pytest.mark.parametrize("facts", [(np.nan, np.nan), (2.5, 18.0), (0.001, 40.0), (-1.0, np.inf)])
def test_what_was_never_learnt_counts_as_unknown(survey_weights, facts):
    network, _ = load_model(survey_weights)
    image = torch.ones(1, 1, 40, 40)
    assert torch.equal(seen(network, image)[1],
                       seen(network, image, survey_facts=torch.tensor([facts]))[1])  # fmt: skip


@pytest.mark.parametrize(
    "name", ["euclid-vis", "lsst-i", "hsc-i", "des-i", "cosmos-f814w", "roman-f158"]
)
@torch.inference_mode()
def test_the_surveys_that_there_are_are_known(survey_weights, name):
    network, _ = load_model(survey_weights)
    survey = get_survey(name)
    told = network._facts(
        torch.zeros(1, 1, 8, 8), torch.tensor([[survey.scale, float(survey.mag(survey.sky_rms))]])
    )
    assert (told[0, :2] > 0).all()
    assert told[0, 2:].abs().max() < 25


def test_it_is_told_of_some_scenes_and_changes_none():
    bank = draw_bank(
        "parametric", ["euclid-vis", "lsst-i"], "train", n_galaxies=8, n_stars=2,
        mag_range=(20.0, 24.0), seed=1,
    )  # fmt: skip
    config = SceneConfig(size=24, survey_fraction=0.6)
    batch = draw_batch(bank, config, n=400, seed=3, index=0)
    told = batch.survey_facts.isfinite()
    # Which scenes these are has nothing to do with their survey, not even in the first one.
    first = [draw_batch(bank, config, n=1, seed=3, index=k) for k in range(150)]
    of_first = torch.cat([b.survey_facts for b in first]).isfinite().float()
    is_lsst = torch.cat([b.psf_fwhm for b in first]) == bank.psf_fwhm[1]
    shares = [of_first[which].mean(dim=0) for which in (is_lsst, ~is_lsst)]
    np.testing.assert_allclose(*shares, atol=0.25)
    assert told.float().mean(dim=0).numpy() == pytest.approx(0.6, abs=0.08)
    # One without the other, too: each tells by itself.
    assert told.all(dim=1).float().mean() == pytest.approx(0.36, abs=0.08)
    own = (batch.psf_fwhm[:, None] == bank.psf_fwhm).float().argmax(dim=1)
    facts = torch.stack([bank.scale, bank.mag_of_sigma], dim=1)[own]
    assert torch.equal(batch.survey_facts[told], facts[told])
    untold = draw_batch(bank, replace(config, survey_fraction=0.0), n=400, seed=3, index=0)
    assert untold.survey_facts is None
    assert torch.equal(untold.image, batch.image)


def test_the_header_says_it_unless_the_user_does(pixels, how, coordinates):
    unknown = segment(pixels, **how)
    assert (unknown.meta["pixel_scale"], unknown.meta["noise_mag"]) == (None, None)
    given = segment(pixels, **how, pixel_scale=SCALE, zeropoint=ZEROPOINT)
    assert (given.meta["pixel_scale"], given.meta["noise_mag"]) == pytest.approx(FACTS)
    assert not np.allclose(given.catalog["flux"], unknown.catalog["flux"], rtol=1e-3)
    assert np.isnan(unknown.catalog["hlr_arcsec"]).all()
    np.testing.assert_allclose(given.catalog["hlr_arcsec"].value,
                               SCALE * given.catalog["hlr"].value, rtol=1e-5)  # fmt: skip
    data = ImageData(data=pixels, wcs=coordinates, zeropoint=ZEROPOINT)
    for image in (data, CCDData(pixels, unit="adu", wcs=coordinates, meta={"MAGZERO": ZEROPOINT})):
        read = segment(image, **how)
        assert (read.meta["pixel_scale"], read.meta["noise_mag"]) == pytest.approx(FACTS)
        np.testing.assert_allclose(read.catalog["flux"].value, given.catalog["flux"], rtol=1e-4)
    other = segment(data, **how, pixel_scale=0.05)
    assert other.meta["pixel_scale"] == 0.05
    at = np.stack([given.catalog["x"].value, given.catalog["y"].value], axis=1)
    forced = [measure(pixels, at, **how, **told)["flux"]
              for told in ({}, {"pixel_scale": SCALE, "zeropoint": ZEROPOINT})]  # fmt: skip
    assert not np.allclose(*forced, rtol=1e-3)


def test_block_by_block_it_counts_as_much(pixels, how, coordinates, tmp_path):
    header = coordinates.to_header()
    header["MAGZERO"] = ZEROPOINT
    fits.writeto(tmp_path / "image.fits", pixels, header)
    whole = segment(tmp_path / "image.fits", **how)
    assert whole.meta["noise_mag"] == pytest.approx(FACTS[1])
    settings = StreamSettings(
        image=str(tmp_path / "image.fits"), block=64, **how | {"model": str(how["model"])}
    )
    stream(settings, tmp_path / "out")
    said = fits.getheader(tmp_path / "out" / "maps.fits")
    assert (said["PBSCALE"], said["PBNMAG"]) == pytest.approx(FACTS, rel=1e-4)
    with fits.open(tmp_path / "out" / "catalog.fits") as hdus:
        streamed = hdus[1].data["flux"]
    np.testing.assert_allclose(streamed, np.asarray(whole.catalog["flux"]), rtol=2e-3)


@torch.inference_mode()
def test_a_network_that_starts_says_what_the_one_before_said(fitting_weights):
    """What is new lies before what fits say."""
    before, _ = load_model(fitting_weights)
    network = FieldNetwork(replace(before.config, knows_survey=True)).eval()
    take_over(network, before, [])
    image = 3 * torch.randn(1, 1, 40, 40, generator=torch.Generator().manual_seed(2))
    image[0, 0, 18:24, 20:25] += 30
    told = seen(network, image, survey_facts=torch.tensor([FACTS]))[1]
    torch.testing.assert_close(told, seen(before, image)[1], rtol=1e-4, atol=1e-5)


def test_what_the_model_is_not_told_is_not_in_the_headers(pixels, how, field_weights, caplog):
    caplog.set_level("INFO")
    deaf = segment(pixels, **how | {"model": field_weights}, pixel_scale=SCALE, zeropoint=ZEROPOINT)
    beyond = segment(pixels, **how, pixel_scale=3.0, zeropoint=ZEROPOINT)
    assert (deaf.meta["pixel_scale"], deaf.meta["noise_mag"]) == (None, None)
    assert beyond.meta["pixel_scale"] is None
    assert beyond.meta["noise_mag"] == pytest.approx(FACTS[1])
    assert "the pixel scale, arcsec, is 3, and the model knows 0.029 to 0.41" in caplog.text
    for said, scale in ((deaf, SCALE), (beyond, 3.0)):  # sizes are sizes
        np.testing.assert_allclose(said.catalog["hlr_arcsec"].value,
                                   scale * said.catalog["hlr"].value, rtol=1e-5)  # fmt: skip


def test_where_no_window_tells_the_noise_no_depth_is_made_up(pixels, how, tmp_path, monkeypatch):
    monkeypatch.setattr("probablend.infer.plan._SAMPLE", 64)
    image = np.full((300, 300), np.nan, np.float32)
    image[:40, :40] = pixels[:40, :40]
    fits.writeto(tmp_path / "image.fits", image, fits.Header([("MAGZERO", ZEROPOINT)]))
    settings = StreamSettings(
        image=str(tmp_path / "image.fits"), block=96, pixel_scale=SCALE,
        **how | {"model": str(how["model"])},
    )  # fmt: skip
    stream(settings, tmp_path / "out")
    header = fits.getheader(tmp_path / "out" / "maps.fits")
    assert header["PBSCALE"] == SCALE
    assert isinstance(header["PBNMAG"], fits.card.Undefined) or header["PBNMAG"] is None


@pytest.mark.parametrize("command", ["segment", "measure"])
def test_the_command_line_passes_it_on(command, pixels, how, coordinates, tmp_path, monkeypatch):
    fits.writeto(tmp_path / "image.fits", pixels, coordinates.to_header())
    (tmp_path / "at.csv").write_text("x,y\n20,22\n60,50\n")
    out = tmp_path / ("out" if command == "segment" else "out.fits")
    options = ["--model", how["model"], "--rms", RMS, "--background", "none", "--psf-fwhm", 3.0,
               "--samples", 1, "-o", out]  # fmt: skip
    if command == "measure":
        options += ["--positions", tmp_path / "at.csv"]
    else:
        options += ["--min-p-source", 0.0]
    fluxes = []
    for scale in ([], ["--pixel-scale", 0.07]):
        words = [command, tmp_path / "image.fits", *options, *scale, "--overwrite"]
        monkeypatch.setattr("sys.argv", ["probablend", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code
        with fits.open(out / "catalog.fits" if command == "segment" else out) as hdus:
            fluxes.append(np.array(hdus[1].data["flux"]))
    assert len(fluxes[0]) == len(fluxes[1]) > 0
    assert not np.allclose(*fluxes, rtol=0.02)


@pytest.mark.parametrize("scale", [0.0, -0.2, np.nan, np.inf])
def test_a_scale_that_is_none_is_refused(pixels, how, scale):
    with pytest.raises(ValueError, match="pixel_scale must be positive, arcsec"):
        segment(pixels, **how, pixel_scale=scale)
