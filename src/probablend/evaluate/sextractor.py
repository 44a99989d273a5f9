"""The classical baseline: SExtractor's algorithm through ``sep``."""

import numpy as np
import sep
from astropy.table import Table

__all__ = ["run_sep"]

# The 3 × 3 pyramid that SExtractor ships as default.conv.
_KERNEL = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]], dtype=np.float32)
_MERGED = 1  # sep.OBJ_MERGED: came out of deblending, as SExtractor's FLAGS & 2 says


def run_sep(
    image: np.ndarray,
    rms: float,
    *,
    threshold: float = 1.5,
    min_pixels: int = 5,
) -> tuple[Table, np.ndarray]:
    """Detect and deblend with SExtractor's common settings.

    Parameters
    ----------
    image : ndarray, shape (y, x)
        Sky subtracted.
    rms : float
        Noise per pixel.
    threshold : float
        Detection threshold, in units of the noise.
    min_pixels : int
        Least number of connected pixels.

    Returns
    -------
    catalog : Table
        ``x, y, p_blend`` with p_blend = 1 where an object came out of deblending, ``flux``
        (Kron, as FLUX_AUTO) and ``flux_iso`` (isophotal).
    labels : ndarray of int32, shape (y, x)
        Its segmentation map.
    """
    data = np.ascontiguousarray(image, dtype=np.float32)
    sep.set_extract_pixstack(max(sep.get_extract_pixstack(), data.size))
    sep.set_sub_object_limit(max(sep.get_sub_object_limit(), 100_000))
    objects, labels = sep.extract(
        data,
        threshold,
        err=rms,
        minarea=min_pixels,
        filter_kernel=_KERNEL,
        deblend_nthresh=32,
        deblend_cont=0.005,
        segmentation_map=True,
    )
    merged = (objects["flag"] & _MERGED) > 0
    catalog = Table({"x": objects["x"], "y": objects["y"], "p_blend": merged.astype(float)})
    catalog["flux"] = _kron_flux(data, objects, labels)
    catalog["flux_iso"] = objects["flux"]
    return catalog, labels


def _kron_flux(data: np.ndarray, objects: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """FLUX_AUTO: Kron factor 2.5, radius at least 3.5, neighbours masked."""
    ids = np.arange(1, len(objects) + 1, dtype=np.int32)
    shape = [objects[key].astype(float) for key in ("x", "y", "a", "b", "theta")]
    shape[4] = np.clip(shape[4], -np.pi / 2, np.pi / 2)
    radius, _ = sep.kron_radius(data, *shape, 6.0, segmap=labels, seg_id=ids)
    small = ~(radius * np.sqrt(shape[2] * shape[3]) >= 1.75)
    flux, _, _ = sep.sum_ellipse(
        data, *shape, 2.5 * np.where(small, 1.0, radius), subpix=1, segmap=labels, seg_id=ids
    )
    circle, _, _ = sep.sum_circle(data, shape[0], shape[1], 1.75, subpix=1)
    return np.where(small, circle, flux)
