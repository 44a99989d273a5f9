import numpy as np
import pytest
from astropy.io import fits
from astropy.table import QTable
from scipy.stats import entropy

from probablend.view.layers import open_view
from probablend.view.selection import card, export, find_position, pack, selected


@pytest.fixture(scope="module")
def view(folder):
    return open_view(folder)


@pytest.fixture(scope="module")
def products(view):
    return view.products


def test_the_image_is_found_by_its_name_in_the_products(view, folder):
    assert view.image == folder.parent / "field.fits"
    names = ["image", "p_galaxy", "p_blend", "entropy", *(f"sample-{k}" for k in range(4))]
    assert list(view.pyramids) == names


def test_layers_show_what_the_files_hold(view, folder):
    maps = fits.getdata(folder / "maps.fits", "P_BLEND")
    shown = view.pyramids["p_blend"].values(0, 0, 0)
    np.testing.assert_array_equal(shown, maps[::-1].astype("f4"))
    cube = fits.getdata(folder / "samples.fits", "SAMPLES")
    shown = view.pyramids["sample-2"].values(0, 0, 0)
    np.testing.assert_array_equal(shown, cube[2][::-1])


def test_the_entropy_is_that_of_the_three_classes(view, folder):
    g, b = (
        fits.getdata(folder / "maps.fits", name).astype("f8") for name in ("P_GALAXY", "P_BLEND")
    )
    expected = entropy(np.maximum([1 - g, g - b, b], 0), axis=0)[::-1]
    np.testing.assert_allclose(view.pyramids["entropy"].values(0, 0, 0), expected, atol=1e-5)
    assert np.isnan(expected).any()


def test_footprints_are_those_of_the_regions(products, folder):
    first = (folder / "sources.reg").read_text().splitlines()[3]
    x, y, *_ = (float(v) for v in first.removeprefix("ellipse(").split(")")[0].split(","))
    assert (products.ellipses.x[0] + 1, products.ellipses.y[0] + 1) == pytest.approx(
        (x, y), abs=0.01
    )


def test_without_draws_footprints_are_circles_of_the_same_area(folder, tmp_path):
    for name in ("maps.fits", "catalog.fits"):
        (tmp_path / name).symlink_to(folder / name)
    products = open_view(tmp_path).products
    area = np.pi * products.ellipses.radius**2
    np.testing.assert_allclose(area, products.catalog["n_pixels"].value, rtol=1e-6)
    assert products.samples is None
    assert card(products, 1)["draws"] == {}


def test_a_catalogue_of_pixels_only_can_be_looked_at(folder, tmp_path):
    (tmp_path / "maps.fits").symlink_to(folder / "maps.fits")
    full = QTable.read(folder / "catalog.fits")
    full["id", "x", "y", "ra", "dec", "n_pixels", "p_blend", "flags"].write(
        tmp_path / "catalog.ecsv"
    )
    products = open_view(tmp_path).products
    assert np.isnan(np.frombuffer(pack(products), "<f4").reshape(8, -1)[-1]).all()
    assert card(products, 2)["siblings"] == []


def test_an_image_of_another_shape_is_refused(folder, tmp_path):
    fits.writeto(tmp_path / "other.fits", np.zeros((20, 30)))
    with pytest.raises(ValueError, match=r"has shape \(20, 30\)"):
        open_view(folder, tmp_path / "other.fits")


def test_a_scaled_image_is_shown_as_well(folder, tmp_path):
    counts = fits.ImageHDU(np.arange(200 * 200, dtype=np.uint16).reshape(200, 200))
    fits.HDUList([fits.PrimaryHDU(), counts]).writeto(tmp_path / "scaled.fits")
    layer = open_view(folder, tmp_path / "scaled.fits").pyramids["image"].layer
    assert layer.read(slice(1, 2), slice(3, 4))[0, 0] == 203


def test_a_card_says_what_catalogue_and_draws_say(products, folder):
    table = QTable.read(folder / "catalog.fits")
    k = int(np.argmax(table["n_siblings"]))
    said = card(products, int(table["id"][k]))
    values = {one["name"]: one for one in said["values"]}
    assert values["flux"]["value"] == table["flux"][k]
    assert values["x"]["unit"] == "pix"
    assert values["mag"]["value"] is None  # no zero point
    assert len(said["siblings"]) == table["n_siblings"][k]
    assert {table["parent"][i - 1] for i in said["siblings"]} == {table["parent"][k]}
    draws = fits.getdata(folder / "posterior.fits", "POSTERIOR")
    np.testing.assert_array_equal(said["draws"]["hlr"], draws["hlr"][k])
    area = np.array(said["draws"]["a"]) * said["draws"]["b"]
    np.testing.assert_allclose(area, np.square(said["draws"]["radius"]), rtol=1e-6)
    with pytest.raises(KeyError, match="no source 9999"):
        card(products, 9999)


def test_an_export_holds_the_selection_and_nothing_else(products, tmp_path):
    p = np.asarray(products.catalog["p_blend"], dtype=float)
    rows = selected(products, 0.5)
    assert set(rows) == set(np.flatnonzero(p > 0.5))
    assert 0 < len(rows) < len(p)
    for kind in ("fits", "csv"):
        (tmp_path / f"s.{kind}").write_bytes(export(products, 0.5, kind))
        table = QTable.read(tmp_path / f"s.{kind}")
        for name in ("id", "flux"):  # with all their digits
            np.testing.assert_array_equal(table[name], products.catalog[name][rows])
    assert fits.getval(tmp_path / "s.fits", "PBSELECT") == "p_blend > 0.5"
    assert fits.getval(tmp_path / "s.fits", "PBMODEL") == "field"
    regions = export(products, 0.5, "reg").decode().splitlines()[3:]
    assert [int(r.split("{")[1].rstrip("}")) for r in regions] == list(products.catalog["id"][rows])


def test_positions_are_understood_in_degrees_sexagesimal_and_pixels(products):
    def find(text, frame="sky", wcs=products.wcs):
        return find_position(text, frame, wcs, products.shape_yx)

    assert find("150.1 2.2") == pytest.approx((99, 99), abs=1e-6)
    for text in ("10:00:24 +02:12:00", "10h00m24s, +2d12m00s", "10 00 24 2 12 00"):
        assert find(text) == pytest.approx((99, 99), abs=1e-6)
    assert find("12, 34.5", "pixel") == (12, 34.5)
    for text, frame, wcs, said in (
        ("150.1 3", "sky", products.wcs, "outside the image"),
        ("330.1 -2.2", "sky", products.wcs, "outside|is wanted"),
        ("M31", "sky", products.wcs, "is wanted"),
        ("1 2 3", "pixel", products.wcs, "two numbers"),
        ("nan 2", "pixel", products.wcs, "outside the image"),
        ("150.1 2.2", "sky", None, "no celestial coordinates"),
    ):
        with pytest.raises(ValueError, match=said):
            find(text, frame, wcs)
