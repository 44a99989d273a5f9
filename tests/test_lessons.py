"""Learning from what was seen once: it is what a training on scenes would learn from."""

from dataclasses import fields, replace

import pytest
import torch

from probablend.checkpoint import load_model, load_tensors
from probablend.config import BankConfig, OptimizerConfig, TrainConfig
from probablend.emulate.bank import draw_bank
from probablend.emulate.compose import draw_batch
from probablend.emulate.scenes import SceneConfig
from probablend.lessons import Lessons, _lesson_of, _tensors_of
from probablend.models import field_loss
from probablend.models.field_loss import learn, study, training_loss
from probablend.survey import get_survey
from probablend.train import train

FROZEN = ("encoder", "decoder", "head", "heat")
ABOUT_SOURCES = ("existence", "flow_peaks", "flow", "star", "existence_given", "photometry")


@pytest.fixture(scope="module")
def scenes():
    bank = draw_bank(
        "parametric", [get_survey("euclid-vis")], "train", n_galaxies=40, n_stars=6,
        mag_range=(20.0, 24.0), seed=2,
    )  # fmt: skip
    config = SceneConfig(size=48, mag_range=(20.0, 24.0), isolated_fraction=0.5)
    return draw_batch(bank, config, n=6, seed=1, index=0)


@pytest.fixture(params=["field_weights", "fitting_weights"])
def weights(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def config(weights):
    return TrainConfig(
        name="small",
        seed=4,
        start_from=str(weights),
        frozen=FROZEN,
        lessons=4,
        model={k: v for k, v in load_model(weights)[1]["model"].items() if k != "patch_size"},
        bank=BankConfig(n_galaxies=20, n_stars=4, refresh_every=2),
        scenes=SceneConfig(size=32, mag_range=(20.0, 25.0)),
        optimizer=OptimizerConfig(n_steps=6, batch_size=3),
        n_validation=6,
        validate_every=3,
        checkpoint_every=2,
    )


def generator():
    return torch.Generator().manual_seed(7)


@torch.no_grad()
def test_what_is_learnt_of_what_was_seen_is_what_is_learnt_of_the_scenes(
    weights, scenes, monkeypatch
):
    network, _ = load_model(weights)
    monkeypatch.setattr(field_loss, "_fitting", lambda _: True)  # draws numbers, too
    monkeypatch.setattr(field_loss, "_class_loss", lambda *_: torch.zeros(()))  # draws numbers
    wanted = training_loss(network, scenes, generator=generator())
    terms = {}
    for lesson in study(network, scenes, generator=generator()):
        lesson = _lesson_of(_tensors_of(lesson))  # as a file gives it back
        assert (lesson.fits is None) != network.config.fits
        kept = learn(network, lesson, generator=generator())
        terms |= {k: v for k, v in kept.items() if k != "loss" and v}
    assert set(terms) == set(ABOUT_SOURCES)
    for key in ABOUT_SOURCES:
        torch.testing.assert_close(terms[key] / len(scenes.image), wanted[key])


@torch.no_grad()
def test_a_lesson_says_as_much_as_a_scene_on_average(field_weights, scenes):
    network, _ = load_model(field_weights)
    peaks, _ = study(network, scenes, generator=generator())
    n = len(scenes.image)
    wanted = learn(network, peaks, generator=generator())["existence"] / n
    lessons = Lessons(peaks, n_scenes=n, batch_size=4 * n, seed=1)
    drawn = [learn(network, lessons[k], generator=generator())["existence"] for k in range(30)]
    assert len(lessons[0]) == 4 * len(peaks)
    assert float(torch.stack(drawn).mean()) == pytest.approx(float(wanted), rel=0.1)
    same = lessons[3]
    for f in fields(same):
        if f.name != "fits":
            assert torch.equal(getattr(same, f.name), getattr(lessons[3], f.name))


def test_a_training_from_lessons_can_be_resumed_and_lets_pixels_be(config, tmp_path, weights):
    best = train(config, tmp_path / "whole", device="cpu")
    train(config, tmp_path / "broken", device="cpu", stop_after=4)
    train(config, tmp_path / "broken", device="cpu", resume=True)
    whole, _ = load_tensors(tmp_path / "whole" / "last.safetensors")
    broken, _ = load_tensors(tmp_path / "broken" / "last.safetensors")
    assert whole.keys() == broken.keys()
    for key, value in whole.items():
        assert torch.equal(value, broken[key]), key
    before, after = load_tensors(weights)[0], load_tensors(best)[0]
    changed = {key.split(".")[0] for key in before if not torch.allclose(
        before[key].float(), after[key].float(), rtol=1e-3, atol=1e-6)}  # fmt: skip
    assert {"flow", "kind", "gather"} <= changed
    assert not changed & set(FROZEN)
    # What was seen stays.
    names = {p.name for p in (tmp_path / "whole").glob("lessons-*")}
    assert names == {"lessons-0.safetensors", "lessons-1.safetensors"}


@pytest.mark.usefixtures("one_thread")  # as the processes have
def test_processes_that_look_change_nothing(config, tmp_path):
    train(config, tmp_path / "alone", device="cpu", stop_after=2)
    train(config, tmp_path / "many", device="cpu", stop_after=2, workers=2)
    alone, many = (
        load_tensors(tmp_path / name / "last.safetensors")[0] for name in ("alone", "many")
    )
    for key, value in alone.items():
        torch.testing.assert_close(value, many[key], rtol=1e-4, atol=1e-6)


def test_what_cannot_be_learnt_so_is_refused(config, tmp_path):
    with pytest.raises(ValueError, match="whose encoder, decoder, head, heat are frozen"):
        replace(config, frozen=("encoder",))
    with pytest.raises(ValueError, match="by one process"):
        train(config, tmp_path / "two", devices=2)
    train(config, tmp_path, device="cpu", stop_after=1)
    (tmp_path / "last.safetensors").unlink()
    # More can be looked at, and what was seen is kept; with another network it is another thing.
    kept = (tmp_path / "lessons-0.safetensors").stat().st_mtime_ns
    train(replace(config, lessons=6), tmp_path, device="cpu", stop_after=1)
    assert (tmp_path / "lessons-0.safetensors").stat().st_mtime_ns == kept
    assert (tmp_path / "lessons-2.safetensors").exists()
    (tmp_path / "last.safetensors").unlink()
    with pytest.raises(ValueError, match="seen by another training"):
        train(replace(config, fresh=("kind",)), tmp_path, device="cpu")
