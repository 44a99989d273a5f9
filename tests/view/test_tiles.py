import io
import tracemalloc

import numpy as np
import pytest
from astropy.io import fits
from PIL import Image

from probablend.infer.planes import make_planes
from probablend.view import tiles
from probablend.view.tiles import Layer, Pyramid, image_layer, shrink


def layer_of(plane, **how):
    return Layer(
        name="plane", title="plane", read=lambda r, c: plane[r, c], shape_yx=plane.shape, **how
    )


def assemble(pyramid, level, side):
    n_y, n_x = (-(-n // 2**level // side) for n in pyramid.layer.shape_yx)
    return np.block([[pyramid.values(level, x, y) for x in range(n_x)] for y in range(n_y)])


def test_tiles_together_are_the_plane_with_its_first_row_at_the_bottom(generator):
    plane = generator.normal(size=(600, 1100)).astype(np.float32)
    np.testing.assert_array_equal(assemble(Pyramid(layer_of(plane)), 0, tiles.TILE), plane[::-1])


def test_every_level_is_a_mean_of_the_plane(generator, monkeypatch):
    monkeypatch.setattr(tiles, "TILE", 16)
    monkeypatch.setattr(tiles, "_AT_ONCE", 1000)
    plane = generator.normal(size=(192, 320)).astype(">f4")
    pyramid = Pyramid(layer_of(plane, zero=1.0, unit=2.0))
    assert pyramid.n_levels == 6
    for level in range(pyramid.n_levels):
        expected = (shrink(plane[::-1], 2**level) - 1) / 2
        np.testing.assert_allclose(assemble(pyramid, level, 16), expected, atol=2e-3)


def test_missing_pixels_are_left_out_of_means_and_shown_grey():
    plane = np.array([[1, np.nan, 3], [1, 3, np.nan], [np.nan, np.nan, 0.5]])
    np.testing.assert_array_equal(shrink(plane, 2), np.array([[5 / 3, 3], [np.nan, 0.5]], "f4"))
    picture = Image.open(io.BytesIO(Pyramid(layer_of(plane)).tile(0, 0, 0))).convert("RGB")
    assert picture.getpixel((0, 0)) == (128, 128, 128)  # the last row is on top
    assert picture.getpixel((2, 0)) != (128, 128, 128)


def test_a_large_plane_is_read_once_and_in_little_memory(tmp_path):
    n = 8000
    make_planes(tmp_path / "maps.fits", fits.Header(), fits.Header(), {"P": ">f4"}, (n, n), None)
    with fits.open(tmp_path / "maps.fits", memmap=True) as hdus:
        plane = hdus["P"].data
    n_read = []

    def read(rows, columns):
        part = plane[rows, columns]
        n_read.append(part.size)
        return part

    pyramid = Pyramid(Layer(name="p", title="p", read=read, shape_yx=plane.shape))
    tracemalloc.start()
    pyramid.tile(0, 3, 3)
    assert sum(n_read) == tiles.TILE**2
    assert pyramid.values(pyramid.n_levels - 1, 0, 0).shape == (500, 500)
    n_all = sum(n_read)
    assert n_all == n**2 + tiles.TILE**2
    pyramid.tile(3, 1, 1)
    assert sum(n_read) == n_all
    assert tracemalloc.get_traced_memory()[1] < 50e6  # the plane takes 256 MB
    tracemalloc.stop()


def test_there_are_no_tiles_beyond_the_plane():
    pyramid = Pyramid(layer_of(np.zeros((700, 300))))
    for where in ((0, 1, 0), (0, 0, 2), (2, 0, 0), (-1, 0, 0)):
        with pytest.raises(KeyError, match="there is no"):
            pyramid.tile(*where)


@pytest.mark.parametrize("unit", [1.0, 1e-21])
def test_an_image_is_shown_in_units_of_its_noise(generator, unit):
    image = (unit * generator.normal(100, 5, size=(400, 900))).astype(np.float32)
    image[:30] = np.nan
    layer = image_layer(lambda r, c: image[r, c], image.shape)
    assert layer.zero == pytest.approx(100 * unit, rel=0.01)
    assert layer.unit == pytest.approx(5 * unit, rel=0.02)
    colours = layer.colour(Pyramid(layer).values(0, 0, 0))
    assert (colours[-30:] == 255).all()
    assert 50 < np.median(colours[:-30]) < 80


def test_an_image_without_pixels_is_shown_all_the_same():
    image = np.full((20, 30), np.nan, np.float32)
    assert Pyramid(image_layer(lambda r, c: image[r, c], image.shape)).tile(0, 0, 0)
