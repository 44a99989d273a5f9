import csv
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from probablend.banks import BanksAhead
from probablend.checkpoint import load_model, load_tensors
from probablend.config import BankConfig, OptimizerConfig, TrainConfig, read_train_config
from probablend.emulate.bank import draw_bank, load_bank
from probablend.emulate.scenes import SceneConfig
from probablend.models import MODELS, build_model
from probablend.models.start import take_over
from probablend.survey import PSF_RANGE, get_survey
from probablend.train import _Best, _sky, familiarise, train


def small(kind="punet", n_steps=6):
    own = {
        "field": {"context": 12, "flow_hidden": [16], "head_width": 6, "n_draws": 2},
        "unet": {},
        "punet": {"latent_dim": 2},
        "hpunet": {"n_latent_levels": 1},
        "ssn": {"rank": 2, "n_samples": 3},
        "pairs": {"flux_channels": [4, 6], "dense": 8},
    }
    model = {"kind": kind, "channels": [4, 6], "n_convs": 1, "patch_size": 32, **own[kind]}
    return TrainConfig(
        name="small",
        seed=4,
        model=model,
        bank=BankConfig(n_galaxies=40, n_stars=4),
        scenes=SceneConfig(size=32, mag_range=(21.0, 26.0), pair_fraction=float(kind == "pairs")),
        optimizer=OptimizerConfig(n_steps=n_steps, batch_size=4),
        n_validation=8,
        validate_every=3,
        checkpoint_every=2,
    )


def read_log(folder):
    with (folder / "log.csv").open() as handle:
        return list(csv.DictReader(handle))


@pytest.mark.parametrize(
    ("kind", "average"), [("punet", 0.0), ("hpunet", 0.0), ("field", 0.0), ("field", 0.8)]
)
def test_a_resumed_training_ends_like_an_unbroken_one(tmp_path, kind, average):
    config = small(kind)
    config = replace(config, optimizer=replace(config.optimizer, average=average))
    train(config, tmp_path / "whole", device="cpu")
    train(config, tmp_path / "broken", device="cpu", stop_after=4)
    train(config, tmp_path / "broken", device="cpu", resume=True)
    whole, state = load_tensors(tmp_path / "whole" / "last.safetensors")
    broken, other = load_tensors(tmp_path / "broken" / "last.safetensors")
    assert whole.keys() == broken.keys()
    for key in whole:
        assert torch.equal(whole[key], broken[key]), key
    assert state["step"] == other["step"] == 6
    a, b = (read_log(tmp_path / d) for d in ("whole", "broken"))
    for row, same in zip(a, b, strict=True):
        assert {k: v for k, v in row.items() if k != "seconds"} == {
            k: v for k, v in same.items() if k != "seconds"
        }


def test_what_is_kept_is_the_running_mean_of_the_weights(tmp_path):
    config = replace(small("unet", n_steps=3), checkpoint_every=1)
    config = replace(config, optimizer=replace(config.optimizer, average=0.75))
    states = []
    for step in (1, 2, 3):
        best = train(config, tmp_path, device="cpu", resume=step > 1, stop_after=step)
        states.append(load_tensors(tmp_path / "last.safetensors")[0])
    name = "head.weight"
    first, second, third = (state[f"model.{name}"] for state in states)
    mean = 0.75 * (0.75 * first + 0.25 * second) + 0.25 * third
    assert not torch.allclose(third, mean, rtol=1e-3)
    kept = load_model(best)[0].state_dict()[name]
    torch.testing.assert_close(kept, mean, rtol=2e-3, atol=1e-5)  # kept in half precision


@pytest.mark.parametrize("kind", list(MODELS))
def test_training_lowers_the_loss_and_exports_weights(tmp_path, kind):
    best = train(small(kind, n_steps=30), tmp_path, device="cpu")
    rows = read_log(tmp_path)
    assert float(rows[-1]["loss"]) < 0.98 * float(rows[0]["loss"])
    network, meta = load_model(best)
    assert meta["config"]["seed"] == 4
    assert meta["model"]["kind"] == kind
    assert meta["metrics"]["loss"] == pytest.approx(min(float(r["loss"]) for r in rows), rel=1e-4)
    said = network(torch.zeros(1, 1, 32, 32))
    if kind == "pairs":
        assert {"iou_overlap", "flux_mean_relative"} <= set(meta["metrics"])
        assert said.mask_logits.shape == (1, 3, 32, 32)
    else:
        assert {"iou_galaxy", "diversity"} <= set(meta["metrics"])
        assert said.mean(2).shape == (1, 3, 32, 32)
    assert list((tmp_path / "tensorboard").glob("events*"))
    assert (tmp_path / "small.json").is_file()


def test_a_folder_with_a_training_is_not_overwritten(tmp_path):
    train(small(n_steps=2), tmp_path, device="cpu")
    with pytest.raises(FileExistsError, match="resume"):
        train(small(n_steps=2), tmp_path, device="cpu")
    with pytest.raises(ValueError, match="another configuration"):
        train(replace(small(n_steps=2), seed=5), tmp_path, device="cpu", resume=True)
    with pytest.raises(FileNotFoundError, match="holds no training to go on with"):
        train(small(), tmp_path / "empty", device="cpu", resume=True)


def test_what_was_drawn_for_a_survey_that_has_changed_since_is_not_used(tmp_path):
    said = "name = 'm'\npixel_scale = 0.1\nzeropoint = 30\ngain = 3\nsky_rms = 4\n"
    path = tmp_path / "m.toml"
    path.write_text(said + "psf_fwhm = 0.2\n")
    config = replace(small(n_steps=4), surveys=(str(path),))
    train(config, tmp_path / "run", device="cpu", stop_after=2)
    path.write_text(said + "psf_fwhm = 0.4\n")
    with pytest.raises(ValueError, match=r"configuration \(what the files of surveys say\)"):
        train(config, tmp_path / "run", device="cpu", resume=True)
    (tmp_path / "run" / "last.safetensors").unlink()  # killed before there was one
    with pytest.raises(ValueError, match="was drawn for another configuration"):
        train(config, tmp_path / "run", device="cpu")
    path.write_text(said + "psf_fwhm = 0.2\n")
    train(config, tmp_path / "run", device="cpu")


def test_which_setting_differs_is_said(tmp_path):
    train(small(n_steps=2), tmp_path, device="cpu")
    optimizer = replace(small(n_steps=2).optimizer, beta=0.5)
    other = replace(small(n_steps=2), optimizer=optimizer, seed=7)
    with pytest.raises(ValueError, match=r"configuration \(seed, optimizer.beta\)"):
        train(other, tmp_path, device="cpu", resume=True)


def test_the_shipped_configurations_can_be_read():
    from importlib.resources import files

    paths = [p for p in (files("probablend") / "configs").iterdir() if p.name.endswith(".toml")]
    assert paths
    for path in paths:
        config = read_train_config(path)
        assert path.name == f"{config.name}.toml"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name = 'a'\nstepz = 3", "unknown settings"),
        ("surveys = ['x']", "name"),
        ("name = 3", "must be str"),
        ("name = 'a'\n[optimizer]\nn_steps = 'many'", "n_steps must be int"),
        ("name = 'a'\n[scenes]\nmag_range = [1]", "must be a list: 2 of numbers; got \\[1\\]"),
        ("name = 'a'\nsurveys = 'my.toml'", "surveys must be a list: text; got 'my.toml'"),
        ("name = 'a'\nsurveys = []", "surveys must name one"),
        ("name = 'a'\nseed = -1", "seed must lie between 0"),
        ("seed = 3", "lacks name"),
        ("name = 'a'\nfresh = ['head']", "without start_from"),
        ("name = 'a'\n[optimizer]\nwarmup = 2.0", "warmup must lie between 0 and 1"),
        ("name = 'a'\n[optimizer]\ngradient_clip = 0.0", "gradient_clip must be positive"),
        ("name = 'a'\n[optimizer]\npatience = -1", "patience must be 0 or more"),
        ("name = 'a'\n[bank]\nn_galaxies = 1", "n_galaxies must be at least 4; got 1"),
        ("name = 'a'\n[bank]\nn_stars = -6", "n_stars must be 0 or more"),
        ("name = 'a'\n[scenes]\ndensity_range = [60.0, inf]", "density_range must be positive"),
        ("name = 'a'\n[scenes]\npair_fraction = 0.7\nisolated_fraction = 0.7", "at most 1"),
        ("name = 'a'\nmodel = 3", "model must be a table of settings; got 3"),
        ("name = ", "not valid TOML"),
    ],
)
def test_a_bad_configuration_is_refused_in_words(tmp_path, text, said):
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        read_train_config(path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_train_config(tmp_path / "none.toml")


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path, monkeypatch):
    from probablend.models import UNet

    def broken(self, batch, **_):
        return {"loss": self(batch.image).logits.sum() * np.inf}

    monkeypatch.setattr(UNet, "training_loss", broken)
    with pytest.raises(ValueError, match="not finite at step 0"):
        train(small("unet"), tmp_path, device="cpu")


def test_what_was_logged_after_the_checkpoint_is_not_logged_twice(tmp_path):
    config = replace(small(n_steps=9), validate_every=1, checkpoint_every=4)
    train(config, tmp_path, device="cpu", stop_after=4)
    rows = read_log(tmp_path)
    with (tmp_path / "log.csv").open("a") as handle:  # it died after step 5
        handle.write(",".join("5" for _ in rows[0]) + "\n")
        handle.write("6,1.")  # while it wrote
    train(config, tmp_path, device="cpu", resume=True)
    assert [int(row["step"]) for row in read_log(tmp_path)] == list(range(1, 10))


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "last"},
        {"name": "best"},
        {"name": "../x"},
        {"validate_every": 0},
        {"model": {"kind": "punet", "patch_size": 64}},
    ],
)
def test_a_training_that_cannot_work_is_refused_at_once(wrong):
    with pytest.raises(ValueError, match="must be"):
        replace(small(), **wrong)
    with pytest.raises(ValueError, match="must"):
        OptimizerConfig(n_steps=0)
    with pytest.raises(ValueError, match="must"):
        SceneConfig(density_range=(0.0, 10.0))


def test_a_misspelt_network_is_refused_before_anything_is_drawn(tmp_path):
    config = replace(small(), model={"kind": "punet", "chanels": [4]})
    with pytest.raises(ValueError, match="unknown settings"):
        train(config, tmp_path / "new", device="cpu")
    with pytest.raises(ValueError, match=r"no cuda device|device must be"):
        train(small(), tmp_path / "new", device="cuda" if not torch.cuda.is_available() else "x")
    assert not (tmp_path / "new").exists()


def test_parts_of_a_network_can_start_afresh(tmp_path):
    first = train(small("field", n_steps=2), tmp_path / "a", device="cpu")
    still = OptimizerConfig(n_steps=1, batch_size=4, learning_rate=1e-12)
    config = replace(small("field"), start_from=str(first), optimizer=still)
    other = replace(config, model={**config.model, "photometry": True, "gather_hidden": [7]})
    with pytest.raises(ValueError, match="must be named as fresh"):
        train(other, tmp_path / "b", device="cpu")
    with pytest.raises(ValueError, match="fresh names nothing"):
        train(replace(config, fresh=("nothing",)), tmp_path / "c", device="cpu")
    parts = ("gather", "photometry", "kind", "flow")
    second = train(replace(other, fresh=parts), tmp_path / "d", device="cpu")
    old, new = (load_model(path)[0].state_dict() for path in (first, second))
    assert any(key.startswith("photometry.") for key in new)
    kept = [key for key in old if key.split(".")[0] not in parts and "running" not in key]
    assert len(kept) > 10
    for key in kept:
        if old[key].is_floating_point():
            torch.testing.assert_close(new[key], old[key], rtol=1e-3, atol=1e-5)


def test_trained_weights_know_their_training(tmp_path, monkeypatch, small_weights):
    monkeypatch.setattr("probablend.models.familiar._FEWEST", 4)
    # So early it dares nothing.
    monkeypatch.setattr("probablend.models.field_distribution._HEAT_LEVEL", 0.0)
    config = small("field")
    train(config, tmp_path / "whole", device="cpu")
    # Only weights that do have the name of the training.
    so_far = train(config, tmp_path / "broken", device="cpu", stop_after=4)
    assert so_far == tmp_path / "broken" / "best.safetensors"
    assert not load_model(so_far)[0].familiar.whitening.any()
    weights = tmp_path / "broken" / "small.safetensors"
    assert not weights.exists()
    assert train(config, tmp_path / "broken", device="cpu", resume=True) == weights
    assert not list(weights.parent.glob("best.*"))
    whole, broken = (
        load_tensors(tmp_path / d / "small.safetensors")[0] for d in ("whole", "broken")
    )
    assert whole["familiar.whitening"].any()
    for key in whole:
        assert torch.equal(whole[key], broken[key]), key
    moved = familiarise(weights, config, tmp_path / "broken", output=tmp_path / "b.safetensors")
    assert torch.equal(load_tensors(moved)[0]["familiar.mean"], whole["familiar.mean"])
    later = replace(config, start_from=str(weights), validate_every=1)
    unfinished = train(later, tmp_path / "later", device="cpu", stop_after=1)
    assert not load_model(unfinished)[0].familiar.whitening.any()  # that was another training
    with pytest.raises(ValueError, match="no field model"):
        familiarise(small_weights, config, tmp_path / "whole")


@pytest.mark.parametrize(("kind", "galaxies"), [("isolated_fraction", 1), ("pair_fraction", 2)])
def test_large_skies_are_no_lone_galaxies(kind, galaxies):
    # One galaxy would count as much there as hundreds, see Familiarity.
    scenes = replace(small().scenes, **{kind: 1.0}, density_range=(3000.0, 3000.0))
    config = replace(small("field"), scenes=scenes)
    bank = draw_bank(
        "parametric", ["euclid-vis"], "train", n_galaxies=20, n_stars=0, mag_range=(21.0, 26.0),
        seed=1,
    )  # fmt: skip
    batches = list(_sky(config, bank, 6))
    sizes = [batch.image.shape[-1] for batch in batches]
    assert sizes == [32] * 6 + [96] * 6
    for batch, size in zip(batches, sizes, strict=True):
        n = torch.bincount(batch.sources.scene, minlength=len(batch.image))
        assert (n == galaxies).all() == (size == 32)


def test_a_training_can_start_from_earlier_weights(tmp_path):
    first = train(small(n_steps=3), tmp_path / "a", device="cpu")
    still = OptimizerConfig(n_steps=1, batch_size=4, learning_rate=1e-12)
    config = replace(small(), start_from=str(first), optimizer=still)
    train(config, tmp_path / "b", device="cpu")
    earlier, _ = load_model(first)
    tensors, _ = load_tensors(tmp_path / "b" / "last.safetensors")
    for key, value in earlier.named_parameters():
        torch.testing.assert_close(tensors[f"model.{key}"], value.detach(), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="is another network"):
        train(replace(small("unet"), start_from=str(first)), tmp_path / "c", device="cpu")
    assert not (tmp_path / "c").exists()


def test_what_starts_from_weights_is_their_network_if_no_other_is_named(tmp_path):
    first = train(small("field", n_steps=1), tmp_path / "a", device="cpu")
    text = f'name = "mine"\nstart_from = "{first}"\nn_validation = 4\n'
    text += "[bank]\nn_galaxies = 8\nn_stars = 2\n[scenes]\nsize = 64\nmag_range = [21.0, 25.0]\n"
    text += "[optimizer]\nn_steps = 1\nbatch_size = 2\n"
    (tmp_path / "mine.toml").write_text(text)
    config = read_train_config(tmp_path / "mine.toml")
    mine, _ = load_model(train(config, tmp_path / "b", device="cpu"))
    before, _ = load_model(first)
    assert mine.config == replace(before.config, patch_size=64)
    (tmp_path / "mine.toml").write_text(text.replace(str(first), "nowhere.safetensors"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_train_config(tmp_path / "mine.toml")


def test_what_earlier_weights_have_seen_is_not_out_of_range(tmp_path):
    first = train(small(n_steps=1), tmp_path / "a", device="cpu")
    faint = replace(small().scenes, mag_range=(24.0, 25.0))
    config = replace(small(n_steps=1), start_from=str(first), scenes=faint)
    before, after, alone = (
        load_model(weights)[1]["trained_range"]
        for weights in (
            first,
            train(config, tmp_path / "b", device="cpu"),
            train(replace(config, start_from=""), tmp_path / "c", device="cpu"),
        )
    )
    assert after["flux"] == before["flux"]
    assert alone["flux"][1] < 0.1 * before["flux"][1]
    assert after["hlr"][1] >= before["hlr"][1]
    # Nor after a training that was broken off.
    config = replace(config, optimizer=replace(config.optimizer, n_steps=2), validate_every=1)
    train(config, tmp_path / "d", device="cpu", stop_after=1)
    resumed = train(config, tmp_path / "d", device="cpu", resume=True)
    assert load_model(resumed)[1]["trained_range"]["flux"] == before["flux"]


def test_a_survey_sharper_than_any_that_might_be_is_in_the_range(tmp_path):
    bank = BankConfig(n_galaxies=8, n_stars=2, n_random_surveys=1)
    config = replace(small(n_steps=1), surveys=("roman-f158",), bank=bank)
    low, high = load_model(train(config, tmp_path, device="cpu"))[1]["trained_range"]["psf_fwhm"]
    assert low == pytest.approx(get_survey("roman-f158").psf_fwhm_pixels, abs=0.1)
    assert low < PSF_RANGE[0]
    assert high >= PSF_RANGE[1]


@pytest.mark.slow
def test_held_out_scenes_are_of_other_surveys_that_might_be(tmp_path):
    bank = BankConfig(n_galaxies=20, n_stars=2, refresh_every=1, n_random_surveys=2)
    train(replace(small("field", n_steps=2), bank=bank), tmp_path, device="cpu")
    names = ("train-1", "validation-0")
    widths = [load_bank(tmp_path / f"bank-{name}.safetensors").psf_fwhm for name in names]
    assert widths[0][0] == widths[1][0]  # the one with a name
    assert len({float(v) for w in widths for v in w[1:]}) == 4
    assert not (tmp_path / "bank-train-0.safetensors").exists()  # it is needed no more


@pytest.mark.slow
def test_processes_that_draw_ahead_change_nothing(tmp_path):
    bank = BankConfig(n_galaxies=20, n_stars=2, refresh_every=2, n_random_surveys=1)
    config = replace(small("field", n_steps=5), bank=bank)
    one = train(config, tmp_path / "alone", device="cpu")
    other = train(config, tmp_path / "ahead", device="cpu", workers=2)
    for name in ("bank-train-2", "bank-validation-0"):
        banks = [load_tensors(tmp_path / d / f"{name}.safetensors")[0] for d in ("alone", "ahead")]
        assert all(torch.equal(banks[0][key], banks[1][key]) for key in banks[0])
    first, second = (load_tensors(path)[0] for path in (one, other))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.slow
def test_what_happens_to_processes_that_draw_ahead_is_said(tmp_path, caplog):
    bad = replace(small("field"), bank=BankConfig(source="cosmos:nowhere.fits"))
    with (
        BanksAhead(bad, tmp_path, 0, 6, 1) as banks,
        pytest.raises(ValueError, match=r"nowhere\.fits not found"),
    ):
        banks.wait_for(0)
    with BanksAhead(small("field"), tmp_path, 0, 6, 1) as banks:
        for process in banks.pool._processes.values():
            process.kill()
        banks.wait_for(0)
    assert "has died: going on without" in caplog.text
    banks.wait_for(1)  # the training draws it itself


def test_a_wider_network_starts_with_what_the_narrower_one_said():
    settings = {
        "kind": "field", "channels": [4, 6, 8], "context": 6, "gather_hidden": [9, 7],
        "photometry": True, "knows_noise": True, "n_sectors": 4, "flow_hidden": [16, 16],
    }  # fmt: skip
    wider = {
        "channels": [5, 6, 11], "knows_sky": True, "context": 8, "gather_hidden": [10, 7],
        "latent_channels": 5, "flow_hidden": [20, 16],
    }  # fmt: skip
    torch.manual_seed(5)
    narrow, wide = build_model(settings), build_model(settings | wider)
    with torch.no_grad():
        for network in (narrow, wide):
            for parameter in network.parameters():
                parameter.normal_(std=0.3)
    narrow.eval()
    take_over(wide, narrow, [])
    image = 4 * torch.randn(2, 1, 48, 48, generator=torch.Generator().manual_seed(8))
    at = torch.tensor([0, 1]), torch.tensor([20.3, 30.0]), torch.tensor([11.0, 40.8])
    told = {
        "noise_factors": torch.tensor([[1.0, 1.1], [1.9, 2.4]]),
        "psf_fwhm": torch.tensor([2.0, 3.0]),
    }
    with torch.inference_mode():
        one, other = narrow(image, **told), wide.eval()(image, **told)
        torch.testing.assert_close(one.heat_logits, other.heat_logits)
        cells = [said.network.head(said.projected, None) for said in (one, other)]
        torch.testing.assert_close(*cells)
        densities = [
            said.sources(*at, torch.ones(2), detected=True).log_prob(truth) for said in (one, other)
            for truth in [torch.tensor([[80.0, 2, 0.1, 0, 20, 11, 5, 0.1, 0, 0.1]] * 2)]
        ]  # fmt: skip
        torch.testing.assert_close(*densities)
    for other in ({"apertures": [1.0, 2.0, 3.0, 4.0, 8.0]}, {"channels": [4, 6, 8, 9]}, {"stem": 4},
                  {"latent_spacings": [4, 12, 20]}, {"context": 5}):  # fmt: skip
        with pytest.raises(ValueError, match="is another network"):
            take_over(build_model(settings | wider | other), narrow, [])
    flat = {"kind": "unet", "channels": [4, 6]}
    with pytest.raises(ValueError, match="is another network"):
        take_over(build_model(flat | {"channels": [5, 8]}), build_model(flat), [])


def test_what_a_network_is_told_beyond_its_forerunner_counts_for_nothing_yet(tmp_path):
    first = train(small("field", n_steps=3), tmp_path / "a", device="cpu")
    still = OptimizerConfig(n_steps=1, batch_size=4, learning_rate=1e-12)
    config = replace(small("field"), start_from=str(first), optimizer=still)
    config = replace(config, model={**config.model, "knows_noise": True, "n_sectors": 6})
    earlier = load_model(first)[0].eval()
    told = load_model(train(config, tmp_path / "b", device="cpu"))[0]
    told.load_state_dict(  # statistics of the batches that one step saw
        {k: v for k, v in earlier.state_dict().items() if "running" in k}, strict=False
    )
    image = 4 * torch.randn(2, 1, 48, 48, generator=torch.Generator().manual_seed(8))
    at = torch.tensor([0, 1]), torch.tensor([20.3, 30.0]), torch.tensor([11.0, 40.8])
    with torch.inference_mode():
        one, other = (
            earlier(image),
            told.eval()(image, noise_factors=torch.tensor([[1.0, 1.1], [1.9, 2.4]])),
        )
        torch.testing.assert_close(one.heat_logits, other.heat_logits, rtol=0, atol=1e-4)
        contexts = (said.context(*at, detected=True) for said in (one, other))
        torch.testing.assert_close(*contexts, rtol=0, atol=1e-4)


def test_what_is_frozen_stays_and_the_rest_learns(tmp_path):
    first = train(small("field", n_steps=2), tmp_path / "a", device="cpu")
    config = replace(
        small("field", n_steps=3), start_from=str(first), frozen=("encoder", "decoder", "heat")
    )
    before = load_model(first)[0].state_dict()
    after = load_model(train(config, tmp_path / "b", device="cpu"))[0].state_dict()
    for part, stays in (("encoder", True), ("decoder", True), ("heat", True), ("flow", False),
                        ("gather", False), ("head", False)):  # fmt: skip
        own = [key for key in before if key.startswith(part + ".")]
        assert own
        assert all(torch.equal(before[key], after[key]) for key in own) == stays, part
    with pytest.raises(ValueError, match="frozen names mouth; the network has"):
        train(replace(config, frozen=("mouth",)), tmp_path / "c", device="cpu")
    everything = tuple(name for name, _ in load_model(first)[0].named_children())
    with pytest.raises(ValueError, match="nothing is left to learn"):
        train(replace(config, frozen=everything), tmp_path / "c", device="cpu")
    assert not (tmp_path / "c").exists()


def test_a_training_with_frozen_parts_is_resumed_to_the_bit(tmp_path):
    first = train(small("field", n_steps=2), tmp_path / "a", device="cpu")
    config = replace(small("field", n_steps=4), start_from=str(first), frozen=("encoder", "flow"))
    whole = load_model(train(config, tmp_path / "whole", device="cpu"))[0].state_dict()
    train(config, tmp_path / "parts", device="cpu", stop_after=2)
    resumed = load_model(train(config, tmp_path / "parts", device="cpu", resume=True))[0]
    for key, value in resumed.state_dict().items():
        assert torch.equal(value, whole[key]), key


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one_with_both_batches(tmp_path):
    text = """
    name = "two"
    seed = 3
    n_validation = 4
    validate_every = 1
    [model]
    kind = "field"
    channels = [4, 6]
    n_convs = 1
    context = 8
    flow_hidden = [8]
    head_width = 4
    [bank]
    n_galaxies = 40
    n_stars = 4
    [scenes]
    size = 32
    [optimizer]
    n_steps = 4
    batch_size = 4
    n_batches = 2
    """
    (tmp_path / "two.toml").write_text(text)
    logs = {}
    for devices in (1, 2):
        command = [sys.executable, "-m", "probablend.cli", "train", tmp_path / "two.toml", "-o",
                   tmp_path / str(devices), "--device", "cpu", "--devices", devices]  # fmt: skip
        done = subprocess.run([str(c) for c in command], capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr.decode()
        logs[devices] = read_log(tmp_path / str(devices))
    assert len(logs[1]) == len(logs[2]) == 4
    for one, two in zip(logs[1], logs[2], strict=True):
        for key in one:
            if key.startswith("train_"):
                assert float(two[key]) == pytest.approx(float(one[key]), rel=1e-3), key
    with pytest.raises(ValueError, match="cannot share"):
        train(small(), tmp_path / "x", device="cpu", devices=2)


def test_a_training_begins_with_the_one_that_it_names(tmp_path, monkeypatch):
    """One command trains all parts; killed in the second one, it goes on there."""
    first = small("unet", n_steps=2)
    (tmp_path / "first.toml").write_text(
        'name = "first"\nseed = 4\nn_validation = 8\nvalidate_every = 2\n'
        '[model]\nkind = "unet"\nchannels = [4, 6]\nn_convs = 1\n'
        "[bank]\nn_galaxies = 40\nn_stars = 4\n"
        "[scenes]\nsize = 32\nmag_range = [21.0, 26.0]\n"
        "[optimizer]\nn_steps = 2\nbatch_size = 4\n"
    )
    monkeypatch.chdir(tmp_path)
    second = replace(first, name="second", start_from="first.toml", seed=9)
    train(second, tmp_path / "runs", device="cpu", stop_after=1)
    before = tmp_path / "runs" / "first" / "first.safetensors"
    made = before.stat().st_mtime_ns
    train(second, tmp_path / "runs", device="cpu", resume=True)
    assert before.stat().st_mtime_ns == made
    assert [row["step"] for row in read_log(tmp_path / "runs")] == ["2"]
    # As if the weights had been named.
    train(replace(second, start_from=str(before)), tmp_path / "named", device="cpu")
    a, b = (load_model(tmp_path / d / "second.safetensors")[0] for d in ("runs", "named"))
    for key, value in a.state_dict().items():
        torch.testing.assert_close(value, b.state_dict()[key])
    with pytest.raises(ValueError, match=r"train first\.toml first"):
        train(replace(second, optimizer=OptimizerConfig(n_batches=2)), tmp_path / "x", devices=2)
    with pytest.raises(FileNotFoundError, match=r"other\.toml does not exist"):
        train(replace(second, start_from="other.toml"), tmp_path / "y")


def test_a_training_that_becomes_no_better_stops(tmp_path, monkeypatch):
    scores = iter([5.0, 4.0, 4.5, 4.2, 4.1, 3.0])
    monkeypatch.setattr("probablend.train.validate", lambda *a, **k: {"loss": next(scores)})
    config = replace(small("unet", n_steps=6), validate_every=1)
    config = replace(config, optimizer=replace(config.optimizer, patience=2))
    train(config, tmp_path, device="cpu")
    assert [row["step"] for row in read_log(tmp_path)] == ["1", "2", "3", "4"]
    assert load_tensors(tmp_path / "last.safetensors")[1]["step"] == 4
    assert load_model(tmp_path / "small.safetensors")[1]["metrics"]["loss"] == 4.0


def test_of_losses_as_good_as_equal_the_better_calibrated_weights_are_kept():
    best = _Best()
    assert best.add({"loss": -100.0, "coverage_error": 0.10})
    assert best.add({"loss": -99.95, "coverage_error": 0.04})  # as good, and better calibrated
    assert not best.add({"loss": -100.02, "coverage_error": 0.08})
    assert best.add({"loss": -102.0, "coverage_error": 0.09})  # better by more than that
    assert not best.add({"loss": -90.0, "coverage_error": 0.01})
    assert best.stale == 0  # calibration went on to improve
    assert not best.add({"loss": -90.0, "coverage_error": 0.02})
    assert best.stale == 1


def test_what_is_kept_is_never_far_from_the_lowest_loss():
    best, kept = _Best(), 0.0
    for k in range(60):
        loss = 100.0 * 0.9995**k
        if best.add({"loss": loss, "coverage_error": 0.05 + 0.001 * (k > 0)}):
            kept = loss
        assert kept <= 1.0011 * loss
    assert best.add({"loss": 90.0, "coverage_error": float("nan")})  # not known is no better
    assert not best.add({"loss": 90.0, "coverage_error": float("nan")})


def test_a_finished_training_is_left_as_it_is(tmp_path):
    config = small("unet", n_steps=2)
    best = train(config, tmp_path, device="cpu")
    last = (tmp_path / "last.safetensors").stat().st_mtime_ns
    assert train(config, tmp_path, device="cpu", resume=True) == best
    assert (tmp_path / "last.safetensors").stat().st_mtime_ns == last


def test_a_training_that_would_come_before_itself_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = '[model]\nkind = "unet"\n'
    (tmp_path / "a.toml").write_text('name = "a"\nstart_from = "b.toml"\n' + text)
    (tmp_path / "b.toml").write_text('name = "b"\nstart_from = "a.toml"\n' + text)
    config = read_train_config(tmp_path / "a.toml")
    with pytest.raises(ValueError, match=r"a\.toml would come before itself \(a < b\)"):
        train(config, tmp_path / "runs", device="cpu")


def test_an_earlier_part_that_was_killed_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = replace(small("unet", n_steps=4), name="first", validate_every=1, checkpoint_every=4)
    folder = tmp_path / "runs" / "first"
    train(first, folder, device="cpu", stop_after=2)
    (folder / "last.safetensors").unlink()  # killed between the weights and the checkpoint
    monkeypatch.setattr("probablend.train.read_train_config", lambda path: first)
    second = replace(small("unet", n_steps=1), name="second", start_from="first.toml")
    train(second, tmp_path / "runs", device="cpu")
    assert [row["step"] for row in read_log(folder)] == ["1", "2", "3", "4"]
