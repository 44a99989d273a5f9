"""Posteriors made wider, or narrower, by what injection into an image found."""

import numpy as np
import pytest
import torch
from astropy.io import fits

from probablend import cli, measure, segment
from probablend.evaluate.inject import InjectionConfig, inject
from probablend.images import ImageData
from probablend.infer.plan import StreamSettings
from probablend.infer.stream import stream

POSITIONS = np.array([[20.0, 22.0], [60.0, 50.0], [84.0, 71.0]])  # (x, y)


@pytest.fixture(scope="module")
def pixels():
    rng = np.random.default_rng(4)
    image = rng.normal(size=(96, 112)).astype(np.float32)
    y, x = np.indices(image.shape)
    for x0, y0 in POSITIONS:
        image += 30 * np.exp(-0.5 * ((y - y0) ** 2 + (x - x0) ** 2) / 9).astype(np.float32)
    return image


def test_errors_are_multiplied_and_medians_stay(pixels, how):
    how = how | {"model": "field", "min_p_source": 0.5}
    usual, narrow = (segment(pixels, **how, error_factor=f) for f in (1.0, 0.8))
    assert len(usual.catalog) == len(narrow.catalog) == len(POSITIONS)
    np.testing.assert_array_equal(usual.p_blend, narrow.p_blend)  # pixels are not concerned
    np.testing.assert_array_equal(usual.catalog["p_source"], narrow.catalog["p_source"])
    for name in ("flux", "x", "y", "e1"):
        (low, mid, high), (low_n, mid_n, high_n) = (
            np.quantile(r.sources.parameter(name), [0.16, 0.5, 0.84], axis=0)
            for r in (usual, narrow)
        )
        # Tails that are longer than normal ones shrink a little more.
        ratio = (high_n - low_n) / (high - low)
        assert ((ratio > 0.65) & (ratio < 0.84)).all(), (name, ratio)
        assert (np.abs(mid_n - mid) < 0.1 * (high - low)).all()


def test_what_is_wider_is_a_density_too(pixels, how):
    # ∫ p = 1: the mean of the ratio of densities over draws of the wider one, which is nowhere 0.
    result = {f: segment(pixels, **how, error_factor=f).sources.posterior for f in (0.8, 1.0)}
    draws = result[1.0].sample(20000, generator=torch.Generator().manual_seed(1))
    ratio = (result[0.8].log_prob(draws) - result[1.0].log_prob(draws)).exp()
    error = ratio.std(dim=0) / len(draws) ** 0.5
    assert ((ratio.mean(dim=0) - 1).abs() < 4.5 * error + 0.01).all()
    assert (error < 0.05).all()


def test_block_by_block_and_at_positions_too(pixels, how, tmp_path):
    fits.writeto(tmp_path / "image.fits", pixels)
    settings = StreamSettings(
        image=str(tmp_path / "image.fits"), block=64, error_factor=2.0,
        **how | {"model": str(how["model"])},
    )  # fmt: skip
    stream(settings, tmp_path / "out")
    whole = segment(pixels, **how, error_factor=2.0).catalog
    with fits.open(tmp_path / "out" / "catalog.fits") as hdus:
        assert hdus[0].header["PBERRF"] == 2.0
        streamed = np.sort(np.asarray(hdus[1].data["flux_err"], float))
    np.testing.assert_allclose(streamed, np.sort(np.asarray(whole["flux_err"], float)), rtol=2e-3)
    at = {f: measure(pixels, POSITIONS, **how, error_factor=f) for f in (1.0, 2.0)}
    assert (at[2.0]["flux_err"] > 1.5 * at[1.0]["flux_err"]).all()


@pytest.mark.parametrize("command", ["segment", "measure"])
def test_the_command_line_passes_it_on(command, pixels, how, tmp_path, monkeypatch):
    fits.writeto(tmp_path / "image.fits", pixels)
    (tmp_path / "at.csv").write_text("x,y\n20,22\n60,50\n")
    out = tmp_path / ("out" if command == "segment" else "out.fits")
    more = {"segment": [], "measure": ["--positions", tmp_path / "at.csv"]}
    words = [command, tmp_path / "image.fits", "--model", how["model"], "--rms", 1.0,
             "--background", "none", "--psf-fwhm", 3.0, "--samples", 1, "--error-factor", 0.8,
             "-o", out, *more[command]]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["probablend", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    path = out / "catalog.fits" if command == "segment" else out
    assert fits.getheader(path)["PBERRF"] == 0.8


def test_the_one_that_injection_finds_is_the_same_whatever_was_given(
    pixels, field_weights, tmp_path
):
    sky = np.random.default_rng(6).normal(size=(400, 400)).astype(np.float32)
    image = ImageData(data=sky, zeropoint=30.0)
    found = {
        given: inject(
            image, tmp_path / str(given), InjectionConfig(n=40, seed=2), rms=1.0, psf_fwhm=2.0,
            background="none", pixel_scale=0.1, model=field_weights, error_factor=given,
        )
        for given in (1.0, 0.5)
    }  # fmt: skip
    one, other = found.values()
    assert one["n_found"] == other["n_found"] >= 10
    assert other["error_factor_given"] == 0.5
    assert other["intervals"]["error_factor"] == pytest.approx(
        one["intervals"]["error_factor"], rel=0.15
    )
    assert other["intervals"]["68"] < one["intervals"]["68"]
    # What was given shows in the report; what is not 1 is said.
    assert "error factor 0.5" in (tmp_path / "0.5" / "inject.md").read_text()
    assert "error factor" not in (tmp_path / "1.0" / "inject.md").read_text().split("\n", 2)[2]


@pytest.mark.parametrize("factor", [0.0, -1.0, np.nan, np.inf])
def test_one_that_is_none_is_refused(pixels, how, factor, tmp_path):
    with pytest.raises(ValueError, match="error_factor must be positive"):
        segment(pixels, **how, error_factor=factor)
    with pytest.raises(ValueError, match="error_factor must be positive"):
        StreamSettings(image="image.fits", error_factor=factor)
    with pytest.raises(ValueError, match="error_factor must be positive"):
        inject(pixels, tmp_path, InjectionConfig(n=1), pixel_scale=0.1, error_factor=factor)
    assert not list(tmp_path.iterdir())
