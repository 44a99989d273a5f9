"""probablend beside the Blending ToolKit's own deblenders, by the toolkit's own metrics.

    pip install 'probablend[btk]'
    python benchmarks/btk_comparison.py --n 20 -o benchmarks/btk_comparison.json

Blends of up to four galaxies in LSST's i band, drawn by the toolkit from a catalogue of discs and
bulges, or from a CATSIM file. The toolkit's scarlet deblender needs pmelchior/scarlet, which is not
on PyPI (the package of that name there is another one); it is left out where it is not installed.
"""

import argparse
import json
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from astropy.table import Table
from btk.catalog import CatsimCatalog
from btk.deblend import Deblender, Scarlet, SepSingleBand
from btk.draw_blends import CatsimGenerator
from btk.match import PixelHungarianMatcher
from btk.metrics.detection import F1, Precision, Recall
from btk.metrics.reconstruction import MSE, PSNR, StructSim
from btk.metrics.segmentation import IoU
from btk.metrics.utils import get_segmentation
from btk.sampling_functions import DefaultSampling
from btk.survey import get_surveys
from surveycodex.utilities import mean_sky_level

from probablend import __version__
from probablend.btk import ProbablendDeblender
from probablend.checkpoint import file_hash, find_model
from probablend.evaluate.record import write_json

BAND = "i"
MAX_GALAXIES, MAX_SOURCES = 4, 12
THRESHOLDS = (0.5, 1.5)  # of true footprints, in units of the noise: ours, and SEP's


def random_galaxies(n: int, seed: int) -> Table:
    """A catalogue as CATSIM has it: discs, a third of them with bulges, i of 20 to 25.3."""
    rng = np.random.default_rng(seed)
    table = Table({"ra": np.zeros(n), "dec": np.zeros(n), "redshift": np.full(n, 0.8)})
    mag = 20 + np.log10(1 + rng.uniform(size=n) * (10 ** (0.3 * 5.3) - 1)) / 0.3
    radius = 0.5 * 10 ** (-0.1 * (mag - 22)) * rng.lognormal(0, 0.25, n)
    ratio, angle = rng.uniform(0.3, 1, n), rng.uniform(0, 360, n)
    share = np.where(rng.uniform(size=n) < 1 / 3, rng.uniform(0.1, 0.6, n), 0.0)
    table["fluxnorm_disk"], table["fluxnorm_bulge"] = 1 - share, share
    table["fluxnorm_agn"] = 0.0
    for kind, size in (("d", radius), ("b", 0.5 * radius)):
        table[f"a_{kind}"], table[f"b_{kind}"] = size, ratio * size
    table["pa_disk"] = table["pa_bulge"] = angle
    for band in "ugrizy":
        table[f"{band}_ab"] = mag
    return table


def score(deblender: Deblender, batches: list, rms: float, band: int) -> dict[str, float | None]:
    """The toolkit's metrics of one deblender; None where it gives nothing to measure."""
    began = time.monotonic()
    answers = [deblender.batch_call(batch) for batch in batches]
    seconds = time.monotonic() - began
    matcher = PixelHungarianMatcher(pixel_max_sep=5.0)
    n = batches[0].batch_size
    metrics = {"mse": MSE(n), "psnr": PSNR(n), "ssim": StructSim(n)}
    found = {"precision": Precision(1), "recall": Recall(1), "f1": F1(1)}
    iou = {f"iou_{threshold:g}": IoU(n) for threshold in THRESHOLDS}
    counts, values = [], {name: [] for name in (*metrics, *iou)}
    for batch, answer in zip(batches, answers, strict=True):
        matching = matcher(batch.catalog_list, answer.catalog_list)
        n_matches = np.array([len(match) for match in matching.true_matches])
        counts.append([n_matches, matching.n_true, matching.n_pred])
        isolated = batch.isolated_images[:, :, band]
        if answer.deblended_images is not None:
            own = answer.deblended_images[:, :, 0 if answer.n_bands == 1 else band]
            truth, parts = matching.match_true_arrays(isolated), matching.match_pred_arrays(own)
            for name, metric in metrics.items():
                metric(truth, parts)
                values[name] += list(metric.all_data[-1][name])
        if answer.segmentation is not None:
            for threshold, (name, metric) in zip(THRESHOLDS, iou.items(), strict=True):
                true = np.nan_to_num(get_segmentation(isolated, rms**2, threshold)).astype(bool)
                metric(
                    matching.match_true_arrays(true).astype(bool),
                    matching.match_pred_arrays(answer.segmentation).astype(bool),
                )
                values[name] += list(metric.all_data[-1]["iou"].ravel())
    totals = [np.concatenate(column) for column in zip(*counts, strict=True)]
    result = {name: float(metric(*totals)) for name, metric in found.items()}
    for name, one in values.items():
        result[name] = float(np.nanmean(one)) if len(one) else None
    return result | {"seconds_per_blend": seconds / (n * len(batches))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=20, help="blends")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--catalog", help="CATSIM file; else random discs and bulges")
    parser.add_argument("--model", default="field")
    parser.add_argument("-o", "--output", type=Path, default=Path("btk_comparison.json"))
    given = parser.parse_args()

    survey = get_surveys("LSST")
    band = list(survey.available_filters).index(BAND)
    rms = float(np.sqrt(mean_sky_level(survey, survey.get_filter(BAND)).to_value("electron")))
    if given.catalog:
        galaxies = Table.read(given.catalog)
        galaxies = galaxies[galaxies[f"{BAND}_ab"] < 25.3]
    else:
        galaxies = random_galaxies(500, given.seed)
    sampling = DefaultSampling(
        stamp_size=20.0, max_number=MAX_GALAXIES, min_number=1, max_shift=4.0, seed=given.seed
    )
    size = min(given.n, 5)
    generator = CatsimGenerator(
        CatsimCatalog(galaxies), sampling, survey, batch_size=size, seed=given.seed
    )
    batches = [next(generator) for _ in range(-(-given.n // size))]
    deblenders: dict[str, Deblender] = {
        "probablend": ProbablendDeblender(MAX_SOURCES, BAND, model=given.model, seed=given.seed),
        "sep": SepSingleBand(MAX_SOURCES, use_band=band),
    }
    if find_spec("scarlet") and find_spec("scarlet.blend"):
        deblenders["scarlet, true positions"] = Scarlet(MAX_SOURCES)
    report = {
        "blends": size * len(batches),
        "galaxies": int(sum(len(c) for batch in batches for c in batch.catalog_list)),
        "band": f"LSST {BAND}",
        "version": __version__,
        "model": given.model,
        "weights": file_hash(find_model(given.model)),
        "packages": {
            name: version(name) for name in ("blending-toolkit", "sep", "astropy", "numpy")
        },
        "seed": given.seed,
        "catalog": Path(given.catalog).name if given.catalog else "random discs and bulges",
        "scores": {name: score(one, batches, rms, band) for name, one in deblenders.items()},
    }
    write_json(given.output, report)
    print(json.dumps(report["scores"], indent=2))


if __name__ == "__main__":
    main()
