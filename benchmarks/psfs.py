"""Fluxes and sizes under PSFs of one width and other wings: told by image, by width, by stars.

python benchmarks/psfs.py -o benchmarks/psfs
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np

from probablend import __version__
from probablend.checkpoint import file_hash, find_model
from probablend.emulate.blend import FieldConfig, draw_field
from probablend.emulate.psf import psf_image
from probablend.emulate.sources import open_source
from probablend.evaluate.photometry import (
    coverage_scores,
    flux_scores,
    matched_sources,
    shape_scores,
)
from probablend.evaluate.record import write_json
from probablend.infer.segment import segment
from probablend.psf import PSF
from probablend.survey import Survey, get_survey

# Depth and pixels, FWHM in pixels, galaxies per arcmin².
SETTINGS = {"euclid-vis": (1.9, 150.0), "lsst-i": (3.5, 100.0)}
PROFILES: dict[str, dict[str, Any]] = {
    "Gaussian": {"psf_profile": "gaussian"},
    "Kolmogorov": {"psf_profile": "kolmogorov"},
    "Moffat, β = 4": {"psf_profile": "moffat", "psf_beta": 4.0},
    "Moffat, β = 2.5": {"psf_profile": "moffat", "psf_beta": 2.5},
    "Moffat, β = 1.9": {"psf_profile": "moffat", "psf_beta": 1.9},
    "Airy, 30 % obscured": {"psf_profile": "airy", "obscuration": 0.3},
}
HOW = {"image": "image", "width": "FWHM alone", "stars": "nothing"}
_DIFFRACTION = 0.8  # λ/D of the Airy PSF, in FWHM: the rest is jitter


def survey_with(name: str, fwhm: float, profile: dict[str, Any]) -> Survey:
    """Depth and pixels of a survey, with another PSF."""
    survey = get_survey(name)
    width = fwhm * survey.scale * u.arcsec
    return replace(
        survey, name=f"{name}, {profile['psf_profile']}", psf_fwhm=width,
        diffraction_scale=_DIFFRACTION * width, **profile,
    )  # fmt: skip


def judge(survey: Survey, density: float, *, size: int, seed: int) -> dict[str, Any]:
    galaxies = open_source("parametric", survey, "test", seed=seed)
    config = FieldConfig(size=size, density=density)
    scene = draw_field(galaxies, config, generator=np.random.default_rng([seed, 17]))
    psf = psf_image(survey, 65)
    row: dict[str, Any] = {"wings": PSF.of(psf).wings[0]}
    given = {"image": {"psf": psf}, "width": {"psf_fwhm": survey.psf_fwhm_pixels}, "stars": {}}
    for how in HOW:
        said = segment(scene.image, rms=scene.rms, background="none", seed=seed, **given[how])
        assert said.sources is not None
        draws = said.sources.draws
        table = matched_sources(scene, said.catalog, draws)
        table = table[~np.asarray(table["is_star"], bool)]
        bright = table[np.asarray(table["snr"]) > 10]
        coverage = coverage_scores(table)
        row[how] = {
            "n": len(table),
            "fwhm": said.meta["psf_fwhm"],
            "wings": said.meta["psf_wings"],
            "flux": flux_scores(bright),
            "size": shape_scores(bright),
            "coverage_flux": coverage["flux"]["68"],
            "coverage_hlr": coverage["hlr"]["68"],
        }
    return row


def table(report: dict[str, Any]) -> str:
    """The numbers as Markdown."""
    lines = [
        f"`{report['command']}`",
        "",
        f"probablend {report['version']}, `field` {report['weights']}; "
        "above S/N 10 but for the intervals.",
        "",
        "| depth, FWHM | PSF | light under a weight of σ = FWHM, over a Gaussian PSF's | given "
        "| taken: FWHM, px | light | flux: too bright by, mag | NMAD, mag "
        "| 68 % intervals of flux hold | size: median of ln | of size hold |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, rows in report["settings"].items():
        for profile, row in rows.items():
            for how, said in HOW.items():
                one = row[how]
                taken = "–" if one["wings"] is None else f"{np.exp(one['wings']):.2f}"
                cells = [
                    f"`{name}`, {SETTINGS[name][0]} px", profile, f"{np.exp(row['wings']):.2f}",
                    said, f"{one['fwhm']:.2f}", taken,
                    f"{one['flux']['bias']:+.3f}", f"{one['flux']['nmad']:.3f}",
                    f"{one['coverage_flux']:.3f}", f"{one['size']['ln_hlr_bias']:+.3f}",
                    f"{one['coverage_hlr']:.3f}",
                ]  # fmt: skip
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=9000)
    args = parser.parse_args()
    report: dict[str, Any] = {
        "command": "python benchmarks/psfs.py " + " ".join(sys.argv[1:]),
        "version": __version__,
        "weights": file_hash(find_model("field")),
        "settings": {},
    }
    for name, (fwhm, density) in SETTINGS.items():
        rows = report["settings"][name] = {}
        for profile, settings in PROFILES.items():
            survey = survey_with(name, fwhm, settings)
            rows[profile] = judge(survey, density, size=args.size, seed=args.seed)
            print(name, profile, rows[profile], flush=True)
    write_json(args.output.with_suffix(".json"), report)
    args.output.with_suffix(".md").write_text(table(report))


if __name__ == "__main__":
    main()
