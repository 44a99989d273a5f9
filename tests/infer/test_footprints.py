import numpy as np
import pytest

from probablend.infer.footprints import (
    Ellipses,
    blended_share,
    group_sources,
    label_sources,
    overlap_share,
)


def ellipses(*rows):
    return Ellipses(
        **dict(zip(("y", "x", "radius", "e1", "e2"), np.array(rows, float).T, strict=True))
    )


def test_an_ellipse_has_the_area_and_the_moments_it_is_named_for():
    one = ellipses((60.3, 70.8, 22.0, 0.4, -0.5))
    source, index = one.pixels((128, 160))
    rho = one.depth(source, index, 160)
    y, x = np.divmod(index, 160)
    assert len(index) == pytest.approx(np.pi * 22**2, rel=0.01)
    yy, xx = ((y - 60.3) ** 2).mean(), ((x - 70.8) ** 2).mean()
    xy = ((y - 60.3) * (x - 70.8)).mean()
    assert (xx - yy) / (xx + yy) == pytest.approx(0.4, abs=0.01)
    assert 2 * xy / (xx + yy) == pytest.approx(-0.5, abs=0.01)
    assert rho.max() <= 1
    a, b, angle = one.axes
    assert a * b == pytest.approx(22**2)
    tip = (70.8 + a[0] * np.cos(angle[0]), 60.3 + a[0] * np.sin(angle[0]))
    # The end of the long axis lies where the pixels lie farthest.
    far = np.argmax(np.hypot(y - 60.3, x - 70.8))
    assert np.hypot(*(np.abs(np.array([x[far], y[far]]) - [70.8, 60.3])
                      - np.abs(np.array(tip) - [70.8, 60.3]))) < 2  # fmt: skip


def test_a_tiny_source_keeps_the_pixel_of_its_centre():
    source, index = ellipses((3.4, 4.4, 0.1, 0, 0), (0.0, 0.0, 0.2, 0.9, 0)).pixels((8, 9))
    assert source.tolist() == [0, 1]
    assert index.tolist() == [3 * 9 + 4, 0]


def test_pixels_are_those_of_each_source_alone():
    rng = np.random.default_rng(0)
    rows = np.column_stack([rng.uniform(-3, 43, (20, 2)), rng.uniform(0.5, 9, 20),
                            rng.uniform(-0.6, 0.6, (20, 2))])  # fmt: skip
    source, index = ellipses(*rows).pixels((40, 40))
    for k, row in enumerate(rows):
        _, alone = ellipses(row).pixels((40, 40))
        assert set(index[source == k]) == set(alone)


def test_blending_counts_the_draws_with_an_overlap_inside():
    two = ellipses((10, 10, 4, 0, 0), (10, 30, 4, 0, 0))
    nothing = np.zeros(0, int)
    draws = [(np.array([10]), np.array([12])), (np.array([10]), np.array([20])),
             (np.array([9, 11]), np.array([10, 31])), (nothing, nothing)]  # fmt: skip
    np.testing.assert_allclose(blended_share(two, draws, (20, 40)), [0.5, 0.25])
    assert blended_share(ellipses((1, 1, 1, 0, 0)), draws, (20, 40)).tolist() == [0]


def test_sources_that_touch_are_one_group():
    some = ellipses((10, 10, 5, 0, 0), (30, 30, 3, 0, 0), (10, 19, 5, 0, 0), (10, 60, 2, 0, 0))
    assert group_sources(some, (40, 80)).tolist() == [0, 1, 0, 3]


def test_labels_share_the_galaxy_pixels_among_the_sources():
    p_galaxy = np.zeros((30, 40))
    p_galaxy[5:25, 5:35] = 0.9
    p_galaxy[14, 10] = np.nan
    two = ellipses((15, 12, 6, 0, 0), (15, 27, 6, 0, 0))
    labels = label_sources(two, p_galaxy)
    assert labels[15, 12] == 1
    assert labels[15, 27] == 2
    assert labels[14, 10] == 0
    assert (labels[p_galaxy < 0.5] == 0).all()
    assert (labels[:, :19] != 2).all()
    # Mirror images of each other, up to the line between them.
    assert abs((labels == 1).sum() - (labels == 2).sum()) < 25


def test_a_source_that_no_pixel_supports_keeps_its_label():
    labels = label_sources(ellipses((4, 5, 2, 0, 0)), np.zeros((10, 10)))
    assert labels[4, 5] == 1
    assert (labels > 0).sum() == 1


def test_sources_with_one_centre_all_keep_a_label():
    same = ellipses(*[(4.1, 8.9, 3, 0, 0)] * 7, (4, 8, 1, 0, 0), (20, 0, 2, 0, 0))
    labels = label_sources(same, np.zeros((30, 10)))
    assert set(np.unique(labels)) == set(range(10))
    assert labels[4, 9] == 1  # the first keeps the centre, the others lie around it
    assert labels[4, 8] == 8
    assert labels[20, 0] == 9
    y, x = np.nonzero(labels[:10])
    assert np.hypot(y - 4, x - 9).max() < 3


def test_more_sources_than_pixels_are_no_error():
    assert (label_sources(ellipses(*[(0, 0, 1, 0, 0)] * 5), np.ones((2, 2))) > 0).all()


def test_regions_are_ellipses_counted_from_one():
    text = ellipses((9.0, 19.0, 3.0, 0.6, 0.0)).to_regions().splitlines()
    assert text[-1].startswith("ellipse(20.00,10.00,4.24,2.12,0.0)")
    assert "image" in text


def test_footprints_overlap_in_the_draws_in_which_they_share_a_pixel():
    draws = [
        ellipses((10, 10, r, 0, 0), (10, 20, 4, 0, 0), (30, 30, 3, 0, 0)) for r in (3, 5, 7, 8)
    ]
    np.testing.assert_allclose(overlap_share(draws, (40, 40)), [0.5, 0.5, 0.0])
    assert overlap_share([ellipses((1, 1, 1, 0, 0))], (3, 3)).tolist() == [0]


def test_rows_of_an_ellipse_are_the_pixels_inside():
    """Against the radius of every pixel of the image, one ellipse after the other."""
    rng = np.random.default_rng(8)
    n_y, n_x = 45, 60
    for _ in range(300):
        e = rng.uniform(0, 0.95) * np.exp(1j * rng.uniform(0, 2 * np.pi))
        one = ellipses(
            (
                rng.uniform(-4, n_y + 3),
                rng.uniform(-4, n_x + 3),
                rng.uniform(0.1, 25),
                e.real,
                e.imag,
            )
        )
        reach = rng.choice([1.0, 2.0])
        source, index = one.pixels((n_y, n_x), reach=reach)
        everywhere = np.arange(n_y * n_x)
        rho = one.depth(np.zeros_like(everywhere), everywhere, n_x)
        inside = rho <= reach
        centre = np.floor([one.y[0] + 0.5, one.x[0] + 0.5]).astype(int)
        if (centre >= 0).all() and (centre < [n_y, n_x]).all():
            inside[centre[0] * n_x + centre[1]] = True
        assert not source.any()
        # A pixel on the rim may fall on either side by rounding.
        unlike = np.setxor1d(index, everywhere[inside])
        assert np.abs(rho[unlike] - reach).max(initial=0) < 1e-5
        assert (np.diff(index) > 0).all()
