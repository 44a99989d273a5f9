import pytest
import torch

from probablend.models import build_model
from probablend.models.unet import UNet, UNetConfig, pad_to_stride


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(1)
    return UNet(UNetConfig(n_bands=2, channels=(4, 6, 8), n_convs=1)).eval()


@pytest.mark.parametrize("shape", [(32, 32), (33, 47), (8, 100), (1, 1)])
def test_any_size_comes_back_as_it_went_in(network, shape):
    logits = network(torch.randn(3, 2, *shape)).logits
    assert logits.shape == (3, 3, *shape)
    assert torch.isfinite(logits).all()


def test_padding_is_empty_sky_below_and_right():
    padded = pad_to_stride(torch.ones(1, 1, 5, 8), 8)
    assert padded.shape == (1, 1, 8, 8)
    assert float(padded.sum()) == 40


@torch.inference_mode()
def test_nothing_beyond_the_halo_changes_a_pixel(network):
    halo = network.halo
    n = 2 * halo + 64
    image = torch.randn(1, 2, n, n)
    changed = image.clone()
    changed[..., : n // 2 - 16 - halo, :] += 10
    changed[..., :, n // 2 + 16 + halo :] -= 10
    middle = (..., slice(n // 2 - 16, n // 2 + 16), slice(n // 2 - 16, n // 2 + 16))
    before, after = network(image).logits[middle], network(changed).logits[middle]
    torch.testing.assert_close(before, after, rtol=0, atol=1e-6)


@torch.inference_mode()
def test_moving_the_image_by_a_stride_moves_the_answer(network):
    stride, halo = network.config.stride, network.halo
    image = torch.randn(1, 2, 2 * halo + 64, 2 * halo + 64)
    moved = torch.roll(image, (stride, 2 * stride), dims=(-2, -1))
    a = network(image).logits[..., halo : halo + 32, halo : halo + 32]
    b = network(moved).logits[
        ..., halo + stride : halo + stride + 32, halo + 2 * stride : halo + 2 * stride + 32
    ]
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_a_certain_network_gives_one_set_of_probabilities(network):
    draws = network(torch.randn(1, 2, 16, 16)).class_probabilities(3)
    torch.testing.assert_close(draws[0], draws[2])
    torch.testing.assert_close(draws.sum(dim=2), torch.ones(3, 1, 16, 16))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "vnet"}, "model kind must be one of"),
        ({"kind": "unet", "chanels": [4]}, "unknown settings"),
        ({"kind": "unet", "latent_dim": 6}, "unknown settings"),
        ({"kind": "unet", "stem": 0}, "stem must be at least 1"),
        ({"kind": "punet", "channels": []}, "channels must be positive"),
        ({"kind": "punet", "channels": [4, "x"]}, "must be int"),
    ],
)
def test_settings_that_a_network_does_not_take_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        build_model(settings)
