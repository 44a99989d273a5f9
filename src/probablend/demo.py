"""A first look: a real Hubble image and an emulated field with its truth."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data

from probablend.emulate.blend import FieldConfig, draw_field
from probablend.emulate.products import write_scene
from probablend.emulate.sources import open_source
from probablend.evaluate.classical import run_sep
from probablend.evaluate.field import score_scenes
from probablend.evaluate.methods import Prediction
from probablend.images import ImageData
from probablend.infer.outputs import check_output
from probablend.infer.segment import DEFAULT_MODEL, segment
from probablend.infer.segmentation import Segmentation
from probablend.survey import get_survey

__all__ = ["hubble_image", "run_demo"]

CREDIT = "Hubble eXtreme Deep Field: NASA, ESA (public domain), by way of scikit-image"
_FIELD_SIZE = 768


def hubble_image() -> ImageData:
    """The Hubble eXtreme Deep Field that comes inside scikit-image, as one grey band.

    A colour picture made for the eye: its stretch is not linear, so probabilities mean
    something and fluxes do not.
    """
    rgb = skimage.data.hubble_deep_field()
    # Row 0 of a picture is its top; of an astronomical image, its bottom.
    grey = rgb[::-1].astype(np.float32).sum(axis=-1)
    return ImageData(data=grey, name="Hubble eXtreme Deep Field")


def run_demo(
    directory: Path,
    *,
    model: str = DEFAULT_MODEL,
    n_samples: int = 16,
    seed: int = 0,
    overwrite: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> tuple[Segmentation, Segmentation, dict[str, dict[str, Any]]]:
    """Segment a real image and an emulated one.

    Parameters
    ----------
    directory : Path
        Gets ``hubble/`` and ``euclid/``.
    model : str
        Weights.
    n_samples : int
        Posterior samples.
    seed : int
        Seeds the field and the samples.
    overwrite : bool
        Whether an earlier demo may be replaced.
    tell : callable
        Told what is going on.

    Returns
    -------
    hubble, euclid : Segmentation
        The two results.
    scores : dict
        Scores on the emulated field, of ours and of ``sep``.
    """
    for name in ("hubble", "euclid"):
        check_output(directory / name, overwrite=overwrite)
    tell(f"segmenting a real image ({CREDIT})")
    hubble = segment(hubble_image(), n_samples=n_samples, seed=seed, model=model)
    hubble.write(directory / "hubble", overwrite=overwrite)

    tell("emulating a Euclid field of galaxies that the model has not seen")
    survey = get_survey("euclid-vis")
    galaxies = open_source("parametric", survey, "test", seed=seed)
    config = FieldConfig(size=_FIELD_SIZE)
    scene = draw_field(galaxies, config, generator=np.random.default_rng([seed, 0, 1]))
    write_scene(scene, directory / "euclid", "field", seed=seed, overwrite=overwrite)
    tell("segmenting it")
    euclid = segment(
        ImageData(data=scene.image, name="emulated Euclid VIS field"),
        rms=scene.rms,
        zeropoint=survey.zeropoint,
        n_samples=n_samples,
        seed=seed,
        model=model,
    )
    euclid.write(directory / "euclid", overwrite=overwrite)
    ours = Prediction(
        catalog=euclid.catalog,
        labels=euclid.labels,
        p_galaxy=euclid.p_galaxy,
        p_blend=euclid.p_blend,
        draws=None if euclid.sources is None else euclid.sources.draws,
    )
    catalog, labels = run_sep(scene.image, scene.rms)
    theirs = Prediction(catalog=catalog, labels=labels, p_galaxy=(labels > 0).astype(float))
    scores = {
        "probablend": score_scenes([scene], [ours]).as_dict(),
        "sep": score_scenes([scene], [theirs]).as_dict(),
    }
    return hubble, euclid, scores
