"""Does the error factor that injection finds mend the intervals of what was not injected?

PROBABLEND_TEST_DATA=… python benchmarks/error_factor.py -n 1000 -o benchmarks/error_factor

Of emulated surveys a first field is injected into, and what is found there is given for others,
whose own galaxies count. Into real images other galaxies are injected, anywhere and elsewhere: with
what the first ones found, and without.
"""

import argparse
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from astropy.table import vstack
from inject_real import IMAGES
from real_sky import fields
from surveys import DENSITIES, LARGER, draw

from probablend import __version__, segment
from probablend.emulate.blend import FieldConfig, Scene
from probablend.emulate.psf import survey_psf
from probablend.emulate.sources import open_source
from probablend.evaluate.inject import InjectionConfig, inject
from probablend.evaluate.photometry import coverage_scores, matched_sources
from probablend.evaluate.record import write_json
from probablend.images import ImageData
from probablend.survey import get_survey

SEED = 9000
OTHERS = {"euclid-vis": 2, "lsst-i": 1, "hsc-i": 2, "des-i": 2, "cosmos-f814w": 4, "roman-f158": 2}
SHAPE = ("hlr", "g1", "g2")
CLEAR = 10.0  # S/N, as where injections are judged


def shares(coverage: dict[str, Any]) -> dict[str, float]:
    """Truths in intervals: of flux at two levels, of size and shape."""
    flux = {level: coverage["flux"][level] for level in ("68", "95")}
    return flux | {name: coverage[name]["68"] for name in SHAPE}


def of_own_galaxies(scenes: list[Scene], model: str, factor: float) -> dict[str, float]:
    """Shares of the galaxies of emulated fields."""
    tables = []
    for k, scene in enumerate(scenes):
        said = segment(
            scene.image, rms=scene.rms, background="none", psf=survey_psf(scene.survey),
            seed=SEED + k, model=model, n_samples=1, error_factor=factor,
        )  # fmt: skip
        assert said.sources is not None
        tables.append(matched_sources(scene, said.catalog, said.sources.draws))
    table = vstack(tables)
    table = table[~table["is_star"] & (table["snr"] >= CLEAR)]
    return {"n": len(table)} | shares(coverage_scores(table))


def emulated(name: str, model: str, n: int) -> dict[str, Any]:
    """One field is injected into, the others are looked at."""
    survey = get_survey(name)
    config = FieldConfig(size=1024 * LARGER.get(name, 1), density=DENSITIES[name])
    galaxies = open_source("parametric", survey, split="test")
    first, *others = (draw(galaxies, config, SEED, k) for k in range(1 + OTHERS[name]))
    with TemporaryDirectory() as folder:
        report = inject(
            ImageData(data=first.image, name=name), Path(folder),
            InjectionConfig(n=n, companions=0, seed=SEED),
            model=model, rms=first.rms, background="none", psf=survey_psf(survey).image,
            pixel_scale=survey.scale, zeropoint=survey.zeropoint,
        )  # fmt: skip
    factor = report["intervals"]["error_factor"]
    return {
        "injected": report["intervals"],
        "before": of_own_galaxies(others, model, 1.0),
        "after": of_own_galaxies(others, model, factor),
    }  # fmt: skip


def real(field: Any, model: str, n: int) -> dict[str, Any]:
    """Two sets of galaxies are injected, the second with what the first has found."""

    def look(seed: int, factor: float) -> dict[str, Any]:
        with TemporaryDirectory() as folder:
            return inject(
                ImageData(data=field.image, name=field.name), Path(folder),
                InjectionConfig(n=n, companions=0, seed=seed), model=model, rms=field.rms,
                psf=field.psf, psf_fwhm=field.psf_fwhm, pixel_scale=field.pixel_scale,
                zeropoint=field.zeropoint, error_factor=factor,
            )  # fmt: skip

    first = look(SEED, 1.0)["intervals"]
    said = {"injected": first}
    for key, given in (("before", 1.0), ("after", first["error_factor"])):
        said[key] = look(SEED + 1, given)["intervals"]
    return said


def table(report: dict[str, Any]) -> str:
    """The shares as Markdown."""
    lines = [
        f"`{report['command']}`",
        "",
        f"probablend {report['version']}, `{report['model']}`; {report['n']} galaxies injected, "
        f"anywhere; those of S/N > {CLEAR:g} count.",
        "",
        "| | injected: flux, 68 % | error factor | others | flux, 68 / 95 % | … with the factor "
        "| size, 68 % | … with the factor | shape, 68 % | … with the factor |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, said in report["images"].items():
        before, after = said["before"], said["after"]
        first = said["injected"]
        cells = [f"{first['68']:.3f} ({first['n']})", f"{first['error_factor']:.2f}"]
        cells += [str(before["n"])]
        cells += [f"{s['68']:.3f} / {s['95']:.3f}" for s in (before, after)]
        for names in (SHAPE[:1], SHAPE[1:]):
            cells += [" / ".join(f"{s[k]:.3f}" for k in names if k in s) or "–"
                      for s in (before, after)]  # fmt: skip
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--surveys", nargs="*", default=list(DENSITIES), choices=list(DENSITIES))
    parser.add_argument("--images", nargs="*", default=list(IMAGES), choices=IMAGES)
    parser.add_argument("--model", default="field")
    args = parser.parse_args()
    report: dict[str, Any] = {
        "command": "python benchmarks/error_factor.py " + " ".join(sys.argv[1:]),
        "version": __version__, "model": args.model, "n": args.n, "images": {},
    }  # fmt: skip

    def keep(name: str, said: dict[str, Any]) -> None:
        report["images"][name] = said
        write_json(args.output.with_suffix(".json"), report)
        args.output.with_suffix(".md").write_text(table(report))
        print(table(report).splitlines()[-1], flush=True)

    for name in args.surveys:
        keep(f"`{name}`", emulated(name, args.model, args.n))
    if args.images:
        for field in fields(Path(os.environ["PROBABLEND_TEST_DATA"])):
            if field.name in args.images:
                keep(field.name, real(field, args.model, args.n))


if __name__ == "__main__":
    main()
