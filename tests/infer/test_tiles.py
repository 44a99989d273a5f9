import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from probablend.infer.tiles import cover


@settings(deadline=None)
@given(
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.integers(1, 120),
    st.integers(0, 60),
    st.sampled_from([1, 8, 16]),
    st.booleans(),
)
def test_every_pixel_is_in_one_core_and_reassembling_is_the_identity(
    shape, core, halo, stride, even
):
    image = np.arange(shape[0] * shape[1]).reshape(shape)
    again, count = np.zeros_like(image), np.zeros(shape, dtype=int)
    for tile in cover(shape, core=core, halo=halo, stride=stride, even=even):
        again[tile.core] = image[tile.outer][tile.inner]
        count[tile.core] += 1
        for side in range(2):
            inner, outer = tile.core[side], tile.outer[side]
            assert outer.start % stride == 0
            assert inner.stop - inner.start <= -(-core // stride) * stride
            assert outer.start == 0 or inner.start - outer.start >= halo
            assert outer.stop == shape[side] or outer.stop - inner.stop >= halo
    np.testing.assert_array_equal(again, image)
    assert (count == 1).all()
