"""Products to look at: a small emulated field, segmented once."""

import numpy as np
import pytest
from astropy.io import fits

import probablend


@pytest.fixture(scope="session")
def folder(scene, wcs_at, tmp_path_factory):
    """Products of a field with celestial coordinates and a hole; the image lies beside them."""
    image = scene.image.astype(np.float32)
    image[20:40, 150:170] = np.nan
    root = tmp_path_factory.mktemp("view")
    fits.writeto(root / "field.fits", image, wcs_at(150.1, 2.2).to_header())
    result = probablend.segment(root / "field.fits", rms=scene.rms, n_samples=4, psf_fwhm=1.7)
    return result.write(root / "out", keep_samples=True, keep_posterior=16, regions=True)
