"""Shared fixtures: a survey, a few galaxies, a small untrained network, the test data."""

import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from probablend.checkpoint import save_weights
from probablend.emulate.blend import FieldConfig, draw_field
from probablend.emulate.parametric import ParametricGalaxies
from probablend.emulate.stamps import StampBank
from probablend.models.prob_unet import ProbabilisticUNet, ProbabilisticUNetConfig
from probablend.survey import get_survey


@pytest.fixture(scope="session")
def survey():
    return get_survey("euclid-vis")


@pytest.fixture(scope="session")
def galaxies(survey):
    return ParametricGalaxies(
        survey, "test", n_galaxies=120, n_stars=12, mag_range=(20.0, 26.0), seed=3
    )


@pytest.fixture(scope="session")
def bank(galaxies):
    return StampBank(galaxies, seed=3)


@pytest.fixture(scope="session")
def scene(bank):
    config = FieldConfig(size=200, mag_range=(20.5, 26.0), companion_fraction=0.4)
    return draw_field(bank, config, generator=np.random.default_rng(11))


@pytest.fixture
def generator():
    return np.random.default_rng(5)


@pytest.fixture(scope="session")
def small_network():
    """Untrained, but with every part awake: statistics and biases are not at their start."""
    torch.manual_seed(0)
    config = ProbabilisticUNetConfig(channels=(6, 8, 10), n_convs=1, patch_size=32, latent_dim=3)
    network = ProbabilisticUNet(config)
    network.train()
    image = 3 * torch.randn(8, 1, 32, 32)
    network.training_loss(
        image, (image[:, 0] > 2).long(), generator=torch.Generator().manual_seed(0), beta=1.0
    )
    with torch.no_grad():
        for latent in (network.prior, network.posterior):
            latent.to_moments.weight.normal_(std=0.5)
        network.head.layers[-1].weight.normal_(std=0.8)
    return network.eval()


@pytest.fixture(scope="session")
def small_weights(small_network, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    settings = {"kind": "punet", **asdict(small_network.config)}
    save_weights(path, small_network, {"name": "small", "model": settings}, half=False)
    return path


@pytest.fixture(scope="session")
def test_data():
    """Folder of the test data; tests that ask for it are skipped without."""
    folder = os.environ.get("PROBABLEND_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("PROBABLEND_TEST_DATA names no folder")
    return Path(folder)
