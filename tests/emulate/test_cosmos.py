import galsim
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from scipy import ndimage

from probablend.emulate.bank import draw_bank
from probablend.emulate.blend import FieldConfig, draw_field
from probablend.emulate.cosmos import CosmosGalaxies
from probablend.emulate.sources import split_sources
from probablend.emulate.stamps import ProfileGalaxies
from probablend.survey import get_survey

SCALE, ZEROPOINT = 0.03, 25.94


def write_catalog(folder, galaxies, mags):
    """A real-galaxy catalogue as GalSim reads it: images, PSFs and a table beside them."""
    images, psfs = fits.HDUList([]), fits.HDUList([])
    for k, (image, psf) in enumerate(galaxies):
        images.append((fits.PrimaryHDU if k == 0 else fits.ImageHDU)(image))
        psfs.append((fits.PrimaryHDU if k == 0 else fits.ImageHDU)(psf))
    images.writeto(folder / "images.fits")
    psfs.writeto(folder / "psfs.fits")
    n = len(galaxies)
    Table(
        {
            "IDENT": np.arange(100, 100 + n),
            "RA": np.full(n, 150.0),
            "DEC": np.full(n, 2.0),
            "MAG": np.asarray(mags, dtype=float),
            "BAND": ["F814W"] * n,
            "WEIGHT": np.ones(n),
            "GAL_FILENAME": ["images.fits"] * n,
            "PSF_FILENAME": ["psfs.fits"] * n,
            "GAL_HDU": np.arange(n),
            "PSF_HDU": np.arange(n),
            "PIXEL_SCALE": np.full(n, SCALE),
            "NOISE_MEAN": np.zeros(n),
            "NOISE_VARIANCE": np.full(n, 1e-6),
            "STAMP_FLUX": np.array([image.sum() for image, _ in galaxies], dtype=float),
        }
    ).write(folder / "real_galaxy_catalog.fits")
    return folder / "real_galaxy_catalog.fits"


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cosmos")
    hst = galsim.Gaussian(fwhm=0.1)
    psf = hst.drawImage(nx=41, ny=41, scale=SCALE).array
    mags = np.linspace(20, 24, 20)
    galaxies = []
    for k, mag in enumerate(mags):
        profile = galsim.Exponential(half_light_radius=0.2 + 0.01 * k).shear(g1=0.2, g2=-0.1)
        seen = galsim.Convolve(profile, hst) * 10 ** (-0.4 * (mag - ZEROPOINT))
        galaxies.append((seen.drawImage(nx=128, ny=128, scale=SCALE).array, psf))
    return write_catalog(folder, galaxies, mags)


def test_a_deconvolved_galaxy_is_the_galaxy_seen_by_the_survey(catalog, survey, generator):
    """Against the same exponential, drawn directly with the survey's PSF."""
    galaxies = CosmosGalaxies(survey, catalog, "train")
    index = 3
    k = int(galaxies.table["row"][index])
    mag = float(galaxies.table["mag"][index])
    stamp = galaxies.draw(index, mag, generator=generator)
    assert stamp.image.sum() == pytest.approx(stamp.flux, rel=0.03)
    profile = galsim.Exponential(half_light_radius=0.2 + 0.01 * k).shear(g1=0.2, g2=-0.1)
    n = stamp.image.shape[0]
    offset = (stamp.x - (n - 1) / 2, stamp.y - (n - 1) / 2)
    expected = (galsim.Convolve(profile, galaxies.psf) * stamp.flux).drawImage(
        nx=n, ny=n, scale=survey.scale, offset=offset
    )
    residual = np.abs(stamp.image - expected.array).sum() / stamp.flux
    assert residual < 0.06


@pytest.fixture(scope="module")
def noisy_catalog(tmp_path_factory):
    """The same exponential four times, without noise, under noise that is correlated, and lost."""
    folder = tmp_path_factory.mktemp("noisy")
    generator = np.random.default_rng(5)
    hst = galsim.Gaussian(fwhm=0.1)
    psf = hst.drawImage(nx=41, ny=41, scale=SCALE).array
    seen = galsim.Convolve(galsim.Exponential(half_light_radius=0.3), hst)
    mags = np.full(12, 23.0)
    galaxies = []
    for k in range(12):
        flux = 10 ** (-0.4 * (mags[k] - ZEROPOINT)) * (1e-3 if k >= 9 else 1)
        image = (seen * flux).drawImage(nx=128, ny=128, scale=SCALE).array.astype(float)
        if k > 0:
            noise = ndimage.gaussian_filter(generator.standard_normal(image.shape), 0.7)
            image += 3e-3 * noise / noise.std()
        galaxies.append((image.astype(np.float32), psf))
    path = write_catalog(folder, galaxies, mags)
    y, x = np.indices((41, 41)) - 20
    correlation = np.exp(-(y**2 + x**2) / (4 * 0.7**2))
    fits.writeto(folder / "noise.fits", correlation)
    table = Table.read(path)
    table["NOISE_VARIANCE"], table["NOISE_FILENAME"] = 9e-6, "noise.fits"
    table.write(path, overwrite=True)
    return path


def test_stamps_have_no_noise_and_galaxies_that_are_lost_in_it_are_left_out(
    noisy_catalog, survey, monkeypatch
):
    monkeypatch.setattr("probablend.emulate.cosmos.split_indices", lambda n, split: np.arange(n))
    galaxies = CosmosGalaxies(survey, noisy_catalog, "train")

    def stamps():
        return [galaxies.draw(k, 23.0, generator=np.random.default_rng(0)) for k in range(9)]

    def off(stamp, true):
        """Light in the wrong place, of all."""
        n = min(len(stamp.image), len(true.image))
        one, other = (
            i[(len(i) - n) // 2 :][:n, (len(i) - n) // 2 :][:, :n] / i.sum()
            for i in (stamp.image, true.image)
        )
        return np.abs(one - other).sum()

    found = stamps()
    with monkeypatch.context() as patched:
        patched.setattr(CosmosGalaxies, "clean", ProfileGalaxies.clean)
        raw = stamps()
    assert off(found[0], raw[0]) < 0.05  # without noise nothing is taken out
    for one, as_it_was in zip(found[1:], raw[1:], strict=True):
        assert off(one, raw[0]) < 0.25
        assert off(one, raw[0]) < 0.7 * off(as_it_was, raw[0])
    # What a lost one gives is another galaxy.
    lost = galaxies.draw(9, 23.0, generator=np.random.default_rng(0))
    assert lost.galaxy < 109
    assert lost.image.sum() == pytest.approx(lost.flux, rel=1e-4)


def test_a_field_can_be_made_of_real_galaxies(catalog, survey, generator):
    bank = CosmosGalaxies(survey, catalog, "train", n_stars=3)
    field = draw_field(bank, FieldConfig(size=128, mag_range=(20.5, 24)), generator=generator)
    assert np.isfinite(field.image).all()
    assert set(field.catalog["galaxy"]) <= set(bank.table["galaxy"])


def test_splits_share_no_galaxy(catalog, survey):
    parts = [
        set(CosmosGalaxies(survey, catalog, split).table["galaxy"])
        for split in ("train", "validation", "test")
    ]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 20


def test_a_sharper_survey_is_refused(catalog):
    with pytest.raises(ValueError, match="broader than HST"):
        CosmosGalaxies(get_survey("roman-f106"), catalog)


def test_a_file_that_is_no_catalogue_is_refused(tmp_path, survey):
    fits.HDUList([fits.PrimaryHDU()]).writeto(tmp_path / "x.fits")
    with pytest.raises(ValueError, match="not a real-galaxy catalogue"):
        CosmosGalaxies(survey, tmp_path / "x.fits")


@pytest.mark.data
def test_real_hst_galaxies_keep_their_flux(test_data, tmp_path, survey, generator):
    table = Table.read(test_data / "hst_cosmos_f814w" / "catalog.ecsv")
    stamps, mags = [], []
    with fits.open(test_data / "hst_cosmos_f814w" / "stamps.fits") as hdus:
        for row in table:
            if f"PSF_{row['ident']}" in hdus and row["mag_auto"] < 24:
                image = np.asarray(hdus[f"GAL_{row['ident']}"].data, dtype=np.float32)
                psf = np.asarray(hdus[f"PSF_{row['ident']}"].data, dtype=np.float32)
                stamps.append((image, psf))
                mags.append(row["mag_auto"])
    assert len(stamps) > 5
    galaxies = CosmosGalaxies(survey, write_catalog(tmp_path, stamps, mags), "train")
    for index in range(len(galaxies.table)):
        mag = float(galaxies.table["mag"][index])
        stamp = galaxies.draw(index, mag, generator=generator)
        assert stamp.image.sum() == pytest.approx(stamp.flux, rel=0.1)


def test_a_bank_mixes_parametric_and_real_galaxies_where_these_suit(catalog):
    """HST's own PSF is too sharp for deconvolved HST galaxies: that survey does without them."""
    settings = {"n_galaxies": 6, "n_stars": 2, "mag_range": (20.0, 24.0), "seed": 3}
    surveys = ("euclid-vis", "cosmos-f814w")
    bank = draw_bank(f"parametric+cosmos:{catalog}", surveys, "train", **settings)
    count = [int((bank.group == group).sum()) for group in range(4)]
    assert count == [12, 2, 6, 2]
    real = ~bank.g1.isfinite()  # the catalogue comes without fits
    assert int(real.sum()) == 6
    assert set(bank.group[real].tolist()) == {0}
    again = draw_bank(f"parametric+cosmos:{catalog}", surveys, "train", **settings | {"seed": 4})
    assert set(bank.mag[real].tolist()) != set(again.mag[~again.g1.isfinite()].tolist())
    with pytest.raises(ValueError, match="PSF broader"):
        draw_bank(f"cosmos:{catalog}", ("cosmos-f814w",), "train", **settings)
    # A mistake is no set that does not suit.
    with pytest.raises(ValueError, match="source must be one of"):
        draw_bank("parametric+cosmso", surveys, "train", **settings)
    # Stars come from the first source that has them.
    bank = draw_bank(f"cosmos:{catalog}+parametric", surveys, "train", **settings)
    assert [int((bank.group == group).sum()) for group in range(4)] == [12, 2, 6, 2]


def test_all_sources_are_those_that_are_here(monkeypatch):
    here = {"cosmos"}
    monkeypatch.setattr(
        "probablend.emulate.sources.dataset_folder", lambda name: name if name in here else None
    )
    assert split_sources("all") == ["structured", "cosmos"]
    here.add("candels")
    assert split_sources("all") == ["structured", "candels", "cosmos"]
    assert split_sources("parametric+cosmos") == ["parametric", "cosmos"]
    assert split_sources("all+irregular") == ["structured", "candels", "cosmos", "irregular"]
