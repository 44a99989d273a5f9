"""Injection into a user's image: what is put in, what is scored, and what is said of it."""

from dataclasses import replace
from types import SimpleNamespace

import galsim
import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.table import Table

from probablend.emulate.blend import FieldConfig, draw_field
from probablend.emulate.parametric import ParametricGalaxies
from probablend.emulate.psf import survey_psf
from probablend.evaluate import inject as module
from probablend.evaluate.inject import InjectionConfig, inject
from probablend.evaluate.verdict import injection_table, verdict
from probablend.images import ImageData
from probablend.infer.segment import segment
from probablend.infer.segmentation import Segmentation
from probablend.models.source import SourceFlow, SourcePosterior
from probablend.psf import PSF
from probablend.survey import get_survey

CONFIG = InjectionConfig(n=12, seed=4)
RMS = get_survey("euclid-vis").sky_rms


@pytest.fixture(scope="module")
def image(wcs):
    """A small field with a WCS, in counts."""
    survey = get_survey("euclid-vis")
    galaxies = ParametricGalaxies(survey, "test", n_galaxies=100, n_stars=5, seed=2)
    config = FieldConfig(size=160, density=100)
    scene = draw_field(galaxies, config, generator=np.random.default_rng(1))
    return ImageData(data=scene.image, wcs=wcs, name="mine.fits", zeropoint=survey.zeropoint)


@pytest.fixture(scope="module")
def run(image, field_weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("inject")
    kept = image.data.copy()
    report = inject(
        image, folder, CONFIG, model=field_weights, psf_fwhm=1.7, rms=RMS, background="none"
    )
    np.testing.assert_array_equal(image.data, kept)
    return report, Table.read(folder / "injected.fits"), folder


def test_all_is_written_and_what_was_put_in_is_listed(run):
    report, table, folder = run
    assert {p.name for p in folder.iterdir()} == {
        "inject.json", "inject.md", "inject.png", "injected.fits",
    }  # fmt: skip
    assert len(table) == report["n_injected"] == CONFIG.n
    assert report["n_found"] == table["found"].sum()
    assert np.isfinite(np.asarray(table["flux"], float)[table["found"]]).all()
    assert np.isnan(np.asarray(table["flux"], float)[~np.asarray(table["found"])]).all()
    # Number counts between 6 mag above the depth and half a magnitude below it.
    mag = report["zeropoint"] - 2.5 * np.log10(table["flux_true"])
    assert (mag > report["depth"] - 6.01).all()
    assert (mag < report["depth"] + 0.51).all()
    # 5 σ for a point source: flux √(Σ psf²) = 5 σ, Gaussian PSF.
    flux = 10 ** (-0.4 * (report["depth"] - report["zeropoint"]))
    y, x = np.mgrid[-9:10, -9:10]
    psf = np.exp(-0.5 * (y**2 + x**2) / (1.7 / 2.3548) ** 2)
    psf /= psf.sum()
    assert flux * np.sqrt((psf**2).sum()) / RMS == pytest.approx(5, rel=0.05)


def test_what_is_injected_has_the_psf_that_is_given(image, field_weights, tmp_path, monkeypatch):
    profile = galsim.Gaussian(fwhm=6).shear(g1=0.6, g2=0)  # nothing else is as long
    psf = profile.drawImage(nx=41, ny=41, scale=1).array
    fits.writeto(tmp_path / "psf.fits", psf)
    kept = (tmp_path / "psf.fits").read_bytes()
    drawn = []
    add = module._add
    monkeypatch.setattr(module, "_add", lambda sky, sources, *rest: (
        drawn.extend(sources), add(sky, sources, *rest))[1])  # fmt: skip
    report = inject(
        image, tmp_path, InjectionConfig(n=3, seed=1), model=field_weights, rms=RMS,
        background="none", psf=tmp_path / "psf.fits",
    )  # fmt: skip
    assert (tmp_path / "psf.fits").read_bytes() == kept
    assert report["psf_fwhm"] == PSF.of(psf).fwhm
    assert report["psf_wings"] == pytest.approx(list(PSF.of(psf).wings), abs=0.02)
    assert drawn
    for source in drawn:
        light = source.stamp.image / source.stamp.image.sum()
        y, x = np.indices(light.shape)
        y, x = y - (light * y).sum(), x - (light * x).sum()
        assert (light * x**2).sum() > 1.5 * (light * y**2).sum()
    with pytest.raises(ValueError, match="an image of the PSF or its file"):
        inject(image, tmp_path / "no", CONFIG, model=field_weights, psf=PSF.of(psf))
    assert not (tmp_path / "no").exists()


def test_wings_that_the_image_of_a_psf_cuts_off_are_not_told(
    image, field_weights, tmp_path, monkeypatch
):
    psf = galsim.Moffat(beta=1.9, fwhm=2.5).drawImage(nx=31, ny=31, scale=1).array
    told, look = [], module.segment
    monkeypatch.setattr(module, "segment", lambda *image, **how: (
        told.append(how["psf"]), look(*image, **how))[1])  # fmt: skip
    inject(
        image, tmp_path, InjectionConfig(n=3, seed=1), model=field_weights, rms=RMS,
        background="none", psf=psf,
    )  # fmt: skip
    given, known = PSF.of(psf), told[-1]
    assert known.fwhm == pytest.approx(given.fwhm)
    assert given.wings[0] + 0.02 < known.wings[0] < given.wings[0] + 0.06
    assert known.image.sum() == pytest.approx(1, abs=1e-4)
    assert len(told) >= 3
    assert all(one is known for one in told)


def test_a_psf_on_finer_pixels_is_drawn_on_those_of_the_image(tmp_path):
    seen = galsim.Convolve(galsim.Moffat(beta=3, fwhm=3), galsim.Pixel(1))
    fine = seen.drawImage(nx=81, ny=81, scale=0.5, method="no_pixel").array
    column = fits.Column("PSF_MASK", format=f"{81 * 81}E", dim="(81,81,1)", array=fine[None, None])
    table = fits.BinTableHDU.from_columns([column])
    table.header["PSF_SAMP"] = 0.5
    table.writeto(tmp_path / "mine.psf")
    drawn = module._pixels(tmp_path / "mine.psf", PSF.read(tmp_path / "mine.psf"))
    wanted = seen.drawImage(nx=41, ny=41, scale=1, method="no_pixel").array
    np.testing.assert_allclose(drawn, wanted / wanted.sum(), atol=3e-4)


@pytest.fixture
def into_noise(field_weights, tmp_path, monkeypatch):
    """Function that injects into noise: surveys drawn for, PSFs told, and the report."""

    def run(measure):
        monkeypatch.setattr("probablend.infer.segment.measure_psf", measure)
        drawn, told = [], []
        galaxies, look = module.ParametricGalaxies, module.segment
        monkeypatch.setattr(module, "ParametricGalaxies", lambda survey, *rest, **how: (
            drawn.append(survey), galaxies(survey, *rest, **how))[1])  # fmt: skip
        monkeypatch.setattr(module, "segment", lambda *image, **how: (
            told.append(how["psf"]), look(*image, **how))[1])  # fmt: skip
        noise = RMS * np.random.default_rng(0).standard_normal((128, 128))
        report = inject(
            noise, tmp_path, InjectionConfig(n=2, seed=1), model=field_weights, rms=RMS,
            background="none", pixel_scale=0.2,
        )  # fmt: skip
        return drawn[0], told, report

    return run


def test_stars_that_show_their_image_give_it_to_what_is_injected(into_noise):
    seen = galsim.Moffat(beta=3, fwhm=3).shear(g1=0.2, g2=0).drawImage(nx=41, ny=41, scale=1).array
    psf = replace(PSF.of(seen), origin="measured")
    drawn, told, report = into_noise(lambda *_: psf)
    assert drawn.psf_profile == "image"
    assert len(told) >= 3
    for one in told:
        assert np.abs(one.image - psf.image).max() < 0.02 * psf.image.max()
        assert one.wings == pytest.approx(psf.wings, abs=0.02)
    assert "its image is measured" in injection_table(report)


def test_without_one_it_has_the_wings_of_the_image_s_stars(into_noise):
    psf = PSF(fwhm=2.4, wings=(-0.29, -0.14, -0.057))
    measured = [PSF(fwhm=3.0), psf]  # once: the next time it would be another one
    drawn, told, report = into_noise(lambda *_: measured.pop())
    assert drawn.psf_beta == pytest.approx(2.0, abs=0.03)
    assert drawn.psf_fwhm_pixels == pytest.approx(2.4)
    assert len(measured) == 1
    # What the model is told is the PSF of what is injected.
    injected = survey_psf(drawn)
    assert injected.wings[0] == pytest.approx(psf.wings[0], abs=1e-3)
    assert len(told) >= 3
    assert told == [injected] * len(told)
    assert report["psf_fwhm"] == injected.fwhm
    assert report["psf_wings"] == list(injected.wings)


def test_the_light_that_is_added_is_that_of_the_galaxies(image):
    survey = get_survey("euclid-vis")
    galaxies = ParametricGalaxies(survey, "test", n_galaxies=30, n_stars=0, seed=3)
    generator = np.random.default_rng(0)
    where = [np.array([50.0, 60.0]), np.array([110.0, 100.0])]
    sources = [module._draw(galaxies, at, (21.0, 23.0), generator) for at in where]
    added = module._add(image.data, sources, None, generator) - image.data
    total = sum(source.stamp.image.sum() for source in sources)
    assert added.sum() == pytest.approx(total, rel=1e-3)
    noisy = module._add(image.data, sources, 2.0, generator) - image.data - added
    light = np.clip(added, 0, None)
    bright = light > 10
    pulls = noisy[bright] / np.sqrt(light[bright] / 2.0)
    assert pulls.std() == pytest.approx(1, abs=0.2)


def test_galaxies_of_a_round_lie_on_good_pixels_and_far_apart(image, field_weights):
    before = segment(image, model=field_weights, n_samples=1, psf_fwhm=1.7)
    mask = np.zeros(image.data.shape, bool)
    mask[:, :80] = True
    places, beside = module._places(before, mask, CONFIG, 1.7, 50, np.random.default_rng(0))
    assert len(places) == len(beside) >= 2
    assert (places[:, 1] > 79).all()
    apart = np.hypot(*(places[:, None] - places[None]).T)
    assert apart[~np.eye(len(places), dtype=bool)].min() >= 48


def test_same_seed_same_result(image, run, field_weights, tmp_path):
    again = inject(
        image, tmp_path, CONFIG, model=field_weights, psf_fwhm=1.7, rms=RMS, background="none"
    )
    assert again == run[0]


def holding(share, n=1000):
    return {"close": {}, "intervals": {"above_snr": 10.0, "n": n, "68": share, "error_factor": 1.4}}


REPORT = holding(0.55) | {
    "bins": [
        {"bin": "snr", "low": 5.0, "high": 10.0, "completeness": 0.7},
        {"bin": "snr", "low": 10.0, "high": 20.0, "completeness": 0.95},
        {"bin": "snr", "low": 20.0, "high": None, "completeness": 0.99},
    ],
    "n_detections": 200,
    "n_negative": 3,
}


def test_the_verdict_says_what_to_do():
    said = verdict(REPORT)
    assert said.startswith("above S/N 10, 68 % intervals of the flux hold 55 %: too narrow, ")
    assert "give --error-factor 1.40 (± 0.09)" in said
    assert "above S/N 10, 90 % and more" in said
    assert "3 false detections" in said
    assert "(1.5 %)" in said
    assert "trust them" in verdict(REPORT | holding(0.66))
    # Of few galaxies nothing can be said for sure.
    said = verdict(REPORT | holding(0.6, n=40))
    assert "hold 60 %: 40 galaxies (± 15 %) are too few to tell, inject more" in said
    assert "too narrow" in verdict(REPORT | holding(0.3, n=40))
    faintest = {"bin": "snr", "low": 3.0, "high": 5.0, "completeness": 0.08}
    assert "of S/N 3 to 5, 8 % are found" in verdict(REPORT | {"bins": [faintest]})
    bins = [
        row | {"completeness": c} for row, c in zip(REPORT["bins"], (0.91, 0.6, 0.95), strict=True)
    ]
    assert "above S/N 20" in verdict(REPORT | {"bins": bins})
    bright = {"bin": "mag", "low": 24.0, "completeness": 1.0, "detections": 200, "false": 2}
    faint = {"bin": "mag", "low": 25.0, "completeness": 0.5, "detections": 80, "false": 8}
    assert "fainter than 25.0 mag purity drops to 90 %" in verdict(
        REPORT | {"bins": [bright, faint]}
    )
    assert "purity" not in verdict(REPORT | {"bins": [bright]})
    assert "too wide" in verdict(REPORT | holding(0.9))


def test_the_verdict_says_where_intervals_fail_though_they_hold_on_the_whole():
    near = {
        "bin": "separation",
        "low": 0.0,
        "high": 5.0,
        "injected": 90,
        "merged": 5,
        "judged": 60,
        "coverage68": 0.30,
    }
    far = {
        "bin": "separation",
        "low": 5.0,
        "high": None,
        "injected": 400,
        "merged": 0,
        "judged": 390,
        "coverage68": 0.74,
    }
    noise = {"bin": "snr", "low": 0.0, "high": 3.0, "judged": 90, "coverage68": 0.1}
    bright = {"bin": "snr", "low": 50.0, "high": None, "judged": 40, "coverage68": 0.52}
    rows = [row | {"completeness": 0.95} for row in (noise, bright, near, far)]
    good = REPORT | holding(0.68)
    said = verdict(good | {"bins": rows})
    assert "trust them – but within 5 px of a real source they hold 30 %: too narrow" in said
    assert "as one" not in said
    close = {"above_snr": 10.0, "merged_within": 4.26}
    said = verdict(good | {"bins": rows, "close": close})
    assert "nearer than 4.3 px to a real source, above S/N 10, most are seen as one" in said
    # Chance alone: 40 galaxies above S/N 50, ± 15 %.
    assert "but" not in verdict(good | {"bins": [noise | {"completeness": 0.05}, rows[1], rows[3]]})
    wide = rows[3] | {"coverage68": 0.8}
    assert "but beyond 5 px from a real source they hold 80 %: too wide" in verdict(
        good | {"bins": [wide]}
    )


@pytest.mark.parametrize("given", [1.0, 0.5, 3.0])
def test_errors_that_are_half_as_large_as_they_should_be_are_found_out(given):
    """Posteriors of a flow are given, the truth is drawn from those that are twice as wide."""
    torch.manual_seed(0)
    n = 400
    posterior = SourcePosterior(
        flow=SourceFlow(4), context=torch.randn(n, 4), y=torch.zeros(n), x=torch.zeros(n),
        unit=torch.ones(n), spread=torch.full((n,), given),
    )  # fmt: skip
    with torch.no_grad():
        flux = replace(posterior, spread=torch.full((n,), 2.0)).sample(1)[0, :, 0]
    wanted = module._wanted_factor(posterior, flux, given, torch.Generator().manual_seed(1))
    assert np.quantile(wanted, 0.68) == pytest.approx(2, rel=0.12)
    assert np.quantile(wanted, 0.5) < np.quantile(wanted, 0.68) < np.quantile(wanted, 0.95)
    assert len(module._wanted_factor(posterior[[]], flux[:0], given, torch.Generator())) == 0


def test_those_put_anywhere_and_not_lost_in_the_noise_judge_the_intervals():
    generator = np.random.default_rng(1)
    n = 4000
    table = Table(
        {
            "snr": np.full(n, 15.0), "separation": np.full(n, 20.0), "found": np.ones(n, bool),
            "is_star": np.zeros(n, bool), "merged": np.zeros(n, bool),
            "overlaps": np.zeros(n, bool), "p_blend": np.zeros(n),
            "flux": np.full(n, 100.0), "flux_true": np.full(n, 99.0),
            "beside": np.zeros(n, bool), "mag": np.full(n, 25.0), "error_factor": np.full(n, 1.5),
            **{f"rank_{k}": generator.uniform(size=n) for k in ("flux", "hlr", "g1", "g2")},
        }
    )  # fmt: skip
    mags = {"detections": np.full(50, 24.6), "false": np.array([24.7, 25.2])}
    # What was put beside a real source, or is lost in the noise, does not judge the others.
    table["beside"][: n // 2] = True
    table["snr"][n // 2 :][::2] = 4.0
    for some in (slice(n // 2), slice(n // 2, n, 2)):
        table["rank_flux"][some], table["error_factor"][some] = 0.99, 7.0
    scores = module._scores(table, 26.0, mags)
    (row,) = [row for row in scores["bins"] if row["bin"] == "mag"]
    assert (row["low"], row["high"], row["injected"]) == (25.0, 26.0, n)
    assert (row["detections"], row["false"]) == (0, 1)
    said = scores["intervals"]
    assert (said["n"], said["error_factor"]) == (n // 4, 1.5)
    assert said["68"] == pytest.approx(0.68, abs=0.05)
    assert scores["coverage"]["flux"]["68"] == pytest.approx(0.17, abs=0.02)
    # The flux of what is seen as one is that of both, which says nothing of close ones.
    table["separation"], table["merged"] = 3.0, np.arange(n) < n // 2
    (row,) = [r for r in module._scores(table, 26.0, mags)["bins"] if r["bin"] == "separation"]
    assert (row["merged"], row["judged"], row["found"]) == (n // 2, n // 2, n)
    assert row["coverage68"] == pytest.approx(0.34, abs=0.03)
    table["separation"] = np.where(table["merged"], 3.0, 6.0)
    table["separation"][:50], table["merged"][-50:] = 4.0, True  # exceptions
    close = module._scores(table, 26.0, mags)["close"]
    assert close == {"above_snr": 10.0, "merged_within": 4.0}
    # If all were put beside some, they are all there is.
    table["beside"] = True
    assert module._scores(table, 26.0, mags)["intervals"]["n"] == 3 * n // 4


def looked_at(sources, size=40):
    """What a model might say: (x, y, flux) of sources, each with a footprint of 7 × 7 pixels."""
    labels = np.zeros((size, size), int)
    for k, (x, y, _) in enumerate(sources, 1):
        labels[round(y) - 3 : round(y) + 4, round(x) - 3 : round(x) + 4] = k
    n = len(sources)
    x, y, flux = np.array(sources, float).reshape(n, 3).T
    catalog = Table({"id": np.arange(n) + 1, "x": x, "y": y, "flux": flux})
    for name in ("flux_err", "p_source", "p_blend"):
        catalog[name] = np.ones(n)
    posterior = SourcePosterior(
        flow=SourceFlow(4), context=torch.randn(n, 4), y=torch.zeros(n), x=torch.zeros(n),
        unit=torch.ones(n), spread=torch.ones(n),
    )  # fmt: skip
    seen = SimpleNamespace(posterior=posterior, draws=posterior.sample(8).numpy())
    return Segmentation(
        p_galaxy=labels > 0, p_blend=labels > 0, samples=labels[None], labels=labels,
        catalog=catalog, mask=np.zeros(labels.shape, bool), signal=labels, sources=seen,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("flux", "seen", "found", "merged"),
    [
        (50, [(20, 20, 100), (23, 20, 50)], True, False),  # apart
        (50, [(20.4, 20, 150)], False, True),  # as one, beside the real source
        (50, [(22.8, 20, 150)], False, True),  # as one, which is by chance nearer to the other
        (300, [(22.8, 20, 400)], True, True),
        (300, [(20.4, 20, 400)], True, True),
        (50, [(20, 20, 100)], False, True),
        (50, [(18, 20, 100)], False, False),  # not seen, nor under what is
        (50, [], False, False),
    ],
)
def test_of_two_that_are_seen_as_one_the_brighter_is_found(image, flux, seen, found, merged):
    survey = get_survey("euclid-vis")
    galaxies = ParametricGalaxies(survey, "test", n_galaxies=5, n_stars=0, seed=2)
    mag = float(survey.mag(flux))
    galaxy = galaxies.draw(0, mag, generator=np.random.default_rng(0))
    source = module.place(galaxy, np.array([20.0, 23.0]))
    with torch.no_grad():
        before, after = looked_at([(20, 20, 100)]), looked_at(seen)
        table = module._judge([source], before, after, 1.0, 1.0, torch.Generator())
    assert (table["found"][0], table["merged"][0]) == (found, merged)
    assert np.isfinite(table["flux"][0]) == found


def test_nothing_found_is_a_result_too(image, field_weights, tmp_path):
    config = InjectionConfig(n=1, seed=1, companions=0.0)
    report = inject(
        image, tmp_path, config, model=field_weights, psf_fwhm=1.7, rms=50 * RMS, background="none"
    )
    assert report["n_found"] == 0
    assert (tmp_path / "inject.png").exists()
    assert "false detections" in report["verdict"]


def test_the_table_reads_well(run):
    text = injection_table(run[0])
    assert "12 galaxies injected into mine.fits" in text
    row = {"bin": "separation", "low": 0.0, "high": 5.0, "injected": 30, "completeness": 0.5,
           "merged": 7, "coverage68": 0.66}  # fmt: skip
    lines = injection_table(run[0] | {"bins": [row]}).splitlines()
    cells = [line.split("|")[1:-1] for line in lines if line.startswith("|")]
    head, _, said = cells[:3]
    assert len(said) == len(head)
    assert said[[h.strip() for h in head].index("seen as one with a real source")].strip() == "7"
    assert "nan" not in text


def test_what_cannot_be_done_is_said(image, field_weights, small_weights, tmp_path):
    bare = ImageData(data=image.data, name="bare.fits")
    with pytest.raises(ValueError, match=r"bare.fits has no celestial coordinates"):
        inject(bare, tmp_path, CONFIG, model=field_weights)
    with pytest.raises(ValueError, match="pixels only"):
        inject(image, tmp_path, CONFIG, model=small_weights)
    with pytest.raises(ValueError, match="pixel_scale must be positive"):
        inject(image, tmp_path, CONFIG, model=field_weights, pixel_scale=-1)
    tiny = ImageData(data=image.data[:14, :14], wcs=image.wcs)
    with pytest.raises(ValueError, match="no room"):
        inject(tiny, tmp_path, CONFIG, model=field_weights, rms=RMS, psf_fwhm=1.7)
    with pytest.raises(ValueError, match="companions"):
        InjectionConfig(companions=2)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_a_file_is_refused_before_any_work(image, tmp_path, monkeypatch):
    monkeypatch.setattr("probablend.evaluate.inject.prepare_image", pytest.fail)
    (tmp_path / "taken").write_text("")
    with pytest.raises(FileExistsError, match="taken is a file; a folder is wanted"):
        inject(image, tmp_path / "taken", CONFIG)
