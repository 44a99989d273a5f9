"""Write the numbers of results/ into docs/evaluation.md and the README.

The words of the page are those of _templates/evaluation.md. In the README the cells of a table
are filled, whatever rows and columns it has.

python docs/evaluation.py
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aims import RESULTS, aims, methods, table

DOCS = Path(__file__).parent
BENCHMARKS = DOCS.parent / "benchmarks"
README = DOCS.parent / "README.md"


def results(name: str) -> str:
    """The table of a command."""
    return (RESULTS / name / "results.md").read_text()


def file(name: str) -> str:
    """A table that was written."""
    return (RESULTS / name).read_text()


KINDS = {
    "snr": "S/N",
    "separation": "separation, px",
    "relative": "separation / radius",
    "delta_mag": "own magnitude − that of the other",
}


def bins(name: str, method: str, other: str) -> str:
    """Fluxes of a method in bins, those of another one beside them."""

    def scores(method: str) -> dict[str, Any]:
        said = methods(name)[method]
        return said.get("photometry", said)

    def by_bin(rows: list[dict[str, Any]]) -> dict[tuple[Any, ...], dict[str, Any]]:
        return {(b["bin"], b["low"]): b for b in rows}

    ours, theirs = scores(method), by_bin(scores(other)["bins"])
    inside = by_bin(ours["coverage"]["flux"]["bins"])

    def rows() -> Iterator[str]:
        for b in ours["bins"]:
            low, high = b["low"], b["high"]
            span = f"> {low:g}" if high is None else f"< {high:g}" if low is None else (
                f"{low:g} to {high:g}"
            )  # fmt: skip
            cells = [f"{KINDS[b['bin']]} {span}", str(b["n"])]
            cells += [f"{b['mean_relative']:.1%}", f"{b['median_relative']:.1%}"]
            cells += [f"{b['nmad']:.3f}", f"{b['outliers']:.1%}", f"{b['bias']:+.3f}"]
            cells.append(f"{b['over_fisher']:.1f}")
            share = inside.get((b["bin"], low))
            cells.append(f"{share['68']:.2f} / {share['95']:.2f}" if share else "–")
            beside = theirs.get((b["bin"], low))
            cells += [f"{beside['mean_relative']:.1%}", f"{beside['nmad']:.3f}",
                      f"{beside['outliers']:.1%}"] if beside else ["–"] * 3  # fmt: skip
            yield f"| {' | '.join(cells)} |"

    return table(
        "| | n | mean abs. error | median | NMAD, mag | beyond 0.75 mag | bias, mag "
        f"| scatter / Fisher limit | in the 68 / 95 % interval | `{other}`: mean abs. error "
        f"| NMAD | beyond 0.75 |",
        rows(),
    )


def real(name: str) -> str:
    """Scores on real images."""
    report = json.loads((RESULTS / name / f"{name}.json").read_text())
    fields, large = report["all_fields"], report["large_galaxies"]
    kids, dc2 = report["kids_r_and_i"], report["dc2"]
    single = sum(g["of_more_than_5_percent"] == 1 for g in large)
    inside = sum(bool(g["in_90_interval"]) for g in large)

    def rows() -> Iterator[str]:
        yield (
            "| lone `sep` detections above S/N 10 that are found "
            f"| {fields['found']:.1%} of {fields['bright_and_alone']} |"
        )
        yield (
            "| detections on the negative image, of those on the image "
            f"| {fields['false']:.1%} of {fields['detections']} |"
        )
        yield (
            f"| DC2, true galaxies found (`sep`) | {dc2['field']['found']} of {dc2['truth']} with "
            f"{dc2['field']['detections']} detections ({dc2['sep']['found']} with "
            f"{dc2['sep']['detections']}) |"
        )
        equal = dc2["field, as many as sep"]
        yield (
            "| … among as many detections as `sep` has, the brightest "
            f"| {equal['found']} of {equal['detections']} |"
        )
        yield (
            "| KiDS r against i: median distance of the same galaxy "
            f"| {kids['median_distance']:.2f} pixels |"
        )
        yield f"| … `p_blend` on the same side of one half | {kids['same_side_of_one_half']:.0%} |"
        yield (
            "| large galaxies that are one source of more than 5 % of the light "
            f"| {single} of {len(large)} |"
        )
        yield (
            f"| … large aperture within the 90 % interval of the flux | {inside} of {len(large)} |"
        )

    return table("| | |", rows())


def _benchmark(name: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((BENCHMARKS / f"{name}.json").read_text())
    return report


def emulation() -> str:
    """The emulator's share of a training step."""
    report = _benchmark("emulation")
    rows = (
        f"| {name} | {p['emulator_ms_per_scene']:.1f} | {p['step_ms_per_scene']:.1f} "
        f"| {p['emulator_share']:.1%} | {p['share_with_bank']:.1%} |"
        for name, p in report["phases"].items()
    )
    return (
        f"`{report['command']}` ([output](../benchmarks/emulation.json)), bank of "
        f"{report['bank']['megabytes']:.0f} MB:\n\n"
        + table(
            "| scenes | emulator, ms per scene | whole step, ms per scene | share "
            "| with the redrawing of the bank |",
            rows,
        )
    )


def scaling() -> str:
    """Time and memory against size of the image and density of sources."""
    report = _benchmark("scaling")

    def rows(runs: list[dict[str, Any]], first: Callable[[dict[str, Any]], str]) -> Iterator[str]:
        for r in runs:
            yield (
                f"| {first(r)} | {r['sources']} | {r['seconds']:.0f} "
                f"| {r['megapixels_per_second']:.2f} | {r['peak_gigabytes']:.2f} |"
            )

    rest = "sources | s, start to finish | Mpx/s | peak memory, GB |"
    return (
        f"`{report['command']}` ([output](../benchmarks/scaling.json)), {report['samples']} "
        f"samples, catalogue and products, {report['threads']} threads; sizes at "
        f"{report['density']:g} galaxies per arcmin², densities at {report['density_size']}² "
        "pixels:\n\n"
        + table(f"| image | {rest}", rows(report["runs"], lambda r: f"{r['size']}²"))
        + "\n\n"
        + table(
            f"| galaxies per arcmin² | {rest}",
            rows(report["runs_by_density"], lambda r: f"{r['density']:g}"),
        )
    )


def benchmark(name: str) -> str:
    """The table of a benchmark."""
    return (BENCHMARKS / f"{name}.md").read_text()


def tile() -> str:
    """A tile as large as Euclid's."""
    report = _benchmark("tile")
    (run,) = report["runs"]
    return (
        f"An image of {run['size']}² pixels, a tile of Euclid's mosaic "
        f"(`{report['command']}`, [output](../benchmarks/tile.json)): {run['sources']:,} sources, "
        f"{run['seconds'] / 60:.0f} minutes, "
        f"{run['peak_gigabytes']:.2f} GB at most."
    )


def profile() -> str:
    """Shares of the time of a run."""
    shares = _benchmark("speed")["profile"]
    return ", ".join(f"{name} {share:.0%}" for name, share in shares.items()) + "."


MAKERS = {
    "results": results, "file": file, "bins": bins, "real": real, "benchmark": benchmark,
    "emulation": emulation, "scaling": scaling, "aims": aims, "profile": profile, "tile": tile,
}  # fmt: skip


def page() -> str:
    """The page."""
    words = (DOCS / "_templates" / "evaluation.md").read_text()

    def fill(match: re.Match[str]) -> str:
        maker, *names = match[1].split()
        return MAKERS[maker](*names).rstrip("\n")

    return re.sub(r"\{\{(.*?)\}\}", fill, words)


def readme() -> str:
    """The README with its table filled."""
    cells = {}
    head, _, *rows = _rows(results("field-euclid"))
    for name, *values in rows:
        cells |= {(name, column): value for column, value in zip(head[1:], values, strict=True)}
    text = README.read_text()
    chosen = re.search(r"^\| \| field \|.*\n(\|.*\n)+", text, re.MULTILINE)
    assert chosen is not None
    head, _, *rows = _rows(chosen[0])
    filled = [[name, *(cells[name, column] for column in head[1:])] for name, *_ in rows]
    lines = ["| " + " | ".join(row).lstrip() + " |" for row in (head, *filled)]
    return text.replace(chosen[0], "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:], ""]))


def _rows(text: str) -> list[list[str]]:
    """Cells of a table."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


if __name__ == "__main__":
    (DOCS / "evaluation.md").write_text(page())
    README.write_text(readme())
