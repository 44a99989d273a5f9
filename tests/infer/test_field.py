"""Segmentation and forced photometry with the field model."""

import gzip
import json

import astropy.units as u
import numpy as np
import pytest
import torch
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.nddata import CCDData
from astropy.table import QTable, Table
from scipy.stats import binom

from probablend.catalog import COLUMNS
from probablend.checkpoint import load_model, save_weights
from probablend.flags import Flag
from probablend.images import ImageData
from probablend.infer.measure import measure, read_positions
from probablend.infer.segment import segment
from probablend.infer.sources import N_OVERLAP, ln_odds, pool_blending
from probablend.models.source import PARAMETERS

PLACES = {"x": 1e-4, "y": 1e-4, "ra": 3e-9, "dec": 3e-9}  # 1e-4 pixels, in pixels and degrees


def run(scene, weights, **settings):
    values = {"rms": scene.rms, "n_samples": 2, "model": weights, "psf_fwhm": 1.7}
    values |= {"background": "none"} | settings
    return segment(scene.image, **values)


@pytest.fixture(scope="module")
def result(scene, wcs, field_weights):
    return run(scene, field_weights, zeropoint=25.0, wcs=wcs)


def test_the_catalogue_is_complete_finite_and_ordered(result):
    table = result.catalog
    assert table.colnames == [name for name in COLUMNS if name != "cutout"]
    assert len(table) > 5
    for name in table.colnames:
        assert np.isfinite(np.asarray(table[name].value if table[name].unit else table[name])).all()
    assert (table["flux_q05"] < table["flux_q16"]).all()
    assert (table["flux_q16"] < table["flux"]).all()
    assert (table["flux"] < table["flux_q84"]).all()
    assert (table["flux_q84"] < table["flux_q95"]).all()
    assert (np.diff(table["y"].value) > -6).all()  # lowest first, up to the posterior's shift
    for name in ("p_source", "p_star", "p_blend", "blendedness"):
        assert (table[name] >= 0).all() & (table[name] <= 1).all()
    np.testing.assert_allclose(table["mag"].value, 25 - 2.5 * np.log10(table["flux"]), rtol=1e-5)
    np.testing.assert_allclose(table["hlr_arcsec"].value, 0.1 * table["hlr"].value, rtol=1e-4)
    assert result.labels.max() == len(table)


@pytest.mark.parametrize("tile_size", [40, 64, 104])
def test_tiling_changes_nothing(scene, wcs, field_weights, result, tile_size):
    tiled = run(scene, field_weights, zeropoint=25.0, wcs=wcs, tile_size=tile_size)
    np.testing.assert_allclose(tiled.p_galaxy, result.p_galaxy, atol=1e-5)
    np.testing.assert_allclose(tiled.p_blend, result.p_blend, atol=1e-5)
    assert tiled.catalog.colnames == result.catalog.colnames
    assert len(tiled.catalog) == len(result.catalog)
    for name in result.catalog.colnames:
        a, b = (np.asarray(getattr(r.catalog[name], "value", r.catalog[name]))
                for r in (tiled, result))  # fmt: skip
        if a.dtype.kind in "ib":
            np.testing.assert_array_equal(a, b, err_msg=name)
        elif name in PLACES:
            np.testing.assert_allclose(a, b, rtol=0, atol=PLACES[name], err_msg=name)
        else:
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6, err_msg=name)


def test_the_same_seed_gives_the_same_catalogue(scene, wcs, field_weights, result):
    again = run(scene, field_weights, zeropoint=25.0, wcs=wcs)
    other = run(scene, field_weights, zeropoint=25.0, wcs=wcs, seed=1)
    np.testing.assert_array_equal(again.catalog["flux_q95"], result.catalog["flux_q95"])
    assert not np.array_equal(other.catalog["flux_q95"], result.catalog["flux_q95"])
    np.testing.assert_array_equal(other.catalog["p_source"], result.catalog["p_source"])


def test_fluxes_are_in_the_unit_of_the_image(scene, field_weights, result):
    thousand = segment(
        1000 * scene.image, rms=1000 * scene.rms, n_samples=2, model=field_weights, psf_fwhm=1.7,
        background="none",
    )  # fmt: skip
    np.testing.assert_allclose(thousand.catalog["flux"], 1000 * result.catalog["flux"], rtol=1e-3)


def test_footprints_are_probabilities_and_may_overlap(result):
    total = np.zeros(result.labels.shape)
    for k in range(len(result.catalog)):
        box, p = result.sources.footprint(k, result.labels.shape)
        assert p.max() <= 1
        assert p.min() >= 0
        total[box] += p
        # The mean of the footprints is as large as the footprints are on average.
        radius = result.sources.draws[:, k, PARAMETERS.index("radius")]
        if not result.catalog["flags"][k] & Flag.TRUNCATED and radius.max() < 15:
            assert p.sum() == pytest.approx(np.pi * (radius**2).mean(), rel=0.15)
    assert total.max() > 0.5


def test_all_footprints_come_in_the_order_of_the_catalogue(result):
    shape = result.labels.shape
    seen = list(result.sources.footprints(shape))
    assert len(seen) == len(result.catalog)
    for k, (box, p) in enumerate(seen):
        one, alone = result.sources.footprint(k, shape)
        assert box == one
        np.testing.assert_array_equal(p, alone)


def test_the_posterior_of_the_catalogue_is_a_density(result):
    """Draws have a finite density that falls away from them, and a gradient to follow."""
    sources = result.sources
    draws = sources.draws.copy()
    for name, column in (("y", 0), ("x", 1)):
        draws[..., PARAMETERS.index(name)] += sources.origin[:, column].astype(np.float32)
    values = torch.from_numpy(draws).requires_grad_()
    density = sources.posterior.log_prob(values)
    assert density.shape == draws.shape[:2]
    assert torch.isfinite(density).all()
    (gradient,) = torch.autograd.grad(density.sum(), values)
    assert torch.isfinite(gradient).all()
    far = draws.copy()
    far[..., PARAMETERS.index("flux")] *= 1000
    assert (sources.posterior.log_prob(torch.from_numpy(far)) < density - 1).float().mean() > 0.99


def test_products_are_written_in_every_format(result, tmp_path):
    result.write(tmp_path / "a", regions=True, keep_posterior=8)
    with fits.open(tmp_path / "a" / "posterior.fits") as hdus:
        draws = hdus["POSTERIOR"].data
        assert draws["flux"].shape == (len(result.catalog), 8)
    assert (tmp_path / "a" / "sources.reg").read_text().count("ellipse") == len(result.catalog)
    result.write(tmp_path / "b", catalog_format="ecsv")
    again = QTable.read(tmp_path / "b" / "catalog.ecsv")
    np.testing.assert_allclose(again["flux"], result.catalog["flux"])
    assert again["x"].unit == u.pix
    assert again.meta["PBMODEL"] == "small-field"
    with pytest.raises(ValueError, match="must be one of fits"):
        result.write(tmp_path / "c", catalog_format="hdf5")
    assert not (tmp_path / "c").exists()


def test_replacing_products_leaves_none_of_an_earlier_run(result, tmp_path):
    result.write(tmp_path, regions=True, keep_posterior=2, catalog_format="ecsv")
    result.write(tmp_path, overwrite=True)
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"maps.fits", "catalog.fits", "quicklook.png", "summary.json"}
    assert set(json.loads((tmp_path / "summary.json").read_text())["files"]) == names


def test_sources_outside_what_was_learnt_are_flagged(scene, field_weights, result):
    assert not (result.catalog["flags"] & Flag.OUT_OF_RANGE).any()
    broad = run(scene, field_weights, psf_fwhm=5.0)
    assert (broad.catalog["flags"] & Flag.OUT_OF_RANGE).all()


def test_sources_in_a_strange_sky_are_flagged_and_less_sure(scene, field_weights, result, tmp_path):
    network, meta = load_model(field_weights)
    y, x = torch.from_numpy(result.sources.origin.T.astype(np.float32))
    with torch.inference_mode():
        said = network(torch.from_numpy(result.signal)[None, None], psf_fwhm=torch.tensor([1.7]))
        seen = said.surroundings(torch.zeros(len(y), dtype=torch.long), y, x)
        network.familiar.mean.copy_(seen.mean(dim=0))
        network.familiar.whitening.copy_(torch.eye(seen.shape[1]))
        distance = network.familiar(seen)
        near, far = distance.sort().values[len(y) // 2 - 1 : len(y) // 2 + 1]
        network.familiar.whitening /= ((near + far) / 2).sqrt()  # half of them beyond the limit
    save_weights(tmp_path / "a.safetensors", network, meta, half=False)
    for tile_size in (1024, 64):
        again = run(scene, tmp_path / "a.safetensors", tile_size=tile_size)
        flagged = (again.catalog["flags"] & Flag.OUT_OF_RANGE) > 0
        np.testing.assert_array_equal(flagged, distance.numpy() >= float(far))
        ours, theirs = (np.asarray(r.catalog["y_err"]) for r in (again, result))
        np.testing.assert_allclose(ours[~flagged], theirs[~flagged], rtol=1e-4)
        assert (ours[flagged] > theirs[flagged]).all()
        spread = again.sources.posterior.spread.numpy()
        np.testing.assert_allclose(spread[flagged] ** 2 * float(near + far) / 2,
                                   distance[flagged], rtol=1e-3)  # fmt: skip


def test_saturated_pixels_are_flagged(scene, field_weights, result):
    peak = float(scene.image.max())
    data = ImageData(data=scene.image, saturation=0.9 * peak)
    again = segment(
        data, rms=scene.rms, n_samples=2, model=field_weights, psf_fwhm=1.7, background="none"
    )
    hit = np.flatnonzero(again.catalog["flags"] & Flag.SATURATED)
    y, x = np.unravel_index(scene.image.argmax(), scene.image.shape)
    assert 1 <= len(hit) < len(again.catalog)
    near = np.hypot(again.catalog["y"].value[hit] - y, again.catalog["x"].value[hit] - x)
    assert near.min() < 5
    told = run(scene, field_weights, saturation=0.9 * peak)
    np.testing.assert_array_equal(told.catalog["flags"], again.catalog["flags"])
    for level in (0.0, np.nan):
        with pytest.raises(ValueError, match="saturation must be positive"):
            run(scene, field_weights, saturation=level)


def test_forced_photometry_keeps_every_row_and_their_order(scene, field_weights):
    truth = scene.catalog
    inside = (truth["x"] > 5) & (truth["x"] < 190) & (truth["y"] > 5) & (truth["y"] < 190)
    some = Table(truth[inside][::-1], copy=True)["x", "y"]
    some.add_row((-50.0, 10.0))
    some.add_row((np.nan, 10.0))
    mask = np.zeros(scene.image.shape, bool)
    mask[100:104, 100:104] = True
    some.add_row((101.6, 101.2))
    settings = {"rms": scene.rms, "n_samples": 2, "model": field_weights, "psf_fwhm": 1.7,
                "background": "none", "mask": mask}  # fmt: skip
    table = measure(scene.image, some, **settings)
    assert len(table) == len(some)
    assert (table["flags"][-3:] == Flag.NO_DATA).all()
    assert np.isnan(table["flux"][-3:]).all()
    good = table["flags"] != Flag.NO_DATA
    assert good[:-3].all()
    distance = np.hypot(table["x"].value - some["x"], table["y"].value - some["y"])[:-3]
    assert np.median(distance) < 2
    backwards = measure(scene.image, some[::-1], **settings)
    # Products of matrices may round a row by where it stands.
    np.testing.assert_allclose(backwards["flux"][::-1], table["flux"], rtol=3e-6)
    as_array = np.column_stack([some["x"], some["y"]])
    np.testing.assert_array_equal(measure(scene.image, as_array, **settings)["flux"], table["flux"])


def test_positions_on_the_sky_and_of_other_programs_are_understood(
    scene, wcs, field_weights, tmp_path
):
    settings = {"rms": scene.rms, "n_samples": 1, "model": field_weights, "psf_fwhm": 1.7,
                "background": "none"}  # fmt: skip
    at = np.array([[40.0, 60.0], [120.4, 80.25]])  # x, y
    wanted = measure(scene.image, at, **settings)["flux"]
    coordinates = wcs.pixel_to_world(at[:, 0], at[:, 1])
    tables = {
        "sky.csv": Table({"ra": coordinates.ra.deg, "dec": coordinates.dec.deg}),
        "photutils.ecsv": Table({"xcentroid": at[:, 0], "ycentroid": at[:, 1]}),
        "photutils3.ecsv": Table({"x_centroid": at[:, 0], "y_centroid": at[:, 1]}),
        "psf.ecsv": Table({"x_fit": at[:, 0], "y_fit": at[:, 1]}),
        "sextractor.fits": Table({"X_IMAGE": at[:, 0] + 1, "Y_IMAGE": at[:, 1] + 1}),
        "topcat.vot": Table({"ra": coordinates.ra, "dec": coordinates.dec}),
    }
    ldac = fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU(Table({"Field Header Card": ["X"]}))])
    ldac.append(fits.BinTableHDU(tables["sextractor.fits"], name="LDAC_OBJECTS"))
    ldac.writeto(tmp_path / "psfex.cat")
    with gzip.open(tmp_path / "packed.csv.gz", "wt") as packed:
        packed.write("\n".join(["x,y", *(f"{x},{y}" for x, y in at)]))
    for name, table in {**tables, "psfex.cat": None, "packed.csv.gz": None}.items():
        if table is not None:
            table.write(tmp_path / name, format="votable" if name.endswith("vot") else None)
        found = measure(scene.image, read_positions(tmp_path / name), wcs=wcs, **settings)
        np.testing.assert_allclose(found["flux"], wanted, rtol=1e-3, err_msg=name)
    for table in (
        QTable({"ra": SkyCoord(coordinates).ra.to(u.rad), "dec": coordinates.dec}),
        QTable({"id": [1, 2], "sky_centroid": coordinates.galactic}),
        {"x": at[:, 0], "y": at[:, 1]},
        {"ra": coordinates.ra.to(u.rad), "dec": coordinates.dec.to(u.rad)},
        Table({"RAJ2000": coordinates.ra.deg, "DEJ2000": coordinates.dec.deg}),
        Table({"coord_ra": coordinates.ra.to(u.rad), "coord_dec": coordinates.dec.to(u.rad)}),
    ):
        found = measure(scene.image, table, wcs=wcs, **settings)
        np.testing.assert_allclose(found["flux"], wanted, rtol=1e-3)


@pytest.mark.slow
def test_a_neighbour_that_is_not_asked_about_blends_as_one_that_is(generator):
    y, x = np.indices((128, 128))

    def galaxy(at_x):
        return 40 * np.exp(-np.hypot(y - 64, x - at_x) / 2.5)

    at = np.array([[58.0, 64.0], [68.0, 64.0]])  # x, y
    image = sum(galaxy(one) for one in at[:, 0]) + generator.standard_normal((128, 128))
    settings = {"rms": 1.0, "psf_fwhm": 2.0, "background": "none", "n_samples": 4}
    both, first = measure(image, at, **settings), measure(image, at[:1], **settings)
    assert both["p_blend_footprints"][0] > 0.9
    assert first["p_blend_footprints"][0] > 0.9
    assert first["n_siblings"][0] == both["n_siblings"][0] == 1
    assert first["flux"][0] == pytest.approx(both["flux"][0], rel=0.05)
    hole = np.zeros(image.shape, dtype=bool)
    hole[30:99, 63:110] = True  # one that is not measured is nobody's sibling
    alone = measure(image, at, mask=hole, **settings)
    assert alone["flags"][1] == Flag.NO_DATA
    assert alone["n_siblings"][0] == 0
    # What lies a little beside a peak is that galaxy.
    lone = galaxy(64) + generator.standard_normal((128, 128))
    beside = measure(lone, np.array([[65.5, 64.0]]), **settings)
    assert beside["n_siblings"][0] == 0
    assert beside["p_blend"][0] < 0.5


def test_columns_of_a_votable_go_by_their_names(tmp_path):
    path = tmp_path / "archive.vot"
    Table({"ra": [10.0, 11.0], "dec": [1.0, 2.0]}).write(path, format="votable")
    path.write_text(path.read_text().replace('ID="ra"', 'ID="col_1"').replace('ID="dec"', 'ID="c"'))
    assert read_positions(path).colnames == ["ra", "dec"]


def test_positions_that_all_miss_the_image_are_said(scene, field_weights, caplog):
    measure(scene.image, np.full((3, 2), -50.0), rms=scene.rms, n_samples=1, model=field_weights,
            psf_fwhm=1.7)  # fmt: skip
    assert "none of the 3 positions lies in the image" in caplog.text


def test_draws_are_in_the_unit_of_the_catalogue(scene, field_weights):
    image = CCDData(scene.image, unit="nJy")
    result = segment(image, rms=scene.rms, n_samples=1, model=field_weights, psf_fwhm=1.7)
    assert result.sources.posterior_table(3)["flux"].unit == result.catalog["flux"].unit == u.nJy


def test_measure_understands_what_segment_does(scene, wcs, field_weights):
    unit, how = u.MJy / u.sr, {"n_samples": 1, "model": field_weights, "psf_fwhm": 1.7}
    at = np.array([[40.0, 60.0], [120.4, 80.25]])
    wanted = measure(scene.image, at, rms=scene.rms, background="none", **how)["flux"]
    on_sky = wcs.pixel_to_world(*at.T)
    found = measure(scene.image * unit, on_sky, rms=scene.rms * unit, wcs=wcs.to_header(),
                    background="none", **how)  # fmt: skip
    np.testing.assert_allclose(found["flux"], wanted, rtol=1e-3)
    masked = {"x": np.ma.array(at[:, 0], mask=[False, True]), "y": at[:, 1]}
    found = measure(scene.image, masked, rms=scene.rms, background="none", **how)["flux"]
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-3)
    assert np.isnan(found[1])


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (Table({"a": [1.0]}), "needs columns x and y"),
        (Table({"ra": [1.0], "dec": [1.0]}), "no WCS"),
        (Table({"x": ["here"], "y": [1.0]}), "must be numbers"),
        (np.zeros((2, 3)), "shape"),
    ],
)
def test_positions_that_cannot_be_used_are_refused_in_words(scene, field_weights, table, said):
    with pytest.raises(ValueError, match=said):
        measure(scene.image, table, rms=scene.rms, model=field_weights)


def test_a_model_of_pixels_cannot_measure(scene, small_weights):
    with pytest.raises(ValueError, match="knows pixels only"):
        measure(scene.image, np.zeros((1, 2)), rms=scene.rms, model=small_weights)
    plain = run(scene, small_weights)
    with pytest.raises(ValueError, match="knows pixels only"):
        plain.write("nowhere", regions=True)


def test_no_positions_are_an_empty_catalogue(scene, field_weights):
    table = measure(
        scene.image, np.zeros((0, 2)), rms=scene.rms, n_samples=1, model=field_weights,
        psf_fwhm=1.7,
    )  # fmt: skip
    assert len(table) == 0
    assert table.colnames == [name for name in COLUMNS if name != "cutout"]


def test_an_image_without_sources_has_an_empty_catalogue(field_weights, tmp_path):
    image = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    result = segment(image, rms=1.0, n_samples=1, model=field_weights, psf_fwhm=1.7,
                     min_p_source=1.0)  # fmt: skip
    assert len(result.catalog) == 0
    result.write(tmp_path, regions=True, keep_posterior=2)


def test_two_statements_on_blending_become_one_that_grows_with_both():
    pixels, footprints = np.meshgrid(np.arange(17) / 16, np.arange(N_OVERLAP + 1) / N_OVERLAP)
    pooled = pool_blending(pixels.ravel(), footprints.ravel()).reshape(pixels.shape)
    assert (np.diff(pooled, axis=0) > 0).all()
    assert (np.diff(pooled, axis=1) > 0).all()
    assert 0 < pooled.min() < 0.02  # both are sure, and may be wrong
    assert 0.99 < pooled.max() < 1


@pytest.mark.parametrize(("of_maps", "of_footprints"), [(0.0, 0.0), (0.02, 0.0), (0.3, 0.05)])
def test_how_many_maps_are_drawn_does_not_say_how_probable_a_blend_is(of_maps, of_footprints):
    means = []
    for n in (4, 16, 64, 256):
        hits = np.arange(n + 1)
        chance = binom.pmf(hits, n, of_maps)
        said = pool_blending(hits / n, np.full(n + 1, of_footprints))
        means.append((chance * said).sum())
    np.testing.assert_allclose(means, means[-1], rtol=0.1)


def test_samples_that_never_saw_it_leave_odds_finite():
    np.testing.assert_allclose(ln_odds(np.array([0, 0.5, 1]), 16), [-np.log(33), 0, np.log(33)])
    assert ln_odds(np.zeros(1), 0) == 0


def test_p_blend_pools_what_class_maps_and_footprints_say(result):
    shares = (result.catalog[name] for name in ("p_blend_maps", "p_blend_footprints"))
    pooled = pool_blending(*shares)
    np.testing.assert_allclose(result.catalog["p_blend"], pooled, rtol=1e-5)


def test_sixteen_bits_change_probabilities_by_little(scene):
    settings = {"rms": scene.rms, "n_samples": 4, "psf_fwhm": 1.7, "background": "none"}
    exact, narrow = (
        segment(scene.image, model="field", precision=p, **settings) for p in ("single", "bfloat16")
    )
    change = np.abs(exact.p_galaxy - narrow.p_galaxy)
    assert 0 < change.mean() < 1e-3
    assert change.max() < 0.1
    assert len(exact.catalog) == pytest.approx(len(narrow.catalog), abs=2)
    with pytest.raises(ValueError, match="precision must be one of single, bfloat16"):
        segment(scene.image, model="field", precision="half")


def test_a_model_of_pixels_has_one_precision(scene, small_weights):
    with pytest.raises(ValueError, match="precision bfloat16 is for field models"):
        segment(scene.image, model=small_weights, precision="bfloat16")


def test_draws_and_densities_of_a_posterior_are_numbers(result):
    posterior = result.sources.posterior
    draws = posterior.sample(3, generator=torch.Generator().manual_seed(1))
    again = posterior.sample(3, generator=torch.Generator().manual_seed(1))
    np.testing.assert_array_equal(draws.numpy(), again.numpy())
    expected = posterior.log_prob(draws).numpy()
    np.testing.assert_array_equal(posterior.log_prob(draws.numpy()).numpy(), expected)
    values = draws.clone().requires_grad_()
    (slope,) = torch.autograd.grad(posterior.log_prob(values).sum(), values)
    assert torch.isfinite(slope).all()
    with pytest.raises(ValueError, match="parameter must be one of flux, hlr"):
        result.sources.parameter("fluxx")
