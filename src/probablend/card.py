"""All about one galaxy on a page: cut-out, where it may be, and its joint posterior."""

from collections.abc import Mapping

import numpy as np
from astropy.table import QTable
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Ellipse

from probablend.infer.footprints import Ellipses
from probablend.pictures import BLEND_COLOR, SINGLE_COLOR
from probablend.plot import plot_image, plot_probability

__all__ = [
    "draw_card", "plot_corner", "plot_cutout", "plot_footprint_probability", "plot_joint",
    "plot_marginal",
]  # fmt: skip

_REACH, _LEAST = 2.5, 16  # half the side of the cut-out: footprint radii, pixels
_LEVELS = (0.16, 0.5, 0.84)
_CORNER = {"flux": "flux", "hlr": "half-light radius (pixel)", "g1": "g1", "g2": "g2"}


def plot_cutout(image: np.ndarray, ellipses: Ellipses, chosen: int, ax: Axes) -> Axes:
    """Image with the median footprints of its sources, one of them thick.

    Parameters
    ----------
    image : ndarray, shape (y, x)
        In units of the noise.
    ellipses : Ellipses
        Footprints, pixels of ``image``.
    chosen : int
        Index of the source in question.
    ax : Axes
        Where to draw.
    """
    plot_image(image, ax, paper=True)
    for k, (a, b, angle) in enumerate(zip(*ellipses.axes, strict=True)):
        own = k == chosen
        ax.add_patch(
            Ellipse(
                (ellipses.x[k], ellipses.y[k]), 2 * a, 2 * b, angle=float(np.degrees(angle)),
                fill=False, color=BLEND_COLOR if own else SINGLE_COLOR, lw=2.2 if own else 0.9,
            )
        )  # fmt: skip
    return ax


def plot_footprint_probability(draws: Ellipses, shape_yx: tuple[int, int], ax: Axes) -> Axes:
    """Probability that each pixel belongs to a source: the share of its drawn footprints.

    Parameters
    ----------
    draws : Ellipses
        Drawn footprints of one source.
    shape_yx : tuple of int
        Shape of the image.
    ax : Axes
        Where to draw.
    """
    _, index = draws.pixels(shape_yx)
    count = np.bincount(index, minlength=shape_yx[0] * shape_yx[1])
    return plot_probability(count.reshape(shape_yx) / len(draws), ax)


def plot_marginal(values: np.ndarray, ax: Axes) -> Axes:
    """Histogram of draws; median and 68 % interval as lines and in the title.

    Parameters
    ----------
    values : ndarray, shape (draw,)
        Draws of one parameter.
    ax : Axes
        Where to draw.
    """
    low, middle, high = _plot_interval(values, ax)
    ax.hist(values, bins=14, histtype="step", color="k", lw=1)
    ax.set_title(f"{middle:.3g}  +{high - middle:.2g} −{middle - low:.2g}", fontsize=9)
    return ax


def plot_joint(x: np.ndarray, y: np.ndarray, ax: Axes) -> Axes:
    """Joint draws of two parameters; median and 68 % interval of the first as lines.

    Parameters
    ----------
    x, y : ndarray, shape (draw,)
        Draws, pair by pair.
    ax : Axes
        Where to draw.
    """
    _plot_interval(x, ax)
    ax.plot(x, y, ".", color=SINGLE_COLOR, ms=3, alpha=0.6, mew=0)
    return ax


def _plot_interval(x: np.ndarray, ax: Axes) -> np.ndarray:
    low, middle, high = levels = np.quantile(x, _LEVELS)
    ax.axvline(middle, color=BLEND_COLOR, lw=1.5)
    for edge in (low, high):
        ax.axvline(edge, color=BLEND_COLOR, lw=1, ls="--")
    return levels


def plot_corner(draws: Mapping[str, np.ndarray], figure: Figure | SubFigure) -> np.ndarray:
    """Joint draws of some parameters, pair by pair; median and 68 % interval of each.

    It has a panel per pair, and so takes a figure, not an Axes: :func:`plot_marginal` on the
    diagonal, :func:`plot_joint` below it.

    Parameters
    ----------
    draws : mapping
        Name → draws, shape (draw,).
    figure : Figure or SubFigure
        Where to draw.

    Returns
    -------
    ndarray of Axes, shape (parameter, parameter)
    """
    names = list(draws)
    grid = figure.subplots(len(names), len(names), squeeze=False)
    for (row, column), ax in np.ndenumerate(grid):
        if column > row:
            ax.set_axis_off()
            continue
        if column == row:
            plot_marginal(draws[names[row]], ax)
        else:
            plot_joint(draws[names[column]], draws[names[row]], ax)
        ax.tick_params(labelsize=7, labelbottom=row == len(names) - 1)
        ax.set_yticks([]) if column or row == column else None
        ax.set_xlabel(names[column] if row == len(names) - 1 else "", fontsize=8)
        ax.set_ylabel(names[row] if column == 0 and row else "", fontsize=8)
        ax.locator_params(axis="x", nbins=3)
        ax.xaxis.get_offset_text().set_size(7)
    return grid


def draw_card(
    image: np.ndarray,
    posterior: QTable | np.ndarray,
    number: int,
    *,
    origin_yx: tuple[int, int] = (0, 0),
    title: str = "",
) -> Figure:
    """The card of one galaxy: cut-out, footprint and corner plot.

    It has many panels, and so makes a figure; each of them takes and returns an Axes.

    Parameters
    ----------
    image : ndarray, shape (y, x)
        In units of the noise.
    posterior : QTable or record array
        Joint draws, as :meth:`~probablend.infer.sources.Measured.posterior_table` gives them.
    number : int
        ``id`` of the galaxy.
    origin_yx : tuple of int
        First pixel of ``image`` in the image that the draws count positions in.
    title : str
        Goes after the number.

    Returns
    -------
    Figure
        Not shown; save it or display it.

    Raises
    ------
    ValueError
        If there is no such galaxy.
    """
    rows = np.flatnonzero(posterior["id"] == number)
    if not len(rows):
        raise ValueError(f"there is no source {number}: numbers run from 1 to {len(posterior)}")
    chosen = int(rows[0])
    shapes = {name: np.array(_plain(posterior, name)) for name in ("y", "x", "radius", "e1", "e2")}
    shapes["y"], shapes["x"] = shapes["y"] - origin_yx[0], shapes["x"] - origin_yx[1]
    middle = Ellipses(**{name: np.median(v, axis=1) for name, v in shapes.items()})
    drawn = Ellipses(**{name: v[chosen] for name, v in shapes.items()})
    half = max(_REACH * float(middle.axes[0][chosen]), _LEAST)

    figure = Figure(figsize=(13, 7), layout="constrained")
    figure.suptitle(f"source {number}{title}")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(2, 3))[0]
    top, bottom = left.subplots(2, 1)
    plot_cutout(image, middle, chosen, top).set_title("image / noise, median footprints")
    plot_footprint_probability(drawn, image.shape, bottom).set_title("P(pixel in footprint)")
    for ax in (top, bottom):
        ax.set(
            xlim=(middle.x[chosen] - half, middle.x[chosen] + half),
            ylim=(middle.y[chosen] - half, middle.y[chosen] + half),
        )
    plot_corner({said: _plain(posterior, k)[chosen] for k, said in _CORNER.items()}, right)
    return figure


def _plain(table: QTable | np.ndarray, name: str) -> np.ndarray:
    return np.asarray(table[name])
