"""The model on real images of the sky: what it finds, what it invents, and pictures to look at.

PROBABLEND_TEST_DATA=… python benchmarks/real_sky.py -o docs/results/real-sky
"""

import argparse
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sep
from astropy.io import fits
from astropy.table import Table
from matplotlib.figure import Figure
from scipy.spatial import KDTree

from probablend import __version__
from probablend.evaluate.classical import run_sep
from probablend.evaluate.detection import positions
from probablend.evaluate.match import match_positions
from probablend.evaluate.record import write_json
from probablend.infer.segment import segment
from probablend.infer.segmentation import Segmentation
from probablend.plot import plot_class_probabilities, plot_image, plot_probability
from probablend.prepare import prepare_image

MIN_SNR = 10.0
ALONE = 12.0  # pixels to the next detection of sep
RADIUS = 3.0


@dataclass
class Field:
    name: str
    image: np.ndarray
    rms: float | np.ndarray | None = None
    psf_fwhm: float | None = None
    psf: np.ndarray | None = None
    pixel_scale: float | None = None  # where the image does not say so itself
    zeropoint: float | None = None


def fields(data: Path) -> Iterator[Field]:
    for band in "ri":
        path = data / "field_kids_viking" / f"{band}.fits.fz"
        yield Field(f"kids-{band}", _plane(path), pixel_scale=0.339, zeropoint=0.0)
    for band, fwhm, zeropoint in (("f105w", 2.8, 26.2687), ("f160w", 3.0, 25.9463)):
        path = data / "field_hst_xdf" / f"{band}.fits"
        psf = _plane(path.with_name("psf_f105w.fits")) if band == "f105w" else None
        yield Field(f"xdf-{band}", fits.getdata(path, "SCI"), None, fwhm, psf, 0.06, zeropoint)
    path = data / "field_decals" / "cutout_grz.fits"
    for band in "GRZ":
        with np.errstate(divide="ignore"):
            rms = fits.getdata(path, f"IVAR_{band}").astype(float) ** -0.5
        yield Field(f"decals-{band.lower()}", fits.getdata(path, f"SCI_{band}"), rms, None,
                    fits.getdata(path, f"PSF_{band}"), 0.262, 22.5)  # fmt: skip
    yield Field("emmi-r", _plane(data / "field_emmi_R" / "image.fits"), None, 1.9)
    sky = fits.getdata(data / "dc2" / "field_1.fits", "SCI")[3]
    yield Field("dc2-i", sky, None, 4.5, None, 0.2, 27.0)
    with fits.open(data / "field_des_cutouts" / "cutouts_grizY.fits") as hdus:
        cube = next(h.data for h in hdus if h.data is not None and np.ndim(h.data) == 4)
    stamps = cube[:, 2] if cube.shape[1] == 5 else cube[2]
    for k, stamp in enumerate(stamps):
        yield Field(f"des-i-{k:02d}", stamp, 7.0, 3.8, None, 0.263, 30.0)


def _plane(path: Path) -> np.ndarray:
    with fits.open(path) as hdus:
        return next(np.asarray(h.data, np.float32) for h in hdus if h.data is not None)


def look(field: Field, model: str) -> tuple[Segmentation, Segmentation]:
    """The sky, and the same sky turned negative, with the same PSF."""
    prepared = prepare_image(field.image, rms=field.rms)
    sky = prepared.signal * prepared.rms
    how = {"rms": prepared.rms, "mask": prepared.mask, "background": "none", "model": model}
    result = segment(sky, **how, psf=field.psf, psf_fwhm=field.psf_fwhm)
    return result, segment(-sky, **how, psf=result.psf)


def own_noise(signal: np.ndarray) -> float:
    """As SExtractor finds it: what pixels scatter by, be they correlated or not."""
    return float(sep.Background(signal, bw=64, bh=64).globalrms)


def score(field: Field, result: Segmentation, negative: Segmentation) -> dict[str, Any]:
    """What sep finds bright and alone must be found; the negative sky holds nothing."""
    signal = np.ascontiguousarray(result.signal)
    catalog, labels = run_sep(signal, own_noise(signal))
    n_pixels = np.bincount(labels.ravel(), minlength=len(catalog) + 1)[1:]
    snr = np.asarray(catalog["flux_iso"]) / np.sqrt(np.maximum(n_pixels, 1))
    at, ours = positions(catalog), positions(result.catalog)
    bright = (snr > MIN_SNR) & (np.asarray(catalog["p_blend"]) == 0)
    size = np.array(signal.shape)
    bright &= ((at > 5) & (at < size - 6)).all(axis=1)
    y, x = np.round(at).astype(int).T.clip(0, (size - 1)[:, None])
    bright &= ~result.mask[y, x]
    if len(at) > 1:
        bright &= KDTree(at).query(at, k=2)[0][:, 1] > ALONE
    near = np.full(len(at), np.inf)
    if len(ours):
        near = KDTree(ours).query(at)[0]
    return {
        "megapixels": signal.size / 1e6,
        "psf_fwhm": result.meta["psf_fwhm"],
        "detections": len(result.catalog),
        "detections_of_sep": len(catalog),
        "bright_and_alone": int(bright.sum()),
        "of_them_found": int((near[bright] < RADIUS).sum()),
        "false_on_the_negative": len(negative.catalog),
        "out_of_range": int((np.asarray(result.catalog["flags"]) & 8 > 0).sum()),
    }


def two_bands(first: Segmentation, second: Segmentation) -> dict[str, float]:
    """The same galaxies in r and i: positions and blending agree."""
    strong = [r.catalog[np.asarray(r.catalog["flux"] / r.catalog["flux_err"]) > 10]
              for r in (first, second)]  # fmt: skip
    a, b = match_positions(positions(strong[0]), positions(strong[1]))
    gap = np.hypot(*(positions(strong[0])[a] - positions(strong[1])[b]).T)
    p, q = np.asarray(strong[0]["p_blend"])[a], np.asarray(strong[1]["p_blend"])[b]
    return {
        "matched": len(a),
        "median_distance": float(np.median(gap)),
        "median_difference_of_p_blend": float(np.median(np.abs(p - q))),
        "same_side_of_one_half": float(((p > 0.5) == (q > 0.5)).mean()),
    }


def large_galaxies(data: Path, model: str) -> tuple[list[dict[str, Any]], list[Any]]:
    """Spirals come out as one galaxy, with the flux of a large aperture."""
    rows, shown = [], []
    jobs = []
    for path in sorted((data / "galaxies_gama").glob("*.fits")):
        with fits.open(path) as hdus:
            sigma, seg = (
                np.asarray(hdus["SIGMA"].data),
                np.asarray(hdus["SEG"].data),
            )  # photons, too
            image, psf = (np.asarray(hdus[key].data, float) for key in ("SCI", "PSF"))
        own = seg == seg[image.shape[0] // 2, image.shape[1] // 2]
        jobs.append((path.stem, image, sigma, own, {"psf": psf}))
    for path in sorted((data / "jwst_cosmosweb_single").glob("*.fits")):
        with fits.open(path) as hdus:
            planes = [(h.name, np.asarray(h.data, float)) for h in hdus
                      if isinstance(h, fits.ImageHDU) and np.ndim(h.data) == 2]  # fmt: skip
        for name, image in planes:
            if image.shape[0] > 100:
                y, x = np.indices(image.shape) - image.shape[0] // 2
                jobs.append((f"jwst-{name}", image, None, np.hypot(y, x) < 45, {"psf_fwhm": 3.0}))
    for name, image, rms, own, psf in jobs:
        result = segment(image, rms=rms, model=model, **psf)
        sky = image - result.meta["background"]
        total = float(sky[own].sum())
        at = np.round(positions(result.catalog)).astype(int)
        inside = own[tuple(at.T)] if len(at) else np.zeros(0, bool)
        flux = np.asarray(result.catalog["flux"], float)[inside]
        main = int(np.argmax(flux)) if len(flux) else -1
        row = result.catalog[inside][main] if len(flux) else None
        rows.append(
            {
                "galaxy": name,
                "sources_inside": int(inside.sum()),
                "of_more_than_5_percent": int((flux > 0.05 * total).sum()),
                "flux_over_aperture": float(flux[main] / total) if len(flux) else None,
                "in_90_interval": bool(row["flux_q05"] < total < row["flux_q95"])
                if row is not None else None,
                "out_of_range": bool(row["flags"] & 8) if row is not None else None,
            }
        )  # fmt: skip
        shown.append((name, result))
    return rows, shown


def hst_and_hsc(data: Path, model: str) -> dict[str, Any]:
    """Where Hubble sees two and HSC one, p_blend says so."""
    path = data / "blend_hst_hsc_pair" / "pair.fits"
    with fits.open(path) as hdus:
        hst, hsc = np.asarray(hdus["HST"].data, float), np.asarray(hdus["HSC"].data[2], float)
        psfs = {key: np.asarray(hdus[f"PSF_{key}"].data, float) for key in ("HST", "HSC")}
    sharp = segment(hst, model=model, psf=psfs["HST"])
    blurred = segment(hsc, model=model, psf=psfs["HSC"][2])
    scale = 0.03 / 0.168
    centre_hst, centre_hsc = (np.array(h.shape) / 2 - 0.5 for h in (hst, hsc))
    there = (positions(sharp.catalog) - centre_hst) * scale + centre_hsc
    strong = np.asarray(sharp.catalog["flux"] / sharp.catalog["flux_err"]) > 5
    tree = KDTree(positions(blurred.catalog))
    owner = tree.query(there[strong])[1]
    counts = np.bincount(owner, minlength=len(blurred.catalog))
    p = np.asarray(blurred.catalog["p_blend"])
    return {
        "detections_hst": len(sharp.catalog),
        "detections_hsc": len(blurred.catalog),
        "hsc_detections_with_two_or_more_hst": int((counts > 1).sum()),
        "of_them_announced": int((p[counts > 1] > 0.5).sum()),
    }


def dc2(data: Path, field: Field, result: Segmentation) -> dict[str, Any]:
    truth = positions(Table.read(data / "dc2" / "field_1_truth_galaxies.ecsv"))
    report = {"truth": len(truth)}
    signal = np.ascontiguousarray(result.signal)
    for name, catalog in (
        ("field", result.catalog),
        ("sep", run_sep(signal, own_noise(signal))[0]),
    ):
        t, _ = match_positions(truth, positions(catalog))
        report[name] = {"detections": len(catalog), "found": len(t)}
    # The truth ends at a magnitude: the brightest, as many of ours as there are of sep's.
    order = np.argsort(-np.asarray(result.catalog["flux"], float))
    brightest = result.catalog[order[: report["sep"]["detections"]]]
    t, _ = match_positions(truth, positions(brightest))
    report["field, as many as sep"] = {"detections": len(brightest), "found": len(t)}
    return report


def picture(results: list[tuple[str, Segmentation]], path: Path) -> None:
    figure = Figure(figsize=(12, 4 * len(results)), layout="constrained")
    for row, (name, result) in zip(
        figure.subplots(len(results), 3, squeeze=False), results, strict=True
    ):
        cut = tuple(slice(max(0, n // 2 - 300), n // 2 + 300) for n in result.signal.shape)
        plot_image(np.where(result.mask, np.nan, result.signal)[cut], row[0])
        at = positions(result.catalog) - [c.start for c in cut]
        shape = [c.stop - c.start for c in cut]
        inside = ((at > 0) & (at < shape)).all(axis=1)
        p = np.asarray(result.catalog["p_blend"])[inside]
        row[0].scatter(at[inside, 1], at[inside, 0], s=8, c=p, cmap="cool", vmin=0, vmax=1)
        row[0].set_title(f"{name}: {len(result.catalog)} sources, colour p_blend")
        plot_class_probabilities(result.p_galaxy[cut], result.p_blend[cut], row[1])
        plot_probability(result.p_blend[cut], row[2])
    figure.savefig(path, dpi=60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("real-sky"))
    parser.add_argument("--model", default="field")
    arguments = parser.parse_args()
    data = Path(os.environ["PROBABLEND_TEST_DATA"])
    arguments.output.mkdir(parents=True, exist_ok=True)
    sep.set_extract_pixstack(3_000_000)
    report: dict[str, Any] = {"version": __version__, "model": arguments.model, "fields": {}}
    kept: dict[str, Segmentation] = {}
    for field in fields(data):
        result, negative = look(field, arguments.model)
        report["weights"] = result.meta["weights_hash"]
        report["fields"][field.name] = score(field, result, negative)
        print(field.name, report["fields"][field.name], flush=True)
        kept[field.name] = result
        if field.name == "dc2-i":
            report["dc2"] = dc2(data, field, result)
    rows = report["fields"].values()
    keys = ("detections", "bright_and_alone", "of_them_found", "false_on_the_negative")
    total = {key: sum(r[key] for r in rows) for key in keys}
    report["all_fields"] = total | {
        "found": total["of_them_found"] / max(total["bright_and_alone"], 1),
        "false": total["false_on_the_negative"] / max(total["detections"], 1),
    }
    report["kids_r_and_i"] = two_bands(kept["kids-r"], kept["kids-i"])
    report["large_galaxies"], shown = large_galaxies(data, arguments.model)
    report["hst_and_hsc"] = hst_and_hsc(data, arguments.model)
    write_json(arguments.output / "real-sky.json", report)
    wide = [(k, v) for k, v in kept.items() if not k.startswith("des")]
    picture(wide, arguments.output / "fields.png")
    picture([(k, v) for k, v in kept.items() if k.startswith("des")][:6],
            arguments.output / "des.png")  # fmt: skip
    picture(shown, arguments.output / "large-galaxies.png")
    print(json.dumps({k: v for k, v in report.items() if k != "fields"}, indent=2))


if __name__ == "__main__":
    main()
