"""Whatever the file holds: a result or one clear sentence, and nothing half-written."""

import os
import signal
import sys

import numpy as np
import pytest
from astropy.io import fits

from probablend import cli

N_FILES = int(os.environ.get("PROBABLEND_FUZZ", "200"))
PRODUCTS = {"maps.fits", "catalog.fits", "quicklook.png", "summary.json"}
_TYPES = (">f4", ">f8", ">i2", ">i4", ">u2", "u1", ">i8")
_CARDS = (
    ("SATURATE", "lots"), ("SATURATE", -5.0), ("MAGZERO", "unknown"), ("MAGZERO", 1e308),
    ("CTYPE1", "RA---TAN"), ("CTYPE2", "NONSENSE"), ("CD1_1", 0.0), ("CRVAL1", "x"),
    ("EQUINOX", -3.0), ("RADESYS", "??"), ("BUNIT", "bananas"), ("CDELT1", 0.0),
)  # fmt: skip


def picture(generator):
    """Pixels of any kind: noise and sources, or nothing sensible."""
    shape = tuple(int(n) for n in generator.integers(1, 60, size=2))
    if generator.uniform() < 0.1:
        shape = (int(generator.integers(0, 4)), *shape)
    data = generator.normal(size=shape) * 10 ** generator.uniform(-30, 20)
    if data.size and generator.uniform() < 0.5:
        data.flat[generator.integers(0, data.size, size=3)] += 100 * np.abs(data).max()
    if data.size and generator.uniform() < 0.4:
        bad = generator.choice([np.nan, np.inf, -np.inf, 0.0, 1e38, -1e38])
        data[generator.uniform(size=shape) < generator.uniform()] = bad
    if generator.uniform() < 0.1:
        data[...] = generator.choice([0.0, 1.0, np.nan])
    return data


def write(path, data, generator):
    """A FITS file with a strange type, strange cards, or damaged bytes."""
    kind = str(generator.choice(_TYPES))
    if "f" not in kind:
        peak = np.nanmax(np.abs(np.where(np.isfinite(data), data, 0)), initial=1e-300)
        data = np.where(np.isfinite(data), data, 0) / max(peak, 1e-300) * 100
    with np.errstate(all="ignore"):
        hdu = fits.PrimaryHDU(np.asarray(data).astype(kind))
    for k in generator.integers(0, len(_CARDS), size=generator.integers(0, 4)):
        hdu.header[_CARDS[k][0]] = _CARDS[k][1]
    if kind in (">i2", ">i4") and generator.uniform() < 0.5:
        hdu.header["BSCALE"], hdu.header["BZERO"] = float(generator.normal()), 7.0
    hdu.writeto(path, output_verify="ignore")
    content = bytearray(path.read_bytes())
    if generator.uniform() < 0.2:
        content = content[: int(generator.integers(0, len(content) + 1))]
    if content and generator.uniform() < 0.2:
        for at in generator.integers(0, len(content), size=int(generator.integers(1, 40))):
            content[at] = int(generator.integers(0, 256))
    path.write_bytes(bytes(content))


@pytest.fixture
def patience():
    """A command that takes two minutes hangs: it ends in an error that no check foresaw."""

    def give_up(*_):
        raise RuntimeError("it hangs")

    before = signal.signal(signal.SIGALRM, give_up)
    yield lambda: signal.alarm(120)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_any_file_gives_a_result_or_one_sentence(
    field_weights, tmp_path, capsys, monkeypatch, patience
):
    results = 0
    for seed in range(N_FILES):
        generator = np.random.default_rng([seed, 77])
        path, out = tmp_path / f"{seed}.fits", tmp_path / f"out{seed}"
        write(path, picture(generator), generator)
        arguments = ["segment", path, "-o", out, "--model", field_weights, "--samples", 2]
        if generator.uniform() < 0.5:
            arguments += ["--psf-fwhm", 2.0]
        if generator.uniform() < 0.3:
            noise = tmp_path / f"{seed}-noise.fits"
            write(noise, np.abs(picture(generator)), generator)
            arguments += [
                str(generator.choice(["--rms", "--weight", "--variance", "--mask"])),
                noise,
            ]
        monkeypatch.setattr(sys, "argv", ["probablend", "--quiet", *map(str, arguments)])
        patience()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        said = capsys.readouterr().err
        there = {p.name for p in out.iterdir()} if out.exists() else set()
        if stop.value.code in (0, None):
            results += 1
            assert there == PRODUCTS, seed
            with fits.open(out / "maps.fits") as hdus:
                known = hdus["MASK"].data == 0
                assert np.isfinite(hdus["P_BLEND"].data[known]).all(), seed
        else:
            assert not there, seed
            assert said.startswith("probablend: error: "), (seed, said)
            assert "unexpected" not in said, (seed, said)
            assert said.count("\n") == 1, (seed, said)
    assert results > 0.1 * N_FILES
