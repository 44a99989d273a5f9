import numpy as np
import pytest
import torch
from scipy.stats import kstest

from probablend.models.fields import (
    gaussian_field,
    gaussian_fields,
    gaussian_points,
    lattice_normals,
)


def test_lattice_values_are_standard_normal_and_independent():
    values = lattice_normals((7, 3), np.arange(-300, 300), np.arange(500))
    assert kstest(values.ravel()[::7], "norm").pvalue > 0.01
    for shifted in (values[1:, :] * values[:-1, :], values[:, 1:] * values[:, :-1]):
        assert abs(shifted.mean()) < 4 / np.sqrt(shifted.size)


@pytest.mark.parametrize("key", [(8, 3), (7, 4), (3, 7)])
def test_other_keys_give_other_fields(key):
    one = lattice_normals((7, 3), np.arange(100), np.arange(100))
    other = lattice_normals(key, np.arange(100), np.arange(100))
    assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.04


@pytest.mark.parametrize("spacing", [1, 3, 8])
def test_a_field_has_unit_variance_at_every_phase(spacing):
    fields = torch.stack([gaussian_field((s,), (24, 24), (0, 0), spacing) for s in range(600)])
    assert float(fields.mean()) == pytest.approx(0, abs=0.05)
    np.testing.assert_allclose(fields.std(dim=0).numpy(), 1.0, atol=0.15)


def test_a_field_is_smooth_over_its_spacing():
    field = gaussian_field((1,), (200, 200), (0, 0), 8).numpy()
    assert np.corrcoef(field[:, 1:].ravel(), field[:, :-1].ravel())[0, 1] > 0.95
    assert abs(np.corrcoef(field[:, 40:].ravel(), field[:, :-40].ravel())[0, 1]) < 0.2


def test_a_tile_sees_the_same_field_to_the_last_bit():
    whole = gaussian_field((2, 5), (90, 70), (0, 0), 4)
    tile = gaussian_field((2, 5), (31, 17), (40, 33), 4)
    assert torch.equal(tile, whole[40:71, 33:50])


def test_single_points_are_those_of_the_field(generator):
    whole = gaussian_field((2, 5), (90, 70), (-10, 30), 6).numpy()
    y, x = generator.integers(0, 90, size=200), generator.integers(0, 70, size=200)
    np.testing.assert_allclose(gaussian_points((2, 5), y - 10, x + 30, 6), whole[y, x], atol=1e-5)
    assert len(gaussian_points((1,), y[:0], x[:0], 6)) == 0


def test_many_fields_at_once_are_the_same_fields():
    keys = [(2, 5), (7,), (1, 2, 3)]
    together = gaussian_fields(keys, (90, 70), (-10, 30), 6)
    alone = torch.stack([gaussian_field(key, (90, 70), (-10, 30), 6) for key in keys])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    tile = gaussian_fields(keys, (20, 30), (13, 51), 6)
    torch.testing.assert_close(tile, together[:, 23:43, 21:51], rtol=0, atol=1e-5)
