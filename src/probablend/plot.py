"""Figures: each function draws what it is given on an Axes and returns it.

Colours are safe for colour-blind eyes and readable in grey: sky is dark, one galaxy blue,
blends orange.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from astropy.stats import mad_std
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from probablend.emulate.classes import class_entropy

if TYPE_CHECKING:
    from probablend.infer.segmentation import Segmentation

__all__ = [
    "plot_class_probabilities",
    "plot_classes",
    "plot_gallery",
    "plot_image",
    "plot_pit",
    "plot_pits",
    "plot_probability",
    "plot_running_scatter",
    "quicklook",
]

CLASS_COLORS = ("#101820", "#2f7fd0", "#ffa733")  # sky, one, blend: 23, 112, 180 in grey
_MAX_SIDE = 1200  # pixels of a panel; a larger image is thinned
_MARKERS = "osD^v<>PXd*"


def plot_image(image: np.ndarray, ax: Axes, *, paper: bool = False) -> Axes:
    """Image in units of its noise, arcsinh stretch.

    Parameters
    ----------
    image : ndarray, shape (y, x)
        In units of the noise.
    ax : Axes
        Where to draw.
    paper : bool
        Dark on white with the noise held back, for print and to draw on; else white on black.
    """
    softening, low, least, cmap = (3.0, -0.5, 2.5, "gray_r") if paper else (1.0, -1.0, 3.0, "gray")
    stretched = np.arcsinh(image / softening)
    known = stretched[np.isfinite(stretched)]
    high = max(float(np.percentile(known, 99.7)), least) if known.size else least
    ax.imshow(stretched, cmap=cmap, vmin=low, vmax=high, origin="lower", interpolation="none")
    return _bare(ax)


def plot_classes(classes: np.ndarray, ax: Axes) -> Axes:
    """Class map: sky, one galaxy, blend.

    Parameters
    ----------
    classes : ndarray of int, shape (y, x)
        0, 1, 2.
    ax : Axes
        Where to draw.
    """
    colors = ListedColormap(CLASS_COLORS)
    ax.imshow(classes, cmap=colors, vmin=-0.5, vmax=2.5, origin="lower", interpolation="none")
    return _bare(ax)


def plot_class_probabilities(p_galaxy: np.ndarray, p_blend: np.ndarray, ax: Axes) -> Axes:
    """Class colours mixed in proportion to their probabilities.

    Parameters
    ----------
    p_galaxy, p_blend : ndarray, shape (y, x)
        Probabilities of at least one and at least two galaxies; NaN is drawn grey.
    ax : Axes
        Where to draw.
    """
    basis = np.array([[int(c[k : k + 2], 16) / 255 for k in (1, 3, 5)] for c in CLASS_COLORS])
    weights = np.stack([1 - p_galaxy, p_galaxy - p_blend, p_blend], axis=-1)
    rgb = np.where(np.isfinite(weights).all(axis=-1, keepdims=True), weights @ basis, 0.5)
    ax.imshow(np.clip(rgb, 0, 1), origin="lower", interpolation="none")
    return _bare(ax)


def plot_probability(values: np.ndarray, ax: Axes, *, vmax: float = 1.0) -> Axes:
    """Map of a probability or an entropy, with its colour bar.

    Parameters
    ----------
    values : ndarray, shape (y, x)
        Not negative; NaN is left grey.
    ax : Axes
        Where to draw.
    vmax : float
        Top of the scale.
    """
    ax.set_facecolor("0.5")
    shown = ax.imshow(values, cmap="magma", vmin=0, vmax=vmax, origin="lower",
                      interpolation="none")  # fmt: skip
    assert ax.figure is not None
    bar = ax.inset_axes((0.62, 0.04, 0.34, 0.03))  # inside, so that panels keep one size
    ax.figure.colorbar(shown, cax=bar, orientation="horizontal", ticks=[0, vmax])
    bar.set_xticklabels(["0", f"{vmax:.2g}"], color="w")
    bar.xaxis.set_ticks_position("top")
    return _bare(ax)


def _bare(ax: Axes) -> Axes:
    ax.set_xticks([])
    ax.set_yticks([])
    return ax


def quicklook(result: "Segmentation") -> Figure:
    """Image, mean class probabilities, P_BLEND and entropy above four samples.

    Parameters
    ----------
    result : Segmentation
        What :func:`probablend.segment` returned.

    Returns
    -------
    Figure
        Not shown; save it or display it.
    """
    step = -(-max(result.signal.shape) // _MAX_SIDE)
    thin = (slice(None, None, step), slice(None, None, step))
    n_y, n_x = result.signal[thin].shape
    height = min(max(4.2 * n_y / n_x, 1.6), 9.0)
    figure = Figure(figsize=(17, 2 * height + 0.8), layout="constrained")
    axes = figure.subplots(2, 4)
    top, bottom = axes
    image = np.where(result.mask, np.nan, result.signal)[thin]
    plot_image(image, top[0]).set_title("image / noise (arcsinh)")
    plot_class_probabilities(result.p_galaxy[thin], result.p_blend[thin], top[1]).set_title(
        "mean class: sky, one, blend"
    )
    plot_probability(result.p_blend[thin], top[2]).set_title("P_BLEND")
    entropy = class_entropy(result.p_galaxy[thin], result.p_blend[thin])
    plot_probability(entropy, top[3], vmax=float(np.log(3))).set_title(
        "entropy of the class (nats)"
    )
    for k, ax in enumerate(bottom):
        if k < len(result.samples):
            plot_classes(result.samples[k][thin], ax).set_title(f"sample {k + 1}")
        else:
            ax.set_axis_off()
    n_blended = int((result.catalog["p_blend"] > 0.5).sum())
    figure.suptitle(
        f"{result.meta.get('input', '')}   {len(result.catalog)} objects, "
        f"{n_blended} with p_blend > 0.5   (model {result.meta.get('model', '')})"
    )
    return figure


def plot_reliability(
    predicted: np.ndarray, observed: np.ndarray, ax: Axes, *, label: str | None = None
) -> Axes:
    """Reliability diagram: observed frequency against predicted probability.

    Parameters
    ----------
    predicted, observed : ndarray, shape (bin,)
        Means per bin.
    ax : Axes
        Where to draw.
    label : str, optional
        Name of the method.
    """
    ax.plot([0, 1], [0, 1], color="0.6", lw=1, ls="--")
    ax.plot(predicted, observed, "o-", label=label)
    ax.set(xlabel="predicted probability", ylabel="observed frequency", xlim=(0, 1), ylim=(0, 1))
    if label:
        ax.legend()
    return ax


def plot_completeness_purity(
    completeness: np.ndarray, purity: np.ndarray, ax: Axes, *, label: str
) -> Axes:
    """Completeness against purity as the threshold rises.

    Parameters
    ----------
    completeness, purity : ndarray, shape (threshold,)
        NaN where undefined.
    ax : Axes
        Where to draw.
    label : str
        Name of the method.
    """
    ax.plot(purity, completeness, "o-", label=label)
    ax.set(xlabel="purity", ylabel="completeness", xlim=(0, 1), ylim=(0, 1))
    ax.legend()
    return ax


def plot_pit(counts: np.ndarray, ax: Axes) -> Axes:
    """Histogram of the places of true values in their posteriors; flat if these are right.

    Parameters
    ----------
    counts : ndarray, shape (bin,)
        How many truths in each of the equal bins between 0 and 1.
    ax : Axes
        Where to draw. The band holds 95 % of the bars of a flat histogram.
    """
    ax.set(xlabel="place of the truth", ylabel="density", xlim=(0, 1))
    if not counts.sum():
        ax.text(0.5, 0.5, "truth not known", ha="center", transform=ax.transAxes)
        return ax
    mean = counts.sum() / len(counts)
    spread = 1.96 * np.sqrt((1 - 1 / len(counts)) / mean)
    ax.axhspan(1 - spread, 1 + spread, color="0.85")
    ax.stairs(counts / mean, np.linspace(0, 1, len(counts) + 1), color=CLASS_COLORS[1], lw=1.5)
    ax.set_ylim(bottom=0)
    return ax


def plot_pits(places: Mapping[str, Mapping[str, Sequence[int]]]) -> Figure:
    """One :func:`plot_pit` for every method (a row) and parameter.

    Parameters
    ----------
    places : mapping
        Method → parameter → counts.
    """
    n_columns = max(len(one) for one in places.values())
    figure = Figure(figsize=(3.25 * n_columns, 3.2 * len(places)), layout="constrained")
    grid = figure.subplots(len(places), n_columns, squeeze=False)
    for row, (name, one) in zip(grid, places.items(), strict=True):
        for ax, (key, counts) in zip(row, one.items(), strict=True):
            plot_pit(np.array(counts), ax).set_title(f"{name}: {key}")
    return figure


def plot_gallery(
    signal: np.ndarray,
    classes: np.ndarray,
    p_galaxy: np.ndarray,
    p_blend: np.ndarray,
    samples: np.ndarray,
) -> Figure:
    """A scene, its truth, and what is said of it: mean, P_BLEND, samples.

    Parameters
    ----------
    signal : ndarray, shape (y, x)
        In units of the noise.
    classes : ndarray of int, shape (y, x)
        The true class map.
    p_galaxy, p_blend : ndarray, shape (y, x)
        Probabilities.
    samples : ndarray of int, shape (sample, y, x)
        Up to four are shown.
    """
    figure = Figure(figsize=(16, 8.4), layout="constrained")
    top, bottom = figure.subplots(2, 4)
    plot_image(signal, top[0]).set_title("image / noise (arcsinh)")
    plot_classes(classes, top[1]).set_title("truth: sky, one, blend")
    plot_class_probabilities(p_galaxy, p_blend, top[2]).set_title("mean class")
    plot_probability(p_blend, top[3]).set_title("P_BLEND")
    for k, ax in enumerate(bottom):
        if k < len(samples):
            plot_classes(samples[k], ax).set_title(f"sample {k + 1}")
        else:
            ax.set_axis_off()
    return figure


def plot_running_scatter(
    x: np.ndarray, error: np.ndarray, ax: Axes, *, label: str, n_bins: int = 8
) -> Axes:
    """Median (dashed) and NMAD (full line) of an error in bins of equal number.

    Parameters
    ----------
    x, error : ndarray, shape (n,)
        NaN is left out.
    ax : Axes
        Where to draw.
    label : str
        Name of the method.
    n_bins : int
        Number of bins.
    """
    ok = np.isfinite(x) & np.isfinite(error)
    order = np.argsort(x[ok], kind="stable")
    bins = [b for b in np.array_split(order, n_bins) if len(b)]
    if not bins:
        return ax
    centre = [np.median(x[ok][b]) for b in bins]
    median = np.array([np.median(error[ok][b]) for b in bins])
    spread = [mad_std(error[ok][b]) for b in bins]
    # Colours come again after ten methods, and are not all told apart by everybody.
    marker = _MARKERS[len(ax.get_legend_handles_labels()[0]) % len(_MARKERS)]
    (line,) = ax.plot(centre, spread, marker=marker, ms=4, label=label)
    ax.plot(centre, median, "--", marker=marker, ms=2, color=line.get_color(), lw=1)
    ax.axhline(0, color="0.7", lw=0.8)
    ax.legend(fontsize="small")
    return ax
