import numpy as np
import torch

from probablend.emulate.dataset import SceneConfig, SceneDataset


def test_a_scene_depends_on_seed_and_index_alone(bank):
    config = SceneConfig(size=48)
    forward = SceneDataset(bank, config, seed=1, n_scenes=10)
    image, classes = forward[7]
    for k in (3, 7):
        again, same = SceneDataset(bank, config, seed=1, n_scenes=10)[k]
    torch.testing.assert_close(image, again, rtol=0, atol=0)
    torch.testing.assert_close(classes, same, rtol=0, atol=0)
    assert not torch.equal(image, forward[6][0])


def test_an_item_is_in_units_of_the_noise(bank):
    image, classes = SceneDataset(bank, SceneConfig(size=96), seed=2, n_scenes=4)[1]
    assert image.shape == (1, 96, 96)
    assert image.dtype == torch.float32
    assert classes.shape == (96, 96)
    assert classes.dtype == torch.int64
    sky = image[0][classes == 0]
    assert 0.9 < float(sky.std()) < 1.2


def test_training_starts_crowded_and_ends_at_survey_density(bank):
    scenes = SceneDataset(bank, SceneConfig(size=64), seed=1, n_scenes=1000, curriculum=True)
    shares = [
        np.mean([(scenes.scene(i).classes == 2).mean() for i in range(first, first + 25)])
        for first in (0, 700)
    ]
    assert shares[0] > 3 * shares[1]
