"""What injections say of an image, in words, a table and a figure."""

import textwrap
from typing import Any

import numpy as np
from astropy.table import Table
from matplotlib.figure import Figure

from probablend.evaluate.photometry import worst_bins
from probablend.plot import plot_pit, plot_reliability

__all__ = ["injection_figure", "injection_table", "verdict"]

_FEW_PERCENT = 0.04
_UNDECIDED = 0.1  # an uncertainty of a share beyond which nothing follows from it
_FAR_OFF = 0.1  # how wrong intervals of some of the galaxies are that are warned of, …
_N_SIGMA = 3  # … if chance does not do that
# Relative error of a standard deviation that is read from the 68 % quantile of |pull|, times √n.
_FACTOR_ERROR = 0.96
_FALSE = 0.05  # share of false detections that is worth a word


def verdict(report: dict[str, Any]) -> str:
    """One line that a person can act on."""
    parts = []
    if said := report["intervals"]:
        share, n = said["68"], said["n"]
        sure = 2 * np.sqrt(0.68 * 0.32 / n)
        text = f"above S/N {said['above_snr']:g}, "
        text += f"68 % intervals of the flux hold {100 * share:.0f} %: "
        if abs(share - 0.68) > max(_FEW_PERCENT, sure):
            kind = "too narrow" if share < 0.68 else "too wide"
            factor = said["error_factor"]
            unsure = 2 * factor * _FACTOR_ERROR / np.sqrt(n)
            text += f"{kind}, give --error-factor {factor:.2f} (± {unsure:.2f})"
            if not 0.3 < factor < 3:
                text += ", or rather look at why"
        elif sure > _UNDECIDED:
            text += f"{n} galaxies (± {100 * sure:.0f} %) are too few to tell, inject more"
        else:
            text += "trust them"
        if (row := _worst(report["bins"])) is not None:
            kind = "too narrow" if row["coverage68"] < 0.68 else "too wide"
            text += f" – but {_where(row)} they hold {100 * row['coverage68']:.0f} %: {kind}"
        parts.append(text)
    if close := report["close"]:
        parts.append(
            f"nearer than {close['merged_within']:.1f} px to a real source, above S/N "
            f"{close['above_snr']:g}, most are seen as one with it"
        )
    by_snr = [row for row in report["bins"] if row["bin"] == "snr"]
    deep = None  # every bin from there on is complete
    for row in reversed(by_snr):
        if row["completeness"] < 0.9:
            break
        deep = row["low"]
    if deep is not None:
        parts.append(f"above S/N {deep:g}, 90 % and more are found")
    elif by_snr:
        row = by_snr[-1]
        parts.append(f"{_where(row)}, {100 * row['completeness']:.0f} % are found")
    for row in report["bins"]:
        if row["bin"] == "mag" and row["false"] > _FALSE * max(row["detections"], 1):
            purity = max(0.0, 1 - row["false"] / max(row["detections"], 1))
            parts.append(f"fainter than {row['low']:.1f} mag purity drops to {100 * purity:.0f} %")
            break
    n, false = report["n_detections"], report["n_negative"]
    parts.append(
        f"{false} false detections on the negative image beside {n} on the image"
        + (f" ({100 * false / n:.1f} %)" if n else "")
    )
    return "; ".join(parts) + "."


def _worst(bins: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Galaxies alike in S/N or separation whose intervals are the most certainly wrong.

    Of what lies in the noise only what is scattered upwards is found, and too bright: left out.
    """
    wrong = []
    for row in bins:
        too_faint = row["bin"] == "snr" and not row["low"]
        if row["bin"] == "mag" or too_faint or "coverage68" not in row:
            continue
        off = abs(row["coverage68"] - 0.68)
        chance = np.sqrt(0.68 * 0.32 / row["judged"])
        if off > max(_FAR_OFF, _N_SIGMA * chance):
            wrong.append((off / chance, row))
    return max(wrong, key=lambda one: one[0])[1] if wrong else None


def _where(row: dict[str, Any]) -> str:
    """A bin of S/N or separation in words."""
    low, high = row["low"], row["high"]
    if row["bin"] == "snr":
        return f"above S/N {low:g}" if high is None else f"of S/N {low:g} to {high:g}"
    if high is None:
        return f"beyond {low:g} px from a real source"
    if low:
        return f"{low:g} to {high:g} px from a real source"
    return f"within {high:g} px of a real source"


def injection_table(report: dict[str, Any]) -> str:
    """The numbers of ``inject.json`` as Markdown."""
    lines = [
        f"**{report['verdict']}**",
        "",
        f"`{report['command']}`",
        "",
        "What is injected has the PSF that the model is told: a wrong one does not show here.",
        "",
        f"{report['n_injected']} galaxies injected into {report['image']}, PSF "
        f"{report['psf_fwhm']:.2f} pixels ({report['psf_drawn']}), noise "
        f"{report['rms']:.4g} per pixel, 5 σ depth {report['depth']:.2f} mag"
        + ("" if report["zeropoint"] is not None else " (assumed: no zero point is known)")
        + f"; model `{report['model']}` {report['weights']}"
        + (f", error factor {given:g}" if (given := report["error_factor_given"]) != 1 else "")
        + ".",
        "",
        "| | injected | found | seen as one with a real source | bias, mag | NMAD, mag "
        "| beyond 0.75 mag | in 68 % interval | detections | on the negative image |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    names = {"snr": "S/N", "mag": "mag", "separation": "separation, px"}

    def cell(row: dict[str, Any], key: str, style: str = ".3f") -> str:
        return format(row[key], style) if row.get(key) is not None else "–"

    for row in report["bins"]:
        style = ".1f" if row["bin"] == "mag" else "g"
        low, high = (None if row[k] is None else format(row[k], style) for k in ("low", "high"))
        ends = f"> {low}" if high is None else f"{low} – {high}"
        lines.append(
            f"| {names[row['bin']]} {ends} | {row['injected']} | {row['completeness']:.2f} | "
            f"{cell(row, 'merged', 'd')} | {cell(row, 'bias', '+.3f')} | {cell(row, 'nmad')} | "
            f"{cell(row, 'outliers')} | {cell(row, 'coverage68', '.2f')} | "
            f"{cell(row, 'detections', 'd')} | {cell(row, 'false', 'd')} |"
        )
    lines += [
        "",
        "Of two that are seen as one the brighter is found, and its flux is that of both: by "
        "separation only the fluxes of those that are seen apart are judged.",
    ]
    lines += ["", "| | in the 68 / 95 % interval (worst bin) |", "|---|---|"]
    for name, one in report["coverage"].items():
        lines.append(f"| {name} | {one['68']:.2f} / {one['95']:.2f} {worst_bins(one, '+.2f')} |")
    if "p_blend" in report:
        said = report["p_blend"]
        lines += [
            "",
            f"Footprint of a detected source touched: {said['overlapping']:.2f} of the injected "
            f"galaxies; mean p_blend {said['mean']:.2f}; calibration error {said['ece']:.3f} "
            f"({said['ece_by_chance']:.3f} of the right probabilities), "
            f"Brier score {said['brier']:.3f}. Real galaxies that nothing detected make true "
            "blends that this comparison does not know.",
        ]
    return "\n".join(lines) + "\n"


def injection_figure(report: dict[str, Any], table: Table) -> Figure:
    """Completeness, flux errors, places of the truth and reliability of p_blend."""
    figure = Figure(figsize=(13, 8), layout="constrained")
    axes = figure.subplots(2, 3)
    for ax, key, label in zip(
        axes[0, :2], ("snr", "separation"), ("S/N", "pixels to a real source"), strict=True
    ):
        rows = [row for row in report["bins"] if row["bin"] == key]
        ends = [row["high"] or 2 * max(row["low"], 1) for row in rows]
        for row, high in zip(rows, ends, strict=True):
            ax.plot([row["low"], high], [row["completeness"]] * 2, lw=3, color="C0")
        ax.set(xlabel=label, ylabel="found", ylim=(0, 1.02))
    axes[0, 0].set_xscale("symlog", linthresh=3)
    axes[0, 0].set_xlim(left=0)
    seen = table[np.asarray(table["found"], bool)]
    flux, true = np.asarray(seen["flux"], float), np.asarray(seen["flux_true"], float)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = 2.5 * np.log10(np.maximum(flux, 1e-30) / true)
    for ax, key, label in (
        (axes[0, 2], "snr", "S/N"),
        (axes[1, 0], "separation", "separation, px"),
    ):
        ax.plot(np.asarray(seen[key], float), error, ".", ms=3)
        ax.axhline(0, color="0.5", lw=0.8)
        ax.set(xlabel=label, ylabel="flux − truth, mag (> 0: too bright)", ylim=(-1.5, 1.5))
    if len(seen):
        axes[0, 2].set_xscale("log")
    plot_pit(np.array(report["places"]["flux"]), axes[1, 1]).set_title("flux")
    if "p_blend" in report:
        said = report["p_blend"]
        plot_reliability(np.array(said["predicted"]), np.array(said["observed"]), axes[1, 2])
        axes[1, 2].set_title("p_blend")
    figure.suptitle(textwrap.fill(report["verdict"], 160), fontsize=9)
    return figure
