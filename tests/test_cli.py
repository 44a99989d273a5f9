"""The command line, as a user meets it: what it writes, and what it says of bad input."""

import json
import re
import shutil
import sys
from dataclasses import asdict

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from probablend import cli
from probablend.checkpoint import save_weights
from probablend.demo import hubble_image
from probablend.flags import Flag
from probablend.images import ImageData
from probablend.models.pairs import PairNetwork, PairNetworkConfig


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command: exit status, standard output, standard error."""

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["probablend", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        said = capsys.readouterr()
        return stop.value.code or 0, said.out, said.err

    return command


@pytest.fixture
def image(scene, tmp_path):
    path = tmp_path / "image.fits"
    fits.PrimaryHDU(scene.image).writeto(path)
    return path


def test_segment_writes_its_products(run, image, small_weights, scene, tmp_path):
    out = tmp_path / "out"
    code, said, _ = run(
        "segment", image, "--rms", scene.rms, "--samples", 3, "--model", small_weights,
        "-o", out, "--keep-samples",
    )  # fmt: skip
    assert code == 0
    n_objects = int(re.search(r"(\d+) objects", said)[1])
    assert json.loads((out / "summary.json").read_text())["objects"] == n_objects
    assert len(Table.read(out / "catalog.fits")) == n_objects
    assert fits.getdata(out / "samples.fits", "SAMPLES").shape == (3, 200, 200)
    assert (out / "quicklook.png").stat().st_size > 10_000


def test_the_same_seed_writes_the_same_bytes(run, image, small_weights, tmp_path):
    for name in ("a", "b"):
        code, *_ = run("segment", image, "--samples", 2, "--seed", 7, "--model", small_weights,
                       "-o", tmp_path / name)  # fmt: skip
        assert code == 0
    for ext in ("P_GALAXY", "P_BLEND", "LABELS"):
        a, b = (fits.getdata(tmp_path / n / "maps.fits", ext) for n in ("a", "b"))
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("quiet", ["--quiet", "-q"])
def test_quiet_goes_before_and_after_the_command(run, image, small_weights, tmp_path, quiet):
    words = ["segment", image, "--samples", 1, "--model", small_weights, "-o"]
    assert "objects" in run(*words, tmp_path / "loud")[1]
    assert run(*words, tmp_path / "after", quiet) == (0, "", "")
    assert (tmp_path / "after" / "catalog.fits").exists()
    assert run(quiet, *words, tmp_path / "before") == (0, "", "")
    for command in (["surveys"], ["data", "list"], ["models"]):
        assert run(*command)[1]
        assert run(*command, quiet) == (0, "", "")
    code, said, complaint = run("segment", quiet, tmp_path / "none.fits", "-o", tmp_path / "o")
    assert (code, said) == (1, "")
    assert "does not exist" in complaint


def test_a_progress_bar_is_drawn_in_a_terminal(run, image, small_weights, tmp_path, monkeypatch):
    terminal = cli.shared.Console(file=(tmp_path / "screen").open("w"), force_terminal=True)
    monkeypatch.setattr(cli.shared, "err", terminal)
    code, *_ = run("segment", image, "--samples", 1, "--model", small_weights, "-o", tmp_path / "o")
    terminal.file.close()
    assert code == 0
    assert "0.0 Mpx" in (tmp_path / "screen").read_text()


def test_a_huge_image_goes_block_by_block_and_gives_the_same(
    run, scene, field_weights, tmp_path, monkeypatch
):
    bands = fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(0 * scene.image + 1, name="SCI-B")])
    bands.append(fits.ImageHDU(scene.image, name="SCI-A"))
    bands.writeto(tmp_path / "bands.fits")
    flags = np.zeros(scene.image.shape, np.int16)
    flags[20:30, 20:40], flags[100:, 150:] = 4, 8
    fits.writeto(tmp_path / "flags.fits", flags)
    weight = np.full(scene.image.shape, scene.rms**-2, np.float32)
    fits.writeto(tmp_path / "weight.fits", weight)
    command = [
        "segment", tmp_path / "bands.fits", "--ext", "SCI-A", "--weight", tmp_path / "weight.fits",
        "--mask", tmp_path / "flags.fits", "--flag-bits", 4, "--samples", 2, "--psf-fwhm", 1.7,
        "--background", "none", "--model", field_weights,
        "--saturation", 0.5 * np.delete(scene.image, np.s_[20:30], axis=0).max(),
    ]  # fmt: skip
    code, said, _ = run(*command, "-o", tmp_path / "whole")
    assert code == 0
    monkeypatch.setattr("probablend.infer.stream._IN_MEMORY", 100)
    code, streamed, _ = run(*command, "-o", tmp_path / "parts")
    assert code == 0
    assert said.split("objects")[0].split()[-1] == streamed.split("objects")[0].split()[-1]
    assert "maps, catalogue and quicklook are in" in " ".join(streamed.split())
    for name in ("P_GALAXY", "MASK"):
        a, b = (fits.getdata(tmp_path / k / "maps.fits", name) for k in ("whole", "parts"))
        np.testing.assert_allclose(a, b, atol=1e-4)
    assert (b == 1).sum() == 200  # bit 8 does not count
    a, b = (Table.read(tmp_path / k / "catalog.fits")["flags"] for k in ("whole", "parts"))
    np.testing.assert_array_equal(a, b)
    assert 0 < ((b & Flag.SATURATED) > 0).sum() < len(b)
    # The same is said of both.
    a, b = (json.loads((tmp_path / k / "summary.json").read_text()) for k in ("whole", "parts"))
    assert set(b) - set(a) == {"blocks", "blocks_this_time"}
    assert {k for k in a if a[k] != b[k]} <= {"seconds_this_time"}
    fits.writeto(tmp_path / "variance.fits", 1 / weight)
    variances = ["--variance" if word == "--weight" else word for word in command]
    variances[variances.index("--variance") + 1] = tmp_path / "variance.fits"
    for name, limit in (("parts-too", 100), ("whole-too", 1e9)):
        monkeypatch.setattr("probablend.infer.stream._IN_MEMORY", limit)
        assert run(*variances, "-o", tmp_path / name)[0] == 0
        again = fits.getdata(tmp_path / name / "maps.fits", "P_GALAXY")
        wanted = fits.getdata(tmp_path / name.removesuffix("-too") / "maps.fits", "P_GALAXY")
        np.testing.assert_allclose(again, wanted, atol=1e-4)
    code, _, said = run(*command, "-o", tmp_path / "new", "--resume")
    assert code == 1
    assert "no unfinished run" in said
    for also in ("--rms", "--variance"):
        code, _, said = run(*command, also, 1, "-o", tmp_path / "two")
        assert code == 1
        assert "give one" in said


def test_cutouts_and_many_images_from_the_command_line(run, scene, field_weights, tmp_path):
    for name in ("a", "b"):
        fits.writeto(tmp_path / f"{name}.fits", scene.image)
        fits.writeto(tmp_path / f"{name}.weight.fits", np.full(scene.image.shape, scene.rms**-2))
    settings = ["--samples", 1, "--psf-fwhm", 1.7, "--background", "none", "--model", field_weights]
    images = [tmp_path / "a.fits", tmp_path / "b.fits"]
    weight = ["--weight", "{}.weight.fits"]
    code, said, _ = run("segment", *images, *weight, *settings, "-o", tmp_path / "many")
    assert code == 0
    assert "2 images" in said
    assert (tmp_path / "many" / "b" / "maps.fits").exists()
    catalog = tmp_path / "many" / "a" / "catalog.fits"
    code, said, _ = run(
        "segment", images[0], "--rms", scene.rms, *settings, "--cutouts", catalog,
        "--cutout-size", 20, "-o", tmp_path / "cut",
    )  # fmt: skip
    assert code == 0
    assert "; catalogue is in" in " ".join(said.split())
    code, _, said = run(
        "segment", images[0], tmp_path / "none.fits", *settings, "-o", tmp_path / "m"
    )
    assert code == 1
    assert "1 images could not be used" in " ".join(said.split())


def test_noise_of_other_images_is_no_image(run, scene, field_weights, tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.fits", scene.image[:64, :64])
        write(tmp_path / f"{name}.weight.fits", np.full((64, 64), scene.rms**-2))
    code, said, complaint = run(
        "segment", *sorted(tmp_path.glob("*.fits")), "--weight", "{}.weight.fits",
        "--model", field_weights, "--psf-fwhm", 1.7, "--samples", 1, "-o", tmp_path / "out",
    )  # fmt: skip
    assert code == 0, complaint
    assert "2 files are noise, mask or PSF of other images" in said
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["images"] == 2
    pairs = [tmp_path / "a.fits", tmp_path / "a.weight.fits"]
    one = run("segment", *pairs, "--weight", "{}.weight.fits", "--model", field_weights,
              "--psf-fwhm", 1.7, "--samples", 1, "-o", tmp_path / "one")  # fmt: skip
    assert one[0] == 0, one[2]
    assert (tmp_path / "one" / "a" / "catalog.fits").exists()


def test_seeds_end_somewhere_and_the_help_says_no_more_than_needed(run):
    code, _, said = run("demo", "--seed", 2**63)
    assert code == 2
    assert "is larger than 4611686018427387904" in " ".join(said.replace("│", " ").split())
    assert "4611686018427387904" not in run("demo", "--help")[1]


def write(path, data):
    fits.PrimaryHDU(np.asarray(data, dtype=float)).writeto(path)
    return path


BAD = {
    "missing file": (lambda p: [p / "none.fits"], "does not exist"),
    "not FITS": (lambda p: [(p / "t.fits", (p / "t.fits").write_text("x"))[0]], "cannot be read"),
    "one-dimensional": (lambda p: [write(p / "l.fits", np.zeros(9))], "1-dimensional"),
    "four-dimensional": (lambda p: [write(p / "q.fits", np.zeros((2, 2, 3, 4)))], "4-dimensional"),
    "all NaN": (lambda p: [write(p / "n.fits", np.full((40, 40), np.nan))], "no usable pixel"),
    "constant": (lambda p: [write(p / "c.fits", np.ones((40, 40)))], "constant"),
    "no such extension": (lambda p: [p / "image.fits", "--ext", 4], "no extension 4"),
    "zero noise": (lambda p: [p / "image.fits", "--rms", 0], "rms must be positive"),
    "negative noise": (lambda p: [p / "image.fits", "--rms=-1"], "rms must be positive"),
    "noise of another shape": (
        lambda p: [p / "image.fits", "--rms", write(p / "r.fits", np.ones((5, 5)))],
        "rms must have the image's shape",
    ),
    "noise file missing": (lambda p: [p / "image.fits", "--rms", "no.fits"], "does not exist"),
    "no samples": (lambda p: [p / "image.fits", "--samples", 0], "n_samples must be at least 1"),
    "unknown model": (lambda p: [p / "image.fits", "--model", "best"], "unknown model 'best'"),
    "unknown device": (lambda p: [p / "image.fits", "--device", "abacus"], "device must be"),
    "HATS without a sky": (
        lambda p: [p / "image.fits", "--catalog-format", "hats"],
        "needs sky positions",
    ),
    "HATS without a sky, in parts": (
        lambda p: [p / "image.fits", "--catalog-format", "hats", "--maps-format", "zarr"],
        "needs sky positions",
    ),
    "unknown background": (lambda p: [p / "image.fits", "--background", "x"], "background must"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_in_one_sentence_and_leaves_nothing(
    run, image, small_weights, tmp_path, case
):
    arguments, sentence = BAD[case]
    out = tmp_path / "out"
    arguments = arguments(tmp_path)
    if "--model" not in arguments:
        arguments += ["--model", small_weights]
    code, said, complaint = run("segment", *arguments, "-o", out)
    assert code == 1
    assert sentence in complaint
    assert "Traceback" not in complaint + said
    assert complaint.startswith("probablend: error: ")
    assert complaint.count("\n") == 1
    assert not out.exists()


def test_products_that_are_there_are_not_touched(run, image, small_weights, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "maps.fits").write_text("precious")
    code, _, complaint = run("segment", image, "--model", small_weights, "-o", out)
    assert code == 1
    assert "holds maps.fits already" in complaint
    assert (out / "maps.fits").read_text() == "precious"
    code, *_ = run("segment", image, "--model", small_weights, "-o", out, "--overwrite",
                   "--samples", 1)  # fmt: skip
    assert code == 0
    code, _, complaint = run("segment", image, "--model", small_weights, "-o", image)
    assert "is a file; a folder is wanted" in complaint


def test_a_full_disc_is_named(run, image, small_weights, tmp_path, monkeypatch):
    from probablend.infer.segmentation import Segmentation

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Segmentation, "_maps", full)
    code, _, complaint = run("segment", image, "--model", small_weights, "-o", tmp_path / "out")
    assert code == 1
    assert "the disc is full" in complaint
    assert not list((tmp_path / "out").iterdir())


def test_emulate_writes_images_with_their_truth(run, tmp_path):
    code, *_ = run("emulate", "field", "--size", 96, "--seed", 3, "-n", 2, "-o", tmp_path / "f")
    assert code == 0
    assert sorted(p.name for p in (tmp_path / "f").iterdir()) == [
        "field_0000.fits", "field_0000_truth.fits", "field_0001.fits", "field_0001_truth.fits",
    ]  # fmt: skip
    code, *_ = run("emulate", "pairs", "-n", 1, "--seed", 3, "-o", tmp_path / "p")
    assert code == 0
    with fits.open(tmp_path / "p" / "pair_0000_truth.fits") as hdus:
        assert len(hdus["CATALOG"].data) == 2
    code, _, complaint = run("emulate", "pairs", "-n", 1, "-o", tmp_path / "p")
    assert code == 1
    assert "exists already" in complaint


def test_a_scene_of_your_own_survey_is_scored_without_its_file(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(
        'name = "mine"\npixel_scale = 0.2\nzeropoint = 27.0\ngain = 2\nsky_rms = 0.5\n'
        'psf_fwhm = 0.7\npsf_profile = "kolmogorov"\n'
    )
    code, *_ = run("emulate", "field", "--survey", "mine.toml", "--size", 96, "-o", "field")
    assert code == 0
    (tmp_path / "mine.toml").unlink()
    scene = tmp_path / "field" / "field_0000.fits"
    Table(fits.getdata(scene.with_name("field_0000_truth.fits"), "CATALOG")).write("my.fits")
    code, *_ = run("evaluate", "field", "--scene", scene, "--catalog", "my.fits", "-o", "scores")
    assert code == 0
    survey = json.loads((tmp_path / "scores" / "results.json").read_text())["setting"]["survey"]
    assert survey["psf_profile"] == "kolmogorov"
    (tmp_path / "scores" / "calibration.png").unlink()
    assert run("evaluate", "--from", "scores")[0] == 0
    assert (tmp_path / "scores" / "calibration.png").exists()
    shutil.copytree("scores/fields", "scores/pairs")
    code, _, complaint = run("evaluate", "--from", "scores")
    assert code == 1
    assert "holds fields and pairs" in complaint


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["emulate", "field", "--survey", "kepler"], "unknown survey 'kepler'"),
        (["emulate", "field", "--source", "sdss"], "source must be one of"),
        (["emulate", "field", "--split", "all"], "split must be one of"),
        (["train", "none.toml"], "does not exist"),
        (["data", "get", "sdss"], "unknown set 'sdss'"),
        (["evaluate", "pairs", "--methods", "daophot"], "unknown method 'daophot'"),
        (["evaluate", "pairs", "--from", "nowhere"], "holds no evaluation of pairs"),
        (["evaluate", "field", "--from", "nowhere"], "holds no evaluation of fields"),
        (["evaluate", "--from", "nowhere"], "nowhere holds no evaluation of fields or of pairs"),
        (["evaluate", "--from", "a", "field"], "--from goes after field"),
        (["evaluate", "field", "--catalog", "mine.csv"], "name it with --scene"),
        (["evaluate", "field", "--scene", "none.fits"], "does not exist"),
    ],
)
def test_other_commands_complain_in_one_sentence(run, arguments, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, complaint = run(*arguments)
    assert code == 1
    assert sentence in complaint
    assert complaint.count("\n") == 1


def test_pairs_are_of_real_galaxies_where_they_are_here(run, write_candels, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    command = ["evaluate", "pairs", "-n", 2, "--mag-range", 20, 22.5, "--methods", "sep", "-o"]

    def source(folder):
        assert "source `" in (tmp_path / folder / "results.md").read_text()
        results = json.loads((tmp_path / folder / "results.json").read_text())
        return results["setting"]["source"]

    assert run(*command, tmp_path / "a")[0] == 0
    assert source("a") == "parametric"
    real = tmp_path / "cache" / "probablend" / "candels"
    real.mkdir(parents=True)
    write_candels(real)
    code, _, complaint = run(*command, tmp_path / "a")
    assert code == 1
    assert "another source" in complaint
    assert run(*command, tmp_path / "a", "--source", "parametric")[0] == 0
    assert run(*command, tmp_path / "b")[0] == 0
    assert source("b") == "candels"
    assert run(*command, tmp_path / "c", "--survey", "euclid-vis")[0] == 0
    assert source("c") == "parametric"  # other pixels


def test_pairs_are_scored_and_scored_again(run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "pairs"
    code, said, _ = run("evaluate", "pairs", "-n", 2, "--methods", "sep, photutils", "-o", folder)
    assert code == 0
    assert "| photutils |" in said
    table = (folder / "results.md").read_text()
    (folder / "results.md").unlink()
    assert run("evaluate", "pairs", "--from", folder)[0] == 0
    assert (folder / "results.md").read_text() == table
    (folder / "results.md").unlink()
    (folder / "magnitude-error.png").unlink()
    code, said, _ = run("evaluate", "--from", folder)
    assert code == 0
    assert "| photutils |" in said
    assert (folder / "results.md").read_text() == table
    assert (folder / "magnitude-error.png").exists()
    code, _, complaint = run("evaluate", "pairs", "-n", 3, "--methods", "sep", "-o", folder)
    assert code == 1
    assert "another n" in complaint


def test_networks_for_pairs_do_not_segment(run, image, tmp_path):
    network = PairNetwork(PairNetworkConfig(channels=(4,), flux_channels=(4,), dense=8))
    settings = {"kind": "pairs", **asdict(network.config)}
    weights = tmp_path / "pairs.safetensors"
    save_weights(weights, network, {"name": "pairs", "model": settings}, half=False)
    code, _, complaint = run("segment", image, "--model", weights, "-o", tmp_path / "out")
    assert code == 1
    assert "stamps of two galaxies only" in complaint


def test_the_demo_says_how_long_it_took(run, small_weights, tmp_path, monkeypatch):
    monkeypatch.setattr("probablend.demo._FIELD_SIZE", 96)
    small = ImageData(data=hubble_image().data[:128, :128])
    monkeypatch.setattr("probablend.demo.hubble_image", lambda: small)
    code, said, _ = run("demo", "--model", small_weights, "-o", tmp_path / "demo")
    assert code == 0
    assert re.search(r"took \d+ seconds", " ".join(said.split()))


def test_lists(run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "euclid-vis" in run("surveys")[1]
    assert "candels" in run("data", "list")[1]
    code, said, _ = run("models")
    assert code == 0
    assert all(name in said for name in ("field", "segment, measure", "maps only"))
    assert run("--version")[1].startswith("probablend ")
    commands = ([], ["segment"], ["emulate", "field"], ["evaluate", "field"],
                ["evaluate", "pairs"], ["evaluate", "mcmc"], ["train"])  # fmt: skip
    for command in commands:
        code, said, _ = run(*command, "--help")
        assert code == 0
        assert "Usage" in said


@pytest.mark.parametrize(
    "command",
    [["emulate", "pairs"], ["emulate", "field"]]
    + [["evaluate", what] for what in ("field", "pairs", "mcmc")]
    + [["evaluate", "inject", "none.fits"]],
)
def test_how_many_has_a_long_name_too(run, command, tmp_path):
    code, _, complaint = run(*command, "--n", 0, "-o", tmp_path / "out")
    assert code == 2
    assert "greater than or equal to 1" in complaint


def test_the_real_hubble_image_is_read():
    data = hubble_image().data
    assert data.shape == (872, 1000)
    assert data.std() > 10


def test_measure_writes_a_row_per_position(run, image, field_weights, scene, tmp_path):
    rows = scene.catalog["x", "y"][:7]
    rows.add_row((-99.0, 3.0))
    rows.write(tmp_path / "mine.csv")
    out = tmp_path / "deep" / "measured.ecsv"
    code, said, _ = run(
        "measure", image, "--positions", tmp_path / "mine.csv", "--rms", scene.rms, "--samples", 1,
        "--model", field_weights, "--psf-fwhm", 1.7, "--zeropoint", 25, "-o", out,
        "--saturation", 1e-9,
    )  # fmt: skip
    assert code == 0
    table = Table.read(out)
    assert len(table) == 8
    assert (table["flags"] & Flag.SATURATED).any()
    n = int(np.isfinite(table["mag"]).sum())
    assert f"measured {n} of 8" in " ".join(said.split())
    assert n < 8
    assert [p.name for p in out.parent.iterdir()] == ["measured.ecsv"]


def test_measure_and_inject_take_weights_and_the_bits_of_a_mask(
    run, image, field_weights, scene, tmp_path
):
    weight = np.full(scene.image.shape, scene.rms**-2, np.float32)
    weight[:, :50] = 0  # missing
    flags = np.zeros(scene.image.shape, np.int16)
    flags[:40], flags[-40:] = 4, 8
    fits.writeto(tmp_path / "weight.fits", weight)
    fits.writeto(tmp_path / "flags.fits", flags)
    noise = ["--weight", tmp_path / "weight.fits", "--mask", tmp_path / "flags.fits"]
    noise += ["--flag-bits", 4, "--model", field_weights, "--psf-fwhm", 1.7, "--background", "none"]
    n_y = scene.image.shape[0]
    (tmp_path / "mine.csv").write_text(f"x,y\n20,100\n100,20\n100,{n_y - 20}\n100,100\n")
    out = tmp_path / "m.ecsv"
    assert run("measure", image, "--positions", tmp_path / "mine.csv", *noise, "-o", out)[0] == 0
    assert np.isfinite(Table.read(out)["flux"]).tolist() == [False, False, True, True]
    code, *_ = run("evaluate", "inject", image, *noise, "-n", 6, "--pixel-scale", 0.1,
                   "--zeropoint", 25, "-o", tmp_path / "inject")  # fmt: skip
    assert code == 0
    injected = Table.read(tmp_path / "inject" / "injected.fits")
    assert (injected["x"] > 49).all()
    assert (injected["y"] > 39).all()


@pytest.mark.parametrize(
    ("text", "options", "sentence"),
    [
        (None, [], "does not exist"),
        ("not a table at all\n\x00", [], "cannot be read|needs columns"),
        ("a,b\n1,2\n", [], "needs columns x and y"),
        ("ra,dec\n1,2\n", [], "no WCS"),
        ("x,y\n1,2\n", ["-o", "m.hdf5"], "must be one of fits"),
        ("x,y\n1,2\n", ["--psf-fwhm", "-1"], "psf_fwhm must be positive"),
        ("x,y\n1,2\n", ["--psf", "none.fits"], "psf none.fits does not exist"),
        ("x,y\n1,2\n", ["--psf", "mine.csv"], "mine.csv"),
    ],
)
def test_measure_complains_in_one_sentence(
    run, image, field_weights, tmp_path, monkeypatch, text, options, sentence
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.csv"
    if text is not None:
        path.write_text(text)
    code, _, said = run("measure", image, "--positions", path, "--model", field_weights, *options)
    assert code == 1
    assert re.search(sentence, said)
    assert len(said.strip().splitlines()) == 1
    assert {p.name for p in tmp_path.iterdir()} <= {"image.fits", "mine.csv"}


def test_segment_writes_what_is_asked_for(run, image, field_weights, scene, tmp_path):
    out = tmp_path / "out"
    code, *_ = run(
        "segment", image, "--rms", scene.rms, "--samples", 1, "--model", field_weights, "-o", out,
        "--regions", "--keep-posterior", 4, "--catalog-format", "ecsv", "--psf-fwhm", 1.7,
    )  # fmt: skip
    assert code == 0
    assert {p.name for p in out.iterdir()} == {
        "maps.fits", "catalog.ecsv", "quicklook.png", "posterior.fits", "sources.reg",
        "summary.json",
    }  # fmt: skip
    code, _, said = run("segment", image, "--keep-posterior", 9999, "--model", field_weights,
                       "-o", tmp_path / "b")  # fmt: skip
    assert code == 1
    assert "draws can be kept" in said


def test_an_image_is_segmented_beside_itself_to_be_viewed(run, tmp_path, monkeypatch, scene):
    server = pytest.importorskip("probablend.view.server")
    served = []
    monkeypatch.setattr(server, "serve", lambda products, **how: served.append((products, how)))
    write(tmp_path / "small.fits", scene.image[:64, :64])
    code, said, _ = run("view", tmp_path / "small.fits", "--no-browser", "--port", 0)
    assert code == 0
    assert "small-probablend" in said.replace("\n", "")
    ((view, how),) = served
    assert view.products.folder == tmp_path / "small-probablend"
    assert view.image == tmp_path / "small.fits"
    assert "sample-15" in view.pyramids
    assert "sample-16" not in view.pyramids
    assert view.products.posterior is not None
    assert not how["open_browser"]
    code, _, said = run("view", tmp_path / "small.fits")
    assert code == 1
    assert f"probablend view {tmp_path / 'small-probablend'}" in said


def test_what_cannot_be_viewed_is_said_in_one_sentence(run, tmp_path):
    pytest.importorskip("starlette")
    for target, expected in ((tmp_path / "none", "does not exist"), (tmp_path, "no maps.fits")):
        code, _, said = run("view", target)
        assert code == 1
        assert expected in said
        assert said.count("\n") == 1
