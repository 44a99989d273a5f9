from dataclasses import replace

import galsim
import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from probablend.emulate.blend import (
    FieldConfig,
    draw_field,
    draw_mags,
    draw_pair,
    make_scene,
    place,
)
from probablend.emulate.classes import encode_classes
from probablend.emulate.parametric import ParametricGalaxies
from probablend.emulate.products import read_scene, read_truth, write_scene
from probablend.emulate.psf import psf_image
from probablend.images import read_image
from probablend.psf import PSF
from probablend.survey import get_survey


def test_a_scene_is_the_sum_of_its_galaxies(scene):
    total = np.zeros_like(scene.noiseless)
    for source in scene.sources:
        where, part = source.slices(scene.image.shape)
        total[where] += part
    np.testing.assert_allclose(total, scene.noiseless, atol=0.02 * scene.rms)
    assert (scene.image - scene.noiseless).std() == pytest.approx(scene.rms, rel=0.1)


def test_classes_count_the_footprints_that_cover_a_pixel(scene):
    count = sum(scene.footprint(k).astype(int) for k in range(len(scene.sources)))
    np.testing.assert_array_equal(scene.classes, np.minimum(count, 2))
    np.testing.assert_array_equal(encode_classes(np.array([0, 1, 2, 7])), [0, 1, 2, 2])


def test_a_galaxy_is_blended_if_its_footprint_shares_a_pixel(scene):
    footprints = [scene.footprint(k) for k in range(len(scene.sources))]
    for k, row in enumerate(scene.catalog):
        others = np.zeros_like(footprints[k])
        for j, other in enumerate(footprints):
            if j != k:
                others |= other
        assert row["blended"] == (footprints[k] & others).any()
        assert row["n_pixels"] == footprints[k].sum()


def test_blendedness_of_a_galaxy_on_its_twin_is_one_half(galaxies, survey, generator):
    stamp = galaxies.draw(0, 22.0, generator=generator)
    twin = place(stamp, np.array([64.0, 64.0]))
    alone = make_scene([twin], survey, (128, 128), generator=generator)
    both = make_scene([twin, twin], survey, (128, 128), generator=generator)
    assert alone.catalog["blendedness"][0] == pytest.approx(0.0, abs=1e-6)
    np.testing.assert_allclose(both.catalog["blendedness"], 0.5, atol=1e-6)
    assert both.catalog["blended"].all()
    assert not alone.catalog["blended"].any()


def test_flux_is_conserved_when_a_galaxy_is_placed(galaxies, survey, generator):
    stamp = galaxies.draw(5, 23.0, generator=generator)
    scene = make_scene([place(stamp, np.array([100.3, 90.7]))], survey, (200, 200),
                       generator=generator)  # fmt: skip
    assert scene.noiseless.sum() == pytest.approx(stamp.image.sum(), rel=1e-5)
    row = scene.catalog[0]
    assert abs(row["y"] - 100.3) <= 0.5
    assert abs(row["x"] - 90.7) <= 0.5


def test_an_empty_sky_has_an_empty_catalogue_with_all_columns(survey, generator):
    scene = make_scene([], survey, (32, 40), generator=generator)
    assert len(scene.catalog) == 0
    assert {"x", "y", "flux", "blended", "blendedness"} <= set(scene.catalog.colnames)
    assert not scene.classes.any()


def test_pairs_follow_the_protocol():
    survey = get_survey("candels-f160w")
    galaxies = ParametricGalaxies(survey, "test", n_galaxies=80, n_stars=0, mag_range=(18, 23))
    for k in range(25):
        scene = draw_pair(galaxies, generator=np.random.default_rng([1, k]))
        assert scene.image.shape == (128, 128)
        first, second = (source.stamp for source in scene.sources)
        assert first.galaxy != second.galaxy
        a, b = scene.catalog[:2]
        assert abs(a["mag"] - b["mag"]) < 2
        assert abs(a["x"] - 63.5) <= 0.5
        assert abs(a["y"] - 63.5) <= 0.5
        r = np.hypot(a["x"] - b["x"], a["y"] - b["y"])
        r_max = min(4 * min(a["hlr"], b["hlr"]), 64)
        r_min = max(a["hlr"], b["hlr"])
        if r_min > r_max:
            r_min = 0.8 * r_max
        # Each centre falls within half a pixel of where it was meant along each axis.
        assert r_min - 1.5 <= r <= r_max + 1.5


def test_the_seed_fixes_a_scene(galaxies):
    config = FieldConfig(size=64)
    first, again, other = (
        draw_field(galaxies, config, generator=np.random.default_rng(s)).image for s in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_field_has_the_density_and_the_counts_that_were_asked_for(galaxies, survey):
    config = FieldConfig(size=600, density=300, star_density=0, mag_range=(21.0, 26.0))
    catalogs = [
        draw_field(galaxies, config, generator=np.random.default_rng(k)).catalog for k in range(4)
    ]
    x, y = (np.concatenate([c[n] for c in catalogs]) for n in ("x", "y"))
    mag = np.concatenate([c["mag"] for c in catalogs])
    inside = (x >= 0) & (x < 600) & (y >= 0) & (y < 600)
    area = 4 * (600 * survey.scale / 60) ** 2
    assert inside.sum() / area == pytest.approx(300, rel=0.1)
    bright, faint = ((mag[inside] < 24).sum(), (mag[inside] < 26).sum())
    expected = (10 ** (0.3 * 24) - 10 ** (0.3 * 21)) / (10 ** (0.3 * 26) - 10 ** (0.3 * 21))
    assert bright / faint == pytest.approx(expected, rel=0.25)


def test_counts_may_be_flat(generator):
    mags = draw_mags(20_000, 0.0, (20.0, 24.0), generator)
    np.testing.assert_allclose(np.histogram(mags, 4, (20, 24))[0], 5000, rtol=0.06)


def test_companions_make_blends(galaxies):
    shares = []
    for fraction in (0.0, 0.8):
        config = FieldConfig(size=500, density=100, companion_fraction=fraction)
        catalog = draw_field(galaxies, config, generator=np.random.default_rng(4)).catalog
        shares.append(catalog["blended"].mean())
    assert shares[1] > 1.5 * shares[0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0},
        {"density": -1.0},
        {"mag_range": (26, 20)},
        {"companion_fraction": 1.5},
        {"companion_distance": -1.0},
    ],
)
def test_a_field_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match="must"):
        FieldConfig(**wrong)


def test_a_written_scene_says_the_same(scene, tmp_path):
    write_scene(scene, tmp_path, "one", seed=11, overwrite=False)
    with fits.open(tmp_path / "one.fits") as hdus:
        np.testing.assert_array_equal(hdus["SCI"].data, scene.image)
        assert hdus["RMS"].data[0, 0] == pytest.approx(scene.rms)
        assert hdus[0].header["PBSEED"] == 11
        scale = WCS(hdus["SCI"].header).proj_plane_pixel_scales()[0].to_value("arcsec")
        assert scale == pytest.approx(0.1)
    read = read_image(tmp_path / "one.fits")
    assert read.pixel_scale == pytest.approx(0.1)
    assert read.zeropoint == pytest.approx(scene.survey.zeropoint)
    classes, catalog, footprints = read_truth(tmp_path / "one_truth.fits")
    np.testing.assert_array_equal(classes, scene.classes)
    assert len(catalog) == len(scene.catalog)
    k = int(np.argmax(catalog["n_pixels"]))
    own = footprints[footprints["id"] == catalog["id"][k]]
    mask = np.zeros(classes.shape, dtype=bool)
    mask[own["y"], own["x"]] = True
    np.testing.assert_array_equal(mask, scene.footprint(k))
    with pytest.raises(FileExistsError, match="exists already"):
        write_scene(scene, tmp_path, "one", seed=11, overwrite=False)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("sampled", [None, 4])
def test_a_written_scene_brings_its_psf_on_its_own_pixels(sampled, tmp_path):
    """As the one that `--psf` takes: as wide as was asked for, however its file was sampled."""
    survey = get_survey("lsst-i")
    if sampled:
        drawn = galsim.Moffat(beta=3, fwhm=5.0 * sampled).drawImage(nx=201, ny=201, scale=1.0)
        fits.writeto(tmp_path / "psf.fits", drawn.array)
        survey = replace(survey, psf_profile="image", psf_file=str(tmp_path / "psf.fits"))
    galaxies = ParametricGalaxies(survey, "test", n_galaxies=30, n_stars=2, seed=2)
    config = FieldConfig(size=64, density=30)
    scene = draw_field(galaxies, config, generator=np.random.default_rng(1))
    write_scene(scene, tmp_path, "scene", seed=1, overwrite=False)
    known = PSF.read(f"{tmp_path}/scene.fits[PSF]")
    assert known.fwhm == pytest.approx(survey.psf_fwhm_pixels, rel=0.03)
    again = read_scene(tmp_path / "scene.fits").survey
    assert psf_image(again) == pytest.approx(psf_image(survey), abs=2e-4)
