"""What weights notice that is unlike their training.

PROBABLEND_TEST_DATA=… python benchmarks/familiar.py field -o benchmarks/familiar
"""

import argparse
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import galsim
import numpy as np
import torch
from real_sky import fields

from probablend import __version__
from probablend.checkpoint import file_hash, find_model, load_model
from probablend.emulate.blend import FieldConfig, draw_field
from probablend.emulate.psf import psf_profile
from probablend.emulate.sources import open_source
from probablend.evaluate.detection import positions
from probablend.evaluate.match import match_positions
from probablend.evaluate.record import write_json
from probablend.models.field import FieldNetwork
from probablend.prepare import prepare_image
from probablend.survey import Survey, get_survey

SURVEYS = {"euclid-vis": 6, "lsst-i": 2}  # fields of each
SIZE = 384
SEED = 5000
N_ODD = 12  # galaxies of a kind, each alone
N_DRAWS = 64
REAL_SIZE = 384  # of a real field, its middle
REAL_PSF = 2.5  # pixels, where none is given


@dataclass
class Seen:
    """What is found in an image: how strange it is, and whether the flux is right."""

    strange: np.ndarray  # bool, (source,)
    inside: np.ndarray  # 1 if the true flux is in the 68 % interval, NaN without truth
    inside_learnt: np.ndarray  # the same before intervals are widened


@torch.inference_mode()
def look(
    network: FieldNetwork, signal: np.ndarray, psf_fwhm: float, truth: Any = None, unit: float = 1.0
) -> Seen:
    """Sources of an image in units of its noise, of which ``truth`` counts ``unit``."""
    image = torch.from_numpy(np.ascontiguousarray(signal, dtype=np.float32))[None, None]
    said = network(image, psf_fwhm=torch.tensor([psf_fwhm]))
    found = said.candidates()
    context = said.context(found.scene, found.y, found.x, detected=True)
    kept = network.kinds(context)[:, 0].sigmoid() > 0.5
    scene, y, x = found.scene[kept], found.y[kept], found.x[kept]
    strange = (said.strangeness(scene, y, x) > 1).numpy()
    inside, inside_learnt = np.full((2, len(y)), np.nan)
    if truth is not None and len(y):
        some = truth[np.asarray(truth["n_pixels"]) >= 20]
        t, f = match_positions(positions(some), torch.stack([y, x], dim=1).numpy())
        posterior = said.sources(scene, y, x, torch.full_like(y, unit), detected=True)
        learnt = replace(posterior, spread=torch.ones_like(y))
        true = np.asarray(some["flux"])[t]
        for which, one in ((inside, posterior), (inside_learnt, learnt)):
            generator = torch.Generator().manual_seed(0)
            draws = one.sample(N_DRAWS, generator=generator)[:, f, 0].numpy()
            which[f] = np.abs((draws < true).mean(axis=0) - 0.5) < 0.34
    return Seen(strange, inside, inside_learnt)


def gradient(shape: tuple[int, int]) -> np.ndarray:
    return 10 * np.linspace(-0.5, 0.5, shape[1]) * np.ones(shape)


def chessboard(shape: tuple[int, int]) -> np.ndarray:
    y, x = np.indices(shape) // 8
    return 1.0 - 2 * ((y + x) % 2)


def arcs(shape: tuple[int, int]) -> np.ndarray:
    """Rings of ghosts, one on 128² pixels, 5 σ high."""
    generator = np.random.default_rng(SEED)
    y, x = np.indices(shape)
    image = np.zeros(shape)
    for _ in range(shape[0] * shape[1] // 128**2):
        at, radius, width = generator.uniform(0, shape), generator.uniform(15, 50), 2.0
        image += 5 * np.exp(-0.5 * ((np.hypot(y - at[0], x - at[1]) - radius) / width) ** 2)
    return image


# What is done to a field: factors on the PSF and on the noise that the network is told of, and
# what is added, in units of the noise.
CHANGES: dict[str, tuple[float, float, Callable[..., np.ndarray] | None]] = {
    "as in training": (1.0, 1.0, None),
    "PSF told 0.6 times as wide": (0.6, 1.0, None),
    "PSF told 1.6 times as wide": (1.6, 1.0, None),
    "noise told 3 times as strong": (1.0, 3.0, None),
    "noise told a third as strong": (1.0, 1 / 3, None),
    "gradient, 10 σ over the field": (1.0, 1.0, gradient),
    "chessboard of 8 pixels, ± 1 σ": (1.0, 1.0, chessboard),
    "rings, 5 σ": (1.0, 1.0, arcs),
}


def odd_galaxies(survey: Survey) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Galaxies that the emulator does not draw, alone in the middle; units of the noise."""
    psf = psf_profile(survey)
    pixel = survey.scale
    kinds = {
        "Sérsic 1, axis ratio 0.5 (ordinary)": lambda g: galsim.Sersic(
            1, half_light_radius=g.uniform(0.3, 1.0)
        ).shear(q=0.5, beta=turn(g)),
        "Sérsic 6.2, axis ratio 0.08": lambda g: (  # GalSim draws no steeper one
            galsim.Sersic(6.2, half_light_radius=g.uniform(0.3, 1.0)).shear(q=0.08, beta=turn(g))
        ),
        "cross of two bars": lambda g: (galsim.Box(3, 0.15) + galsim.Box(0.15, 3)).rotate(turn(g)),
        "disc of 40 pixels, 17 mag": lambda g: galsim.Exponential(
            half_light_radius=40 * pixel
        ).shear(q=0.6, beta=turn(g)),
    }
    for name, make in kinds.items():
        generator = np.random.default_rng(SEED)
        images = []
        for _ in range(N_ODD):
            mag = 17.0 if "17 mag" in name else generator.uniform(19, 22)
            profile = galsim.Convolve(make(generator).withFlux(float(survey.flux(mag))), psf)
            counts = profile.drawImage(nx=192, ny=192, scale=pixel).array
            rms = np.sqrt(survey.sky_rms**2 + np.maximum(counts, 0) / survey.gain)
            noisy = counts + rms * generator.standard_normal(counts.shape)
            images.append(noisy / survey.sky_rms)
        yield name, images


def turn(generator: np.random.Generator) -> galsim.Angle:
    return generator.uniform(0, 180) * galsim.degrees


def row(parts: list[Seen]) -> dict[str, float | int | None]:
    strange = np.concatenate([p.strange for p in parts])
    inside = np.concatenate([p.inside for p in parts])
    learnt = np.concatenate([p.inside_learnt for p in parts])
    known = np.isfinite(inside)

    def coverage(which: np.ndarray, inside: np.ndarray = inside) -> float | None:
        return round(float(inside[which & known].mean()), 3) if (which & known).any() else None

    return {
        "sources": len(strange),
        "flagged": round(float(strange.mean()), 4) if len(strange) else None,
        "known_and_flagged": int((known & strange).sum()),
        "coverage68_flagged": coverage(strange),
        "coverage68_flagged_as_learnt": coverage(strange, learnt),
        "coverage68_others": coverage(~strange),
    }


def measure(network: FieldNetwork) -> dict[str, dict[str, Any]]:
    report: dict[str, dict[str, Any]] = {}
    for name, n in SURVEYS.items():
        survey = get_survey(name)
        galaxies = open_source("structured", survey, "test", n_galaxies=300, seed=SEED)
        scenes = [
            draw_field(galaxies, FieldConfig(size=SIZE), generator=np.random.default_rng([SEED, k]))
            for k in range(n)
        ]
        rows = report.setdefault(name, {})
        for change, (width, noise, added) in CHANGES.items():
            parts = []
            for scene in scenes if added is not chessboard else scenes[:1]:
                signal = scene.image / scene.rms
                signal = signal if added is None else signal + added(signal.shape)
                parts.append(
                    look(network, signal / noise, width * survey.psf_fwhm_pixels, scene.catalog,
                         noise * scene.rms)
                )  # fmt: skip
            rows[change] = row(parts)
            print(name, change, rows[change], flush=True)
        for kind, images in odd_galaxies(survey):
            rows[kind] = row([look(network, i, survey.psf_fwhm_pixels) for i in images])
            print(name, kind, rows[kind], flush=True)
    data = os.environ.get("PROBABLEND_TEST_DATA")
    rows = report.setdefault("real sky", {})
    parts_of: dict[str, list[Seen]] = {}
    for field in fields(Path(data)) if data else ():
        cut = tuple(slice(max(0, (n - REAL_SIZE) // 2), (n + REAL_SIZE) // 2)
                    for n in field.image.shape)  # fmt: skip
        rms = field.rms[cut] if isinstance(field.rms, np.ndarray) else field.rms
        prepared = prepare_image(field.image[cut], rms=rms)
        seen = look(network, prepared.signal, field.psf_fwhm or REAL_PSF)
        parts_of.setdefault("des-i" if field.name.startswith("des-i") else field.name, []).append(
            seen
        )
    for name, parts in parts_of.items():
        rows[name] = row(parts)
        print(name, rows[name], flush=True)
    return report


def as_table(report: dict[str, Any]) -> str:
    lines = [
        "| fields | what | sources | flagged | in the 68 % interval: flagged, as learnt | widened "
        "| others |",
        "|---|---|---|---|---|---|---|",
    ]

    def shown(value: float | None) -> str:
        return "–" if value is None else f"{100 * value:.1f} %"

    for survey, rows in report["fields"].items():
        for what, r in rows.items():
            lines.append(
                f"| {survey} | {what} | {r['sources']} | {shown(r['flagged'])} "
                f"| {shown(r['coverage68_flagged_as_learnt'])} ({r['known_and_flagged']}) "
                f"| {shown(r['coverage68_flagged'])} "
                f"| {shown(r['coverage68_others'])} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", help="name or .safetensors file of a field model")
    parser.add_argument("-o", "--output", type=Path, required=True, help="without a suffix")
    arguments = parser.parse_args()
    path = find_model(arguments.weights)
    network, meta = load_model(path)
    if not (isinstance(network, FieldNetwork) and network.familiar.whitening.any()):
        parser.error(f"{path} knows no training: probablend.train.familiarise teaches it")
    report = {
        "version": __version__,
        "weights": file_hash(path),
        "name": meta["name"],
        "fields": measure(network),
    }
    write_json(arguments.output.with_suffix(".json"), report)
    arguments.output.with_suffix(".md").write_text(as_table(report))
    print(as_table(report))


if __name__ == "__main__":
    main()
