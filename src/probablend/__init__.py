"""Probabilistic segmentation of blended galaxies.

In the order of the pipeline: :func:`get_survey` describes a survey, :func:`draw_field` and
:func:`draw_pair` emulate blends with their truth, :func:`segment` finds galaxies and their
overlaps in an image and says how sure it is, :func:`measure` does so at given positions.
"""

from probablend._version import __version__
from probablend.emulate.blend import FieldConfig, Scene, draw_field, draw_pair
from probablend.emulate.sources import open_source
from probablend.images import read_image
from probablend.infer.measure import measure
from probablend.infer.segment import segment
from probablend.infer.segmentation import Segmentation
from probablend.survey import Survey, available_surveys, get_survey

__all__ = [
    "FieldConfig",
    "Scene",
    "Segmentation",
    "Survey",
    "__version__",
    "available_surveys",
    "draw_field",
    "draw_pair",
    "get_survey",
    "measure",
    "open_source",
    "read_image",
    "segment",
]
