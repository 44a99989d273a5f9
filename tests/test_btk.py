"""The Blending ToolKit draws; probablend deblends; its metrics tell."""

import numpy as np
import pytest
from astropy.table import Table

pytest.importorskip("btk")

from btk.catalog import CatsimCatalog
from btk.deblend import DeblendGenerator
from btk.draw_blends import CatsimGenerator
from btk.match import PixelHungarianMatcher
from btk.metrics.detection import Recall
from btk.metrics.segmentation import IoU
from btk.metrics.utils import get_segmentation
from btk.sampling_functions import SamplingFunction
from btk.survey import get_surveys

from probablend.btk import ProbablendDeblender, _share

N = 4  # sources at most
# The toolkit seeds GalSim with arrays of one number.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")


class TwoGalaxies(SamplingFunction):
    """Always the same pair, 4 arcsec apart."""

    def __init__(self):
        super().__init__(stamp_size=16.0, max_number=2, min_number=2, seed=1)

    def __call__(self, table):
        pair = table[:2]
        pair["ra"], pair["dec"] = [-2.0, 2.0], [0.0, 0.5]
        return pair


@pytest.fixture(scope="module")
def drawn():
    table = Table({"ra": np.zeros(2), "dec": np.zeros(2), "redshift": np.ones(2)})
    for name in ("fluxnorm_bulge", "fluxnorm_agn", "a_b", "b_b", "pa_bulge"):
        table[name] = np.zeros(2)
    table["fluxnorm_disk"], table["a_d"], table["b_d"] = 1.0, 0.5, 0.4
    table["pa_disk"] = [30.0, 120.0]
    for band in "ugrizy":
        table[f"{band}_ab"] = [21.0, 21.5]
    return CatsimGenerator(
        CatsimCatalog(table), TwoGalaxies(), get_surveys("LSST"), batch_size=2, seed=3
    )


@pytest.fixture(scope="module")
def deblended(drawn):
    generator = DeblendGenerator([ProbablendDeblender(N, "i", n_samples=2)], drawn)
    batch, results = next(generator)
    return batch, results["ProbablendDeblender"]


def test_the_toolkit_finds_both_galaxies_in_our_answer(deblended):
    batch, ours = deblended
    matching = PixelHungarianMatcher(pixel_max_sep=3.0)(batch.catalog_list, ours.catalog_list)
    n_matches = np.array([len(m) for m in matching.true_matches])
    assert Recall(2)(n_matches, matching.n_true, matching.n_pred) == 1.0
    band = list(batch.survey.available_filters).index("i")
    truth = matching.match_true_arrays(batch.isolated_images[:, :, band])
    parts = matching.match_pred_arrays(ours.deblended_images[:, :, 0])
    flux = parts.sum(axis=(-1, -2)) / truth.sum(axis=(-1, -2))
    np.testing.assert_allclose(flux, 1.0, atol=0.15)
    np.testing.assert_allclose(np.sort(ours.catalog_list[0]["ra"]), [-2.0, 2.0], atol=0.2)


def test_its_metrics_take_our_footprints(deblended):
    batch, ours = deblended
    matching = PixelHungarianMatcher(pixel_max_sep=3.0)(batch.catalog_list, ours.catalog_list)
    band = list(batch.survey.available_filters).index("i")
    rms = batch.blend_images[0, band, :10].std()
    isolated = batch.isolated_images[:, :, band]
    truth = matching.match_true_arrays(get_segmentation(isolated, rms**2, 0.5).astype(bool))
    iou = IoU(2)(truth.astype(bool), matching.match_pred_arrays(ours.segmentation).astype(bool))
    assert iou > 0.6


def test_parts_add_up_to_no_more_than_the_image():
    generator = np.random.default_rng(0)
    footprints, light = generator.uniform(size=(2, 3, 8, 8))
    image = generator.normal(1.0, 1.0, size=(8, 8))
    parts = _share(image, footprints, light)
    assert (parts >= 0).all()
    assert (parts.sum(axis=0) <= np.clip(image, 0, None) + 1e-9).all()
    certain = _share(image, np.ones((1, 8, 8)), np.ones((1, 8, 8)))
    np.testing.assert_allclose(certain[0], np.clip(image, 0, None))


def test_a_band_that_is_not_there_is_refused(drawn):
    batch = next(drawn)
    with pytest.raises(ValueError, match="no band 'Q'; it has"):
        ProbablendDeblender(N, "Q").deblend(0, batch)
