"""Image after image in one process: nothing piles up."""

import os

import numpy as np
import pytest
import torch
from astropy.io import fits

from probablend.infer.segment import segment

psutil = pytest.importorskip("psutil")
N_IMAGES = int(os.environ.get("PROBABLEND_SOAK", "60"))


@pytest.mark.slow
def test_many_small_images_leave_no_memory_and_no_open_files_behind(field_weights, tmp_path):
    generator = np.random.default_rng(0)
    process = psutil.Process()
    seen = []
    for k in range(N_IMAGES):
        data = generator.normal(size=(64 + k % 9, 64 - k % 7)).astype(np.float32)
        data[30:34, 30:34] += 20
        path = tmp_path / "image.fits"
        fits.writeto(path, data, overwrite=True)
        result = segment(
            path, n_samples=1, model=field_weights, psf_fwhm=2.0, rms=1.0, background="none"
        )
        result.write(tmp_path / "out", overwrite=True, keep_posterior=2, regions=True)
        seen.append((process.memory_info().rss / 2**20, len(process.open_files())))
    memory, files = np.array(seen).T
    # The first images warm caches; from then on there is nothing to grow by.
    begin = max(10, N_IMAGES // 2)
    assert files[begin:].max() <= files[begin]
    # What was held and given back in between is held again: no growth beyond what there was.
    assert np.median(memory[-10:]) < memory[:begin].max() + 25


def test_one_thread_and_two_agree(scene, field_weights):
    """To the rounding of float32: maps to 1e-5, fluxes to 1e-4 of their errors' scale."""
    results = []
    before = torch.get_num_threads()
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            results.append(
                segment(
                    scene.image, rms=scene.rms, n_samples=4, seed=3, model=field_weights,
                    psf_fwhm=1.7, background="none",
                )
            )  # fmt: skip
    finally:
        torch.set_num_threads(before)
    one, two = results
    np.testing.assert_allclose(one.p_galaxy, two.p_galaxy, atol=1e-5)
    np.testing.assert_allclose(one.p_blend, two.p_blend, atol=1e-5)
    assert (one.samples != two.samples).mean() < 1e-4
    assert len(one.catalog) == len(two.catalog) > 3
    for name in ("x", "y", "flux", "hlr", "g1", "g2", "p_source"):
        a, b = (np.asarray(getattr(r.catalog[name], "value", r.catalog[name])) for r in results)
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4, err_msg=name)
    np.testing.assert_array_equal(one.catalog["flags"], two.catalog["flags"])
