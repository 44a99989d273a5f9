"""Pairs: the protocol on the training side, scores, methods, and a run that goes on."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from astropy.table import Table
from scipy.stats import ks_2samp, kstest

from probablend.emulate.bank import draw_bank
from probablend.emulate.compose import draw_batch
from probablend.emulate.parametric import ParametricGalaxies
from probablend.emulate.scenes import SceneConfig
from probablend.evaluate.classical import (
    COLD,
    HOT,
    find_sextractor,
    run_photutils,
    run_scarlet,
    run_sep,
)
from probablend.evaluate.classical import run_sextractor as run_program
from probablend.evaluate.detection import positions
from probablend.evaluate.match import match_positions
from probablend.evaluate.methods import Prediction, open_method
from probablend.evaluate.pairs import (
    PairsConfig,
    evaluate_pairs,
    pair_scores,
    read_results,
    run_method,
    score_pair,
)
from probablend.evaluate.photometry import over_fisher
from probablend.models.pairs import PairNetwork, PairNetworkConfig, flux_error, true_masks
from probablend.survey import get_survey

CONFIG = PairsConfig(n=6, mag_range=(20.0, 22.5), seed=8)


@pytest.fixture(scope="module")
def candels():
    return ParametricGalaxies(
        get_survey("candels-f160w"), "test", n_galaxies=80, n_stars=0, mag_range=(20.0, 22.5)
    )


@pytest.fixture(scope="module")
def pair_batch():
    stamps = draw_bank(
        "parametric", ["candels-f160w"], "train", n_galaxies=80, n_stars=0,
        mag_range=(20.0, 22.5), seed=4,
    )  # fmt: skip
    scenes = SceneConfig(
        pair_fraction=1.0, pair_mag_range=(20.0, 22.5), mag_range=(20.0, 22.5), crowded_share=0.0
    )
    return draw_batch(stamps, scenes, n=200, seed=1, index=0)


def all_knowing(scene, seed, factor=1.0):
    """The truth as a catalogue, with a posterior centred on it."""
    truth = scene.catalog
    noise = np.random.default_rng(seed).normal(size=(64, len(truth)))
    draws = np.zeros((64, len(truth), 10))
    for k, name in enumerate(("flux", "hlr", "g1", "g2")):
        draws[..., k] = np.asarray(truth[name]) * (1 + 0.1 * noise)
    catalog = Table({"x": truth["x"], "y": truth["y"], "p_blend": np.ones(len(truth))})
    for name in ("flux", "hlr", "g1", "g2"):
        catalog[name] = np.asarray(truth[name]) * factor
    masks = np.stack([scene.classes == 2, scene.footprint(0), scene.footprint(1)])
    labels = masks[1] + 2 * (masks[2] & ~masks[1])
    return Prediction(catalog=catalog, labels=labels, p_galaxy=labels > 0, draws=draws, masks=masks)


def test_training_pairs_follow_the_protocol(pair_batch):
    s = pair_batch.sources
    assert torch.equal(s.scene, torch.arange(200).repeat_interleave(2))
    y, x, hlr = s.y.view(-1, 2), s.x.view(-1, 2), s.hlr.view(-1, 2)
    assert (torch.hypot(y[:, 0] - 63.5, x[:, 0] - 63.5) <= 0.71).all()  # half a pixel each way
    radius = torch.hypot(y[:, 1] - y[:, 0], x[:, 1] - x[:, 0])
    r_max = (4 * hlr.amin(dim=1)).clamp(max=64)
    r_min = torch.minimum(hlr.amax(dim=1), 0.8 * r_max)
    slack = 1.5  # stamps are placed to the pixel
    assert (radius > r_min - slack).all()
    assert (radius < r_max + slack).all()
    delta = 2.5 * (s.flux.view(-1, 2)[:, 0] / s.flux.view(-1, 2)[:, 1]).log10()
    assert delta.abs().max() <= 2
    assert delta.abs().max() > 1.5
    angle = torch.atan2(y[:, 1] - y[:, 0], x[:, 1] - x[:, 0])
    assert kstest(angle.numpy(), "uniform", args=(-np.pi, 2 * np.pi)).pvalue > 1e-3


def test_both_ways_of_making_pairs_draw_the_same(pair_batch, candels):
    scenes = [CONFIG.scene(candels, k) for k in range(200)]
    s = pair_batch.sources
    flux = s.flux.view(-1, 2)
    ours = (2.5 * (flux[:, 0] / flux[:, 1]).log10(), flux[:, 0].log())
    catalogs = [scene.catalog for scene in scenes]
    theirs = (
        [c["mag"][1] - c["mag"][0] for c in catalogs],
        [np.log(c["flux"][0] / scenes[0].rms) for c in catalogs],
    )
    for one, other in zip(ours, theirs, strict=True):
        assert ks_2samp(one.numpy(), other).pvalue > 1e-3


def test_masks_of_pairs_add_up_to_the_classes(pair_batch):
    overlap, central, companion = true_masks(pair_batch).unbind(1)
    assert torch.equal(overlap, central & companion)
    count = central.long() + companion.long()
    assert torch.equal(count, pair_batch.classes)
    inside, whole = central.sum(dim=(1, 2)), pair_batch.sources.n_pixels.view(-1, 2)[:, 0]
    assert (inside <= whole).all()
    assert (inside == whole).float().mean() > 0.9  # the largest reach beyond the stamp


def test_masks_need_pairs(batch_of):
    image = torch.zeros(3, 1, 32, 32)
    with pytest.raises(ValueError, match="pair_fraction"):
        true_masks(batch_of(image, torch.zeros(3, 32, 32, dtype=torch.long), n_sources=5))


@pytest.mark.parametrize("kind", ["mape", "log"])
def test_error_of_a_flux(kind):
    excess = torch.tensor([0.0, np.log(1.1), np.log(0.5), 4.0], requires_grad=True)
    error = flux_error(excess, kind)
    wanted = [0.0, 0.1, 0.5] if kind == "mape" else [0.0, np.log(1.1), np.log(2)]
    np.testing.assert_allclose(error[:3].detach(), wanted, atol=1e-6)
    error.sum().backward()
    assert (excess.grad[1:].sign() == torch.tensor([1.0, -1.0, 1.0])).all()
    assert excess.grad.abs().max() < 10  # even far off


@pytest.mark.parametrize(("segment", "measure"), [(True, False), (False, True), (True, True)])
def test_pair_networks_learn(pair_batch, segment, measure):
    torch.manual_seed(1)
    network = PairNetwork(PairNetworkConfig(
        segment=segment, measure=measure, channels=(8, 12), flux_channels=(8, 8, 8, 8), dense=32,
    ))  # fmt: skip
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        some = pair_batch.sources.scene < 16
        batch = type(pair_batch)(
            image=pair_batch.image[:16], noiseless=pair_batch.noiseless[:16],
            classes=pair_batch.classes[:16], psf_fwhm=pair_batch.psf_fwhm[:16],
            sources=pair_batch.sources.keep(some),
            footprints=pair_batch.footprints[:, pair_batch.footprints[0] < 32],
        )  # fmt: skip
        terms = network.training_loss(batch, generator=torch.Generator(), beta=1.0)
        optimizer.zero_grad()
        (terms["loss"] / 128**2).backward()
        optimizer.step()
        losses.append(terms["loss"].item())
    assert losses[-1] < 0.8 * losses[0]
    said = network.eval()(pair_batch.image[:2])
    assert (said.mask_logits is not None) == segment
    assert (said.log_flux is not None) == measure


def test_flux_branch_wants_its_own_size():
    network = PairNetwork(PairNetworkConfig(channels=(4,), flux_channels=(4,), dense=8))
    with pytest.raises(ValueError, match="128²"):
        network(torch.zeros(1, 1, 64, 64))


@pytest.mark.parametrize("bad", [{"segment": False, "measure": False}, {"flux_loss": "mse"},
                                 {"patch_size": 100}])  # fmt: skip
def test_pair_settings_are_checked(bad):
    with pytest.raises(ValueError):  # noqa: PT011 - three different sentences
        PairNetworkConfig(**bad)


def test_the_truth_scores_perfectly(candels):
    scores = pair_scores(run_method(all_knowing, candels, CONFIG))
    assert scores["both_found"] == 1
    assert scores["third_source"] == 0
    assert scores["flux_all"]["mean_relative"] < 1e-6
    assert scores["iou"] == {"overlap": 1, "central": 1, "companion": 1}
    assert scores["seen_as_one"] == 0


def test_a_wrong_answer_does_not(candels):
    def swapped(scene, seed):
        said = all_knowing(scene, seed)
        said.catalog["flux"] = said.catalog["flux"][::-1].copy()
        return replace(said, masks=said.masks[[0, 2, 1]])

    scores = pair_scores(run_method(swapped, candels, CONFIG))
    assert scores["flux_all"]["mean_relative"] > 0.2
    assert scores["iou"]["central"] < 0.9
    assert scores["iou"]["overlap"] == 1


def test_errors_are_those_that_were_put_in(candels):
    table = run_method(lambda s, k: all_knowing(s, k, factor=1.2), candels, CONFIG)
    scores = pair_scores(table)
    assert scores["flux_all"]["mean_relative"] == pytest.approx(0.2)
    assert scores["flux_all"]["bias"] == pytest.approx(2.5 * np.log10(1.2))
    np.testing.assert_allclose(table["delta_mag"][::2], -table["delta_mag"][1::2])


def test_scatter_of_a_perfect_fit_is_the_fisher_limit():
    generator = np.random.default_rng(2)
    fisher = generator.uniform(0.01, 0.1, size=4000)
    flux = 50 * (1 + fisher * generator.normal(size=4000))
    table = Table({"flux": flux, "flux_true": np.full(4000, 50.0), "fisher": fisher})
    assert over_fisher(table) == pytest.approx(1, abs=0.05)


def test_galaxies_of_unknown_shape_have_no_place(candels):
    def nameless(scene, seed):
        said = all_knowing(scene, seed)
        for name in ("g1", "g2"):
            scene.catalog[name] = np.nan
        return said

    table = run_method(nameless, candels, replace(CONFIG, n=30))
    assert np.isnan(table["rank_g1"]).all()
    scores = pair_scores(table)
    assert "g1" not in scores["coverage"]
    assert "g1_nmad" not in scores["shape"]
    assert 0 <= scores["coverage"]["flux"]["68"] <= 1


def test_a_missed_companion_a_stray_and_a_third_source_count(candels):
    def one_and_a_ghost(scene, seed):
        said = all_knowing(scene, seed)
        said.catalog["x"][1] = 2.0
        said.catalog["y"][1] = 2.0
        return replace(said, draws=None, labels=(said.labels > 0).astype(int))

    scores = pair_scores(run_method(one_and_a_ghost, candels, CONFIG))
    assert scores["both_found"] == scores["third_source"] == 0
    assert scores["stray"] == 1
    assert scores["seen_as_one"] == scores["announced"] == CONFIG.n

    def both_and_a_ghost(scene, seed):
        said = all_knowing(scene, seed)
        said.catalog.add_row({"x": 2.0, "y": 2.0, "p_blend": 1.0})
        return replace(said, draws=None)

    scores = pair_scores(run_method(both_and_a_ghost, candels, CONFIG))
    assert scores["both_found"] == scores["third_source"] == scores["stray"] == 1
    assert scores["seen_as_one"] == 0


def test_a_pair_that_one_object_between_them_covers_is_seen_as_one(candels):
    def between(scene, seed):
        said = all_knowing(scene, seed)
        merged = said.catalog[:1]
        merged["x"], merged["y"] = 2.0, 2.0  # as if far from both centres
        return replace(said, catalog=merged, draws=None, labels=(said.labels > 0).astype(int))

    scores = pair_scores(run_method(between, candels, CONFIG))
    assert scores["both_found"] == 0
    assert scores["stray"] == 0
    assert scores["seen_as_one"] == scores["announced"] == CONFIG.n


def test_classical_methods_find_two_bright_galaxies_far_apart(candels):
    scenes = (CONFIG.scene(candels, k) for k in range(200))
    far = [s for s in scenes if np.hypot(*np.diff(positions(s.catalog), axis=0)[0]) > 25][:5]
    assert len(far) == 5
    runs = [run_sep, lambda i, r: run_sep(i, r, COLD, HOT), run_photutils]
    if find_sextractor():
        runs += [run_program, lambda i, r: run_program(i, r, COLD, HOT)]
    for run in runs:
        n_found, n_own, ratios = 0, 0, []
        for scene in far:
            catalog, labels = run(scene.image, scene.rms)
            assert labels.max() == len(catalog)
            t, f = match_positions(positions(scene.catalog), positions(catalog))
            n_found += len(t)
            ratios += list(np.asarray(catalog["flux"])[f] / np.asarray(scene.catalog["flux"])[t])
            rows, columns = np.round(positions(catalog)[f]).astype(int).T
            n_own += (labels[rows, columns] == f + 1).sum()
        assert n_found >= 9
        assert n_own >= n_found - 2  # the middle of a blended object may lie in another one
        assert 0.8 < np.median(ratios) < 1.1  # Kron misses a few per cent


@pytest.mark.skipif(find_sextractor() is None, reason="SExtractor is not installed")
def test_sep_is_the_algorithm_of_the_program(scene):
    ours, _ = run_sep(scene.image, scene.rms)
    theirs, _ = run_program(scene.image, scene.rms)
    t, f = match_positions(positions(theirs), positions(ours), radius=1.0)
    assert len(t) > 0.97 * max(len(ours), len(theirs))
    ratio = np.asarray(ours["flux_iso"])[f] / np.asarray(theirs["flux_iso"])[t]
    assert np.median(np.abs(ratio - 1)) < 0.02
    ratio = np.asarray(ours["flux"])[f] / np.asarray(theirs["flux"])[t]
    assert abs(np.median(ratio) - 1) < 0.05  # Kron; SExtractor fills masked neighbours in


def test_sextractor_that_is_not_there(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match="source-extractor"):
        open_method("sextractor")


def test_scarlet_shares_the_light_of_a_blend_between_two(candels):
    pytest.importorskip("scarlet2")
    scenes = (CONFIG.scene(candels, k) for k in range(200))
    ratios = []
    for scene in [s for s in scenes if len(run_sep(s.image, s.rms)[0]) == 2][:4]:
        catalog = open_method("scarlet")(scene, 0).catalog
        t, f = match_positions(positions(scene.catalog), positions(catalog))
        assert len(t) == 2
        ratios += list(np.asarray(catalog["flux"])[f] / np.asarray(scene.catalog["flux"])[t])
    assert 0.7 < np.median(ratios) < 1.2
    assert min(ratios) > 0.3


def test_scarlet_does_not_start_what_it_cannot_end():
    image = np.zeros((200, 200), np.float32)
    image[10::20, 10::20] = 1000.0
    with pytest.raises(ValueError, match=r"at most 30 .* found 100"):
        run_scarlet(image, 1.0, np.ones((5, 5)) / 25)


def test_scarlet_that_is_not_there(monkeypatch):
    monkeypatch.setattr("probablend.evaluate.methods.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="scarlet2"):
        open_method("scarlet")


def test_unknown_method():
    with pytest.raises(ValueError, match="unknown method 'nosuch'"):
        open_method("nosuch")


def test_a_model_of_pixels_cannot_be_forced(small_weights):
    with pytest.raises(ValueError, match="pixels only"):
        open_method(f"{small_weights}@truth")


def test_forced_rows_are_the_truth(candels, field_weights):
    scene = CONFIG.scene(candels, 0)
    said = open_method(f"{field_weights}@truth", n_samples=2)(scene, 0)
    np.testing.assert_array_equal(said.given, [0, 1])
    assert len(said.catalog) == 2
    table = score_pair(scene, said)
    assert table["found"].all()
    assert np.isfinite(table["rank_flux"]).all()
    assert np.isfinite(table["flux"]).all()


def test_a_run_goes_on_and_is_scored_again(candels, tmp_path, capsys):
    seen = []
    config = PairsConfig(n=3, mag_range=(20.0, 22.5), seed=8)
    first = evaluate_pairs(candels, config, ["sep"], tmp_path, command="x",
                           progress=lambda *a: seen.append(a))  # fmt: skip
    assert seen[-1] == ("sep", 3, 3)
    seen.clear()
    again = evaluate_pairs(candels, config, ["sep", "photutils"], tmp_path, command="x",
                           progress=lambda *a: seen.append(a))  # fmt: skip
    assert {name for name, _, _ in seen} == {"photutils"}
    assert again["methods"]["sep"] == first["methods"]["sep"]
    (tmp_path / "results.md").unlink()
    assert read_results(tmp_path) == again
    assert (tmp_path / "results.md").read_text().count("\n| sep") == 2  # Kron and isophotal
    assert json.loads((tmp_path / "results.json").read_text()) == again
    assert (tmp_path / "magnitude-error.png").stat().st_size > 5000
    other = PairsConfig(n=4, mag_range=(20.0, 22.5), seed=8)
    with pytest.raises(ValueError, match="another n"):
        evaluate_pairs(candels, other, ["sep"], tmp_path)
    with pytest.raises(FileNotFoundError, match="no evaluation"):
        read_results(tmp_path / "nowhere")


def test_a_method_that_is_told_the_truth_is_kept_too(candels, field_weights, tmp_path):
    config = PairsConfig(n=2, mag_range=(20.0, 22.5), seed=8, n_samples=1)
    name = f"{field_weights}@truth"
    results = evaluate_pairs(candels, config, [name], tmp_path, command="x")
    assert len(results["methods"]) == 1
    assert not list((tmp_path / "pairs").glob("*.part"))
    assert not list(tmp_path.glob("gallery*"))
