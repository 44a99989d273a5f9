"""Shared fixtures: a survey, a few galaxies, a small untrained network, the test data."""

import os
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.table import Table
from astropy.wcs import WCS

from probablend.checkpoint import load_model, save_weights
from probablend.emulate.bank import draw_bank
from probablend.emulate.blend import FieldConfig, draw_field
from probablend.emulate.compose import draw_batch
from probablend.emulate.parametric import ParametricGalaxies
from probablend.emulate.scenes import SceneBatch, SceneConfig, Sources
from probablend.models.field import FieldNetwork, FieldNetworkConfig
from probablend.models.prob_unet import ProbabilisticUNet, ProbabilisticUNetConfig
from probablend.models.start import take_over
from probablend.survey import get_survey


def pytest_configure():
    """Test processes, and the commands that they start, share the cores."""
    n = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    if n > 1:
        n_threads = max(1, (os.cpu_count() or 1) // n)
        torch.set_num_threads(n_threads)
        os.environ["OMP_NUM_THREADS"] = str(n_threads)


@pytest.fixture(scope="session")
def survey():
    return get_survey("euclid-vis")


@pytest.fixture(scope="session")
def galaxies(survey):
    return ParametricGalaxies(
        survey, "test", n_galaxies=120, n_stars=12, mag_range=(20.0, 26.0), seed=3
    )


@pytest.fixture(scope="session")
def scene(galaxies):
    config = FieldConfig(size=200, mag_range=(20.5, 26.0), companion_fraction=0.4)
    return draw_field(galaxies, config, generator=np.random.default_rng(11))


@pytest.fixture
def generator():
    return np.random.default_rng(5)


@pytest.fixture(scope="module")
def one_thread():
    """Sums of two threads round otherwise: bytes are compared with those of workers of one."""
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


def make_wcs(ra=150.0, dec=2.0, x=99.0, y=99.0, scale=0.1):
    """Coordinates with a place of the sky at a pixel, and pixels of so many arcseconds."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = "RA---TAN", "DEC--TAN"
    wcs.wcs.crval, wcs.wcs.crpix = (ra, dec), (x + 1, y + 1)
    wcs.wcs.cdelt = -scale / 3600, scale / 3600
    return wcs


@pytest.fixture(scope="session")
def wcs_at():
    """Function that makes coordinates."""
    return make_wcs


@pytest.fixture(scope="session")
def wcs():
    return make_wcs()


def make_candels(folder, n=40, rms=0.01):
    """Files of the published format: Gaussian galaxies, each with one neighbour."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:128, :128]
    images, segments, rows = [], [], []
    for k in range(n):
        mag, radius = 20 + 3 * k / n, 4.0 + 0.1 * k
        flux = 10 ** (-0.4 * (mag - 25.96))
        sigma = radius / 1.1774  # half-light radius of a Gaussian
        own = (
            flux
            / (2 * np.pi * sigma**2)
            * np.exp(-((x - 64) ** 2 + (y - 64) ** 2) / (2 * sigma**2))
        )
        other = 5 * np.exp(-((x - 104) ** 2 + (y - 30) ** 2) / 18)
        images.append(own + other + generator.normal(0, rms, size=own.shape) + 0.002)
        segments.append(np.where(other > 2 * rms, 2, 0) + np.where(own > 2 * rms, 1, 0))
        rows.append((k, mag, radius, 1.0, "disc"))
    np.save(folder / "candels_img.npy", np.array(images, dtype=np.float32))
    np.save(folder / "candels_seg.npy", np.array(segments, dtype=np.int16))
    Table(rows=rows, names=("ID", "mag", "radius", "z", "galtype")).write(
        folder / "candels_cat.csv", format="ascii.csv"
    )


@pytest.fixture(scope="session")
def write_candels():
    """Function that writes real galaxies into a folder."""
    return make_candels


def make_batch(image, classes, n_sources=0):
    """Scenes with a given image and classes, and sources of arbitrary truth."""
    torch_generator = torch.Generator().manual_seed(1)

    def uniform(low, high):
        return low + (high - low) * torch.rand(n_sources, generator=torch_generator)

    size = image.shape[-1]
    sources = Sources(
        scene=uniform(0, len(image)).long(), y=uniform(0, size - 1), x=uniform(0, size - 1),
        flux=uniform(20, 500), hlr=uniform(1, 5), g1=uniform(-0.4, 0.4), g2=uniform(-0.4, 0.4),
        is_star=uniform(0, 1) < 0.2, n_pixels=uniform(6, 200).round(), e1=uniform(-0.4, 0.4),
        e2=uniform(-0.4, 0.4), snr=uniform(3, 50), blended=uniform(0, 1) < 0.5,
        blendedness=uniform(0, 0.9),
    )  # fmt: skip
    fwhm = torch.full((len(image),), 2.0)
    return SceneBatch(
        image=image, noiseless=image[:, 0], classes=classes, psf_fwhm=fwhm, sources=sources
    )


@pytest.fixture(scope="session")
def batch_of():
    """Function that makes a batch of an image and its classes."""
    return make_batch


@pytest.fixture(scope="session")
def small_network():
    """Untrained, but with every part awake: statistics and biases are not at their start."""
    torch.manual_seed(0)
    config = ProbabilisticUNetConfig(channels=(6, 8, 10), n_convs=1, patch_size=32, latent_dim=3)
    network = ProbabilisticUNet(config)
    network.train()
    image = 3 * torch.randn(8, 1, 32, 32)
    batch = make_batch(image, (image[:, 0] > 2).long())
    network.training_loss(batch, generator=torch.Generator().manual_seed(0), beta=1.0)
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
def field_weights(tmp_path_factory):
    """A small field model that learnt a little: it sees peaks where there is light."""
    torch.manual_seed(2)
    config = FieldNetworkConfig(
        channels=(6, 8, 10),
        n_convs=1,
        patch_size=32,
        context=10,
        flow_hidden=(12,),
        head_width=6,
        apertures=(1.0, 3.0),
        gather_hidden=(16,),
        photometry=True,
        knows_noise=True,
        n_sectors=4,
    )
    network = FieldNetwork(config)
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    survey = get_survey("euclid-vis")
    stamps = draw_bank(
        "parametric", [survey], "train", n_galaxies=60, n_stars=6, mag_range=(19.5, 25.0), seed=1
    )
    scenes = SceneConfig(size=32, mag_range=(20.0, 25.0))
    for k in range(100):
        batch = draw_batch(stamps, scenes, n=8, seed=3, index=k, progress=0.0)
        generator = torch.Generator().manual_seed(k)
        loss = network.training_loss(batch, generator=generator, beta=1.0)["loss"]
        optimizer.zero_grad()
        (loss / 32**2).backward()
        optimizer.step()
    with torch.no_grad():  # it hardly dares yet
        network.heat[-1].bias += 1.0
        network.kind.bias[0] += 4.0
    path = tmp_path_factory.mktemp("weights") / "small-field.safetensors"
    meta = {
        "name": "small-field",
        "model": {"kind": "field", **asdict(config)},
        "psf_fwhm_pixels": [survey.psf_fwhm_pixels],
        "trained_range": {"psf_fwhm": [1.7, 1.7], "flux": [0.0, 1e5], "hlr": [0.0, 40.0]},
    }
    save_weights(path, network.eval(), meta, half=False)
    return path


@pytest.fixture(scope="session")
def fitting_weights(field_weights, tmp_path_factory):
    """The same that looks twice: halfway it goes with what fits of profiles say."""
    before, meta = load_model(field_weights)
    config = replace(before.config, fits=True)
    network = FieldNetwork(config)
    take_over(network, before, [])
    with torch.no_grad():
        network.photometry.outer.bias[len(config.apertures) + 1 :] = 0.0
    path = tmp_path_factory.mktemp("weights") / "small-fitting.safetensors"
    meta = meta | {"name": "small-fitting", "model": {"kind": "field", **asdict(config)}}
    save_weights(path, network.eval(), meta, half=False)
    return path


@pytest.fixture(scope="session")
def test_data():
    """Folder of the test data; tests that ask for it are skipped without."""
    folder = os.environ.get("PROBABLEND_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("PROBABLEND_TEST_DATA names no folder")
    return Path(folder)


@pytest.fixture(scope="session")
def how(field_weights):
    """Settings with which a small image of noise 1 is segmented at once, all its peaks kept."""
    return {"rms": 1.0, "background": "none", "n_samples": 1, "psf_fwhm": 3.0,
            "min_p_source": 0.0, "model": field_weights}  # fmt: skip
