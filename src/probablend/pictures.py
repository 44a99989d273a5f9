"""Figures of a segmented image: footprints, P_BLEND over the image, samples and their animation.

Made for print: dark on white, and what colour says is said by the width of a line, too.
"""

from pathlib import Path

import numpy as np
from matplotlib import animation
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure

from probablend.plot import CLASS_COLORS, plot_classes, plot_image

__all__ = [
    "BLEND_COLOR",
    "SINGLE_COLOR",
    "animate_samples",
    "plot_blend_overlay",
    "plot_footprints",
    "plot_samples",
]

SINGLE_COLOR, BLEND_COLOR = "#0072b2", "#d55e00"  # of Okabe & Ito's palette
_GAP = 0.03  # between samples, share of a side
_FRAMES_PER_SECOND = 3


def plot_footprints(image: np.ndarray, labels: np.ndarray, p_blend: np.ndarray, ax: Axes) -> Axes:
    """Image with the outlines of its objects: thin blue, thick orange where blended.

    Parameters
    ----------
    image : ndarray, shape (y, x)
        In units of the noise.
    labels : ndarray of int, shape (y, x)
        0 = sky, 1…N = objects.
    p_blend : ndarray, shape (N,)
        Probability that each is blended.
    ax : Axes
        Where to draw.
    """
    plot_image(image, ax, paper=True)
    blended = np.concatenate([[False], np.asarray(p_blend) > 0.5])
    lines, is_blended = _outlines(labels, blended)
    for which, color, width in ((False, SINGLE_COLOR, 0.9), (True, BLEND_COLOR, 2.0)):
        own = lines[is_blended == which]
        ax.add_collection(LineCollection(list(own), colors=color, linewidths=width))
    ax.set(xlim=(-0.5, labels.shape[1] - 0.5), ylim=(-0.5, labels.shape[0] - 0.5))
    return ax


def _outlines(labels: np.ndarray, blended: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sides of pixels that part two labels, (side, 2, xy), and whether one of these is blended."""
    sides, marks = [], []
    for axis in (0, 1):
        first, second = (
            np.take(labels, range(k, labels.shape[axis] - 1 + k), axis) for k in (0, 1)
        )
        y, x = np.nonzero(first != second)
        half = np.full(len(y), 0.5)
        step = [(half, -half), (half, half)] if axis == 0 else [(-half, half), (half, half)]
        ends = [np.stack([x + dx, y + dy], axis=1) for dy, dx in step]
        sides.append(np.stack(ends, axis=1))
        marks.append(blended[first[y, x]] | blended[second[y, x]])
    return np.concatenate(sides), np.concatenate(marks)


def plot_blend_overlay(image: np.ndarray, p_blend: np.ndarray, ax: Axes) -> Axes:
    """P_BLEND in orange over the image; a black line where it is one half.

    Parameters
    ----------
    image : ndarray, shape (y, x)
        In units of the noise.
    p_blend : ndarray, shape (y, x)
        Probability that two or more galaxies cover the pixel; NaN where masked.
    ax : Axes
        Where to draw.
    """
    plot_image(image, ax, paper=True)
    p = np.nan_to_num(p_blend)
    clear = LinearSegmentedColormap.from_list("blend", [f"{BLEND_COLOR}00", f"{BLEND_COLOR}d0"])
    shown = ax.imshow(p, cmap=clear, vmin=0, vmax=1, origin="lower", interpolation="none")
    if (p > 0.5).any() and min(p.shape) > 1:
        ax.contour(p, levels=[0.5], colors="k", linewidths=0.8)
    assert ax.figure is not None
    ax.figure.colorbar(shown, ax=ax, label="P_BLEND", shrink=0.6, pad=0.02)
    return ax


def plot_samples(samples: np.ndarray, ax: Axes, *, n_columns: int = 4) -> Axes:
    """Class maps drawn from the posterior, side by side.

    Parameters
    ----------
    samples : ndarray of int, shape (sample, y, x)
        0 sky, 1 one galaxy, 2 blend.
    ax : Axes
        Where to draw.
    n_columns : int
        How many in a row.
    """
    n, n_y, n_x = samples.shape
    n_columns = min(n_columns, n)
    n_rows = -(-n // n_columns)
    gap = max(1, round(_GAP * max(n_y, n_x)))
    sheet = np.full((n_rows * (n_y + gap) - gap, n_columns * (n_x + gap) - gap), np.nan)
    for k, sample in enumerate(samples):
        row, column = divmod(k, n_columns)
        top = sheet.shape[0] - row * (n_y + gap)  # the first is at the top
        left = column * (n_x + gap)
        sheet[top - n_y : top, left : left + n_x] = sample
    colors = ListedColormap(CLASS_COLORS).with_extremes(bad="w")
    ax.imshow(sheet, cmap=colors, vmin=-0.5, vmax=2.5, origin="lower", interpolation="none")
    ax.set_axis_off()
    return ax


def animate_samples(image: np.ndarray, samples: np.ndarray, path: Path) -> Path:
    """Write the samples as an animation, the image beside them.

    Parameters
    ----------
    image : ndarray, shape (y, x)
        In units of the noise.
    samples : ndarray of int, shape (sample, y, x)
        0 sky, 1 one galaxy, 2 blend.
    path : Path
        ``.gif``, or ``.mp4``, which needs the program ffmpeg.

    Raises
    ------
    ValueError
        If the suffix is another one, or ffmpeg is not there.
    """
    writers = {".gif": "pillow", ".mp4": "ffmpeg"}
    if path.suffix not in writers:
        raise ValueError(f"an animation is a .gif or an .mp4; got {path.name}")
    if not animation.writers.is_available(writers[path.suffix]):
        raise ValueError("an MP4 needs the program ffmpeg: install it, or write a .gif")
    writer = animation.writers[writers[path.suffix]](fps=_FRAMES_PER_SECOND)
    height = min(max(4 * image.shape[0] / image.shape[1], 1.5), 8)
    figure = Figure(figsize=(8.2, height + 0.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    plot_image(image, left).set_title("image / noise (arcsinh)")
    with writer.saving(figure, str(path), dpi=100):
        for k, sample in enumerate(samples, start=1):
            right.clear()
            plot_classes(sample, right).set_title(f"sample {k} of {len(samples)}")
            writer.grab_frame()
    return path
