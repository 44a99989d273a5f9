"""Real galaxies that stand alone, as an instrument like Euclid's sees them: is each taken for one?

PROBABLEND_TEST_DATA=… python benchmarks/isolated.py -o docs/results/isolated/isolated

Stamps of other makers (sf_deconvolve): galaxies of HST under PSFs like Euclid's, one PSF for each,
and white noise of known strength. As they are, and under more noise.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.table import Table
from matplotlib.figure import Figure

from probablend import __version__
from probablend.checkpoint import file_hash, find_model
from probablend.evaluate.classical import run_sep
from probablend.evaluate.detection import positions
from probablend.evaluate.photometry import flux_scores
from probablend.evaluate.record import write_json
from probablend.infer.segment import Segmentation, segment
from probablend.plot import plot_image, plot_probability

RMS = 2.6e-4  # of the stamps' noise
LEVELS = (1.0, 4.0, 10.0)  # of the noise, over theirs
SIDE = 129  # pixels; a stamp lies in the middle
NEAR = 20.0  # pixels from the middle
SEED = 7300
SHOWN = (4.0, 10)  # noise, stamps


def embed(stamp: np.ndarray, level: float, generator: np.random.Generator) -> np.ndarray:
    """A stamp in a sky of noise ``level`` times its own."""
    image = generator.normal(scale=RMS * level, size=(SIDE, SIDE))
    first = (SIDE - stamp.shape[0]) // 2
    inner = slice(first, first + stamp.shape[0])
    more = RMS * np.sqrt(level**2 - 1)
    image[inner, inner] = stamp + generator.normal(scale=more, size=stamp.shape)
    return image.astype(np.float32)


def seen(
    stamp: np.ndarray, psf: np.ndarray, level: float, k: int, model: str
) -> tuple[np.ndarray, Segmentation]:
    """The image of stamp ``k``, and what is said of it."""
    image = embed(stamp, level, np.random.default_rng([SEED, k, int(10 * level)]))
    return image, segment(
        image, rms=RMS * level, background="none", psf=psf, seed=k, n_samples=16, model=model
    )


def near(catalog: Table) -> np.ndarray:
    """Which sources may be a part of what lies in the middle, (source,)."""
    return np.hypot(*(positions(catalog) - (SIDE - 1) / 2).T) < NEAR


def picture(stamps: np.ndarray, psfs: np.ndarray, model: str, path: Path) -> None:
    """The first stamps with what was found in them, and below where a blend is how likely."""
    level, n = SHOWN
    figure = Figure(figsize=(2 * n, 4.5), layout="constrained")
    first = (SIDE - stamps.shape[1]) // 2
    inner = slice(first, first + stamps.shape[1])
    for k, (top, below) in enumerate(figure.subplots(2, n).T):
        image, result = seen(stamps[k], psfs[k], level, k, model)
        found = result.catalog[near(result.catalog)]
        plot_image((image / RMS / level)[inner, inner], top)
        y, x = positions(found).T - first
        top.plot(x, y, "+", color="tab:red", scalex=False, scaley=False)
        said = np.asarray(found["p_blend"], float)
        top.set_title(f"p_blend {said.max():.2f}" if len(said) else "nothing")
        plot_probability(result.p_blend[inner, inner], below)
    figure.savefig(path, dpi=60)


def look(stamps: np.ndarray, psfs: np.ndarray, level: float, model: str) -> dict[str, Any]:
    """What is said of every stamp."""
    more, more_sep, rows = [], [], []
    for k, (stamp, psf) in enumerate(zip(stamps, psfs, strict=True)):
        image, result = seen(stamp, psf, level, k, model)
        candidates = near(result.catalog)
        more.append(candidates.sum() > 1)
        more_sep.append(near(run_sep(image, RMS * level)[0]).sum() > 1)
        if not candidates.any():
            continue
        # The brightest one: of the rest, the other ones have their share.
        flux = np.asarray(result.catalog["flux"], float)
        main = int(np.argmax(np.where(candidates, flux, -np.inf)))
        low, high = np.quantile(result.sources.parameter("flux")[:, main], [0.16, 0.84])
        total = float(stamp.sum())
        rows.append({
            "flux": flux[main], "flux_true": total, "inside": low < total < high,
            "p_blend": float(result.catalog["p_blend"][main]),
            "snr": np.sqrt((stamp**2).sum() / RMS**2 - stamp.size) / level,
        })  # fmt: skip
    found = Table(rows)
    return {
        "snr": float(np.median(found["snr"])),
        "found": len(found) / len(stamps),
        "more": float(np.mean(more)),
        "more_sep": float(np.mean(more_sep)),
        "p_blend": float(found["p_blend"].mean()),
        "p_blend_above_half": float((found["p_blend"] > 0.5).mean()),
        "coverage68": float(found["inside"].mean()),
        **flux_scores(found),
    }


def table(report: dict[str, Any]) -> str:
    """The scores as Markdown."""
    lines = [
        f"`{report['command']}`",
        "",
        f"probablend {report['version']}, `{report['model']}` {report['weights']}; "
        f"{report['galaxies']} galaxies.",
        "",
        "| noise, of the stamps' | S/N | found | more than one: probablend, `sep` "
        "| mean `p_blend`, above 0.5 | flux: bias, mag | NMAD, mag | in 68 % interval |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for level in report["levels"]:
        cells = [
            f"{level['level']:g}", f"{level['snr']:.0f}", f"{level['found']:.0%}",
            f"{level['more']:.0%}, {level['more_sep']:.0%}",
            f"{level['p_blend']:.2f}, {level['p_blend_above_half']:.0%}",
            f"{level['bias']:+.3f}", f"{level['nmad']:.3f}", f"{level['coverage68']:.2f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, help="without a suffix")
    parser.add_argument("--model", default="field")
    arguments = parser.parse_args()
    data = Path(os.environ["PROBABLEND_TEST_DATA"]) / "stamps_euclid_like" / "stamps.fits"
    with fits.open(data) as hdus:
        stamps, psfs = (np.asarray(hdus[name].data, float) for name in ("SCI", "PSF"))
    report: dict[str, Any] = {
        "command": "python benchmarks/isolated.py " + " ".join(sys.argv[1:]),
        "version": __version__,
        "model": arguments.model,
        "weights": file_hash(find_model(arguments.model)),
        "galaxies": len(stamps),
        "levels": [
            {"level": level, **look(stamps, psfs, level, arguments.model)} for level in LEVELS
        ],
    }
    write_json(arguments.output.with_suffix(".json"), report)
    arguments.output.with_suffix(".md").write_text(table(report))
    picture(stamps, psfs, arguments.model, arguments.output.with_suffix(".png"))
    print(table(report))


if __name__ == "__main__":
    main()
