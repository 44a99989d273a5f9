"""Real galaxies that stand alone, as an instrument like Euclid's sees them: is each taken for one?

PROBABLEND_TEST_DATA=… python benchmarks/isolated.py -o docs/results/isolated/isolated

Stamps of other makers (sf_deconvolve): galaxies of HST under PSFs like Euclid's, one PSF for each,
and white noise of known strength. As they are, and under more noise. How steeply their light ends
under the PSFs that come with them is said by the Sérsic index that fits them best, beside those of
galaxies of COSMOS; what the PSFs do, by Sérsic profiles of usual indices under the same ones.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import galsim
import numpy as np
from astropy.io import fits
from astropy.table import Table
from matplotlib.figure import Figure
from scipy.optimize import least_squares

from probablend import __version__
from probablend.checkpoint import file_hash, find_model
from probablend.evaluate.classical import run_sep
from probablend.evaluate.detection import positions
from probablend.evaluate.photometry import flux_scores
from probablend.evaluate.record import write_json
from probablend.infer.segment import segment
from probablend.infer.segmentation import Segmentation
from probablend.plot import plot_image, plot_probability

RMS = 2.6e-4  # of the stamps' noise
LEVELS = (1.0, 4.0, 10.0)  # of the noise, over theirs
SIDE = 129  # pixels; a stamp lies in the middle
NEAR = 20.0  # pixels from the middle
SEED = 7300
SHOWN = (4.0, 10)  # noise, stamps
INDICES, MAX_SHEAR = (0.31, 6.0), 0.85  # that GalSim draws
STARTS = (0.0, 0.9)  # ln n
USUAL_INDICES, USUAL_RADII = (0.8, 2.5), (2.0, 4.5)  # pixels


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


def drawn(profile: galsim.GSObject, psf: np.ndarray, side: int) -> np.ndarray:
    """A profile under the image of a PSF, in pixels."""
    point = galsim.InterpolatedImage(galsim.Image(psf, scale=1.0), flux=1.0)
    seen = galsim.Convolve(profile, point)
    return np.asarray(seen.drawImage(nx=side, ny=side, scale=1.0, method="no_pixel").array)


def sersic_index(stamp: np.ndarray, psf: np.ndarray) -> float:
    """Index of the Sérsic profile that is most like a stamp under its PSF."""
    side = stamp.shape[0]

    def left(values: np.ndarray) -> np.ndarray:
        ln_n, ln_hlr, g1, g2, x, y, flux = values
        index, hlr = np.clip(np.exp(ln_n), *INDICES), np.exp(np.clip(ln_hlr, -2, 3))
        shrink = min(1.0, MAX_SHEAR / max(np.hypot(g1, g2), 1e-9))
        profile = galsim.Sersic(n=index, half_light_radius=hlr, flux=flux)
        profile = profile.shear(g1=shrink * g1, g2=shrink * g2).shift(x, y)
        return ((drawn(profile, psf, side) - stamp) / RMS).ravel()

    tried = [
        least_squares(left, [ln_n, 0.9, 0, 0, 0, 0, stamp.sum()], diff_step=1e-3, max_nfev=60)
        for ln_n in STARTS
    ]
    best = min(tried, key=lambda one: float(one.cost))
    return float(np.clip(np.exp(best.x[0]), *INDICES))


def smooth(psf: np.ndarray, k: int, side: int) -> np.ndarray:
    """A Sérsic galaxy under a PSF, and the noise of the stamps."""
    generator = np.random.default_rng([SEED, k, 5])
    index, hlr = generator.uniform(*USUAL_INDICES), generator.uniform(*USUAL_RADII)
    profile = galsim.Sersic(n=index, half_light_radius=hlr, flux=1.0)
    profile = profile.shear(g1=generator.uniform(-0.3, 0.3), g2=generator.uniform(-0.3, 0.3))
    return drawn(profile, psf, side) + generator.normal(scale=RMS, size=(side, side))


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
        f"{report['galaxies']} galaxies, of Sérsic index "
        f"{' / '.join(format(v, '.2f') for v in report['sersic_index'])} (16, 50, 84 %); "
        f"of {report['cosmos_galaxies']} galaxies of COSMOS "
        f"{' / '.join(format(v, '.2f') for v in report['cosmos_sersic_index'])} (5, 50, 95 %).",
        "",
        "| | noise, of the stamps' | S/N | found | more than one: probablend, `sep` "
        "| mean `p_blend`, above 0.5 | flux: bias, mag | NMAD, mag | in 68 % interval |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    rows = [("stamps", one) for one in report["levels"]]
    for kind, level in [*rows, *(("Sérsic", one) for one in report["smooth"])]:
        cells = [
            kind, f"{level['level']:g}", f"{level['snr']:.0f}", f"{level['found']:.0%}",
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
    data = Path(os.environ["PROBABLEND_TEST_DATA"])
    cosmos = Table.read(data / "catalogs" / "cosmos_parametric_fits_23.5.ecsv")["sersic_n"]
    with fits.open(data / "stamps_euclid_like" / "stamps.fits") as hdus:
        stamps, psfs = (np.asarray(hdus[name].data, float) for name in ("SCI", "PSF"))
    usual = np.array([smooth(psf, k, stamps.shape[1]) for k, psf in enumerate(psfs)])
    report: dict[str, Any] = {
        "command": "python benchmarks/isolated.py " + " ".join(sys.argv[1:]),
        "version": __version__,
        "model": arguments.model,
        "weights": file_hash(find_model(arguments.model)),
        "galaxies": len(stamps),
        "sersic_index": np.percentile(
            [sersic_index(*pair) for pair in zip(stamps, psfs, strict=True)], [16, 50, 84]
        ).tolist(),
        "cosmos_galaxies": len(cosmos),
        "cosmos_sersic_index": np.percentile(cosmos, [5, 50, 95]).tolist(),
        **{
            name: [{"level": level, **look(some, psfs, level, arguments.model)} for level in LEVELS]
            for name, some in (("levels", stamps), ("smooth", usual))
        },
    }
    write_json(arguments.output.with_suffix(".json"), report)
    arguments.output.with_suffix(".md").write_text(table(report))
    picture(stamps, psfs, arguments.model, arguments.output.with_suffix(".png"))
    print(table(report))


if __name__ == "__main__":
    main()
