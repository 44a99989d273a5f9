import numpy as np
import pytest

from probablend.infer.objects import find_objects


def blob(shape, y, x, peak, sigma=2.5):
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return peak * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * sigma**2))


def label(*blobs, noise=0.0, threshold=0.5):
    signal = sum(blobs)
    p = (signal > threshold).astype(float)
    signal = signal + noise * np.random.default_rng(0).normal(size=signal.shape)
    return find_objects(p, signal)


SHAPE = (60, 80)


def test_two_peaks_are_two_objects():
    labels = label(blob(SHAPE, 30, 30, 30), blob(SHAPE, 30, 40, 25), noise=1)
    assert labels.max() == 2
    assert labels[30, 30] != labels[30, 40]
    assert labels.dtype == np.int32


def test_one_galaxy_is_one_object_whatever_the_noise():
    labels = label(blob(SHAPE, 30, 40, 100, sigma=6), noise=1)
    assert labels.max() == 1


def test_a_faint_neighbour_of_a_bright_galaxy_is_found():
    labels = label(blob(SHAPE, 30, 30, 300, sigma=3), blob(SHAPE, 30, 46, 8, sigma=2), noise=1)
    assert labels[30, 46] > 0
    assert labels[30, 46] != labels[30, 30]


def test_separate_objects_keep_their_pixels():
    a, b = blob(SHAPE, 15, 15, 20), blob(SHAPE, 45, 60, 20)
    labels = label(a, b)
    np.testing.assert_array_equal(labels > 0, (a + b) > 0.5)
    assert labels.max() == 2


def test_what_is_smaller_than_the_least_size_is_dropped():
    p = np.zeros(SHAPE)
    p[10, 10:14] = 1
    p[30:33, 30:33] = 1
    labels = find_objects(p, p * 10)
    assert labels.max() == 1
    assert labels[31, 31] == 1


def test_masked_pixels_belong_to_nothing():
    signal = blob(SHAPE, 30, 30, 50)
    p = (signal > 0.5).astype(float)
    p[28:33, 28:33] = np.nan
    labels = find_objects(p, np.nan_to_num(signal * (p == p)))
    assert (labels[28:33, 28:33] == 0).all()


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_an_empty_image_has_no_objects(value):
    assert find_objects(np.full(SHAPE, value), np.zeros(SHAPE)).max() == 0
