"""Real galaxies that stand alone, as an instrument like Euclid's sees them: is each taken for one?

PROBABLEND_TEST_DATA=… python benchmarks/isolated.py -o docs/results/isolated/isolated

Stamps of other makers (sf_deconvolve): galaxies of HST under PSFs like Euclid's, one PSF for each,
and white noise of known strength. As they are, and under more noise.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import sep
from astropy.io import fits
from matplotlib.figure import Figure

from probablend import __version__
from probablend.checkpoint import file_hash, find_model
from probablend.infer.segment import Segmentation, segment

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


def picture(stamps: np.ndarray, psfs: np.ndarray, model: str, path: Path) -> None:
    """The first stamps with what was found in them, and below where a blend is how likely."""
    level, n = SHOWN
    figure = Figure(figsize=(1.6 * n, 3.6), layout="constrained")
    low = SIDE // 2 - 20
    inner = slice(low, low + 41)
    for k, (top, below) in enumerate(figure.subplots(2, n).T):
        image, result = seen(stamps[k], psfs[k], level, k, model)
        x, y = (np.asarray(result.catalog[key], float) - low for key in "xy")
        near = (np.hypot(x - 20, y - 20) < NEAR) & (np.abs(x - 20) < 20) & (np.abs(y - 20) < 20)
        top.imshow(np.arcsinh(image / RMS / level)[inner, inner], origin="lower", cmap="gray")
        top.plot(x[near], y[near], "+", color="tab:red")
        said = np.asarray(result.catalog["p_blend"], float)[near]
        top.set_title(f"p_blend {said.max():.2f}" if len(said) else "nothing", fontsize=8)
        below.imshow(result.p_blend[inner, inner], origin="lower", cmap="inferno", vmin=0, vmax=1)
        for axes in (top, below):
            axes.set_axis_off()
    figure.savefig(path, dpi=80)


def look(stamps: np.ndarray, psfs: np.ndarray, level: float, model: str) -> dict[str, Any]:
    """What is said of every stamp."""
    middle = (SIDE - 1) / 2
    rows = []
    for k, (stamp, psf) in enumerate(zip(stamps, psfs, strict=True)):
        image, result = seen(stamp, psf, level, k, model)
        objects = sep.extract(image.astype(float), 1.5, err=RMS * level)
        by_sep = int((np.hypot(objects["x"] - middle, objects["y"] - middle) < NEAR).sum())
        catalog = result.catalog
        x, y = (np.asarray(catalog[key], float) for key in "xy")
        distance = np.hypot(x - middle, y - middle)
        near = distance < NEAR
        row = {"found": bool(near.any()), "more": int(near.sum()) > 1, "more_sep": by_sep > 1}
        if row["found"]:
            # The brightest one: of the rest, the other ones have their share.
            flux = np.asarray(catalog["flux"], float)
            main = int(np.argmax(np.where(near, flux, -np.inf)))
            low, high = np.quantile(result.sources.parameter("flux")[:, main], [0.16, 0.84])
            total = float(stamp.sum())
            row |= {
                "ln_flux": float(np.log(flux[main] / total)),
                "inside": bool(low < total < high),
                "p_blend": float(catalog["p_blend"][main]),
                "snr": float(np.sqrt((stamp**2).sum() / RMS**2 - stamp.size)) / level,
            }
        rows.append(row)
    found = [row for row in rows if row["found"]]
    ln_flux = np.array([row["ln_flux"] for row in found])
    p_blend = np.array([row["p_blend"] for row in found])
    return {
        "n": len(rows),
        "snr": float(np.median([row["snr"] for row in found])),
        "found": len(found) / len(rows),
        "more": float(np.mean([row["more"] for row in rows])),
        "more_sep": float(np.mean([row["more_sep"] for row in rows])),
        "p_blend": float(p_blend.mean()),
        "p_blend_above_half": float((p_blend > 0.5).mean()),
        "bias": float(-2.5 / np.log(10) * np.median(ln_flux)),
        "nmad": float(2.5 / np.log(10) * 1.4826 * np.median(np.abs(ln_flux - np.median(ln_flux)))),
        "coverage68": float(np.mean([row["inside"] for row in found])),
    }


def table(report: dict[str, Any]) -> str:
    """The scores as Markdown."""
    lines = [
        f"`{report['command']}`",
        "",
        f"probablend {report['version']}, `{report['model']}` {report['weights']}; "
        f"{report['levels'][0]['n']} galaxies.",
        "",
        "| noise, of the stamps' | S/N | found | more than one: probablend, `sep` "
        "| mean `p_blend`, above 0.5 | flux: too faint by, mag | NMAD, mag | in 68 % interval |",
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
        "levels": [
            {"level": level, **look(stamps, psfs, level, arguments.model)} for level in LEVELS
        ],
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
    arguments.output.with_suffix(".md").write_text(table(report))
    picture(stamps, psfs, arguments.model, arguments.output.with_suffix(".png"))
    print(table(report))


if __name__ == "__main__":
    main()
