"""Counts of galaxies from pixels to population: emulate, segment, infer, count beside it."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "counts.py"


@pytest.mark.slow
def test_counts_of_small_fields_hold_the_truth(tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("counts", SCRIPT)
    counts = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "counts", counts)
    spec.loader.exec_module(counts)
    arguments = f"--fields 2 --calibration 1 --size 200 --steps 150 -o {tmp_path}"
    monkeypatch.setattr(counts, "EDGES", np.array([20.0, 24.0, 25.0, 26.0]))  # few galaxies
    monkeypatch.setattr(sys, "argv", ["counts.py", *arguments.split()])
    counts.main()
    report = json.loads((tmp_path / "counts.json").read_text())
    ours = report["methods"]["posterior draws, corrected"]
    for name in ("slope", "ln_density"):
        assert abs(ours[name]["bias_over_half_width"]) < 3
        assert 0 < ours[name]["half_width"] < 1
    assert {"medians, to 25 mag", "sep, corrected"} < set(report["methods"])
    assert all(np.isfinite(s["bias"]) for m in report["methods"].values() for s in m.values())
    assert (tmp_path / "counts.png").stat().st_size > 5000
    assert "| posterior draws, corrected |" in capsys.readouterr().out
