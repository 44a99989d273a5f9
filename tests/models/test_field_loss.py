"""What is a peak, and which peak is which galaxy."""

import pytest
import torch

from probablend.emulate.scenes import Sources
from probablend.models.field_distribution import Candidates, highest
from probablend.models.field_loss import partners


def sources(x, hlr):
    x, hlr = torch.tensor(x), torch.tensor(hlr)
    rest = dict.fromkeys(
        ("flux", "g1", "g2", "n_pixels", "e1", "e2", "snr", "blendedness"), torch.ones(len(x))
    )
    return Sources(
        scene=torch.zeros(len(x), dtype=torch.long), y=torch.full_like(x, 50.0), x=x, hlr=hlr,
        is_star=torch.zeros(len(x), dtype=torch.bool),
        blended=torch.zeros(len(x), dtype=torch.bool), **rest,
    )  # fmt: skip


def peaks(x):
    x = torch.tensor(x)
    y = torch.full_like(x, 50.0)
    return Candidates(
        scene=torch.zeros(len(x), dtype=torch.long), y=y, x=x, row=y.long(), column=x.long()
    )  # fmt: skip


@pytest.mark.parametrize(
    ("hlr", "away", "own"),
    [
        (2.0, 2.5, True),
        (2.0, 4.0, False),
        (0.0, 2.5, True),  # a star
        (20.0, 5.0, True),  # of a large one the middle is wide
        (20.0, 8.0, False),
        (float("nan"), 2.5, True),  # the radius of a real one may not be known
        (float("nan"), 5.0, False),
    ],
)
def test_a_peak_is_the_galaxy_in_whose_middle_it_lies(hlr, away, own):
    partner = partners(peaks([50.0 + away]), sources([50.0], [hlr]))
    assert partner.tolist() == [0 if own else -1]


def test_a_galaxy_has_one_peak_and_a_peak_one_galaxy():
    # A large galaxy, two peaks in its middle; and a small one beside another peak.
    found, kept = peaks([46.0, 52.0, 71.0]), sources([50.0, 70.0], [30.0, 2.0])
    assert partners(found, kept).tolist() == [-1, 0, 1]
    # The nearest of a peak is the small galaxy, even in the middle of a large one.
    assert partners(peaks([53.0]), sources([50.0, 54.0], [30.0, 2.0])).tolist() == [1]


def test_of_equal_neighbours_one_is_a_peak():
    heat = torch.rand(1, 40, 40, generator=torch.Generator().manual_seed(2)) * 0.5
    heat[0, 10, 10:12] = 0.9  # as rounding leaves them
    heat[0, 20:22, 20] = 0.9
    heat[0, 30, 31] = heat[0, 31, 30] = 0.9
    heat[0, 0, 0] = heat[0, 39, 39] = 0.8
    peaks = highest(heat)[0]
    assert (peaks & (heat[0] == 0.9)).nonzero().tolist() == [[10, 10], [20, 20], [30, 31]]
    assert peaks[0, 0]
    assert peaks[39, 39]
    around = torch.nn.functional.max_pool2d(heat, 3, 1, 1)
    assert torch.equal(peaks & (heat[0] < 0.8), (heat == around)[0] & (heat[0] < 0.8))
