import json
from dataclasses import replace

import galsim
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from probablend.checkpoint import load_model, save_weights
from probablend.emulate.blend import FieldConfig, draw_field
from probablend.emulate.parametric import ParametricGalaxies
from probablend.emulate.products import read_scene, scene_wcs, write_scene
from probablend.emulate.psf import survey_psf
from probablend.evaluate.field import (
    FieldsConfig,
    evaluate_fields,
    evaluate_scene,
    read_results,
)
from probablend.evaluate.methods import read_method
from probablend.evaluate.samples import latent_diversity, no_overlap_share
from probablend.survey import get_survey

FIELDS = FieldsConfig(
    n=2, field=FieldConfig(size=128, mag_range=(20.5, 26)), n_samples=2, n_stamps=2, seed=1
)


@pytest.mark.slow
def test_an_evaluation_writes_numbers_a_table_and_figures(
    small_weights, field_weights, galaxies, tmp_path
):
    models = [str(small_weights), str(field_weights)]
    told = []
    results = evaluate_fields(
        galaxies, FIELDS, [*models, "sep"], tmp_path, command="a command",
        progress=lambda *a: told.append(a),
    )  # fmt: skip
    written = json.loads((tmp_path / "results.json").read_text())
    assert written == json.loads(json.dumps(results))
    assert set(written["methods"]) == {*models, "sep"}
    table = (tmp_path / "results.md").read_text()
    assert "`a command`" in table
    assert f"{written['methods']['sep']['completeness']:.3f}" in table
    pixels, sources = (written["methods"][m] for m in models)
    assert pixels["photometry"] is None
    places = sources["photometry"]["places"]
    assert sum(places["flux"]) == sum(places["g1"]) > 0
    assert 0 <= sources["ged2"] <= 2
    names = {"calibration.png", "pit.png", "gallery-small.png", "gallery-small-field.png"}
    assert names <= {path.name for path in tmp_path.glob("*.png")}
    # It goes on where it was, and is scored again without running anything.
    told.clear()
    evaluate_fields(galaxies, FIELDS, ["sep", "photutils"], tmp_path,
                    progress=lambda *a: told.append(a))  # fmt: skip
    assert {name for name, _, _ in told} == {"photutils"}
    again = read_results(tmp_path)
    assert again["methods"][models[0]] == results["methods"][models[0]]
    with pytest.raises(ValueError, match="another seed"):
        evaluate_fields(galaxies, replace(FIELDS, seed=2), ["sep"], tmp_path)
    with pytest.raises(FileNotFoundError, match="no evaluation of fields"):
        read_results(tmp_path / "nowhere")


def test_a_scene_is_read_as_it_was_written(scene, tmp_path):
    write_scene(scene, tmp_path, "field", seed=1, overwrite=False)
    again = read_scene(tmp_path / "field.fits")
    np.testing.assert_array_equal(again.image, scene.image)
    np.testing.assert_array_equal(again.classes, scene.classes)
    assert len(again.sources) == len(scene.sources)
    for name in ("id", "n_pixels", "blended", "is_star"):
        np.testing.assert_array_equal(again.catalog[name], scene.catalog[name])
    for name in ("x", "y", "flux", "hlr", "g1"):
        np.testing.assert_allclose(again.catalog[name], scene.catalog[name], rtol=1e-6, atol=1e-6)
    for k in range(0, len(scene.sources), 7):
        np.testing.assert_array_equal(again.footprint(k), scene.footprint(k))


@pytest.mark.parametrize("name", ["euclid-vis", "lsst-i", "mine"])
def test_a_scene_says_what_its_survey_is(scene, tmp_path, name):
    survey = get_survey("euclid-vis" if name == "mine" else name)
    if name == "mine":
        survey = replace(
            survey, name=name, gain=1, psf_profile="moffat", psf_beta=2.7, diffraction_scale=None,
            psf_g1=0.03, psf_g2=-1 / 30,
        )  # fmt: skip
    write_scene(replace(scene, survey=survey), tmp_path, "a", seed=1, overwrite=False)
    again = read_scene(tmp_path / "a.fits").survey.as_dict()
    assert again == {
        k: v if isinstance(v, str) else pytest.approx(v, rel=1e-14)
        for k, v in survey.as_dict().items()
    }
    with fits.open(tmp_path / "a_truth.fits") as hdus:
        assert hdus[0].header["PSFPROF"] == survey.psf_profile


def test_a_scene_of_an_earlier_version_has_its_survey_by_name(scene, tmp_path):
    write_scene(scene, tmp_path, "a", seed=1, overwrite=False)
    with fits.open(tmp_path / "a.fits", mode="update") as hdus:
        for card in ("PSFPROF", "PSFWIDTH", "PSFBETA", "PSFDIFF", "PSFOBSC", "PSFG1", "PSFG2"):
            hdus[0].header.remove(card, ignore_missing=True)
    assert read_scene(tmp_path / "a.fits").survey == get_survey("euclid-vis")
    fits.setval(tmp_path / "a.fits", "SURVEY", value="mine")
    with pytest.raises(ValueError, match="unknown survey 'mine'"):
        read_scene(tmp_path / "a.fits")


def test_a_scene_whose_psf_is_an_image_is_whole_without_its_file(tmp_path):
    profile = galsim.Moffat(beta=2.5, fwhm=4.0).shear(g1=0.1, g2=0.0)
    fits.writeto(tmp_path / "psf.fits", profile.drawImage(nx=41, ny=41, scale=1.0).array)
    survey = replace(
        get_survey("euclid-vis"), name="mine", psf_profile="image",
        psf_file=str(tmp_path / "psf.fits"), diffraction_scale=None,
    )  # fmt: skip
    galaxies = ParametricGalaxies(survey, "test", n_galaxies=20, mag_range=(21.0, 24.0))
    scene = draw_field(galaxies, FieldConfig(size=64), generator=np.random.default_rng(2))
    write_scene(scene, tmp_path, "a", seed=1, overwrite=False)
    before = survey_psf(survey).image
    (tmp_path / "psf.fits").unlink()
    again = read_scene(tmp_path / "a.fits")
    np.testing.assert_allclose(survey_psf(again.survey).image, before, atol=1e-6)
    np.testing.assert_array_equal(again.image, scene.image)


def test_masked_pixels_are_no_statement(scene, tmp_path):
    mine = scene.catalog["x", "y", "flux"]
    mine.write(tmp_path / "mine.csv")
    maps = [(scene.classes > 0).astype(np.float32), (scene.classes == 2).astype(np.float32)]
    for one in maps:
        one[60:90, 20:70] = np.nan
    fits.HDUList([
        fits.PrimaryHDU(),
        fits.ImageHDU(maps[0], name="P_GALAXY"), fits.ImageHDU(maps[1], name="P_BLEND"),
    ]).writeto(tmp_path / "maps.fits")  # fmt: skip
    method = read_method(tmp_path / "mine.csv", tmp_path / "maps.fits")
    scores = evaluate_scene(scene, {"mine": method}, tmp_path / "out")["methods"]["mine"]
    assert scores["iou_galaxy"] == scores["iou_blend"] == 1
    assert scores["ece_galaxy_active"] == scores["brier_blend_active"] == 0
    text = (tmp_path / "out" / "results.json").read_text()
    json.loads(text, parse_constant=pytest.fail)  # no NaN


def test_scenes_that_are_none(scene, tmp_path):
    with pytest.raises(FileNotFoundError, match="probablend emulate"):
        read_scene(tmp_path / "nothing.fits")
    for name in ("a.fits", "a_truth.fits"):
        fits.writeto(tmp_path / name, np.zeros((4, 4)))
    with pytest.raises(ValueError, match="no emulated scene"):
        read_scene(tmp_path / "a.fits")


def test_a_catalogue_of_the_sky_with_gaps_is_understood(scene, tmp_path):
    truth = scene.catalog
    sky = scene_wcs(scene).pixel_to_world(np.asarray(truth["x"]), np.asarray(truth["y"]))
    mine = Table({"ra": sky.ra.deg, "dec": sky.dec.deg, "flux": truth["flux"]})
    mine["flux"][0] = mine["dec"][1] = np.nan
    mine.write(tmp_path / "mine.fits")
    said = read_method(tmp_path / "mine.fits")(scene, 0)
    assert len(said.catalog) == len(truth) - 1
    scores = evaluate_scene(scene, {"m": lambda s, k: said}, tmp_path / "out")["methods"]["m"]
    assert scores["completeness"] > 0.9
    assert np.isfinite(scores["photometry"]["flux_all_snr10"]["mean_relative"])


def test_labels_beyond_the_catalogue_are_refused(scene, tmp_path):
    scene.catalog["x", "y"][:3].write(tmp_path / "three.csv")
    maps = fits.ImageHDU(np.full(scene.image.shape, 4, np.int32), name="LABELS")
    fits.HDUList([fits.PrimaryHDU(), maps]).writeto(tmp_path / "maps.fits")
    method = read_method(tmp_path / "three.csv", tmp_path / "maps.fits")
    with pytest.raises(ValueError, match="go up to 4, the catalogue has 3"):
        method(scene, 0)


def test_methods_that_cannot_be_told_apart_are_refused(galaxies, tmp_path):
    for methods in (["sep", "sep"], ["sep", "elsewhere/sep.safetensors"]):
        with pytest.raises(ValueError, match="same name, sep"):
            evaluate_fields(galaxies, FIELDS, methods, tmp_path)
    with pytest.raises(ValueError, match="with pairs"):
        evaluate_fields(galaxies, FIELDS, ["field@truth"], tmp_path)
    with pytest.raises(ValueError, match="stamps of two galaxies only"):
        evaluate_fields(galaxies, FIELDS, ["sep", "blend2flux"], tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_field_without_anything_is_scored(galaxies, small_weights, tmp_path):
    empty = FieldsConfig(
        n=1, field=FieldConfig(size=64, density=0.0, star_density=0.0), n_samples=2, n_stamps=1
    )
    results = evaluate_fields(galaxies, empty, ["sep", str(small_weights)], tmp_path)
    assert results["methods"]["sep"]["completeness"] is None
    json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)  # no NaN


def test_the_truth_as_somebody_elses_result_scores_perfectly(scene, tmp_path):
    truth = scene.catalog
    mine = truth["x", "y", "flux"]
    mine["p_blend"] = np.asarray(truth["blended"], float)
    mine.write(tmp_path / "mine.csv")
    fits.HDUList([
        fits.PrimaryHDU(),
        fits.ImageHDU((scene.classes > 0).astype(np.float32), name="P_GALAXY"),
        fits.ImageHDU((scene.classes == 2).astype(np.float32), name="P_BLEND"),
    ]).writeto(tmp_path / "maps.fits")  # fmt: skip
    method = read_method(tmp_path / "mine.csv", tmp_path / "maps.fits")
    scores = evaluate_scene(scene, {"mine": method}, tmp_path / "out")["methods"]["mine"]
    assert scores["completeness"] == scores["purity"] == 1
    assert scores["iou_galaxy"] == scores["iou_blend"] == 1
    assert scores["ece_blend_active"] == scores["ece_p_blend"] == 0
    assert scores["photometry"]["flux_all_snr10"]["mean_relative"] < 1e-6
    # Somewhere else it does not; what was not said is not scored.
    mine["x"] = np.asarray(mine["x"])[::-1]
    mine["x", "y"].write(tmp_path / "wrong.csv")
    wrong = evaluate_scene(scene, {"w": read_method(tmp_path / "wrong.csv")}, tmp_path / "out")
    scores = wrong["methods"]["w"]
    assert scores["completeness"] < 0.5
    assert scores["photometry"] is scores["blended_flag"] is None
    assert "iou_galaxy" not in scores
    with pytest.raises(ValueError, match="shape"):
        method(replace(scene, image=scene.image[:50]), 0)
    with pytest.raises(FileNotFoundError, match="do not exist"):
        read_method(tmp_path / "mine.csv", tmp_path / "no.fits")


def test_a_latent_that_changes_nothing_has_no_diversity(small_weights, scene, tmp_path):
    assert latent_diversity(small_weights, scene) > 0
    network, meta = load_model(small_weights)
    network.head.from_latent.weight.data.zero_()
    save_weights(tmp_path / "dead.safetensors", network, meta, half=False)
    assert latent_diversity(tmp_path / "dead.safetensors", scene) == 0


def test_a_network_that_sees_overlaps_everywhere_never_lets_a_stamp_go_clear(
    galaxies, small_weights, tmp_path
):
    network, meta = load_model(small_weights)
    bias = network.head.layers[-1].bias.data
    for k, expected in ((2, 0.0), (0, 1.0)):  # all blend, all sky
        network.head.layers[-1].weight.data.zero_()
        bias.zero_()
        bias[4 * k : 4 * k + 4] = 50.0  # 2 × 2 pixels per class
        path = tmp_path / f"always{k}.safetensors"
        save_weights(path, network, meta, half=False)
        share = no_overlap_share(
            galaxies, n_stamps=2, n_samples=2, seed=0, model=path, size=32, mag_range=(20.0, 26.0)
        )
        assert share == {"empty": expected, "isolated": expected}
        assert np.isfinite(list(share.values())).all()
