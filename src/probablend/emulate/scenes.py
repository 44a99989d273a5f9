"""Scenes to learn from: which ones a training sees, and what is known of them."""

from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

__all__ = ["SceneBatch", "SceneConfig", "Sources", "where_true"]


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """Which scenes a training sees.

    Parameters
    ----------
    size : int
        Side of a training patch, pixels.
    density_range : tuple of float
        Galaxies per arcmin²; each scene draws one value, uniform in the logarithm.
    companion_range : tuple of float
        Share of galaxies put near another one; each scene draws one value, uniform.
    companion_distance : float
        Largest distance of such a companion, arcsec; the distance is uniform below it.
    sparse_fraction : float
        Share of sparse scenes: isolated galaxies and empty sky, from which the model learns
        that there may be no overlap.
    sparse_factor : float
        By how much the density of a sparse scene is lower.
    isolated_fraction : float
        Share of scenes with a single galaxy and nothing else, bright ones as common as faint.
    pair_fraction : float
        Share of scenes that are blends of two galaxies, as
        :func:`~probablend.emulate.blend.draw_pair` makes them. The central galaxy comes first.
    pair_mag_range : tuple of float
        Brightest and faintest AB magnitude of their galaxies.
    few : float
        Where a scene of ``size`` holds fewer galaxies than this on average, at the middle of
        ``density_range``, those with a single one and with a pair are that much rarer: where pixels
        are small, scenes hold one to three anyway, and what is drawn as bright as faint and as
        blended would outweigh the sky.
    pair_spread : float
        How far from the middle the central galaxy of a pair may lie along each axis, pixels. A
        network sees where the scene ends, and where the cells of its grids lie: if all pairs are
        in the middle, then what is in the middle of a cut-out has a companion.
    centred_fraction : float
        Share of all scenes that are cut-outs: the source nearest to the middle lies in it.
    crowded_share : float
        Share of crowded scenes when training starts; it falls linearly to zero. Blends are a
        hundredth of the pixels of a real field: a network that sees them often at first
        learns what they look like, and from real fields, later, how rare they are.
    crowded_until : float
        Part of the training after which no scene is crowded.
    star_density : float
        Stars per arcmin².
    correlated_fraction : float
        Share of scenes whose noise is correlated, as in drizzled and resampled images. Its
        unit is that of :func:`~probablend.correlation.correlation_factor`: as strong as white
        noise over a source, smaller from pixel to pixel.
    depth_fraction : float
        Share of scenes in which the depth changes from pixel to pixel, as where exposures
        overlap, and is known.
    seam_fraction : float
        Share of scenes with a seam, where noise and sky level jump and nobody says so.
    damaged_fraction : float
        Share of scenes with cosmic rays, hot pixels, trails, saturation or masked patches.
    sky_fraction : float
        Share of scenes with a rest of the sky: level, gradient and waves.
    wings_fraction : float
        Share of scenes of which it is told how much of a point source's light lies in its wings.
        If there are any, width and wings are told as well as stars of an image tell them: the width
        of the PSF of every scene is off by up to some three per cent.
    psf_fraction : float
        Share of scenes of which the PSF is told, pixel by pixel, and then its width and wings as
        they are. If there are any, all stamps of a scene are turned and flipped in one way, its
        PSF with them; otherwise each in its own.
    psf_error : float
        Largest error of a PSF that is told, as of one that was measured on stars: up to this part
        of its width, told and seen, and a tenth of it in noise near its middle, for a brightest
        pixel of 1. Of most it is far less. Its wings are then as uncertain as others are.
    mag_range : tuple of float
        Brightest and faintest AB magnitude.
    """

    size: int = 128
    density_range: tuple[float, float] = (80.0, 300.0)
    companion_range: tuple[float, float] = (0.0, 0.3)
    companion_distance: float = 2.0
    sparse_fraction: float = 0.1
    sparse_factor: float = 15.0
    isolated_fraction: float = 0.0
    pair_fraction: float = 0.0
    pair_mag_range: tuple[float, float] = (18.5, 23.0)
    few: float = 0.0
    pair_spread: float = 0.0
    centred_fraction: float = 0.0
    crowded_share: float = 1.0
    crowded_until: float = 0.6
    star_density: float = 5.0
    correlated_fraction: float = 0.0
    depth_fraction: float = 0.0
    seam_fraction: float = 0.0
    damaged_fraction: float = 0.0
    sky_fraction: float = 0.0
    wings_fraction: float = 0.0
    psf_fraction: float = 0.0
    psf_error: float = 0.0
    mag_range: tuple[float, float] = (18.5, 26.0)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1 pixel; got {self.size}")
        if not self.sparse_factor > 0:
            raise ValueError(f"sparse_factor must be positive; got {self.sparse_factor}")
        for key in (
            "sparse_fraction",
            "isolated_fraction",
            "pair_fraction",
            "centred_fraction",
            "crowded_share",
            "correlated_fraction",
            "depth_fraction",
            "seam_fraction",
            "damaged_fraction",
            "sky_fraction",
            "wings_fraction",
            "psf_fraction",
        ):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"{key} must lie between 0 and 1; got {getattr(self, key)}")
        if not 0 <= self.psf_error <= 0.2:
            raise ValueError(f"psf_error must lie between 0 and 0.2; got {self.psf_error}")
        if self.isolated_fraction + self.pair_fraction > 1:
            raise ValueError(
                "isolated_fraction and pair_fraction must add up to at most 1; got "
                f"{self.isolated_fraction} and {self.pair_fraction}"
            )
        if not 0 < self.density_range[0] <= self.density_range[1] < float("inf"):
            raise ValueError(
                f"density_range must be positive and ascending; got {self.density_range}"
            )
        if not 0 <= self.companion_range[0] <= self.companion_range[1] <= 1:
            raise ValueError(
                f"companion_range must lie between 0 and 1, ascending; got {self.companion_range}"
            )
        for key in ("star_density", "companion_distance", "pair_spread", "few"):
            if not getattr(self, key) >= 0:
                raise ValueError(f"{key} must not be negative; got {getattr(self, key)}")
        for key in ("mag_range", "pair_mag_range"):
            bright, faint = getattr(self, key)
            if not bright < faint:
                raise ValueError(f"{key} must go from bright to faint; got {(bright, faint)}")

    def crowded_share_at(self, progress: float) -> float:
        """Share of crowded scenes at a point of the training, 0 to 1."""
        return self.crowded_share * max(0.0, 1 - progress / max(self.crowded_until, 1e-9))


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Galaxies and stars of a batch of scenes, every field of shape (source,).

    Parameters
    ----------
    scene : Tensor of int64
        Which scene.
    y, x : Tensor
        Centre, pixels of the scene. It may lie outside: what follows then counts what is seen.
    flux : Tensor
        Of the whole profile, in units of the sky noise per pixel.
    hlr, g1, g2 : Tensor
        Circularised half-light radius (pixels, 0 for stars) and shape before the PSF.
    is_star : Tensor of bool
    n_pixels : Tensor
        Of the footprint.
    e1, e2 : Tensor
        Ellipticity of the footprint, (a² − b²)/(a² + b²), from its second moments.
    snr : Tensor
        √Σgₖ²/σ, the signal to noise for a known profile.
    blended : Tensor of bool
        Whether the footprint shares a pixel of the scene with another one.
    blendedness : Tensor
        1 − ⟨gₖ,gₖ⟩/⟨gₖ,Σg⟩.
    """

    scene: Tensor
    y: Tensor
    x: Tensor
    flux: Tensor
    hlr: Tensor
    g1: Tensor
    g2: Tensor
    is_star: Tensor
    n_pixels: Tensor
    e1: Tensor
    e2: Tensor
    snr: Tensor
    blended: Tensor
    blendedness: Tensor

    def __len__(self) -> int:
        return len(self.scene)

    @property
    def has_shape(self) -> Tensor:
        """Whether size and shape are known; those of some real galaxies are not."""
        return torch.isfinite(self.hlr + self.g1 + self.g2)

    def keep(self, which: Tensor) -> "Sources":
        """Those for which ``which`` is true, or of these numbers."""
        which = where_true(which)
        return Sources(**{f.name: getattr(self, f.name)[which] for f in fields(self)})


@dataclass(frozen=True, kw_only=True)
class SceneBatch:
    """Scenes to learn from.

    Parameters
    ----------
    image : Tensor, shape (scene, band, y, x)
        In units of the sky noise.
    noiseless : Tensor, shape (scene, y, x)
        Σₖ gₖ, same unit.
    classes : Tensor of int64, shape (scene, y, x)
        0 sky, 1 one source, 2 blend; −100 where there is no truth.
    psf_fwhm : Tensor, shape (scene,)
        Pixels, as it is told: see ``wings_fraction`` of :class:`SceneConfig`.
    sources : Sources
        Every one that throws light into a scene.
    footprints : Tensor of int64, shape (2, pixel)
        Every pixel of every footprint: the source, and the flat index into ``classes``.
    noise_factors : Tensor, shape (scene, 2), optional
        How correlated the noise is, as an image would tell: see
        :func:`~probablend.correlation.noise_factors`. White if not given.
    psf_wings : Tensor, shape (scene, 3), optional
        See :func:`~probablend.psf.light_in_wings`; NaN of a scene where they are not told.
    psf_image : Tensor, shape (scene, 41, 41), optional
        See :class:`~probablend.psf.PSF`; NaN of a scene where it is not told.
    """

    image: Tensor
    noiseless: Tensor
    classes: Tensor
    psf_fwhm: Tensor
    sources: Sources
    footprints: Tensor = field(default_factory=lambda: torch.empty(2, 0, dtype=torch.int64))
    noise_factors: Tensor | None = None
    psf_wings: Tensor | None = None
    psf_image: Tensor | None = None

    @property
    def known(self) -> dict[str, Tensor | None]:
        """What a network is told beside the image, by the names of its parameters."""
        return {
            "psf_fwhm": self.psf_fwhm,
            "noise_factors": self.noise_factors,
            "psf_wings": self.psf_wings,
            "psf_image": self.psf_image,
        }


def where_true(which: Tensor) -> Tensor:
    """Numbers of what a mask, (n,), lets through; numbers are returned as they are.

    A look-up by a mask searches it first, every time, and a GPU waits for the answer.
    """
    return which.nonzero().squeeze(1) if which.dtype == torch.bool else which
