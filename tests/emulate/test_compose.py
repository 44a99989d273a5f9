import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from probablend.emulate.bank import draw_bank, load_bank, save_bank
from probablend.emulate.blend import Placed, make_scene
from probablend.emulate.compose import SceneBatches, _choose, compose, draw_batch, draw_depth
from probablend.emulate.scenes import SceneConfig
from probablend.emulate.stamps import Stamp
from probablend.survey import get_survey

SURVEYS = ("euclid-vis", "lsst-i")


@pytest.fixture(scope="module")
def stamps():
    return draw_bank(
        "parametric", SURVEYS, "train", n_galaxies=60, n_stars=6, mag_range=(19.5, 25.0), seed=1
    )


def stamp_of(bank, survey, k, mag, turns):
    """The same stamp as the numpy emulator would turn it."""
    side = int(bank.side[k])
    image = bank.pixels[bank.start[k] : bank.start[k] + side**2].float().numpy()
    image = image.reshape(side, side) * float(bank.peak[k]) * float(survey.flux(mag))
    y, x, g1, g2 = (float(t[k]) for t in (bank.y, bank.x, bank.g1, bank.g2))
    swap, flip_y, flip_x = turns
    if swap:
        image, y, x, g1 = image.T, x, y, -g1
    if flip_y:
        image, y, g2 = image[::-1], side - 1 - y, -g2
    if flip_x:
        image, x, g2 = image[:, ::-1], side - 1 - x, -g2
    flux, hlr = float(survey.flux(mag)), float(bank.hlr[k])
    return Stamp(image=image, flux=flux, y=y, x=x, hlr=hlr, g1=g1, g2=g2, galaxy=k)


def test_a_composed_scene_is_the_one_the_emulator_makes(stamps):
    rng = np.random.default_rng(3)
    n, size = 24, 64
    survey_of = torch.tensor([0, 1])
    scene = torch.tensor([0] * 12 + [1] * 12)
    which = torch.tensor(
        [int(rng.choice(np.flatnonzero(stamps.group.numpy() // 2 == s))) for s in scene]
    )
    centre = torch.from_numpy(rng.uniform(-10, size + 10, (n, 2))).float()
    mag = torch.from_numpy(rng.uniform(20, 25, n)).float()
    turns = torch.from_numpy(rng.integers(0, 2, (3, n)) > 0)
    noise = torch.zeros(2, size, size)
    batch = compose(stamps, survey_of, scene, which, centre, mag, tuple(turns), noise)
    for index, name in enumerate(SURVEYS):
        survey = get_survey(name)
        placed = []
        for k in torch.nonzero(scene == index)[:, 0].tolist():
            stamp = stamp_of(stamps, survey, int(which[k]), float(mag[k]), turns[:, k].tolist())
            y0, x0 = np.round(centre[k].numpy() - [stamp.y, stamp.x]).astype(int)
            placed.append(Placed(stamp, y0, x0))
        truth = make_scene(placed, survey, (size, size), generator=rng)
        signal = truth.noiseless / survey.sky_rms
        np.testing.assert_allclose(batch.noiseless[index], signal, rtol=2e-4, atol=1e-4)
        assert (batch.classes[index].numpy() == truth.classes).mean() > 0.9995  # half precision
        own = batch.sources.keep(batch.sources.scene == index)
        table = truth.catalog
        assert len(own) == len(table)
        for key, factor in (("y", 1), ("x", 1), ("hlr", 1), ("g1", 1), ("g2", 1),
                            ("flux", survey.sky_rms), ("blendedness", 1)):  # fmt: skip
            ours = getattr(own, key).numpy() * factor
            np.testing.assert_allclose(ours, table[key], rtol=1e-3, atol=2e-3, err_msg=key)
        assert (own.blended.numpy() == np.asarray(table["blended"])).mean() > 0.9


def test_footprints_are_measured_about_the_light(stamps):
    """One source alone: area and second moments against plain numpy."""
    k = int(torch.argmax(stamps.side))
    turns = tuple(torch.tensor([f]) for f in (True, False, True))
    zero = torch.tensor([0])
    survey_of = torch.tensor([int(stamps.group[k]) // 2])
    size = 128
    batch = compose(
        stamps, survey_of, zero, torch.tensor([k]), torch.tensor([[60.3, 70.1]]),
        torch.tensor([21.0]), turns, torch.zeros(1, size, size),
    )  # fmt: skip
    s = batch.sources
    y, x = np.nonzero(batch.classes[0].numpy())
    assert len(y) == int(s.n_pixels[0])
    yy = ((y - float(s.y[0])) ** 2).mean() + 1 / 12
    xx = ((x - float(s.x[0])) ** 2).mean() + 1 / 12
    xy = ((x - float(s.x[0])) * (y - float(s.y[0]))).mean()
    assert float(s.e1[0]) == pytest.approx((xx - yy) / (xx + yy), abs=1e-3)
    assert float(s.e2[0]) == pytest.approx(2 * xy / (xx + yy), abs=1e-3)
    assert float(s.snr[0]) == pytest.approx(float((batch.noiseless**2).sum().sqrt()), rel=1e-3)
    assert abs(float(s.y[0]) - 60.3) <= 0.5


def test_a_batch_depends_on_seed_and_index_alone(stamps):
    config = SceneConfig(size=48)
    first = draw_batch(stamps, config, n=4, seed=1, index=7)
    draw_batch(stamps, config, n=4, seed=1, index=8)
    again = draw_batch(stamps, config, n=4, seed=1, index=7)
    assert torch.equal(first.image, again.image)
    other = draw_batch(stamps, config, n=4, seed=2, index=7)
    assert not torch.equal(first.image, other.image)


def test_batches_are_a_dataset_of_any_training_loop(stamps):
    batches = SceneBatches(stamps, SceneConfig(size=48), n_batches=4, batch_size=3, seed=1)
    loaded = list(DataLoader(batches, batch_size=None))
    assert len(loaded) == len(batches) == 4
    for index, batch in enumerate(loaded):
        same = draw_batch(stamps, batches.config, n=3, seed=1, index=index, progress=index / 4)
        assert batch.image.shape == (3, 1, 48, 48)
        assert torch.equal(batch.image, same.image)
    with pytest.raises(IndexError, match="there are 4 batches"):
        batches[4]


def test_sky_is_unit_noise_and_bright_pixels_carry_shot_noise(stamps):
    batch = draw_batch(stamps, SceneConfig(size=96), n=16, seed=2, index=0)
    residual = batch.image[:, 0] - batch.noiseless
    assert float(residual[batch.noiseless < 0.01].std()) == pytest.approx(1, abs=0.02)
    survey = (batch.psf_fwhm[:, None] == stamps.psf_fwhm).float().argmax(dim=1)
    electrons = stamps.electrons_of_sigma[survey][:, None, None]
    expected = (1 + batch.noiseless / electrons).sqrt()
    bright = (batch.noiseless > 5) & (electrons < 100)
    assert float((residual / expected)[bright].std()) == pytest.approx(1, abs=0.05)


def test_only_some_scenes_have_correlated_noise(stamps):
    config = SceneConfig(size=64, sparse_fraction=0, isolated_fraction=1, correlated_fraction=0.5)
    batch = draw_batch(stamps, config, n=200, seed=3, index=0)
    noise = (batch.image[:, 0] - batch.noiseless).numpy()
    sky = np.where(batch.noiseless.numpy() < 0.05, noise, np.nan)
    rms = np.nanstd(sky, axis=(1, 2))
    assert 0.3 < (rms > 0.95).mean() < 0.75
    assert rms.min() < 0.6
    # What is told of it: 1 where it is white, more the weaker it is from pixel to pixel.
    told = batch.noise_factors[:, 0].numpy()
    assert (told >= 1).all()
    assert (told[rms < 0.7] > 1.05).all()
    assert 0.3 < (told < 1.07).mean() < 0.75
    sky_seen = rms > 0
    assert np.corrcoef(np.log(rms[sky_seen]), np.log(told[sky_seen]))[0, 1] < -0.9


def test_of_some_scenes_the_wings_of_the_psf_are_told(stamps):
    config = SceneConfig(size=32, wings_fraction=0.6)
    batch = draw_batch(stamps, config, n=300, seed=4, index=0)
    told = torch.isfinite(batch.psf_wings).all(dim=1)
    assert torch.equal(told, torch.isfinite(batch.psf_wings).any(dim=1))
    assert 0.5 < float(told.float().mean()) < 0.7
    # As few stars would tell: width and wings are off, each by as much as it pleases.
    wide = (batch.psf_fwhm[:, None] / stamps.psf_fwhm).log()
    survey = wide.abs().argmin(dim=1)
    off = torch.cat([wide.gather(1, survey[:, None]),
                     batch.psf_wings - stamps.psf_wings[survey]], dim=1)[told]  # fmt: skip
    np.testing.assert_allclose(off.mean(dim=0), 0, atol=0.006)
    limits = torch.tensor([0.03, 0.05, 0.04, 0.03])
    np.testing.assert_allclose(off.std(dim=0) / limits, 1 / math.sqrt(3), atol=0.1)
    assert abs(np.corrcoef(off.T) - np.eye(4)).max() < 0.25
    exact = draw_batch(stamps, SceneConfig(size=32), n=20, seed=4, index=0)
    assert exact.psf_wings is None
    assert np.isin(exact.psf_fwhm, stamps.psf_fwhm).all()


def test_stars_look_like_the_psf_that_is_told():
    """However the stamps of a scene are turned, its PSF is turned with them."""
    survey = replace(get_survey("euclid-vis"), psf_g1=0.2, psf_g2=0.25)
    drawn = draw_bank(
        "parametric", [survey], "train", n_galaxies=4, n_stars=30, mag_range=(17.0, 20.0), seed=4
    )
    config = SceneConfig(
        size=64, density_range=(0.1, 0.2), star_density=6.0, mag_range=(17.0, 19.0),
        crowded_share=0.0, psf_fraction=1.0, centred_fraction=1.0,
    )  # fmt: skip
    batch = draw_batch(drawn, config, n=150, seed=8, index=0)
    assert batch.psf_image.sum(dim=(1, 2)).numpy() == pytest.approx(1, abs=1e-5)
    assert set(batch.psf_fwhm.tolist()) == set(drawn.psf_fwhm.tolist())
    seen = []
    for k in range(150):
        own = batch.sources.keep(batch.sources.scene == k)
        if len(own) != 1 or not bool(own.is_star) or not (20 < own.y < 43 and 20 < own.x < 43):
            continue
        y, x = int(own.y.round()), int(own.x.round())
        star = batch.noiseless[k, y - 20 : y + 21, x - 20 : x + 21] / own.flux
        turned = [_diagonal(image) for image in (star, batch.psf_image[k])]
        assert turned[0] * turned[1] > 0
        seen.append(turned[1] > 0)
    assert 0 < sum(seen) < len(seen)  # they are turned in several ways


def _diagonal(image):
    """Whether light lies along one diagonal or the other, near the centre of the light."""
    y, x = torch.meshgrid(torch.arange(41.0) - 20, torch.arange(41.0) - 20, indexing="ij")
    weight = image * torch.exp(-(y**2 + x**2) / 32)
    y, x = (t - float((weight * t).sum() / weight.sum()) for t in (y, x))
    return float((weight * y * x).sum())


def test_psfs_are_told_only_of_some_scenes(stamps):
    config = SceneConfig(size=48, psf_fraction=0.5, wings_fraction=0.5)
    batch = draw_batch(stamps, config, n=40, seed=1, index=0)
    told = batch.psf_image.isfinite().all(dim=2).all(dim=1)
    assert 8 < told.sum() < 32
    assert batch.psf_image[~told].isnan().all()
    assert batch.psf_wings[told].isfinite().all()
    assert set(batch.psf_fwhm[told].tolist()) <= set(stamps.psf_fwhm.tolist())  # as it is


def test_psfs_that_are_told_may_be_slightly_wrong(stamps):
    exact = draw_batch(stamps, SceneConfig(size=48, psf_fraction=1.0), n=60, seed=1, index=0)
    config = SceneConfig(size=48, psf_fraction=1.0, psf_error=0.05)
    told = draw_batch(stamps, config, n=60, seed=1, index=0)
    assert told.psf_image.sum(dim=(1, 2)).numpy() == pytest.approx(1, abs=1e-4)
    assert torch.equal(told.image, exact.image)  # they are only told wrong
    wider = told.psf_fwhm / exact.psf_fwhm
    assert 0.95 <= wider.min() < 0.98
    assert 1.02 < wider.max() <= 1.05
    # Too wide or too narrow by a twentieth changes the brightest pixel by up to a tenth.
    ratio = told.psf_image.amax(dim=(1, 2)) / exact.psf_image.amax(dim=(1, 2))
    assert 0.85 < ratio.min() < 0.98
    assert 1.02 < ratio.max() < 1.15
    assert (ratio - 1).abs().median() < 0.02  # of most it is far less
    assert np.corrcoef(ratio, wider)[0, 1] < -0.8  # the image is as wide as is told


def test_density_and_counts_are_those_asked_for(stamps):
    config = SceneConfig(
        size=64, density_range=(150.0, 150.0), sparse_fraction=0.0, star_density=0.0,
        mag_range=(20.0, 25.0),
    )  # fmt: skip
    expected = found = 0.0
    faint = []
    for index in range(40):
        batch = draw_batch(stamps, config, n=16, seed=5, index=index)
        s = batch.sources
        inside = (s.y > -0.5) & (s.y < 63.5) & (s.x > -0.5) & (s.x < 63.5)
        found += int(inside.sum())
        survey = (batch.psf_fwhm[:, None] == stamps.psf_fwhm).float().argmax(dim=1)
        expected += float((150 * (64 * stamps.scale[survey] / 60) ** 2).sum())
        of_sigma = stamps.mag_of_sigma[survey][s.scene]
        faint.append((of_sigma - 2.5 * s.flux.log10())[inside])
    # Poisson, and companions that move centres in and out.
    assert found == pytest.approx(expected, rel=0.05)
    mag = torch.cat(faint)
    share = float((mag > 24).float().mean())
    counts = (10**7.5 - 10**7.2) / (10**7.5 - 10**6.0)  # ∝ 10^(0.3 m) between 20 and 25
    assert share == pytest.approx(counts, abs=0.03)


def test_training_starts_crowded_and_ends_at_survey_density(stamps):
    config = SceneConfig(size=64)
    shares = [
        (draw_batch(stamps, config, n=32, seed=1, index=0, progress=p).classes == 2).float().mean()
        for p in (0.0, 1.0)
    ]
    assert shares[0] > 3 * shares[1]


def test_isolated_scenes_hold_one_galaxy(stamps):
    config = SceneConfig(size=64, isolated_fraction=1.0)
    batch = draw_batch(stamps, config, n=16, seed=3, index=0, progress=0.0)
    assert sorted(batch.sources.scene.tolist()) == list(range(16))
    assert not batch.sources.is_star.any()
    assert not (batch.classes == 2).any()


def test_lone_galaxies_are_rarer_where_scenes_hold_few_anyway(stamps):
    # 1.1 galaxies per scene of Euclid, 4.6 of LSST; many stars in what is drawn as usual.
    config = SceneConfig(
        size=64, density_range=(100.0, 100.0), isolated_fraction=1.0, star_density=1000.0, few=4.0
    )
    batch = draw_batch(stamps, config, n=400, seed=3, index=0)
    alone = torch.bincount(batch.sources.scene, minlength=400) == 1
    is_lsst = batch.psf_fwhm > 2.5
    assert alone[is_lsst].all()
    expected = 100 * (64 * 0.1 / 60) ** 2 / 4
    assert float(alone[~is_lsst].float().mean()) == pytest.approx(expected, abs=0.09)
    without = draw_batch(stamps, replace(config, few=0.0), n=400, seed=3, index=0)
    assert (torch.bincount(without.sources.scene) == 1).all()
    pairs = replace(config, isolated_fraction=0.0, pair_fraction=1.0)
    batch = draw_batch(stamps, pairs, n=400, seed=3, index=0)
    two = torch.bincount(batch.sources.scene, minlength=400) == 2
    is_lsst = batch.psf_fwhm > 2.5
    assert two[is_lsst].float().mean() > 0.95  # but for companions beyond the border
    assert float(two[~is_lsst].float().mean()) == pytest.approx(expected, abs=0.09)
    with pytest.raises(ValueError, match="few must not be negative"):
        SceneConfig(few=-1.0)


def test_a_bank_survives_the_disc_and_is_small(stamps, tmp_path):
    save_bank(tmp_path / "bank.safetensors", stamps)
    again = load_bank(tmp_path / "bank.safetensors")
    assert again.surveys == SURVEYS
    for key, tensor in stamps.tensors().items():
        assert torch.equal(tensor, again.tensors()[key]), key
    assert (tmp_path / "bank.safetensors").stat().st_size < stamps.n_bytes + 10_000


def test_a_file_that_is_no_bank_is_refused(tmp_path):
    from probablend.checkpoint import save_tensors

    save_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(1)}, {})
    with pytest.raises(ValueError, match="no bank"):
        load_bank(tmp_path / "x.safetensors")


def test_a_stamp_of_a_faint_star_is_not_scaled_up_to_a_bright_one():
    """Footprints of stars are rounder than their stamps: light cut at a border has corners."""
    bank = draw_bank(
        "parametric", ["lsst-i"], "train", n_galaxies=1, n_stars=24, mag_range=(18.0, 25.0), seed=2
    )
    n = 40
    scene, mag = torch.arange(n), torch.full((n,), 18.5)
    which = _choose(bank, torch.ones(n, dtype=torch.long), mag, torch.linspace(0, 0.999, n))
    assert (bank.group[which] == 1).all()
    batch = compose(
        bank, torch.zeros(n, dtype=torch.long), scene, which, torch.full((n, 2), 63.5), mag,
        tuple(torch.zeros(3, n, dtype=torch.bool)), torch.zeros(n, 128, 128),
    )  # fmt: skip
    share = batch.sources.n_pixels / bank.side[which] ** 2
    assert float(share.max()) < 0.9
    # Those of much fainter stars would be full to the corners.
    faint = torch.full((n,), int(((bank.group == 1) & (bank.mag > 23)).nonzero()[0]))
    batch = compose(
        bank, torch.zeros(n, dtype=torch.long), scene, faint, torch.full((n, 2), 63.5), mag,
        tuple(torch.zeros(3, n, dtype=torch.bool)), torch.zeros(n, 128, 128),
    )  # fmt: skip
    assert float((batch.sources.n_pixels / bank.side[faint] ** 2).min()) > 0.95


def test_depth_changes_along_lines_and_is_never_better_than_the_deepest():
    depth = draw_depth(40, 64, fraction=0.5, generator=torch.Generator().manual_seed(1))
    flat = (depth == 1).flatten(1).all(dim=1)
    assert 8 < int(flat.sum()) < 32
    assert float(depth.min()) == 1.0
    assert 1.5 < float(depth.max()) <= 2.5
    # One to three lines make few levels.
    assert max(len(d.unique()) for d in depth) <= 8


def test_a_scene_of_two_depths_is_in_units_of_the_noise_of_each_pixel(stamps):
    size, flat = 64, torch.ones(1, 64, 64)
    depth = flat.clone()
    depth[:, :, 32:] = 2.0
    where = torch.tensor([[31.0, 16.0], [31.0, 48.0]])
    arguments = (
        stamps, torch.tensor([0]), torch.tensor([0, 0]), torch.tensor([40, 40]), where,
        torch.tensor([22.0, 22.0]), tuple(torch.zeros(3, 2, dtype=torch.bool)),
    )  # fmt: skip
    noise = torch.randn(1, size, size, generator=torch.Generator().manual_seed(0))
    even = compose(*arguments, noise, flat)
    uneven = compose(*arguments, noise, depth)
    torch.testing.assert_close(even.image, compose(*arguments, noise).image)
    torch.testing.assert_close(uneven.noiseless * depth, even.noiseless)
    # The same flux is half as many times the noise where that is twice as strong.
    torch.testing.assert_close(uneven.sources.flux, even.sources.flux / torch.tensor([1.0, 2.0]))
    assert float(uneven.sources.n_pixels[1]) < float(even.sources.n_pixels[1])
    # Shot noise belongs to the electrons, of which a shallow part has a quarter.
    shot = (uneven.image[:, 0] - uneven.noiseless) / noise
    electrons = stamps.electrons_of_sigma[0] / depth
    torch.testing.assert_close(shot**2, 1 + uneven.noiseless / electrons, rtol=1e-3, atol=1e-3)


def test_pairs_lie_in_the_middle_or_as_far_from_it_as_asked(stamps):
    def places(**more):
        config = SceneConfig(size=96, pair_fraction=1.0, crowded_share=0.0, **more)
        s = draw_batch(stamps, config, n=300, seed=8, index=0).sources
        first = torch.cat([torch.tensor([True]), s.scene[1:] != s.scene[:-1]])
        both = torch.bincount(s.scene, minlength=300)[s.scene] == 2
        at = torch.stack([s.y, s.x], dim=1)
        central = at[first & both]
        return central - 47.5, torch.hypot(*(at[~first & both] - central).T)

    middle, apart = places()
    assert middle.abs().max() <= 1.0  # no interpolation: within half a pixel, of a stamp that is
    spread, still_apart = places(pair_spread=20.0)
    assert spread.abs().max() <= 21.0
    assert spread.std(dim=0).numpy() == pytest.approx(20 / 3**0.5, rel=0.15)
    assert float(still_apart.median()) == pytest.approx(float(apart.median()), rel=0.15)


@pytest.mark.parametrize("kind", [{"isolated_fraction": 1.0}, {"density_range": (150.0, 150.0)}])
def test_cut_outs_have_a_source_in_the_middle(stamps, kind):
    def off_centre(share):
        config = SceneConfig(size=64, crowded_share=0.0, centred_fraction=share, **kind)
        s = draw_batch(stamps, config, n=200, seed=6, index=0).sources
        distance = torch.hypot(s.y - 31.5, s.x - 31.5)
        return torch.stack([distance[s.scene == k].amin() for k in s.scene.unique()])

    assert off_centre(1.0).max() <= 0.75  # within half a pixel along each axis
    here = (off_centre(0.4) <= 0.75).float().mean()
    assert 0.3 < here - (off_centre(0.0) <= 0.75).float().mean() < 0.5
