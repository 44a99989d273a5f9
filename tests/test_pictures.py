"""What the figures show is what they are given; the command draws what is in a folder."""

import matplotlib as mpl
import numpy as np
import pytest
from astropy.io import fits
from matplotlib import animation
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from probablend import cli
from probablend.card import draw_card, plot_corner, plot_joint, plot_marginal
from probablend.catalog import build_table, write_catalog
from probablend.infer.sources import draws_table
from probablend.models.source import PARAMETERS
from probablend.pictures import (
    BLEND_COLOR,
    animate_samples,
    plot_blend_overlay,
    plot_footprints,
    plot_samples,
)
from probablend.plot import CLASS_COLORS


@pytest.fixture
def ax():
    return Figure().subplots()


@pytest.fixture(scope="module")
def labels():
    labels = np.zeros((40, 50), dtype=np.int32)
    labels[5:15, 10:20] = 1
    labels[15:25, 10:20] = 2
    labels[30:34, 40:46] = 3
    return labels


@pytest.fixture(scope="module")
def signal(labels):
    return np.random.default_rng(0).normal(size=labels.shape) + 20.0 * (labels > 0)


@pytest.fixture(scope="module")
def samples(labels):
    samples = np.stack([labels > 0] * 5).astype(np.uint8)
    samples[:, 14:16, 10:20] = 2
    samples[0, 0, 0] = 1
    return samples


@pytest.fixture(scope="module")
def posterior():
    generator = np.random.default_rng(1)
    middle = np.array([100.0, 2.0, 0.1, 0.2, 0, 0, 5.0, 0.1, 0.2, 0.1])
    spread = np.array([9.0, 0.2, 0.05, 0.05, 0.3, 0.3, 0.4, 0.05, 0.05, 0.01])
    draws = generator.normal(middle, spread, size=(128, 3, len(PARAMETERS)))
    origin = np.array([[10.0, 15.0], [20.0, 15.0], [32.0, 43.0]])
    return draws_table(draws.astype(np.float32), origin, np.arange(1, 4))


def test_outlines_follow_the_labels_and_say_which_are_blended(signal, labels, ax):
    plot_footprints(signal, labels, np.array([0.1, 0.9, 0.2]), ax)
    single, blended = ax.collections
    # A side that parts a blended object from a single one is drawn as blended.
    assert len(single.get_segments()) == 30 + 20
    assert len(blended.get_segments()) == 40
    assert blended.get_linewidth() > single.get_linewidth()  # not by colour alone
    np.testing.assert_allclose(blended.get_color()[0][:3], to_rgb(BLEND_COLOR))
    corners = np.concatenate(blended.get_segments())
    np.testing.assert_array_equal(corners.min(axis=0), [9.5, 14.5])
    np.testing.assert_array_equal(corners.max(axis=0), [19.5, 24.5])


def test_the_line_of_the_overlay_is_where_p_blend_is_one_half(signal, labels, ax):
    p_blend = np.where(labels == 2, 0.9, 0.0)
    p_blend[0, 0] = np.nan
    plot_blend_overlay(signal, p_blend, ax)
    (line,) = [c for c in ax.collections if c.get_paths()]
    corners = np.concatenate([path.vertices for path in line.get_paths()])
    assert corners.min() > 9
    assert corners.max() < 25.5


def test_the_first_sample_is_at_the_top_left(samples, ax):
    plot_samples(samples, ax, n_columns=3)
    sheet = ax.images[0].get_array()
    n_y, n_x = samples.shape[1:]
    np.testing.assert_array_equal(sheet[-n_y:, :n_x], samples[0])
    np.testing.assert_array_equal(sheet[:n_y, -2 * n_x - 2 : -n_x - 2], samples[4])
    assert np.ma.getmaskarray(sheet)[:n_y, -n_x:].all()  # there is no sixth


def test_an_animation_has_a_frame_for_every_sample(signal, samples, tmp_path):
    # Equal frames would be merged.
    different = np.stack([np.roll(s, k, axis=1) for k, s in enumerate(samples)])
    with Image.open(animate_samples(signal, different, tmp_path / "samples.gif")) as movie:
        assert movie.n_frames == len(samples)
    with pytest.raises(ValueError, match=r"\.gif or an \.mp4"):
        animate_samples(signal, samples, tmp_path / "samples.png")


def test_an_mp4_needs_ffmpeg(signal, samples, tmp_path, monkeypatch):
    if animation.writers.is_available("ffmpeg"):
        assert animate_samples(signal, samples, tmp_path / "a.mp4").stat().st_size > 1000
    monkeypatch.setitem(mpl.rcParams, "animation.ffmpeg_path", "no-such-program")
    with pytest.raises(ValueError, match="ffmpeg"):
        animate_samples(signal, samples, tmp_path / "b.mp4")


def test_classes_can_be_told_apart_in_grey():
    grey = [np.dot(to_rgb(color), [0.299, 0.587, 0.114]) for color in CLASS_COLORS]
    assert min(np.diff(grey)) > 0.2


def test_the_corner_marks_median_and_interval():
    draws = {"a": np.linspace(0, 1, 101), "b": np.linspace(5, 7, 101)}
    grid = plot_corner(draws, Figure())
    marked = sorted(line.get_xdata()[0] for line in grid[1, 1].lines)
    np.testing.assert_allclose(marked, [5.32, 6.0, 6.68])
    assert not grid[0, 1].axison


def test_panels_of_the_corner_stand_alone(ax):
    x = np.linspace(5, 7, 101)
    for plot, values in ((plot_marginal, (x,)), (plot_joint, (x, -x))):
        ax.clear()
        assert plot(*values, ax) is ax
        marked = sorted(line.get_xdata()[0] for line in ax.lines[:3])
        np.testing.assert_allclose(marked, [5.32, 6.0, 6.68])
    np.testing.assert_array_equal(ax.lines[3].get_ydata(), -x)


def test_a_card_shows_its_galaxy(signal, posterior):
    figure = draw_card(signal, posterior, 3, title=", blended")
    assert figure.get_suptitle() == "source 3, blended"
    (low, high), (left, right) = figure.axes[0].get_ylim(), figure.axes[0].get_xlim()
    assert (low + high) / 2 == pytest.approx(32, abs=0.3)
    assert (left + right) / 2 == pytest.approx(43, abs=0.3)
    p = figure.axes[1].images[0].get_array()
    assert p[32, 43] == 1.0
    assert p[10, 15] == 0.0
    with pytest.raises(ValueError, match="numbers run from 1 to 3"):
        draw_card(signal, posterior, 4)


@pytest.fixture
def folder(tmp_path, signal, labels, samples, posterior):
    fits.PrimaryHDU(signal.astype(np.float32)).writeto(tmp_path / "image.fits")
    out = tmp_path / "out"
    out.mkdir()
    planes = {"P_GALAXY": (labels > 0).astype("f4"), "P_BLEND": 0.9 * (labels == 2).astype("f4"),
              "LABELS": labels, "MASK": np.zeros(labels.shape, np.uint8)}  # fmt: skip
    hdus = [fits.ImageHDU(plane, name=name) for name, plane in planes.items()]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(out / "maps.fits")
    catalog = build_table({"id": [1, 2, 3], "p_source": np.ones(3), "p_blend": [0.1, 0.9, 0.2]})
    write_catalog(catalog, out / "catalog.fits", fits.Header())
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(samples, name="SAMPLES")]).writeto(
        out / "samples.fits"
    )
    write_catalog(posterior, out / "posterior.fits", fits.Header(), "POSTERIOR")
    return tmp_path


@pytest.fixture
def plot(monkeypatch, capsys, folder):
    def command(*arguments, image="image.fits"):
        said = ["plot", folder / "out", "--image", folder / image, "-o", folder / "pictures"]
        monkeypatch.setattr("sys.argv", ["probablend", *map(str, [*said, *arguments])])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code or 0, capsys.readouterr().err

    return command


def test_the_command_draws_what_is_there(plot, folder):
    assert plot("--id", 2)[0] == 0
    names = {path.name for path in (folder / "pictures").iterdir()}
    assert names == {"footprints.png", "classes.png", "p_blend.png", "samples.png", "samples.gif",
                     "card-2.png"}  # fmt: skip
    code, said = plot()
    assert code == 1
    assert "already" in said
    code, said = plot("--id", 9, "--overwrite")
    assert code == 1
    assert "numbers run from 1 to 3" in said


def test_the_command_says_what_is_missing(plot, folder):
    (folder / "out" / "posterior.fits").unlink()
    assert "--keep-posterior" in plot("--id", 2)[1]
    (folder / "out" / "samples.fits").unlink()
    assert plot()[0] == 0
    assert not (folder / "pictures" / "samples.png").exists()
    fits.PrimaryHDU(np.zeros((3, 4))).writeto(folder / "other.fits")
    assert "give the image that was segmented" in plot(image="other.fits")[1]
    (folder / "out" / "maps.fits").unlink()
    assert "holds no maps.fits" in plot()[1]
