import pytest

from probablend import demo


@pytest.mark.slow
def test_the_demo_segments_a_real_image_and_an_emulated_one(tmp_path, small_weights, monkeypatch):
    monkeypatch.setattr(demo, "_FIELD_SIZE", 128)
    said = []
    hubble, euclid, scores = demo.run_demo(
        tmp_path, model=str(small_weights), n_samples=2, tell=said.append
    )
    assert any("NASA" in text for text in said)
    assert hubble.p_galaxy.shape == (872, 1000)
    assert euclid.p_galaxy.shape == (128, 128)
    assert set(scores) == {"probablend", "sep"}
    for name in ("hubble", "euclid"):
        assert (tmp_path / name / "quicklook.png").is_file()
    assert (tmp_path / "euclid" / "field_truth.fits").is_file()
    with pytest.raises(FileExistsError, match="already"):
        demo.run_demo(tmp_path, model=str(small_weights))
