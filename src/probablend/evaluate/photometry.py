"""Fluxes and shapes against the truth: scatter, bias, coverage, and the Fisher limit.

Fluxes are compared with the total flux of the drawn profile, in magnitudes:
Δm = 2.5 log10(measured / true). The *Fisher limit* is the scatter of a fit that knows every
profile and position, where fluxes are linear: covariance (GᵀG/σ²)⁻¹.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from astropy.stats import mad_std
from astropy.table import Table, vstack
from scipy.spatial import KDTree
from scipy.stats import kstest

from probablend.emulate.blend import Scene
from probablend.emulate.noise import noise_rms
from probablend.evaluate.detection import MIN_FOOTPRINT, objects_of, positions
from probablend.evaluate.match import match_positions
from probablend.models.source import PARAMETERS

__all__ = [
    "binned_scatter",
    "coverage_scores",
    "coverage_text",
    "fisher_limit",
    "flux_scores",
    "matched_sources",
    "over_fisher",
    "photometry",
    "rank_histograms",
    "shape_scores",
    "share_inside",
    "signal_to_noise",
    "truth_ranks",
    "unrecognised_blends",
    "worst_bins",
]

SHAPE_PARAMETERS = ("flux", "hlr", "g1", "g2")
BINS = {
    "snr": (3.0, 5.0, 10.0, 20.0, 50.0, np.inf),
    "separation": (0.0, 5.0, 10.0, 15.0, np.inf),  # pixels, as in arXiv:1905.01324
    "relative": (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, np.inf),  # separation / larger radius
    "delta_mag": (-np.inf, -2.0, -1.0, 0.0, 1.0, 2.0, np.inf),  # own − that of the other
}
LEVELS = (0.5, 0.68, 0.9, 0.95)
OUTLIER = 0.75  # mag
FLUX_MIN_SNR = 10.0
MIN_IN_BIN = 30
_FISHER_MIN_SNR = 3.0


def signal_to_noise(scene: Scene) -> np.ndarray:
    """√Σgₖ²/σ of every source of a scene, over the pixels of the image."""
    parts = (source.slices(scene.image.shape)[1] for source in scene.sources)
    return np.array([np.sqrt((part.astype(float) ** 2).sum()) for part in parts]) / scene.rms


def fisher_limit(scene: Scene, *, min_snr: float = _FISHER_MIN_SNR) -> np.ndarray:
    """Least scatter of the flux of every source, as a share of it; NaN below ``min_snr``.

    All sources of at least ``min_snr`` are fitted together, profiles and positions known, with
    the noise of the sky and of their own light.
    """
    snr = signal_to_noise(scene)
    rows = np.flatnonzero(snr >= min_snr)
    weight = 1 / noise_rms(scene.noiseless, scene.survey).astype(float) ** 2
    places = [scene.sources[k].slices(scene.image.shape) for k in rows]
    gram = np.diag([(weight[where] * part.astype(float) ** 2).sum() for where, part in places])
    for i, ((rows_i, columns_i), part_i) in enumerate(places):
        for j in range(i):
            (rows_j, columns_j), part_j = places[j]
            top, bottom = max(rows_i.start, rows_j.start), min(rows_i.stop, rows_j.stop)
            if top >= bottom:
                continue
            left = max(columns_i.start, columns_j.start)
            right = min(columns_i.stop, columns_j.stop)
            if left >= right:
                continue
            a = part_i[top - rows_i.start : bottom - rows_i.start,
                       left - columns_i.start : right - columns_i.start]  # fmt: skip
            b = part_j[top - rows_j.start : bottom - rows_j.start,
                       left - columns_j.start : right - columns_j.start]  # fmt: skip
            shared = weight[top:bottom, left:right]
            gram[i, j] = gram[j, i] = (shared * a * b).sum()
    limit = np.full(len(snr), np.nan)
    if len(rows):
        try:
            covariance = np.linalg.inv(gram)
        except np.linalg.LinAlgError:  # two sources in one place
            covariance = np.linalg.pinv(gram, hermitian=True)
        limit[rows] = np.sqrt(np.clip(np.diag(covariance), 0, None))
    return limit


def matched_sources(
    scene: Scene, catalog: Table, draws: np.ndarray | None = None, *, radius: float = 3.0
) -> Table:
    """True sources that a catalogue found, with what it says of them.

    Parameters
    ----------
    scene : Scene
        The truth.
    catalog : Table
        ``x, y, flux``.
    draws : ndarray, shape (draw, row, parameter), optional
        Posterior draws, for ranks.
    radius : float
        Of the match, pixels.

    Returns
    -------
    Table
        ``flux_true, flux, snr, fisher, blended, is_star``; of the nearest detectable source
        ``separation`` (pixels), ``relative`` (to the larger half-light radius of the two) and
        ``delta_mag`` (own magnitude − that of the other); ``hlr, g1, g2`` and ``…_true`` of a
        catalogue that has shapes; for each shape parameter ``rank_…``, the place of the truth
        among the draws, 0 to 1.
    """
    truth = scene.catalog
    at = positions(truth)
    t, f = match_positions(at, positions(catalog), radius=radius)
    n_y, n_x = scene.image.shape
    t_y, t_x = at[t].T
    inside = (t_y > 0) & (t_y < n_y - 1) & (t_x > 0) & (t_x < n_x - 1)
    inside &= np.asarray(truth["n_pixels"])[t] >= MIN_FOOTPRINT
    t, f = t[inside], f[inside]
    measured = np.isfinite(np.asarray(catalog["flux"], float)[f])
    t, f = t[measured], f[measured]
    detectable = np.flatnonzero(np.asarray(truth["n_pixels"]) >= MIN_FOOTPRINT)
    separation, other = np.full(len(t), np.inf), t
    if len(detectable) > 1 and len(t):
        near, which = KDTree(at[detectable]).query(at[t], k=2)
        separation, other = near[:, 1], detectable[which[:, 1]]
    mag, hlr = (np.asarray(truth[name], float) for name in ("mag", "hlr"))
    radius = np.fmax(hlr[t], hlr[other])
    relative = np.full(len(t), np.inf)  # of two stars
    np.divide(separation, radius, out=relative, where=radius > 0)
    table = Table(
        {
            "flux_true": np.asarray(truth["flux"], float)[t],
            "flux": np.asarray(catalog["flux"], float)[f],
            "snr": signal_to_noise(scene)[t],
            "fisher": fisher_limit(scene)[t],
            "separation": separation,
            "relative": relative,
            "delta_mag": mag[t] - mag[other],
            "blended": np.asarray(truth["blended"], bool)[t],
            "is_star": np.asarray(truth["is_star"], bool)[t],
        }
    )
    for name in SHAPE_PARAMETERS[1:]:
        if name in catalog.colnames:
            column = catalog[name]
            table[name] = np.asarray(column, float)[f]
            table[f"{name}_true"] = np.asarray(truth[name], float)[t]
    if draws is not None:
        for name, rank in truth_ranks(truth[t], draws[:, f]).items():
            table[f"rank_{name}"] = rank
    return table


def truth_ranks(truth: Table, draws: np.ndarray) -> dict[str, np.ndarray]:
    """Places of true parameters among posterior draws of the same sources, 0 to 1.

    Among n draws the truth has n + 1 places, all as probable if they are fair; within its
    place it lies anywhere. NaN where the truth is not known.
    """
    generator = np.random.default_rng(len(truth))
    ranks = {}
    for name in SHAPE_PARAMETERS:
        true = np.asarray(truth[name], float)
        below = draws[:, :, PARAMETERS.index(name)] < true
        place = below.sum(axis=0) + generator.uniform(size=len(truth))
        ranks[name] = np.where(np.isfinite(true), place / (len(draws) + 1), np.nan)
    return ranks


def flux_scores(table: Table) -> dict[str, float]:
    """Bias, scatter and outliers of Δm, and the mean and median relative error of the flux.

    A flux that is not positive counts as −99 mag.
    """
    flux, true = np.asarray(table["flux"], float), np.asarray(table["flux_true"], float)
    if not len(flux):
        return {"n": 0}
    relative = np.abs(flux - true) / true
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.where(flux > 0, 2.5 * np.log10(np.maximum(flux, 1e-30) / true), -99.0)
    middle = float(np.median(error))
    return {
        "n": len(flux),
        "bias": middle,
        "nmad": float(mad_std(error)),
        "outliers": float((np.abs(error) > OUTLIER).mean()),
        "mean_relative": float(relative.mean()),
        "median_relative": float(np.median(relative)),
    }


def coverage_scores(table: Table) -> dict[str, dict[str, Any]]:
    """Share of the truths inside central intervals, in all, in bins, and in the worst of them.

    Galaxies only: a star has no size or shape. Bins of S/N and separation with fewer than 30
    sources are left out.
    """
    galaxies = table[~np.asarray(table["is_star"], bool)]
    scores: dict[str, dict[str, Any]] = {}
    for name in SHAPE_PARAMETERS:
        rank = np.asarray(galaxies[f"rank_{name}"], float)
        some = galaxies[np.isfinite(rank)]
        rank = rank[np.isfinite(rank)]
        if not len(rank):
            continue
        bins = [where | {"n": int(which.sum())} | share_inside(rank[which])
                for where, which in _in_bins(some, "snr", "separation")]  # fmt: skip
        scores[name] = share_inside(rank) | {"bins": bins}
        for level in LEVELS:
            key = f"{round(100 * level)}"
            off = [one[key] - level for one in bins]
            scores[name][f"{key}_worst_bin"] = max(off, key=abs, default=None)
        scores[name]["kolmogorov"] = float(kstest(rank, "uniform").statistic)
    return scores


def share_inside(rank: np.ndarray) -> dict[str, float]:
    """Share of the places that are in each central interval."""
    return {f"{round(100 * level)}": float((np.abs(rank - 0.5) <= level / 2).mean())
            for level in LEVELS}  # fmt: skip


def _in_bins(table: Table, *keys: str) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Bins that hold enough sources: what they are, and whose."""
    for key in keys:
        values = np.asarray(table[key], float)
        for low, high in pairwise(BINS[key]):
            which = (values >= low) & (values < high)
            if which.sum() >= MIN_IN_BIN:
                # JSON knows no infinity.
                ends = {"low": low, "high": high}
                yield ({"bin": key} | {k: v if np.isfinite(v) else None for k, v in ends.items()},
                       which)  # fmt: skip


def binned_scatter(table: Table) -> list[dict[str, Any]]:
    """Flux scores and scatter over the Fisher limit in bins.

    Of S/N, separation, separation over radius, and difference of magnitude.
    """
    return [
        where | flux_scores(table[which]) | {"over_fisher": over_fisher(table[which])}
        for where, which in _in_bins(table, *BINS)
    ]


def shape_scores(table: Table) -> dict[str, float]:
    """Bias and scatter of size and shape, and the multiplicative bias of the shape.

    Parameters
    ----------
    table : Table
        ``hlr, g1, g2`` and ``…_true``; NaN where a value is not known.
    """
    scores = {}
    ratio = np.log(np.asarray(table["hlr"], float) / np.asarray(table["hlr_true"], float))
    if np.isfinite(ratio).any():
        scores["ln_hlr_bias"] = float(np.nanmedian(ratio))
        scores["ln_hlr_nmad"] = float(mad_std(ratio, ignore_nan=True))
    for name in ("g1", "g2"):
        said, true = (np.asarray(table[k], float) for k in (name, f"{name}_true"))
        ok = np.isfinite(said) & np.isfinite(true)
        if ok.sum() < MIN_IN_BIN or np.ptp(true[ok]) == 0:  # a set that knows no shapes
            continue
        scores[f"{name}_nmad"] = float(mad_std(said[ok] - true[ok]))
        slope, offset = np.polyfit(true[ok], said[ok], 1)
        scores[f"{name}_multiplicative_bias"] = float(slope - 1)
        scores[f"{name}_additive_bias"] = float(offset)
    return scores


def over_fisher(table: Table) -> float:
    """Scatter of the relative flux error in units of its least possible value; NaN of nothing."""
    pull = np.asarray(table["flux"], float) / np.asarray(table["flux_true"], float) - 1
    pull = pull / np.asarray(table["fisher"], float)
    pull = pull[np.isfinite(pull)]
    return float(mad_std(pull)) if len(pull) else float("nan")


def coverage_text(scores: dict[str, float] | None) -> str | None:
    """Coverage of one parameter as a cell of a table; None of nothing."""
    if scores is None:
        return None
    return f"{scores['68']:.3f} / {scores['95']:.3f} {worst_bins(scores, '+.3f')}"


def worst_bins(scores: Mapping[str, float | None], form: str) -> str:
    """How far coverage is off in the worst bins, for a table."""
    worst = [scores[f"{level}_worst_bin"] for level in (68, 95)]
    return f"({', '.join('–' if w is None else format(w, form) for w in worst)})"


def unrecognised_blends(
    scene: Scene, catalog: Table, labels: np.ndarray, *, reach: float = 10.0
) -> dict[str, int]:
    """Close pairs that come out as one detection, and how many of those are announced.

    A close pair is two detectable sources whose footprints overlap, at most ``reach`` pixels
    apart, each the nearest one of the other. It is unrecognised if one detection speaks for
    them, matched to a centre or covering it; announced if that has p_blend > 0.5.
    """
    truth = scene.catalog
    keep = np.asarray(truth["n_pixels"]) >= MIN_FOOTPRINT
    keep &= np.asarray(truth["blended"], bool)
    at = positions(truth)
    n_y, n_x = scene.image.shape
    keep &= (at > 0).all(axis=1) & (at[:, 0] < n_y - 1) & (at[:, 1] < n_x - 1)
    rows = np.flatnonzero(keep)
    counts = {"pairs": 0, "unrecognised": 0, "announced": 0}
    if len(rows) < 2:
        return counts
    distance, near = KDTree(at[rows]).query(at[rows], k=2)
    partner = near[:, 1]
    _, speaking = objects_of(truth, catalog, labels)
    says = "p_blend" in catalog.colnames
    p_blend = np.asarray(catalog["p_blend"], float) if says else np.zeros(len(catalog))
    for i, j in enumerate(partner):
        if j <= i or partner[j] != i or distance[i, 1] > reach:
            continue
        a, b = rows[i], rows[j]
        if not (scene.footprint(a) & scene.footprint(b)).any():
            continue
        counts["pairs"] += 1
        found = {speaking[k] for k in (a, b) if speaking[k] >= 0}
        if len(found) == 1:
            counts["unrecognised"] += 1
            counts["announced"] += bool(p_blend[found.pop()] > 0.5)
    if not says:
        del counts["announced"]
    return counts


def photometry(
    scenes: list[Scene],
    catalogs: list[Table],
    labels: list[np.ndarray],
    draws: list[np.ndarray | None],
) -> dict[str, Any]:
    """All of the above for some scenes together.

    Parameters
    ----------
    scenes : list of Scene
        The truth.
    catalogs : list of Table
        ``x, y, flux, p_blend`` of each.
    labels : list of ndarray
        Whose pixel it is; see :func:`~probablend.evaluate.detection.objects_of`.
    draws : list of ndarray or None
        Posterior draws of each.
    """
    tables = [matched_sources(s, c, d) for s, c, d in zip(scenes, catalogs, draws, strict=True)]
    table = vstack(tables) if len(tables) > 1 else tables[0]
    galaxies = table[~np.asarray(table["is_star"], bool)]
    blended = galaxies[np.asarray(galaxies["blended"], bool)]
    pairs: dict[str, int] = {}
    for scene, catalog, own in zip(scenes, catalogs, labels, strict=True):
        for key, value in unrecognised_blends(scene, catalog, own).items():
            pairs[key] = pairs.get(key, 0) + value
    return {
        "flux_blended_snr10": flux_scores(blended[np.asarray(blended["snr"]) > FLUX_MIN_SNR]),
        "flux_all_snr10": flux_scores(galaxies[np.asarray(galaxies["snr"]) > FLUX_MIN_SNR]),
        "bins": binned_scatter(galaxies),
        "shape": shape_scores(galaxies) if "g1" in table.colnames else {},
        "coverage": coverage_scores(table) if "rank_flux" in table.colnames else {},
        "pairs": pairs,
        **({"places": rank_histograms(galaxies)} if "rank_flux" in table.colnames else {}),
    }


def rank_histograms(table: Table, *, n_bins: int = 20) -> dict[str, list[int]]:
    """Histogram of the places of the truth, 0 to 1, of each parameter (PIT)."""
    histograms = {}
    for name in SHAPE_PARAMETERS:
        rank = np.asarray(table[f"rank_{name}"], float)
        counts, _ = np.histogram(rank[np.isfinite(rank)], bins=n_bins, range=(0, 1))
        histograms[name] = counts.tolist()
    return histograms
