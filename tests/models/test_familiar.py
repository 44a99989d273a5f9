import pytest
import torch

from probablend.checkpoint import load_model, load_tensors, save_tensors, save_weights
from probablend.emulate.bank import draw_bank
from probablend.emulate.compose import draw_batch
from probablend.emulate.scenes import SceneConfig
from probablend.models.familiar import FALSE_ALARMS, Familiarity


def gaussian(n, seed, n_features=6):
    """Features that hang together, of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(n_features, n_features, generator=torch.Generator().manual_seed(0))
    scale = torch.logspace(-3, 2, n_features)
    return scale * (3 + torch.randn(n, n_features, generator=generator) @ mixing)


@pytest.fixture
def familiar():
    familiarity = Familiarity(6)
    familiarity.learn(gaussian(20_000, 1), gaussian(20_000, 2))
    return familiarity


def test_of_gaussian_features_the_wanted_share_lies_beyond_the_limit(familiar):
    beyond = familiar(gaussian(100_000, 3)) > 1
    assert float(beyond.float().mean()) == pytest.approx(FALSE_ALARMS, rel=0.15)


def test_what_is_far_outside_is_strange_in_every_feature(familiar):
    spread = gaussian(20_000, 1).std(dim=0)
    far = gaussian(1, 4) + 20 * torch.diag(spread)
    assert (familiar(far) > 1).all()


def test_units_of_the_features_do_not_matter(familiar):
    units = torch.logspace(2, -2, 6)
    other = Familiarity(6)
    other.learn(units * gaussian(20_000, 1), units * gaussian(20_000, 2))
    new = gaussian(500, 5)
    torch.testing.assert_close(other(units * new), familiar(new), rtol=0.02, atol=0.0)


def test_a_feature_that_never_changed_teaches_little():
    seen, held_out, new = (gaussian(2000, seed) for seed in (1, 2, 3))
    for features in (seen, held_out, new):
        features[:, 0] = 7.0
    familiarity = Familiarity(6)
    familiarity.learn(seen, held_out)
    assert float((familiarity(new) > 1).float().mean()) < 0.03
    assert torch.isfinite(familiarity.whitening).all()


def test_where_sources_are_few_they_are_not_outvoted():
    # One part of the sky holds fifty times the sources of another, which looks different.
    shift = 8 * torch.diag(gaussian(20_000, 1).std(dim=0))[0]

    def sky(seed):
        crowded, empty = gaussian(20_000, seed), shift + gaussian(400, seed + 10)
        return torch.cat([crowded, empty]), torch.cat([torch.ones(20_000), 50 * torch.ones(400)])

    (seen, weight), (held_out, weight_held_out) = sky(1), sky(2)
    counted, weighted = Familiarity(6), Familiarity(6)
    counted.learn(seen, held_out)
    weighted.learn(seen, held_out, (weight, weight_held_out))
    new = shift + gaussian(2000, 30)
    assert float((counted(new) > 1).float().mean()) > 0.05
    assert float((weighted(new) > 1).float().mean()) < 0.02


def test_a_limit_that_rests_on_a_handful_is_said_to(caplog):
    # As many as two thousand that count alike: ten beyond the limit. Three hundred: one.
    for n, warned in ((2000, False), (300, True)):
        caplog.clear()
        Familiarity(6).learn(gaussian(20_000, 1), gaussian(n, 2))
        assert ("hold out more scenes" in caplog.text) == warned


def test_a_source_counts_by_the_sky_that_it_has_for_itself(field_weights, monkeypatch):
    network, _ = load_model(field_weights)
    stamps = draw_bank(
        "parametric", ["euclid-vis"], "train", n_galaxies=40, n_stars=0, mag_range=(20.0, 24.0),
        seed=1,
    )  # fmt: skip
    scenes = {size: SceneConfig(size=size, mag_range=(20.0, 24.0)) for size in (32, 64)}
    batches = {n: draw_batch(stamps, one, n=6, seed=2, index=0) for n, one in scenes.items()}
    told = []
    monkeypatch.setattr(network.familiar, "learn", lambda *them: told.extend(them))
    network.learn_familiar([batches[32], batches[64]], [batches[64]])
    seen, held_out, (weights, weights_held_out) = told
    assert len(seen) == len(weights)
    assert len(held_out) == len(weights_held_out)
    # Those of a scene have its pixels together; a scene without any counts nothing.
    assert weights_held_out.max() == 64**2 > weights_held_out.min()
    n_small, n_large = (
        sum(bool((batch.sources.scene == k).any()) for k in range(6)) for batch in batches.values()
    )
    assert float(weights_held_out.sum()) % 64**2 == pytest.approx(0, abs=1)
    assert 0 < float(weights_held_out.sum()) <= n_large * 64**2
    assert weights[: len(weights) - len(weights_held_out)].max() <= 32**2
    assert float(weights.sum() - weights_held_out.sum()) <= n_small * 32**2
    torch.testing.assert_close(weights[-len(weights_held_out) :], weights_held_out)


def test_few_sources_teach_nothing():
    familiarity = Familiarity(6)
    familiarity.learn(gaussian(2000, 1), gaussian(20, 2))
    assert (familiarity(1e6 * gaussian(100, 3)) == 0).all()


def test_what_was_learnt_survives_saving_in_half_precision(field_weights, tmp_path):
    network, meta = load_model(field_weights)
    n = network.config.channels[-1]
    network.familiar.learn(gaussian(5000, 1, n), gaussian(5000, 2, n))
    save_weights(tmp_path / "a.safetensors", network, meta, half=True)
    again, _ = load_model(tmp_path / "a.safetensors")
    new = gaussian(1000, 3, n)
    assert torch.equal(again.familiar(new), network.familiar(new))
    assert (again.familiar(new) > 0).all()


def test_weights_without_statistics_find_nothing_strange(field_weights, tmp_path):
    tensors, meta = load_tensors(field_weights)
    older = {key: value for key, value in tensors.items() if not key.startswith("familiar.")}
    assert len(older) < len(tensors)
    save_tensors(tmp_path / "older.safetensors", older, meta)
    network, _ = load_model(tmp_path / "older.safetensors")
    assert (network.familiar(1e6 * torch.randn(50, network.config.channels[-1])) == 0).all()
    del tensors["familiar.mean"]  # half of them are no file of ours
    save_tensors(tmp_path / "odd.safetensors", tensors, meta)
    with pytest.raises(ValueError, match="does not hold the weights of its own settings"):
        load_model(tmp_path / "odd.safetensors")
