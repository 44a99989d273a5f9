import numpy as np
import pytest
from scipy import ndimage

from probablend.emulate.candels import CandelsGalaxies, clean_stamp
from probablend.emulate.denoise import wavelets
from probablend.emulate.sources import open_source
from probablend.survey import get_survey

N = 40
RMS = 0.01


@pytest.fixture
def folder(tmp_path, write_candels):
    write_candels(tmp_path, n=N, rms=RMS)
    return tmp_path


@pytest.fixture
def wfc3():
    return get_survey("candels-f160w")


def test_the_neighbour_is_replaced_by_noise_of_the_background(generator):
    y, x = np.mgrid[:128, :128]
    galaxy = np.exp(-((x - 64) ** 2 + (y - 64) ** 2) / 50)
    near = 8 * np.exp(-((x - 100) ** 2 + (y - 100) ** 2) / 50)
    sky = generator.normal(0.3, 0.05, size=galaxy.shape)
    segments = np.where(galaxy > 0.1, 1, 0) + np.where(near > 0.1, 7, 0)
    clean, own, noise = clean_stamp(galaxy + near + sky, segments, generator=generator)
    white = wavelets(generator.normal(0, 0.05, size=galaxy.shape)).std(axis=(1, 2))
    np.testing.assert_allclose(noise[:3], white[:3], rtol=0.1)
    gone = segments == 7
    assert clean[gone].std() == pytest.approx(0.05, rel=0.1)
    assert abs(clean[gone].mean()) < 0.01
    assert clean[own].sum() == pytest.approx(galaxy.sum(), rel=0.03)


def test_a_stamp_without_its_galaxy_is_refused(generator):
    with pytest.raises(ValueError, match="cover the centre"):
        clean_stamp(np.zeros((64, 64)), np.zeros((64, 64), int), generator=generator)


def test_galaxies_keep_their_flux_and_magnitude(folder, wfc3, generator):
    galaxies = CandelsGalaxies(wfc3, folder, "train")
    assert len(galaxies.table) == 32
    for index in (0, 10, 30):
        mag = float(galaxies.table["mag"][index])
        stamp = galaxies.draw(index, mag, generator=generator)
        assert stamp.flux == pytest.approx(stamp.image.sum(), rel=1e-5)
        assert wfc3.mag(stamp.flux) == pytest.approx(mag, abs=0.2)
    fainter = galaxies.draw(0, float(galaxies.table["mag"][0]) + 1, generator=generator)
    brighter = galaxies.draw(0, float(galaxies.table["mag"][0]), generator=generator)
    assert fainter.image.sum() == pytest.approx(brighter.image.sum() * 10**-0.4, rel=1e-4)


def test_footprints_are_those_of_galaxies_and_not_of_noise(folder, wfc3, generator):
    galaxies = CandelsGalaxies(wfc3, folder, "train")
    for index in range(0, 30, 5):
        stamp = galaxies.draw(index, float(galaxies.table["mag"][index]), generator=generator)
        assert stamp.image.min() >= 0
        pieces = np.bincount(ndimage.label(stamp.image > 0.5 * RMS)[0].ravel())[1:]
        assert pieces.max() > 0.95 * pieces.sum()


def test_splits_share_no_galaxy_and_cover_the_set(folder, wfc3):
    parts = [
        set(CandelsGalaxies(wfc3, folder, split).table["galaxy"])
        for split in ("train", "validation", "test")
    ]
    assert set.union(*parts) == set(range(N))
    assert sum(map(len, parts)) == N


def test_another_pixel_scale_is_refused(folder, survey):
    with pytest.raises(ValueError, match="use the survey candels-f160w"):
        CandelsGalaxies(survey, folder)


def test_files_that_do_not_fit_together_are_refused(folder, wfc3):
    np.save(folder / "candels_seg.npy", np.zeros((3, 128, 128), dtype=np.int16))
    with pytest.raises(ValueError, match="3 segmentations"):
        CandelsGalaxies(wfc3, folder)


def test_an_array_of_python_objects_is_not_loaded(folder, wfc3):
    np.save(folder / "candels_img.npy", np.array([{"code": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="Python objects"):
        CandelsGalaxies(wfc3, folder)


def test_a_missing_set_names_the_command(wfc3, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="run 'probablend data get candels'"):
        open_source("candels", wfc3, "train")
