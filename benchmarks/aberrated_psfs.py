"""PSFs of telescopes that are not perfect: lobes, tails and spikes that a width does not tell.

python benchmarks/aberrated_psfs.py -o aberrated_psfs.fits

For ``psf_images`` of a training. Obscured apertures with struts and aberrations of up to a seventh
of a wave (``--waves``), blurred by jitter and charge diffusion; every second one is all but
corrected.
"""

import argparse
from pathlib import Path

import galsim
import numpy as np
from astropy.io import fits

N = 64
SIDE = 97  # pixels
ORDERS = slice(4, 12)  # Zernike polynomials: defocus, astigmatism, coma, trefoil, spherical
LEAST_WAVES = 0.01  # root mean square of all of them together
SAMPLES = 6.0  # pixels in λ/D


def aberrated_psf(generator: np.random.Generator, most_waves: float) -> np.ndarray:
    """A PSF of unit sum, (SIDE, SIDE), whose core is some six to ten pixels wide."""
    uniform = generator.uniform
    waves = np.zeros(12)
    waves[ORDERS] = generator.standard_normal(8)
    strength = uniform(LEAST_WAVES, most_waves) if uniform() < 0.5 else LEAST_WAVES
    waves *= strength / np.sqrt((waves**2).sum())
    obscuration = uniform(0, 0.45)
    psf = galsim.OpticalPSF(
        lam_over_diam=SAMPLES, aberrations=waves, obscuration=obscuration,
        nstruts=int(generator.choice([0, 3, 4])), strut_thick=uniform(0.01, 0.05),
        strut_angle=uniform(0, 360) * galsim.degrees,
        gsparams=galsim.GSParams(folding_threshold=1e-2, maximum_fft_size=16384),
    )  # fmt: skip
    blurred = galsim.Convolve(psf, galsim.Gaussian(sigma=SAMPLES * uniform(0.15, 0.5)))
    image = blurred.drawImage(nx=SIDE, ny=SIDE, scale=1.0, method="no_pixel").array
    return (image / image.sum()).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--waves", type=float, default=0.14, help="strongest aberrations")
    arguments = parser.parse_args()
    images = [
        fits.ImageHDU(aberrated_psf(np.random.default_rng([arguments.seed, k]), arguments.waves))
        for k in range(N)
    ]
    fits.HDUList([fits.PrimaryHDU(), *images]).writeto(arguments.output, overwrite=True)


if __name__ == "__main__":
    main()
