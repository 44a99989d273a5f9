import json

import numpy as np
import pytest

from probablend.checkpoint import load_model, save_weights
from probablend.emulate.blend import FieldConfig
from probablend.evaluate.field import evaluate_field
from probablend.evaluate.samples import latent_diversity, no_overlap_share


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["small_weights", "field_weights"])
def test_an_evaluation_writes_numbers_a_table_and_figures(weights, galaxies, request, tmp_path):
    model = request.getfixturevalue(weights)
    config = FieldConfig(size=128, mag_range=(20.5, 26))
    results = evaluate_field(
        galaxies, config, tmp_path, n_fields=2, n_samples=2, seed=1, model=model,
        n_stamps=2, command="a command",
    )  # fmt: skip
    written = json.loads((tmp_path / "results.json").read_text())
    assert written == json.loads(json.dumps(results))
    assert set(written["methods"]) == {"ours", "sep"}
    table = (tmp_path / "results.md").read_text()
    assert "`a command`" in table
    assert f"{written['methods']['sep']['completeness']:.3f}" in table
    knows_sources = weights == "field_weights"
    assert (written["methods"]["ours"]["photometry"] is not None) == knows_sources
    for name in ("quicklook.png", "calibration.png"):
        assert (tmp_path / name).stat().st_size > 5_000


def test_a_latent_that_changes_nothing_has_no_diversity(small_weights, scene, tmp_path):
    assert latent_diversity(small_weights, scene) > 0
    network, meta = load_model(small_weights)
    network.head.from_latent.weight.data.zero_()
    save_weights(tmp_path / "dead.safetensors", network, meta, half=False)
    assert latent_diversity(tmp_path / "dead.safetensors", scene) == 0


def test_a_network_that_sees_overlaps_everywhere_never_lets_a_stamp_go_clear(
    galaxies, small_weights, tmp_path
):
    network, meta = load_model(small_weights)
    bias = network.head.layers[-1].bias.data
    for k, expected in ((2, 0.0), (0, 1.0)):  # all blend, all sky
        network.head.layers[-1].weight.data.zero_()
        bias.zero_()
        bias[4 * k : 4 * k + 4] = 50.0  # 2 × 2 pixels per class
        path = tmp_path / f"always{k}.safetensors"
        save_weights(path, network, meta, half=False)
        share = no_overlap_share(galaxies, n_stamps=2, n_samples=2, seed=0, model=path, size=32)
        assert share == {"empty": expected, "isolated": expected}
        assert np.isfinite(list(share.values())).all()
