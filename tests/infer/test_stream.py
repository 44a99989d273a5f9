"""A huge image gives what it would give in one piece, whoever works on it and whatever happens."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import asdict, replace

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import QTable
from astropy.wcs import WCS

from probablend.emulate.blend import FieldConfig, draw_field
from probablend.flags import Flag
from probablend.images import ImageFile
from probablend.infer import stream as module
from probablend.infer.footprints import Ellipses
from probablend.infer.plan import _touched, blocks_of, check_same
from probablend.infer.segment import segment
from probablend.infer.sources import _flags
from probablend.infer.stream import StreamSettings, stream
from probablend.infer.tiles import Window
from probablend.models.source import PARAMETERS
from probablend.prepare import PreparedImage, masked_pixels, rms_of_variance, rms_of_weight

pytestmark = pytest.mark.usefixtures("one_thread")
N_KILLS = int(os.environ.get("PROBABLEND_KILLS", "3"))


@pytest.fixture(scope="module")
def image(galaxies, wcs, tmp_path_factory):
    """A crowded field on disc, with a WCS and a hole."""
    config = FieldConfig(size=300, mag_range=(20.5, 25.0), companion_fraction=0.4)
    scene = draw_field(galaxies, config, generator=np.random.default_rng(3))
    data = scene.image[:270].copy()
    data[100:120, 30:60] = np.nan
    path = tmp_path_factory.mktemp("image") / "huge.fits"
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(data, wcs.to_header(), name="SCI")]).writeto(
        path
    )
    return path, scene.rms


@pytest.fixture(scope="module")
def settings(image, field_weights):
    path, rms = image
    return StreamSettings(
        image=str(path), rms=rms, background="none", n_samples=3, seed=5, psf_fwhm=1.7,
        model=str(field_weights), zeropoint=25.0, keep_posterior=4, keep_samples=True, block=96,
    )  # fmt: skip


@pytest.fixture(scope="module")
def streamed(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("streamed")
    summary = stream(settings, folder, regions=True)
    return folder, summary


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory):
    result = segment(
        settings.image, rms=settings.rms, background="none", n_samples=3, seed=5, psf_fwhm=1.7,
        model=settings.model, zeropoint=25.0,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("whole")
    result.write(folder, keep_posterior=4, keep_samples=True, regions=True)
    return folder


def test_products_are_complete_and_nothing_else_is_left(streamed):
    folder, summary = streamed
    assert {p.name for p in folder.iterdir()} == {
        "maps.fits", "catalog.fits", "quicklook.png", "samples.fits", "posterior.fits",
        "sources.reg", "summary.json",
    }  # fmt: skip
    assert set(summary["files"]) == {p.name for p in folder.iterdir()}
    assert summary["blocks"] == 12
    assert summary["megapixels"] == pytest.approx(0.081)
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert summary["objects"] > 20


def test_what_is_larger_than_a_block_is_streamed(tmp_path):
    for side, streamed in ((2304, False), (4096, True)):
        path = tmp_path / f"{side}.fits"
        fits.writeto(path, np.zeros((side, side), np.uint8))
        assert module.too_large(path, None) is streamed


def test_maps_are_those_of_the_image_in_one_piece(streamed, whole):
    with fits.open(streamed[0] / "maps.fits") as ours, fits.open(whole / "maps.fits") as wanted:
        assert [h.name for h in ours] == [h.name for h in wanted]
        for name in ("P_GALAXY", "P_BLEND"):
            assert ours[name].data.dtype == wanted[name].data.dtype
            np.testing.assert_allclose(ours[name].data, wanted[name].data, atol=1e-4)
        np.testing.assert_array_equal(ours["MASK"].data, wanted["MASK"].data)
        assert (ours["LABELS"].data != wanted["LABELS"].data).mean() < 1e-3
        for key in ("CRVAL1", "CRPIX2", "CTYPE1"):
            assert ours["P_BLEND"].header[key] == wanted["P_BLEND"].header[key]
        for key in ("PBMODEL", "PBHASH", "PBSEED", "PBFWHM", "PBPSF"):
            assert ours[0].header[key] == wanted[0].header[key]
        ours.verify("exception")
    with fits.open(streamed[0] / "samples.fits") as ours, fits.open(whole / "samples.fits") as w:
        assert (ours["SAMPLES"].data != w["SAMPLES"].data).mean() < 1e-3


@pytest.mark.parametrize("name", ["catalog.fits", "posterior.fits"])
def test_tables_are_those_of_the_image_in_one_piece(streamed, whole, name):
    ours, wanted = (QTable.read(f / name) for f in (streamed[0], whole))
    assert ours.colnames == wanted.colnames
    assert len(ours) == len(wanted)
    for column in wanted.colnames:
        a, b = (np.asarray(getattr(t[column], "value", t[column]), float) for t in (ours, wanted))
        # The sky to half a milliarcsecond; a hundredth of a pixel is 1 mas.
        close = (
            {"rtol": 0, "atol": 3e-7} if column in ("ra", "dec") else {"rtol": 2e-3, "atol": 2e-3}
        )
        np.testing.assert_allclose(a, b, **close, err_msg=column)
        assert getattr(ours[column], "unit", None) == getattr(wanted[column], "unit", None)


def test_regions_are_those_of_the_image_in_one_piece(streamed, whole):
    ours, wanted = ((f / "sources.reg").read_text().splitlines() for f in (streamed[0], whole))
    assert len(ours) == len(wanted)
    numbers = [[[float(v) for v in line.split("(")[1].split(")")[0].split(",")]
                for line in lines[3:]] for lines in (ours, wanted)]  # fmt: skip
    np.testing.assert_allclose(numbers[0], numbers[1], atol=0.15)


def _bytes(folder):
    """Data of all products; headers hold the hour."""
    found = {}
    for name in ("maps.fits", "catalog.fits", "samples.fits", "posterior.fits"):
        with fits.open(folder / name) as hdus:
            found |= {(name, h.name): h.data.tobytes() for h in hdus[1:]}
    return found


def test_the_order_of_work_does_not_matter_and_a_run_goes_on_where_it_stopped(
    settings, streamed, tmp_path, monkeypatch
):
    seen = []

    def backwards_and_dying(function, arguments, dask):
        for some in reversed(arguments):
            if len(seen) == 5:
                raise KeyboardInterrupt
            seen.append(function(*some))
            yield seen[-1]

    monkeypatch.setattr(module, "each", backwards_and_dying)
    with pytest.raises(KeyboardInterrupt):
        stream(settings, tmp_path)
    assert not (tmp_path / "maps.fits").exists()
    monkeypatch.undo()
    with pytest.raises(FileExistsError, match="unfinished run"):
        stream(settings, tmp_path)
    summary = stream(settings, tmp_path, resume=True)
    assert summary["blocks_this_time"] == 7
    assert _bytes(tmp_path) == _bytes(streamed[0])


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_it_ends_with_the_same_bytes(settings, streamed, tmp_path):
    """As many kills as are asked for: a run that ends is compared, and another one is begun."""
    script = textwrap.dedent(
        """
        import json, sys, torch
        from pathlib import Path
        torch.set_num_threads(1)
        from probablend.infer.stream import StreamSettings, stream
        folder = Path(sys.argv[1])
        begun = (folder / ".probablend-run" / "plan.json").exists()
        print("here", flush=True)
        stream(StreamSettings(**json.loads(sys.argv[2])), folder, resume=begun)
        """
    )
    seed = int(os.environ.get("PROBABLEND_SEED", time.time()))
    print(f"PROBABLEND_SEED={seed}")
    generator = np.random.default_rng(seed)
    kills = runs = 0
    ended = False
    while kills < N_KILLS or not ended:
        folder = tmp_path / str(runs)
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(folder), json.dumps(asdict(settings))],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert process.stdout.readline()
        left = generator.uniform(0.0, 4.0) if kills < N_KILLS else None
        try:
            assert process.wait(timeout=left) == 0
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        process.stdout.close()
        ended = (folder / "summary.json").exists() and not (folder / ".probablend-run").exists()
        if ended:
            assert _bytes(folder) == _bytes(streamed[0])
            runs += 1


class DiedError(Exception):
    """Stands for a kill."""


def test_dying_at_any_rename_loses_nothing(settings, streamed, tmp_path, monkeypatch):
    few = replace(settings, block=512, n_samples=1, keep_posterior=2)
    stream(few, tmp_path / "wanted", regions=True)
    real, deaths = os.replace, 0
    for life in range(40):
        left = [life + 1]

        def dying(source, target, left=left):
            left[0] -= 1
            if not left[0]:
                raise DiedError
            real(source, target)

        monkeypatch.setattr(os, "replace", dying)
        try:
            begun = (tmp_path / "out" / ".probablend-run" / "plan.json").exists()
            stream(few, tmp_path / "out", resume=begun, overwrite=not begun, regions=True)
            break
        except DiedError:
            deaths += 1
        finally:
            monkeypatch.undo()
    assert deaths > 3
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if "gone" not in p.name) == sorted(
        p.name for p in (tmp_path / "wanted").iterdir()
    )
    ours, wanted = (_bytes(tmp_path / k) for k in ("out", "wanted"))
    assert ours == wanted


@pytest.mark.slow
def test_two_workers_one_of_them_killed_give_the_same_bytes(settings, streamed, tmp_path):
    distributed = pytest.importorskip("dask.distributed")
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    )
    with cluster, distributed.Client(cluster) as client:
        killed = []

        def kill_one(done, total):
            if done and not killed:
                killed.append(next(iter(client.run(os.getpid).values())))
                os.kill(killed[0], signal.SIGKILL)

        stream(settings, tmp_path, dask=cluster.scheduler_address, progress=kill_one)
    assert killed
    assert _bytes(tmp_path) == _bytes(streamed[0])


def test_a_run_is_resumed_as_it_was_begun(settings, tmp_path, monkeypatch):
    def nothing(function, arguments, dask):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(module, "each", nothing)
    with pytest.raises(FileNotFoundError, match="no unfinished run"):
        stream(settings, tmp_path, resume=True)
    with pytest.raises(KeyboardInterrupt):
        stream(settings, tmp_path)
    with pytest.raises(ValueError, match="another seed"):
        stream(replace(settings, seed=6), tmp_path, resume=True)
    with pytest.raises(ValueError, match="another catalog_format"):
        stream(settings, tmp_path, resume=True, catalog_format="ecsv")
    with pytest.raises(ValueError, match="another saturation"):
        stream(replace(settings, saturation=9.0), tmp_path, resume=True)
    touched = fits.getdata(settings.image, "SCI").copy()
    moved = tmp_path / "moved.fits"
    fits.writeto(moved, touched)
    with pytest.raises(ValueError, match="another image"):
        stream(replace(settings, image=str(moved)), tmp_path, resume=True)


def test_cutouts_hold_what_the_whole_image_holds_there(settings, streamed, tmp_path):
    # Two that overlap, one at the edge, one outside, one nowhere; on the sky and in pixels.
    at = np.array([[60.0, 60.0], [75.0, 62.0], [2.0, 260.0], [900.0, 10.0], [np.nan, 3.0]])
    whole = QTable.read(streamed[0] / "catalog.fits")
    x, y = (whole[k].value for k in "xy")
    away = np.maximum(abs(x[:, None] - at[:, 0]), abs(y[:, None] - at[:, 1]))
    inside = np.nanmin(away, axis=1) <= 20
    wcs = WCS(fits.getheader(settings.image, "SCI"))
    sky = wcs.pixel_to_world(at[:, 0], at[:, 1])
    on_sky = QTable({"RA": np.nan_to_num(sky.ra.deg), "DEC": np.nan_to_num(sky.dec.deg, nan=50.0)})
    for name, table in (("pixels", QTable({"x": at[:, 0], "y": at[:, 1]})), ("sky", on_sky)):
        table.write(tmp_path / f"{name}.fits")
        some = replace(
            settings, cutouts=str(tmp_path / f"{name}.fits"), cutout_size=40, keep_samples=False
        )
        summary = stream(some, tmp_path / name, regions=True)
        assert set(summary["files"]) == {
            "catalog.fits", "posterior.fits", "sources.reg", "summary.json",
        }  # fmt: skip
        assert summary["blocks"] < 12
        ours = QTable.read(tmp_path / name / "catalog.fits")
        assert 3 < len(ours) == inside.sum()
        for column in ("x", "y", "flux", "p_blend", "g1", "flags"):
            a, b = (np.asarray(t[column], float) for t in (ours, whole[inside]))
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3, err_msg=column)
        np.testing.assert_array_equal(ours["cutout"], np.nanargmin(away[inside], axis=1))
        assert set(ours["cutout"]) <= {0, 1, 2}


@pytest.mark.parametrize("at", [(75.4, 60.0), (75.6, 116.9), (75.9, 211.5), (-0.4, 20.0)])
def test_every_pixel_of_a_cutout_lies_in_a_block_that_is_looked_at(at):
    plan = {"shape": [270, 300], "side": 96, "halo": 0, "stride": 1}
    touched = _touched(np.array([at]), 20.0, plan)
    rows, columns = (
        np.flatnonzero(abs(np.arange(n) - c) <= 20.5)
        for n, c in zip(plan["shape"], at, strict=True)
    )
    seen = np.zeros(plan["shape"], bool)
    for k in touched:
        seen[blocks_of(plan)[k].core] = True
    assert seen[np.ix_(rows, columns)].all()


def test_cutouts_that_make_no_sense(settings, tmp_path):
    QTable({"x": [1e4], "y": [5.0]}).write(tmp_path / "far.fits")
    QTable({"name": ["a"]}).write(tmp_path / "none.fits")
    far = replace(settings, cutouts=str(tmp_path / "far.fits"), keep_samples=False)
    assert stream(far, tmp_path / "far")["objects"] == 0
    assert len(QTable.read(tmp_path / "far" / "catalog.fits")) == 0
    with pytest.raises(ValueError, match="needs columns x and y"):
        stream(replace(far, cutouts=str(tmp_path / "none.fits")), tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        stream(replace(far, cutouts="nowhere.fits"), tmp_path / "none")
    with pytest.raises(ValueError, match="no samples of maps"):
        replace(settings, cutouts="a.fits")
    with pytest.raises(ValueError, match="cutout_size"):
        replace(far, cutout_size=0)


def test_an_image_without_a_pixel_has_a_catalogue_of_the_usual_columns(settings, tmp_path):
    fits.writeto(tmp_path / "nothing.fits", np.full((2100, 2100), np.nan, np.float32))
    stream(replace(settings, image=str(tmp_path / "nothing.fits"), block=1050), tmp_path / "out")
    table = QTable.read(tmp_path / "out" / "catalog.fits")
    assert len(table) == 0
    assert "flux" in table.colnames
    assert "cutout" not in table.colnames


def test_a_block_without_a_pixel_is_missing_not_zero(settings, tmp_path):
    data = fits.getdata(settings.image, "SCI").astype(np.float32)
    data[:, 150:] = np.nan
    fits.writeto(tmp_path / "half.fits", data)
    some = replace(
        settings, image=str(tmp_path / "half.fits"), keep_posterior=0, keep_samples=False
    )
    stream(some, tmp_path / "out")
    with fits.open(tmp_path / "out" / "maps.fits") as hdus:
        assert np.isnan(hdus["P_BLEND"].data[:, 150:]).all()
        assert (hdus["MASK"].data[:, 150:] == 1).all()
        assert np.isfinite(hdus["P_BLEND"].data[:90, :150]).all()
    fits.writeto(tmp_path / "none.fits", np.full((80, 80), np.nan, np.float32))
    with pytest.raises(ValueError, match="no usable pixel"):
        stream(replace(some, image=str(tmp_path / "none.fits")), tmp_path / "none")


def test_a_block_without_weight_is_missing_too(settings, tmp_path):
    shape = ImageFile(settings.image).shape
    weight = np.full(shape, settings.rms**-2, np.float32)
    weight[:, 110:] = 0
    fits.writeto(tmp_path / "weight.fits", weight)
    some = replace(
        settings, rms=None, weight=str(tmp_path / "weight.fits"), keep_posterior=0,
        keep_samples=False, n_samples=1,
    )  # fmt: skip
    stream(some, tmp_path / "out")
    with fits.open(tmp_path / "out" / "maps.fits") as hdus:
        assert (hdus["MASK"].data[:, 110:] == 1).all()
        assert hdus[0].header["PBNMASK"] == hdus["MASK"].data.sum()
        assert np.isfinite(hdus["P_BLEND"].data[:90, :110]).all()


def test_flags_keep_all_their_bits(tmp_path):
    flags = np.array([[0, 1, 2**25, 2**25 + 1]], np.int32)
    for name in ("flags.fits", "flags.fits.gz"):
        fits.writeto(tmp_path / name, flags)
        read = ImageFile(tmp_path / name).read_all(exact=True)
        assert masked_pixels(read, 1).tolist() == [[False, True, False, True]]
        assert masked_pixels(read, 2**25).tolist() == [[False, False, True, True]]


def test_what_reaches_beyond_the_margin_is_flagged():
    signal = np.zeros((60, 80), np.float32)
    prepared = PreparedImage(signal=signal, rms=1.0, mask=np.zeros(signal.shape, bool))
    at = np.array([[30.0, 40.0], [3.0, 40.0], [56.0, 40.0], [30.0, 4.0], [30.0, 76.0]])
    zero = np.zeros(len(at))
    ellipses = Ellipses(y=at[:, 0], x=at[:, 1], radius=zero + 6, e1=zero, e2=zero)
    middle = np.ones((len(at), len(PARAMETERS)))
    # Only the last column is the border of the image: there a galaxy is truncated, not cut.
    window = Window((512, 512), (False, False, False, True))
    flags = _flags(ellipses, middle, zero, zero + 1, prepared, signal, None, zero + 2, {}, window)
    assert flags.tolist() == [0, Flag.CUT, Flag.CUT, Flag.CUT, Flag.TRUNCATED]


def test_a_small_level_is_that_of_the_whole_image(settings, image, tmp_path):
    """It is measured once: blocks of which each has its own would not fit together."""
    path, rms = image
    few = replace(settings, keep_posterior=0, keep_samples=False, n_samples=1, background="auto")
    raised = tmp_path / "raised.fits"
    with fits.open(path) as hdus:
        fits.writeto(raised, (hdus["SCI"].data - 0.06 * rms).astype(np.float32))
    stream(replace(few, image=str(raised)), tmp_path / "blocks")
    how = {"rms": rms, "n_samples": 1, "seed": 5, "psf_fwhm": 1.7, "model": few.model}
    whole = segment(str(raised), **how)
    assert whole.meta["background"] == pytest.approx(-0.06 * rms, abs=0.02 * rms)
    maps = fits.getdata(tmp_path / "blocks" / "maps.fits", "P_GALAXY")
    np.testing.assert_allclose(maps, whole.p_galaxy, atol=1e-4, equal_nan=True)
    # The same as if the sky had been right.
    before = segment(str(path), **how, background=whole.meta["background"] + 0.06 * rms)
    np.testing.assert_allclose(before.p_galaxy, whole.p_galaxy, atol=1e-3, equal_nan=True)


def test_weights_and_flags(settings, image, tmp_path):
    weight = np.full((2, 3), 0.25)
    weight[0, 0], weight[1, 2] = 0, -1
    rms = rms_of_weight(weight)
    assert np.isnan(rms[0, 0])
    assert np.isnan(rms[1, 2])
    assert rms[0, 1] == 2
    flags = np.array([0, 1, 2, 4, 6, np.nan, np.inf])
    assert masked_pixels(flags).tolist() == [False, *[True] * 6]
    assert masked_pixels(flags, 2).tolist() == [False, False, True, False, True, True, True]
    # A weight map is the noise it stands for.
    path, noise = image
    shape = ImageFile(path).shape
    fits.writeto(tmp_path / "weight.fits", np.full(shape, noise**-2, np.float32))
    few = replace(settings, keep_posterior=0, keep_samples=False, n_samples=1, block=512)
    stream(few, tmp_path / "a")
    stream(replace(few, rms=None, weight=str(tmp_path / "weight.fits")), tmp_path / "b")
    a, b = (fits.getdata(tmp_path / k / "maps.fits", "P_GALAXY") for k in "ab")
    np.testing.assert_allclose(a, b, atol=1e-3)


def test_variances_stand_for_noise_and_zero_for_what_is_missing(settings, image, tmp_path):
    rms = rms_of_variance(np.array([4.0, 0.0, -1.0, np.nan]))
    np.testing.assert_array_equal(rms, [2.0, np.nan, np.nan, np.nan])
    path, noise = image
    few = replace(settings, keep_posterior=0, keep_samples=False, n_samples=1, block=512, rms=None)
    variance = np.full(ImageFile(path).shape, noise**2, np.float32)
    variance[200:210, 50:70], variance[210:220, 50:60] = 0, np.nan
    with np.errstate(divide="ignore"):
        fits.writeto(tmp_path / "weight.fits", 1 / np.where(variance > 0, variance, np.inf))
    fits.writeto(tmp_path / "variance.fits", variance)
    stream(replace(few, weight=str(tmp_path / "weight.fits")), tmp_path / "a")
    stream(replace(few, variance=str(tmp_path / "variance.fits")), tmp_path / "b")
    for name in ("P_GALAXY", "MASK"):
        a, b = (fits.getdata(tmp_path / k / "maps.fits", name) for k in "ab")
        np.testing.assert_allclose(a, b, atol=1e-3)
    assert (b[200:210, 50:70] == 1).all()
    fits.writeto(tmp_path / "small.fits", variance[:9])
    with pytest.raises(ValueError, match="variance must have the image's shape"):
        stream(replace(few, variance=str(tmp_path / "small.fits")), tmp_path / "c")


@pytest.mark.parametrize("two", [("rms", "weight"), ("rms", "variance"), ("weight", "variance")])
def test_the_noise_is_said_once(settings, two):
    with pytest.raises(ValueError, match="give one"):
        replace(settings, **({"rms": None} | dict.fromkeys(two, "map.fits")))


def test_a_cluster_that_makes_no_sense(settings, tmp_path):
    pytest.importorskip("dask.distributed")
    with pytest.raises(ValueError, match="local:N"):
        stream(settings, tmp_path, dask="local:many")


def test_what_cannot_be_streamed_is_said(settings, small_weights, image, tmp_path):
    with pytest.raises(ValueError, match="pixels only"):
        stream(replace(settings, model=str(small_weights)), tmp_path)
    fits.writeto(tmp_path / "small.fits", np.ones((10, 10), np.float32))
    with pytest.raises(ValueError, match="mask must have the image's shape"):
        stream(replace(settings, mask=str(tmp_path / "small.fits")), tmp_path / "x")
    with pytest.raises(ValueError, match="give one"):
        replace(settings, weight="w.fits")
    for wrong in ({"block": 3}, {"psf_fwhm": -1.0}, {"keep_posterior": 999}, {"n_samples": 0}):
        with pytest.raises(ValueError, match=r"must be|at most"):
            replace(settings, **wrong)


@pytest.mark.parametrize("compressed", [False, True])
def test_an_image_is_read_part_by_part(tmp_path, compressed):
    data = np.random.default_rng(0).normal(size=(50, 70)).astype(np.float32)
    kind = fits.CompImageHDU if compressed else fits.ImageHDU
    path = tmp_path / "image.fits"
    fits.HDUList([fits.PrimaryHDU(), kind(data)]).writeto(path)
    image = ImageFile(path)
    assert image.shape == (50, 70)
    part = image.read(slice(10, 30), slice(5, 70))
    np.testing.assert_allclose(part, fits.getdata(path)[10:30, 5:], rtol=1e-6)
    scaled = fits.PrimaryHDU((1000 * data).astype(np.int16))
    scaled.header["BZERO"], scaled.header["BSCALE"] = 5.0, 0.5
    scaled.writeto(tmp_path / "scaled.fits.gz")
    part = ImageFile(tmp_path / "scaled.fits.gz").read(slice(0, 2), slice(3, 5))
    np.testing.assert_allclose(part, fits.getdata(tmp_path / "scaled.fits.gz")[:2, 3:5])


def test_a_run_of_before_a_setting_was_known_is_another_run(tmp_path):
    check_same({"pixel_scale": None}, {"pixel_scale": None}, tmp_path)
    with pytest.raises(ValueError, match="begun with another pixel_scale"):
        check_same({"pixel_scale": None}, {}, tmp_path)
