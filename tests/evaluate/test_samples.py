from itertools import permutations

import numpy as np
import pytest

from probablend.evaluate.samples import (
    generalized_energy_distance,
    hungarian_matched_iou,
    mean_iou,
)

EMPTY = np.zeros((4, 4), dtype=int)
LEFT, RIGHT = EMPTY.copy(), EMPTY.copy()
LEFT[:, :2], RIGHT[:, 2:] = 1, 1
ALL = LEFT | RIGHT


def test_iou_of_class_maps():
    assert mean_iou(LEFT, LEFT) == 1
    assert mean_iou(LEFT, RIGHT) == 0
    assert mean_iou(LEFT, ALL) == 0.5
    assert mean_iou(EMPTY, EMPTY) == 1
    both = LEFT + 2 * RIGHT  # class 1 left, class 2 right
    assert mean_iou(both, LEFT) == 0.5  # class 1 agrees, class 2 is missed
    assert mean_iou(both, both) == 1


def test_energy_distance_of_closed_forms():
    one = LEFT[None]
    assert generalized_energy_distance(one, one) == 0
    assert generalized_energy_distance(RIGHT[None], one) == 2
    # Two samples, one right and one wrong: 2 · ½ − ½ − 0.
    assert generalized_energy_distance(np.stack([LEFT, RIGHT]), one) == pytest.approx(0.5)
    # The samples are the truths: zero, whatever their order.
    pair = np.stack([LEFT, RIGHT])
    assert generalized_energy_distance(pair, pair[::-1]) == pytest.approx(0)


def test_the_assignment_is_the_best_of_all_permutations(generator):
    samples = generator.integers(0, 3, size=(4, 6, 6))
    truths = generator.integers(0, 3, size=(2, 6, 6))
    repeated = np.repeat(truths, 2, axis=0)
    best = max(
        np.mean([mean_iou(samples[i], repeated[j]) for i, j in enumerate(order)])
        for order in permutations(range(4))
    )
    assert hungarian_matched_iou(samples, truths) == pytest.approx(best)


def test_one_good_sample_among_many_bad_does_not_score_one():
    """Best-of-n would: with one truth every sample has to match it."""
    samples = np.stack([LEFT, RIGHT, RIGHT, RIGHT])
    assert hungarian_matched_iou(samples, LEFT[None]) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="multiple"):
        hungarian_matched_iou(samples[:3], np.stack([LEFT, RIGHT]))
