import galsim
import numpy as np
import pytest
import torch
from scipy import ndimage

from probablend import correlation
from probablend.emulate.noise import (
    acs_kernel,
    add_noise,
    box_kernels,
    correlate,
    draw_kernels,
    gaussian_kernels,
    lanczos_kernels,
    noise_factors,
    noise_rms,
)


def test_the_noise_map_matches_the_scatter_of_many_draws(survey, generator):
    scene = np.tile(np.array([[0.0, 500.0]], dtype=np.float32), (20_000, 1))
    image = add_noise(scene, survey, generator=generator)
    np.testing.assert_allclose(image.std(axis=0), noise_rms(scene[0], survey), rtol=0.03)
    np.testing.assert_allclose(image.mean(axis=0), scene[0], atol=0.5)


def test_a_scene_that_is_not_finite_is_refused(survey, generator):
    with pytest.raises(ValueError, match="found 1 pixels"):
        add_noise(np.array([[1.0, np.nan]]), survey, generator=generator)


def test_correlated_noise_is_weak_in_pixels_and_as_strong_as_white_under_a_source():
    width = torch.tensor([0.3, 0.6, 1.0])
    white = torch.randn(3, 512, 512, generator=torch.Generator().manual_seed(1))
    noise = correlate(white, gaussian_kernels(width)).numpy()
    rms = noise.std(axis=(1, 2))
    assert rms[0] > 0.95
    assert (np.diff(rms) < -0.1).all()
    # Drizzled noise as Casertano et al. (2000) describe it: a Gaussian kernel of width s leaves
    # 1/√(1 + s²) of white noise under a source of σ = 1 pixel.
    smooth = ndimage.gaussian_filter(noise, (0, 1, 1), mode="wrap") * np.sqrt(4 * np.pi)
    assert smooth.std(axis=(1, 2)) == pytest.approx(1.0, rel=0.03)
    ratio = rms[1:] * np.sqrt(4 * np.pi) * np.sqrt(width[1:].numpy() ** 2)
    assert ratio == pytest.approx(np.sqrt(1 + width[1:].numpy() ** 2), rel=0.15)


def seen_by_a_source(noise):
    smooth = ndimage.gaussian_filter(noise.numpy(), (0, 1, 1), mode="wrap") * np.sqrt(4 * np.pi)
    return smooth.std(axis=(1, 2))


def test_all_kinds_of_correlated_noise_are_as_strong_as_white_under_a_source():
    generator = torch.Generator().manual_seed(2)
    kernels = draw_kernels(24, generator=generator, device="cpu")
    noise = correlate(torch.randn(24, 256, 256, generator=generator), kernels)
    assert seen_by_a_source(noise) == pytest.approx(np.ones(24), abs=0.04)
    rms = noise.std(dim=(1, 2)).numpy()
    assert rms.max() < 1.02  # never stronger from pixel to pixel
    assert rms.min() < 0.5


def test_the_factors_of_a_kernel_are_what_an_image_of_its_noise_tells():
    generator = torch.Generator().manual_seed(6)
    kernels = draw_kernels(12, generator=generator, device="cpu")
    kernels[0] = 0
    kernels[0, 4, 4] = 3.0  # white
    factors = noise_factors(kernels)
    assert factors[0].tolist() == [1, 1]
    noise = correlate(torch.randn(12, 400, 400, generator=generator), kernels)
    noise = (noise / noise.std(dim=(1, 2), keepdim=True)).numpy()
    blank = np.zeros(noise.shape[1:], dtype=bool)
    told = np.array([correlation.noise_factors(one, blank) for one in noise])
    # Noise that stands out is taken for sources.
    assert (told / factors.numpy()).max() < 1.05
    assert (told / factors.numpy()).min() > 0.8


def test_noise_of_acs_is_correlated_as_on_the_images_of_cosmos():
    white = torch.randn(1, 1024, 1024, generator=torch.Generator().manual_seed(3))
    noise = correlate(white, acs_kernel()[None])[0]
    expected = galsim.getCOSMOSNoise().drawImage(galsim.Image(9, 9, scale=0.03)).array
    variance = float(noise.var())
    for dy, dx in ((0, 1), (1, 0), (1, 1), (0, 2)):
        found = float((noise * noise.roll((dy, dx), (0, 1))).mean()) / variance
        assert found == pytest.approx(expected[4 + dy, 4 + dx] / expected[4, 4], abs=0.01)


def test_a_drop_falls_into_pixels_whole_and_interpolation_keeps_a_constant():
    side, shift = (
        torch.tensor([0.6, 1.0, 2.0]),
        torch.tensor([[0.0, 0.0], [0.5, 0.25], [-0.3, 0.1]]),
    )
    boxes = box_kernels(side, shift)
    torch.testing.assert_close(boxes.sum(dim=(1, 2)), side**2)
    # Half of a drop of one pixel that is shifted by half a pixel falls into each neighbour.
    assert boxes[1].sum(dim=1)[[4, 5]] == pytest.approx([0.5, 0.5])
    assert lanczos_kernels(shift).sum(dim=(1, 2)) == pytest.approx([1.0] * 3, abs=0.02)
