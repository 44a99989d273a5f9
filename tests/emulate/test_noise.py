import numpy as np
import pytest

from probablend.emulate.noise import add_noise, noise_rms


def test_the_noise_map_matches_the_scatter_of_many_draws(survey, generator):
    scene = np.tile(np.array([[0.0, 500.0]], dtype=np.float32), (20_000, 1))
    image = add_noise(scene, survey, generator=generator)
    np.testing.assert_allclose(image.std(axis=0), noise_rms(scene[0], survey), rtol=0.03)
    np.testing.assert_allclose(image.mean(axis=0), scene[0], atol=0.5)


def test_noise_that_a_stamp_brings_along_is_not_added_twice(survey, generator):
    own = 0.6 * survey.sky_rms
    scene = generator.normal(0, own, size=(400, 400)).astype(np.float32)
    image = add_noise(scene * 0, survey, generator=generator, carried_variance=own**2) + scene
    assert image.std() == pytest.approx(survey.sky_rms, rel=0.01)


def test_a_scene_that_is_not_finite_is_refused(survey, generator):
    with pytest.raises(ValueError, match="found 1 pixels"):
        add_noise(np.array([[1.0, np.nan]]), survey, generator=generator)
