"""Detection scores: intersection over union, completeness and purity.

A true source is *detectable* if its footprint has at least 20 pixels. It is *found* if an
object lies within 3 pixels, one to one. An object is *real* if it is so matched to any true
source.
"""

from dataclasses import dataclass, fields

import numpy as np
from astropy.table import Table
from scipy import ndimage

from probablend.evaluate.match import match_positions

__all__ = [
    "DETECTION_THRESHOLDS",
    "MIN_FOOTPRINT",
    "THRESHOLDS",
    "BlendedCurve",
    "DetectionScores",
    "RegionCurve",
    "blended_curve",
    "completeness_at_purity",
    "detect_scores",
    "detection_curve",
    "in_image",
    "iou",
    "objects_of",
    "positions",
    "region_curve",
]

MIN_FOOTPRINT = 20
_MIN_REGION = 5  # pixels
DETECTION_THRESHOLDS = np.round(np.arange(0.2, 1.0, 0.02), 2)
THRESHOLDS = np.round(np.concatenate([[0.01], np.arange(0.05, 1.0, 0.05)]), 2)


def iou(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two masks; 1 if both are empty."""
    first, second = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    union = int((first | second).sum())
    return float((first & second).sum() / union) if union else 1.0


@dataclass(frozen=True)
class DetectionScores:
    """Counts behind completeness and purity; they add up over scenes."""

    n_true: int
    n_found: int
    n_true_blended: int
    n_found_blended: int
    n_objects: int
    n_real: int

    def __add__(self, other: "DetectionScores") -> "DetectionScores":
        return DetectionScores(*(a + b for a, b in zip(self.counts, other.counts, strict=True)))

    @property
    def counts(self) -> tuple[int, ...]:
        """The counts in order."""
        return (self.n_true, self.n_found, self.n_true_blended, self.n_found_blended,
                self.n_objects, self.n_real)  # fmt: skip

    @property
    def completeness(self) -> float:
        """Share of the detectable sources that are found."""
        return self.n_found / self.n_true if self.n_true else float("nan")

    @property
    def completeness_blended(self) -> float:
        """The same among those that are blended."""
        return self.n_found_blended / self.n_true_blended if self.n_true_blended else float("nan")

    @property
    def purity(self) -> float:
        """Share of the objects that are real."""
        return self.n_real / self.n_objects if self.n_objects else float("nan")


def positions(table: Table) -> np.ndarray:
    """Positions of a table, (n, 2), y first."""
    return np.column_stack([np.asarray(table["y"], float), np.asarray(table["x"], float)])


def in_image(truth: Table, shape_yx: tuple[int, ...]) -> np.ndarray:
    """Whether the centres of sources lie in an image, (source,)."""
    y, x = positions(truth).T
    return (y > -0.5) & (y < shape_yx[0] - 0.5) & (x > -0.5) & (x < shape_yx[1] - 0.5)


def detect_scores(
    truth: Table, catalog: Table, shape_yx: tuple[int, int], *, radius: float = 3.0
) -> DetectionScores:
    """Score a catalogue of positions.

    Parameters
    ----------
    truth : Table
        ``x, y, n_pixels, blended``, see :class:`~probablend.emulate.blend.Scene`.
    catalog : Table
        ``x, y``.
    shape_yx : tuple of int
        Shape of the image; sources centred outside do not count as missed.
    radius : float
        Matching radius, pixels.
    """
    detectable = (np.asarray(truth["n_pixels"]) >= MIN_FOOTPRINT) & in_image(truth, shape_yx)
    blended = detectable & np.asarray(truth["blended"], dtype=bool)
    t, f = match_positions(positions(truth), positions(catalog), radius=radius)
    return DetectionScores(
        n_true=int(detectable.sum()),
        n_found=int(detectable[t].sum()),
        n_true_blended=int(blended.sum()),
        n_found_blended=int(blended[t].sum()),
        n_objects=len(catalog),
        n_real=len(f),
    )


def detection_curve(
    truths: list[Table], catalogs: list[Table], shape_yx: tuple[int, int]
) -> dict[str, list[float | None]]:
    """Completeness and purity as the threshold on ``p_source`` rises.

    Returns
    -------
    dict of list
        ``threshold, completeness, completeness_blended, purity``; thresholds above the last
        detection are left out, and None stands for a share of nothing.
    """
    curve: dict[str, list[float | None]] = {
        key: [] for key in ("threshold", "completeness", "completeness_blended", "purity")
    }
    for threshold in DETECTION_THRESHOLDS:
        total = None
        for truth, catalog in zip(truths, catalogs, strict=True):
            kept = catalog[np.asarray(catalog["p_source"]) >= threshold]
            scores = detect_scores(truth, kept, shape_yx)
            total = scores if total is None else total + scores
        if total is None or not total.n_objects:
            break
        curve["threshold"].append(float(threshold))
        for key in ("completeness", "completeness_blended", "purity"):
            share = getattr(total, key)
            curve[key].append(None if np.isnan(share) else share)
    return curve


def completeness_at_purity(
    curve: dict[str, list[float | None]], purity: float
) -> dict[str, float | None] | None:
    """The point of a :func:`detection_curve` at its lowest threshold that reaches a purity."""
    for k, reached in enumerate(curve["purity"]):
        if reached is not None and reached >= purity:
            return {key: values[k] for key, values in curve.items()}
    return None


@dataclass(frozen=True)
class BlendedCurve:
    """The blended flag at each threshold on ``p_blend``: counts, which add up over scenes.

    Two readings. *Strict*: a galaxy and an object belong together if they are matched one to
    one within 3 pixels. *Announced*: a galaxy without an object of its own is also spoken for
    by the object that covers its centre, as a user looking at the image would read it.

    Parameters
    ----------
    n_true : int
        Detectable blended galaxies.
    n_flagged : ndarray of int, shape (threshold,)
        Flagged objects.
    n_strict, n_announced : ndarray of int, shape (threshold,)
        Detectable blended galaxies that belong to a flagged object.
    n_strict_right, n_right : ndarray of int, shape (threshold,)
        Flagged objects that belong to a blended galaxy, detectable or not.
    """

    n_true: int
    n_flagged: np.ndarray
    n_strict: np.ndarray
    n_announced: np.ndarray
    n_strict_right: np.ndarray
    n_right: np.ndarray

    def __add__(self, other: "BlendedCurve") -> "BlendedCurve":
        return BlendedCurve(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def completeness(self) -> np.ndarray:
        """Share of the blended galaxies that are announced."""
        return self.n_announced / max(1, self.n_true)

    @property
    def purity(self) -> np.ndarray:
        """Share of the flagged objects that are blended; NaN where none is flagged."""
        return _ratio(self.n_right, self.n_flagged)

    @property
    def strict_completeness(self) -> np.ndarray:
        """Share of the blended galaxies with a flagged object of their own."""
        return self.n_strict / max(1, self.n_true)

    @property
    def strict_purity(self) -> np.ndarray:
        """Share of the flagged objects whose own galaxy is blended."""
        return _ratio(self.n_strict_right, self.n_flagged)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)


def objects_of(
    truth: Table, catalog: Table, labels: np.ndarray, *, radius: float = 3.0
) -> tuple[np.ndarray, np.ndarray]:
    """The object that speaks for every true source.

    Parameters
    ----------
    truth, catalog : Table
        ``x, y``; the catalogue in the order of the labels.
    labels : ndarray of int, shape (y, x)
        0 = background, 1…N = rows of ``catalog``.
    radius : float
        Matching radius, pixels.

    Returns
    -------
    tuple of ndarray of int, shape (source,)
        The row matched one to one; and that, or else the row whose label covers the centre.
        −1 for none.
    """
    inside = in_image(truth, labels.shape)
    own = np.full(len(truth), -1)
    t, f = match_positions(positions(truth), positions(catalog), radius=radius)
    own[t] = f
    rows, columns = np.round(positions(truth)).astype(int).T
    covering = np.full(len(truth), -1)
    covering[inside] = labels[rows[inside], columns[inside]] - 1
    return own, np.where(own >= 0, own, covering)


def blended_curve(
    truth: Table, catalog: Table, labels: np.ndarray, *, radius: float = 3.0
) -> BlendedCurve:
    """Score the blended flag of a catalogue.

    Parameters
    ----------
    truth : Table
        ``x, y, n_pixels, blended``.
    catalog : Table
        ``x, y, p_blend``, in the order of the labels.
    labels : ndarray of int, shape (y, x)
        0 = background, 1…N = rows of ``catalog``.
    radius : float
        Matching radius, pixels.
    """
    inside = in_image(truth, labels.shape)
    blended = np.asarray(truth["blended"], dtype=bool)
    target = blended & inside & (np.asarray(truth["n_pixels"]) >= MIN_FOOTPRINT)
    own, either = objects_of(truth, catalog, labels, radius=radius)
    p_blend = np.asarray(catalog["p_blend"], dtype=float)
    flagged = p_blend[None, :] >= THRESHOLDS[:, None]  # (threshold, object)

    def count(objects: np.ndarray) -> np.ndarray:
        """Targets whose object is flagged."""
        has = target & (objects >= 0)
        return flagged[:, objects[has]].sum(axis=1)

    def right(objects: np.ndarray) -> np.ndarray:
        """Flagged objects that belong to some blended galaxy."""
        is_blended = np.zeros(len(catalog), dtype=bool)
        is_blended[objects[blended & (objects >= 0)]] = True
        return (flagged & is_blended).sum(axis=1)

    return BlendedCurve(
        n_true=int(target.sum()),
        n_flagged=flagged.sum(axis=1),
        n_strict=count(own),
        n_announced=count(either),
        n_strict_right=right(own),
        n_right=right(either),
    )


@dataclass(frozen=True)
class RegionCurve:
    """Overlap regions at each threshold on ``P_BLEND``: counts, which add up over scenes.

    A region is a connected set of at least 5 pixels of the blend class, true or predicted. It
    is found, or right, if it shares a pixel with the other map.

    Parameters
    ----------
    n_true : int
        True regions.
    n_found, n_predicted, n_right : ndarray of int, shape (threshold,)
        True regions that are found, predicted regions, those that are right.
    """

    n_true: int
    n_found: np.ndarray
    n_predicted: np.ndarray
    n_right: np.ndarray

    def __add__(self, other: "RegionCurve") -> "RegionCurve":
        return RegionCurve(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def completeness(self) -> np.ndarray:
        """Share of the true regions that are found."""
        return self.n_found / max(1, self.n_true)

    @property
    def purity(self) -> np.ndarray:
        """Share of the predicted regions that are right; NaN where there are none."""
        return _ratio(self.n_right, self.n_predicted)


def region_curve(p_blend: np.ndarray, truth: np.ndarray) -> RegionCurve:
    """Score a probability map of the blend class by its regions.

    Parameters
    ----------
    p_blend : ndarray, shape (y, x)
        Probability of at least two galaxies.
    truth : ndarray of bool, shape (y, x)
        Where there are.
    """
    true_labels, true_ids = _regions(truth)
    counts = []
    for threshold in THRESHOLDS:
        labels, ids = _regions(p_blend >= threshold)
        both = (true_labels > 0) & (p_blend >= threshold)
        found = np.isin(true_ids, true_labels[both]).sum()
        right = np.isin(ids, labels[(labels > 0) & truth]).sum()
        counts.append((found, len(ids), right))
    return RegionCurve(len(true_ids), *np.array(counts).T)


def _regions(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    large = sizes >= _MIN_REGION
    return np.where(large[labels], labels, 0), np.flatnonzero(large)
