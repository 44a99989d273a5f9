"""What was aimed at beside what was reached, from the numbers of results/."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from probablend.evaluate.field import completeness_at

RESULTS = Path(__file__).parent / "results"
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def table(head: str, rows: Iterator[str]) -> str:
    """Markdown."""
    return "\n".join([head, "|---" * (head.count("|") - 1) + "|", *rows])


def methods(name: str) -> dict[str, Any]:
    """Scores of every method of a command."""
    scores: dict[str, Any] = json.loads((RESULTS / name / "results.json").read_text())["methods"]
    return scores


def aims() -> str:
    """What was aimed at, and what was reached."""
    fields = [methods(f"field-{survey}") for survey in ("euclid", "lsst")]
    pairs = methods("pairs")

    def cell(value: float, form: str, reached: bool) -> str:
        return f"{value:{form}}, {'met' if reached else 'missed'}"

    def row(
        text: str, aim: str, get: Callable[[dict[str, Any]], float], form: str, *limits: float,
        most: bool = False,
    ) -> str:  # fmt: skip
        cells = []
        for scores, limit in zip(fields, limits, strict=False):
            value = get(scores["field"])
            cells.append(cell(value, form, abs(value) <= limit if most else value >= limit))
        return f"| {text} | {aim} | {' | '.join(cells + ['–'] * (2 - len(cells)))} |"

    def announced(m: dict[str, Any]) -> float:
        return completeness_at(m["blended_flag"], 0.85) or 0.0

    def flux(m: dict[str, Any]) -> dict[str, Any]:
        return m["photometry"]["flux_blended_snr10"]

    def off(m: dict[str, Any], level: str) -> float:
        coverage = m["photometry"]["coverage"]
        return max((c[level] - float(level) / 100 for c in coverage.values()), key=abs)

    def worst(m: dict[str, Any]) -> float:
        coverage = m["photometry"]["coverage"]
        return max((c[f"{k}_worst_bin"] for c in coverage.values() for k in (68, 95)), key=abs)

    sep = [scores["sep"]["completeness"] for scores in fields]
    others = fields[0]["euclid-vis"]["ged2"]

    def in_fields() -> Iterator[str]:
        yield row(
            "blended galaxies found, at purity 0.95",
            "≥ 0.88, LSST ≥ 0.75",
            lambda m: m["at_purity"]["completeness_blended"],
            ".3f",
            0.88,
            0.75,
        )
        yield row(
            "all found, at purity 0.95",
            f"≥ `sep` ({sep[0]:.3f}, {sep[1]:.3f})",
            lambda m: m["at_purity"]["completeness"],
            ".3f",
            *sep,
        )
        yield row(
            "flux of blended galaxies, S/N > 10: NMAD, mag",
            "≤ 0.12",
            lambda m: flux(m)["nmad"],
            ".3f",
            0.12,
            0.12,
            most=True,
        )
        yield row(
            "… beyond 0.75 mag",
            "≤ 3 %",
            lambda m: flux(m)["outliers"],
            ".1%",
            0.03,
            0.03,
            most=True,
        )
        yield row(
            "… median bias, mag", "± 0.02", lambda m: flux(m)["bias"], "+.3f", 0.02, 0.02, most=True
        )
        for level in ("68", "95"):
            yield row(
                f"{level} % intervals of flux, size, g1, g2: the one that is most off",
                "± 2 points",
                lambda m, k=level: off(m, k),
                "+.3f",
                0.02,
                0.02,
                most=True,
            )
        yield row(
            "… in the worst bin of S/N or separation",
            "± 4 points",
            worst,
            "+.3f",
            0.04,
            0.04,
            most=True,
        )
        yield row(
            "ECE of `P_BLEND`, active pixels",
            "≤ 0.02",
            lambda m: m["ece_blend_active"],
            ".3f",
            0.02,
            0.02,
            most=True,
        )
        yield row(
            "blended galaxies announced, at purity 0.85", "≥ 0.85", announced, ".3f", 0.85, 0.85
        )
        yield row(
            "close pairs seen as one that are announced",
            "≥ 0.70",
            lambda m: (
                m["photometry"]["pairs"]["announced"] / m["photometry"]["pairs"]["unrecognised"]
            ),
            ".2f",
            0.7,
            0.7,
        )
        yield row(
            "samples without overlap, isolated galaxies",
            "≥ 0.95",
            lambda m: m["no_overlap_share"]["isolated"],
            ".3f",
            0.95,
            0.95,
        )
        yield row(
            "… empty stamps", "≥ 0.95", lambda m: m["no_overlap_share"]["empty"], ".3f", 0.95, 0.95
        )
        yield row(
            "GED² below that of the Probabilistic U-Net",
            "≥ 25 %",
            lambda m: 1 - m["ged2"] / others,
            ".0%",
            0.25,
        )

    theirs = pairs["sextractor"]
    whole = sum(m["seconds"] for name, m in pairs.items() if "isophotal" not in name)
    whole += sum(2.048**2 / m["megapixels_per_second"] for m in fields[0].values())

    def off_in_bins(m: dict[str, Any]) -> float:
        rows = [b for b in m["coverage"]["flux"]["bins"] if b["bin"] == "separation"]
        return max((b[k] - float(k) / 100 for b in rows for k in ("68", "95")), key=abs)

    def in_pairs() -> Iterator[str]:
        ours = [pairs[name] for name in ("field", "field-pairs")]
        close = [m["both_found_by_separation"][0] for m in ours]

        def row(text: str, aim: str, values: list[float], form: str,
                reached: Callable[[float], bool]) -> str:  # fmt: skip
            cells = [cell(value, form, reached(value)) for value in values]
            return f"| {text} | {aim} | {' | '.join(cells)} |"

        errors = [m["flux_all"]["mean_relative"] for m in ours]
        yield row("mean abs. flux error", "≤ 6 %", errors, ".1%", lambda v: v <= 0.06)
        times = [theirs["flux_all"]["mean_relative"] / e for e in errors]
        yield row("SExtractor's error over it", "≥ 5", times, ".1f", lambda v: v >= 5)
        yield row(
            "NMAD, mag", "≤ 0.06", [m["flux_all"]["nmad"] for m in ours], ".3f", lambda v: v <= 0.06
        )
        yield row(
            "both found", "≥ 97 %", [m["both_found"] for m in ours], ".1%", lambda v: v >= 0.97
        )
        yield row(
            f"… of the {close[0]['n']} pairs closer than 5 pixels",
            "≥ 60 %",
            [c["found"] / c["n"] for c in close],
            ".0%",
            lambda v: v >= 0.6,
        )
        yield row(
            "more than two objects",
            "≤ 2 %",
            [m["third_source"] for m in ours],
            ".1%",
            lambda v: v <= 0.02,
        )
        yield row(
            "68 and 95 % intervals of flux, the worst bin of separation",
            "± 2 points",
            [off_in_bins(m) for m in ours],
            "+.3f",
            lambda v: abs(v) <= 0.02,
        )
        yield row(
            "scatter / Fisher limit, S/N > 20 and more than 1.5 radii apart",
            "≤ 1.5",
            [m["over_fisher"] for m in ours],
            ".1f",
            lambda v: v <= 1.5,
        )

    def of_others() -> Iterator[str]:
        for name, least in (("blend2flux", 0.082), ("blend2mask2flux", 0.076)):
            error = pairs[name]["flux_all"]["mean_relative"]
            yield (
                f"| mean abs. flux error, `{name}` | ≤ {least:.1%} "
                f"| {cell(error, '.1%', error <= least)} |"
            )
        yield (
            f"| all methods on 1 000 pairs and the Euclid field, minutes | < 15 "
            f"| {cell(whole / 60, '.0f', whole < 900)} |"
        )

    def in_surveys() -> Iterator[str]:
        surveys = json.loads((RESULTS / "surveys" / "results.json").read_text())["surveys"]
        for name, entry in surveys.items():
            field, sep, correlated = (
                entry["methods"][key] for key in ("field", "sep", "field, correlated noise")
            )
            pure = field["at_purity"]
            found = pure["completeness_blended"] if pure else 0.0
            # Where `sep` is less pure than that it is cut by S/N until it is as pure; if it never
            # is, a cut can only lose some of what it finds without.
            rival = sep if sep["purity"] >= 0.95 else sep["at_purity"]
            base = (rival or sep)["completeness_blended"]
            least = 0.5 if name in ("euclid-vis", "lsst-i") else 0.1
            gained = (found - base) / (1 - base)
            if rival or gained >= least:
                said = ("" if rival else "at least ") + cell(gained, ".2f", gained >= least)
            else:
                said = f"at least {gained:.2f}, undecided"
            inside, coloured = (m["photometry"]["coverage"]["flux"]["68"]
                                for m in (field, correlated))  # fmt: skip
            purity = correlated["purity"] - field["purity"]
            cells = [
                said,
                cell(inside - 0.68, "+.3f", abs(inside - 0.68) <= 0.03),
                cell(coloured - inside, "+.3f", abs(coloured - inside) <= 0.02),
                cell(purity, "+.3f", abs(purity) <= 0.02),
            ]
            yield f"| `{name}` | {' | '.join(cells)} |"

    def in_the_sky() -> Iterator[str]:
        report = json.loads((RESULTS / "real-sky" / "real-sky.json").read_text())
        fields, dc2 = report["all_fields"], report["dc2"]
        purity = {m: dc2[m]["found"] / dc2[m]["detections"]
                  for m in ("field", "field, as many as sep", "sep")}  # fmt: skip
        large = report["large_galaxies"]
        single = sum(g["of_more_than_5_percent"] == 1 for g in large)
        held_large = sum(bool(g["in_90_interval"]) for g in large)
        real = methods("real-pairs")
        times = real["sextractor"]["flux_all"]["nmad"] / real["field"]["flux_all"]["nmad"]
        inside = real["field"]["coverage"]["flux"]["68"] - 0.68
        injected = json.loads((RESULTS / "inject" / "results.json").read_text())["images"]
        off = {name: one["coverage"]["flux"]["68"] - 0.68 for name, one in injected.items()}
        kept = [name for name, value in off.items() if abs(value) <= 0.05]
        counts = json.loads((RESULTS / "counts" / "counts.json").read_text())["methods"]
        held = min(s["inside_68"] for s in counts["posterior draws, corrected"].values())
        for text, aim, value, form, reached in (
            (
                "lone `sep` detections above S/N 10 that are found",
                "≥ 97 %",
                fields["found"],
                ".1%",
                fields["found"] >= 0.97,
            ),
            (
                "detections on the negative image",
                "≤ 1 %",
                fields["false"],
                ".1%",
                fields["false"] <= 0.01,
            ),
            (
                "DC2: true galaxies found",
                f"≥ `sep` ({dc2['sep']['found']} of {dc2['truth']})",
                dc2["field"]["found"],
                "d",
                dc2["field"]["found"] >= dc2["sep"]["found"],
            ),
            (
                "DC2: detections that are in its truth, which ends at a magnitude",
                f"≥ `sep` ({purity['sep']:.0%})",
                purity["field"],
                ".0%",
                purity["field"] >= purity["sep"],
            ),
            (
                "… among as many detections as `sep` has, the brightest",
                f"≥ `sep` ({purity['sep']:.0%})",
                purity["field, as many as sep"],
                ".0%",
                purity["field, as many as sep"] >= purity["sep"],
            ),
            (
                f"large galaxies of {len(large)} that come out as one",
                "all",
                single,
                "d",
                single == len(large),
            ),
            (
                "… whose large aperture lies in the 90 % interval of the flux",
                "all",
                held_large,
                "d",
                held_large == len(large),
            ),
            (
                "KiDS r against i: median distance, pixels",
                "≤ 0.5",
                report["kids_r_and_i"]["median_distance"],
                ".2f",
                report["kids_r_and_i"]["median_distance"] <= 0.5,
            ),
            (
                "pairs of real galaxies: SExtractor's NMAD over ours",
                "≥ 3",
                times,
                ".2f",
                times >= 3,
            ),
            ("… 68 % intervals of flux", "± 4 points", inside, "+.3f", abs(inside) <= 0.04),
            (
                f"injections, images of {len(off)} whose 68 % intervals of flux hold 63 to 73 %",
                "all",
                len(kept),
                "d",
                len(kept) == len(off),
            ),
            (
                "number counts, fields whose 68 % intervals hold the truth",
                "≥ 60 %",
                held,
                ".0%",
                held >= 0.6,
            ),
        ):
            yield f"| {text} | {aim} | {cell(value, form, reached)} |"

    def at_scale() -> Iterator[str]:
        tile, speed = (
            json.loads((BENCHMARKS / f"{name}.json").read_text()) for name in ("tile", "speed")
        )
        (largest,) = tile["runs"]
        peak, pixels = largest["peak_gigabytes"], largest["size"]
        yield (
            f"| {pixels}² pixels from start to finish: peak memory, GB | ≤ 2 "
            f"| {cell(peak, '.2f', peak <= 2)} |"
        )
        ratio = speed["fields"]["160"]["probablend, 16 samples"]["speed_over_sextractor"]
        yield (
            "| 16 samples, 160 galaxies per arcmin²: speed over SExtractor's | ≥ 1 "
            f"| {cell(ratio, '.3f', ratio >= 1)} |"
        )

    return "\n\n".join((
        table("| fields, `field` | aim | Euclid | LSST |", in_fields()),
        table("| pairs | aim | `field` | `field-pairs` |", in_pairs()),
        table("| pairs, published networks | aim | reached |", of_others()),
        table(
            "| surveys | of the blended galaxies that `sep` misses, found at purity 0.95 (aim 0.1, "
            "Euclid and LSST 0.5) | 68 % intervals of flux (± 0.03) | correlated noise instead of "
            "white: 68 % intervals (± 0.02) | purity (± 0.02) |",
            in_surveys(),
        ),
        table("| real images and inference | aim | reached |", in_the_sky()),
        table("| large images | aim | reached |", at_scale()),
    ))  # fmt: skip
