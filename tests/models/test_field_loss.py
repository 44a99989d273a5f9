"""Which peak is which galaxy."""

import pytest
import torch

from probablend.emulate.scenes import Sources
from probablend.models.field_distribution import Candidates
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
        scene=torch.zeros(len(x), dtype=torch.long), y=y, x=x, row=y.long(), column=x.long(),
        heat=torch.ones(len(x)),
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
