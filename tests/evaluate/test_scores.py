import numpy as np
import pytest
from astropy.table import Table
from scipy.optimize import linear_sum_assignment

from probablend.evaluate.calibration import (
    active_pixels,
    average_precision,
    brier_score,
    chance_ece,
    reliability,
)
from probablend.evaluate.classical import run_sep
from probablend.evaluate.detection import (
    THRESHOLDS,
    blended_curve,
    completeness_at_purity,
    detect_scores,
    detection_curve,
    iou,
    region_curve,
)
from probablend.evaluate.field import score_scenes
from probablend.evaluate.match import match_positions
from probablend.evaluate.methods import Prediction


def test_intersection_over_union_at_its_ends():
    full, empty = np.ones((4, 4), bool), np.zeros((4, 4), bool)
    half = full.copy()
    half[:2] = False
    assert iou(full, full) == 1.0
    assert iou(full, empty) == 0.0
    assert iou(empty, empty) == 1.0
    assert iou(full, half) == 0.5
    assert iou(full.astype(float), half.astype(float)) == 0.5


def test_matching_is_one_to_one_and_as_good_as_the_optimal_assignment(generator):
    truth = generator.uniform(0, 300, size=(200, 2))
    found = truth + generator.normal(0, 0.7, size=truth.shape)
    found = found[generator.permutation(200)][:150]
    t, f = match_positions(truth, found)
    assert len(set(t)) == len(t)
    assert len(set(f)) == len(f)
    distance = np.hypot(*(truth[:, None] - found[None]).transpose(2, 0, 1))
    assert (distance[t, f] <= 3).all()
    rows, columns = linear_sum_assignment(np.where(distance <= 3, distance, 1e6))
    n_optimal = (distance[rows, columns] <= 3).sum()
    assert len(t) >= n_optimal - 2


def test_nothing_matches_nothing():
    none = np.zeros((0, 2))
    assert len(match_positions(none, np.ones((3, 2)))[0]) == 0
    assert len(match_positions(np.zeros((1, 2)), np.full((1, 2), 99.0))[0]) == 0


def test_a_calibrated_forecast_has_no_calibration_error(generator):
    p = generator.beta(0.5, 2, size=200_000)
    truth = generator.uniform(size=p.size) < p
    assert reliability(p, truth).ece < 0.005
    # mean |deviate| of binomial shares: √(2/π · p (1 − p) / n) in bins of n
    fair = 0.5 + 1e-9 * np.arange(2000)  # of equal ones there would be one bin
    expected = np.sqrt(2 / np.pi * 0.25 / 100)
    assert chance_ece(fair, n_bins=20) == pytest.approx(expected, rel=0.05)
    assert chance_ece(np.array([0.0, 1.0, 1.0])) == 0
    assert reliability(np.clip(p + 0.1, 0, 1), truth).ece == pytest.approx(0.1, abs=0.01)


def test_average_precision_by_hand():
    truth = np.array([True, False, True, False])
    assert average_precision(np.array([0.9, 0.8, 0.7, 0.1]), truth) == pytest.approx(
        (1 + 2 / 3) / 2
    )
    assert average_precision(np.array([0.9, 0.1, 0.8, 0.2]), truth) == 1
    assert average_precision(np.full(4, 0.3), truth) == 0.5  # equal ones are flagged together
    assert np.isnan(average_precision(np.array([0.2]), np.array([False])))
    guess = np.random.default_rng(0).uniform(size=(2, 20_000))
    assert average_precision(guess[0], guess[1] < 0.2) == pytest.approx(0.2, abs=0.02)


def test_the_detection_curve_by_hand():
    truth = Table({"x": [10.0, 20.0, 30.0], "y": [10.0, 10.0, 10.0], "n_pixels": [50, 50, 50],
                   "blended": [True, True, False]})  # fmt: skip
    found = Table({"x": [10.0, 20.0, 50.0], "y": [10.0, 10.0, 50.0], "p_source": [0.9, 0.4, 0.6]})
    curve = detection_curve([truth, truth], [found, found], (64, 64))
    at = {t: k for k, t in enumerate(curve["threshold"])}
    assert max(at) == 0.9
    for threshold, completeness, blended, purity in (
        (0.2, 2 / 3, 1.0, 2 / 3), (0.5, 1 / 3, 0.5, 0.5), (0.7, 1 / 3, 0.5, 1.0),
    ):  # fmt: skip
        k = at[threshold]
        assert curve["completeness"][k] == pytest.approx(completeness)
        assert curve["completeness_blended"][k] == blended
        assert curve["purity"][k] == pytest.approx(purity)
    best = completeness_at_purity(curve, 0.95)
    assert (best["threshold"], best["completeness_blended"]) == (0.62, 0.5)
    assert completeness_at_purity({"purity": [0.5], "threshold": [0.2]}, 0.95) is None


def test_calibration_error_and_brier_score_by_hand():
    p, truth = np.array([0.1, 0.1, 0.9, 0.9]), np.array([0, 1, 1, 1])
    assert reliability(p, truth, n_bins=2).ece == pytest.approx(0.5 * 0.4 + 0.5 * 0.1)
    assert brier_score(p, truth) == pytest.approx((0.01 + 0.81 + 0.01 + 0.01) / 4)
    with pytest.raises(ValueError, match="non-zero length"):
        reliability(np.zeros(0), np.zeros(0))


def test_the_order_of_equal_probabilities_says_nothing():
    p, truth = np.full(64, 0.5), np.repeat([0, 1], 32)
    assert reliability(p, truth).ece == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(reliability(p, truth[::-1]).observed, 0.5)


def test_active_pixels_are_true_or_predicted():
    p, truth = np.array([0.0, 0.005, 0.5, 0.0]), np.array([0, 0, 0, 1])
    np.testing.assert_array_equal(active_pixels(p, truth), [False, False, True, True])


def perfect(scene):
    """The truth itself, as a prediction: each galaxy labelled where it is brightest."""
    inside = [
        k
        for k, row in enumerate(scene.catalog)
        if row["n_pixels"] > 0
        and 0 <= row["x"] <= scene.image.shape[1] - 1
        and 0 <= row["y"] <= scene.image.shape[0] - 1
    ]
    labels = np.zeros(scene.image.shape, dtype=np.int32)
    best = np.zeros(scene.image.shape)
    for n, k in enumerate(inside, start=1):
        where, part = scene.sources[k].slices(scene.image.shape)
        own = (part > best[where]) & scene.footprint(k)[where]
        labels[where][own] = n
        best[where][own] = part[own]
    rows = scene.catalog[inside]
    table = Table({"x": rows["x"], "y": rows["y"], "p_blend": rows["blended"].astype(float)})
    return Prediction(
        catalog=table,
        labels=labels,
        p_galaxy=(scene.classes > 0).astype(float),
        p_blend=(scene.classes == 2).astype(float),
    )


def test_the_truth_scores_perfectly(scene):
    score = score_scenes([scene, scene], [perfect(scene)] * 2)
    assert score.detection.completeness == 1
    assert score.detection.completeness_blended == 1
    assert score.detection.purity == 1
    values = score.values
    assert values["iou_galaxy"] == values["iou_blend"] == 1
    assert values["ece_blend_active"] == values["ece_galaxy_active"] == 0
    assert values["brier_blend_active"] == 0
    assert score.blended.strict_completeness[5] == 1
    assert score.blended.strict_purity[5] == 1
    assert (score.regions.completeness == 1).all()
    assert (score.regions.purity == 1).all()


def test_a_shuffled_truth_does_not(scene, generator):
    good = perfect(scene)
    shuffled = Prediction(
        catalog=Table(
            {
                "x": generator.uniform(0, 200, size=len(good.catalog)),
                "y": generator.uniform(0, 200, size=len(good.catalog)),
                "p_blend": generator.permutation(good.catalog["p_blend"]),
            }
        ),
        labels=np.rot90(good.labels).copy(),
        p_galaxy=np.rot90(good.p_galaxy),
        p_blend=np.rot90(good.p_blend),
    )
    score = score_scenes([scene], [shuffled])
    assert score.detection.completeness < 0.5
    assert score.values["iou_galaxy"] < 0.5
    assert score.values["ece_blend_active"] > 0.2


def test_a_flag_raised_for_everything_is_complete_and_impure(scene):
    everything = perfect(scene)
    everything.catalog["p_blend"] = 1.0
    curve = blended_curve(scene.catalog, everything.catalog, everything.labels)
    assert (curve.strict_completeness == 1).all()
    share = np.mean([scene.catalog["blended"][k] for k in range(len(scene.catalog))])
    assert curve.strict_purity[0] == pytest.approx(share, abs=0.25)
    assert len(curve.purity) == len(THRESHOLDS)


def test_an_empty_catalogue_is_scored(scene):
    nothing = Table({"x": np.zeros(0), "y": np.zeros(0), "p_blend": np.zeros(0)})
    score = detect_scores(scene.catalog, nothing, scene.image.shape)
    assert score.completeness == 0
    assert np.isnan(score.purity)
    curve = blended_curve(scene.catalog, nothing, np.zeros(scene.image.shape, int))
    assert (curve.completeness == 0).all()


def test_regions_by_hand():
    """Two true regions; one is found, beside one false one; a speck does not count."""
    truth, p = np.zeros((30, 30), bool), np.zeros((30, 30))
    truth[2:6, 2:6] = truth[20:24, 20:24] = True
    p[4:8, 4:8], p[14:17, 2:5], p[28, 28] = 0.9, 0.3, 0.9
    curve = region_curve(p, truth)
    low, high = np.searchsorted(THRESHOLDS, [0.2, 0.8])
    assert curve.n_true == 2
    assert curve.completeness[low] == curve.completeness[high] == 0.5
    assert curve.purity[low] == 0.5
    assert curve.purity[high] == 1
    assert np.isnan(curve.purity[-1])


def test_sep_finds_bright_galaxies_where_they_are(scene):
    catalog, labels = run_sep(scene.image, scene.rms)
    assert labels.shape == scene.image.shape
    score = detect_scores(scene.catalog, catalog, scene.image.shape)
    assert score.purity > 0.9
    assert score.completeness > 0.5
