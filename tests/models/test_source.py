from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.stats import kstest
from torch.autograd.functional import jacobian

from probablend.models.light import light
from probablend.models.source import (
    PARAMETERS,
    SourceFlow,
    SourcePosterior,
    _log_jacobian,
    to_free,
    to_physical,
)


def some_parameters(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    values = torch.rand(n, len(PARAMETERS), generator=g, dtype=torch.float64)
    values[:, 0] *= 1e4
    values[:, 1] = 0.1 + 10 * values[:, 1]
    values[:, [2, 3, 7, 8]] = 1.3 * (values[:, [2, 3, 7, 8]] - 0.5)
    values[:, 6] += 0.5
    return values


@pytest.fixture
def posterior():
    torch.manual_seed(1)
    flow = SourceFlow(6, hidden=(16,))
    for parameter in flow.parameters():
        parameter.data += 0.15 * torch.randn_like(parameter)
    context = torch.randn(3, 6)
    y, x, unit = torch.tensor([5.0, 0.0, 99.0]), torch.tensor([7.0, 3.0, 1.0]), torch.rand(3) + 0.5
    return SourcePosterior(flow=flow, context=context, y=y, x=x, unit=unit, spread=torch.ones(3))


def test_the_map_to_free_parameters_is_one_to_one():
    values = some_parameters(200)
    torch.testing.assert_close(to_physical(to_free(values)), values)


def test_the_jacobian_is_that_of_automatic_differentiation():
    for values in some_parameters(8, seed=3):
        matrix = jacobian(to_free, values)
        expected = torch.linalg.slogdet(matrix).logabsdet
        torch.testing.assert_close(_log_jacobian(values), expected, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_the_fast_inverse_is_the_inverse(posterior):
    base = torch.randn(50, 3, len(PARAMETERS), generator=torch.Generator().manual_seed(0))
    fast = posterior.flow.invert(posterior.context, base)
    slow = posterior.flow(posterior.context).transform.inv(base)
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-4)
    assert posterior.flow.invert(posterior.context[:0], base[:, :0]).shape == (50, 0, 10)
    back = posterior.flow(posterior.context).transform(fast)
    torch.testing.assert_close(back, base, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_samples_have_the_units_and_positions_asked_for(posterior):
    draws = posterior.sample(500, generator=torch.Generator().manual_seed(0))
    assert draws.shape == (500, 3, len(PARAMETERS))
    assert (draws[..., 0] > 0).all()
    assert (torch.hypot(draws[..., 2], draws[..., 3]) < 1).all()
    middle = draws[..., [4, 5]].median(dim=0).values
    expected = torch.stack([posterior.y, posterior.x], dim=1)
    assert (middle - expected).abs().max() < 2.5
    double = SourcePosterior(
        flow=posterior.flow, context=posterior.context, y=posterior.y, x=posterior.x,
        unit=2 * posterior.unit, spread=posterior.spread,
    )  # fmt: skip
    again = double.sample(500, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(again[..., 0], 2 * draws[..., 0])


@torch.no_grad()
def test_log_prob_is_the_density_of_the_samples(posterior):
    """E_p[q/p] over draws from p is 1 for any density q that p covers: here q is p, moved."""
    draws = posterior.sample(4000, generator=torch.Generator().manual_seed(2)).double()
    log_p = posterior.log_prob(draws.float()).double()
    moved = draws.clone()
    moved[..., 4] += 0.02  # q(θ) = p(θ moved): a density of its own
    log_q = posterior.log_prob(moved.float()).double()
    ratio = (log_q - log_p).exp().mean(dim=0)
    np.testing.assert_allclose(ratio, 1, atol=0.1)


@torch.no_grad()
def test_the_flux_of_samples_follows_the_density(posterior):
    """The base numbers that belong to samples are standard normal, by the inverse."""
    draws = posterior.sample(3000, generator=torch.Generator().manual_seed(4))
    factor, offset = posterior._shift()
    free = to_free((draws - offset) / factor)
    base = posterior.flow(posterior.context).transform(free)
    # Where nothing was clipped, each is normal.
    for k in range(6):
        assert kstest(base[:, 0, k].numpy(), "norm").pvalue > 1e-4


def test_sums_of_light_are_those_of_smoothed_maps_between_pixels():
    widths = (1.0, 2.5, 6.0)
    image = torch.randn(2, 50, 40, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    scene = torch.randint(2, (60,), generator=generator)
    y, x = (
        52 * torch.rand(60, generator=generator) - 1,
        42 * torch.rand(60, generator=generator) - 1,
    )
    got = light(image, scene, y, x, widths).numpy()
    for k, width in enumerate(widths):
        maps = [
            ndimage.gaussian_filter(
                one, width, mode="constant", truncate=np.ceil(3 * width) / width
            )
            for one in image.double().numpy()
        ]
        # scipy's weights sum to 1; ours give a Gaussian source of this width its flux.
        factor = 4 * np.pi * width**2
        for j in range(len(y)):
            at = [np.clip(float(v), 0, n - 1) for v, n in ((y[j], 50), (x[j], 40))]
            wanted = factor * ndimage.map_coordinates(
                maps[scene[j]], np.array(at)[:, None], order=1
            )
            assert got[j, k] == pytest.approx(wanted[0], rel=0.02, abs=0.02)


def test_a_first_estimate_of_the_flux_moves_the_flow_with_it():
    torch.manual_seed(3)
    flow = SourceFlow(6, hidden=(16,), shifted=True)
    context = torch.randn(4, 7)
    moved = context + torch.tensor([0.0] * 6 + [0.7])
    base = torch.randn(50, 4, len(PARAMETERS))
    with torch.no_grad():
        before, after = flow.invert(context, base), flow.invert(moved, base)
        shift = torch.zeros(len(PARAMETERS))
        shift[0] = 0.7
        torch.testing.assert_close(after, before + shift, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            flow(moved).log_prob(after), flow(context).log_prob(before), rtol=1e-4, atol=1e-3
        )


@torch.no_grad()
def test_what_is_widened_is_wider_and_still_a_density(posterior):
    """Draws of one density weigh, by the ratio to another that covers it, 1 on average."""
    wide = replace(posterior, spread=torch.tensor([1.0, 1.5, 2.0]))
    draws = wide.sample(20_000, generator=torch.Generator().manual_seed(0)).double()
    narrow = posterior.sample(20_000, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(draws[:, 0], narrow[:, 0])

    def base(of, values):
        factor, offset = of._shift()
        return of.flow(of.context).transform(to_free((values.float() - offset) / factor))

    widened = base(wide, draws).std(dim=0) / base(posterior, narrow).std(dim=0)
    expected = wide.spread[:, None].expand(3, 9)  # blendedness ends at 0 and 1 in single precision
    torch.testing.assert_close(widened[:, :9], expected, rtol=0.05, atol=0.05)
    ratio = (posterior.log_prob(draws.float()) - wide.log_prob(draws.float())).exp()
    torch.testing.assert_close(ratio[:, :2].mean(dim=0), torch.ones(2), rtol=0.1, atol=0.1)


def test_however_wide_a_posterior_becomes_its_draws_are_numbers(posterior):
    lost = replace(posterior, spread=torch.full((3,), 1e3))
    draws = lost.sample(500, generator=torch.Generator().manual_seed(3))
    assert torch.isfinite(draws).all()
    assert (draws[..., 0] > 0).all()
    assert torch.isfinite(lost.log_prob(draws)).all()


def test_mean_and_interval_are_those_of_the_draws():
    torch.manual_seed(0)
    n = 4
    posterior = SourcePosterior(
        flow=SourceFlow(6), context=torch.randn(n, 6), y=torch.arange(4.0), x=torch.zeros(n),
        unit=torch.ones(n), spread=torch.ones(n),
    )  # fmt: skip
    draws = posterior.sample(4000).detach()
    low, high = posterior.interval(0.68)
    inside = ((draws > low) & (draws < high)).float().mean(dim=0)
    assert (inside - 0.68).abs().max() < 0.09
    assert (posterior.mean[:, 4:6] - draws[..., 4:6].mean(dim=0)).abs().max() < 0.15
    assert torch.equal(posterior.mean, posterior.mean)
    with pytest.raises(ValueError, match="between 0 and 1"):
        posterior.interval(0.0)


@torch.no_grad()
def test_no_light_of_the_density_lies_beyond_what_is_possible(posterior):
    """Along blendedness, from 0 to 1: as much as the flow has on the whole of its own axis."""
    draws = posterior.sample(4000, generator=torch.Generator().manual_seed(5))
    assert ((draws[..., -1] > 0) & (draws[..., -1] < 1)).all()
    middle = draws[0].clone()
    middle[:, -1] = 0.5
    factor, offset = posterior._shift()
    free = to_free((middle - offset) / factor)
    axis = torch.linspace(-80, 80, 40001)
    along = free.expand(len(axis), -1, -1).clone()
    along[..., -1] = axis[:, None]
    whole = torch.trapezoid(posterior.flow(posterior.context).log_prob(along).exp(), axis, dim=0)
    slope = _log_jacobian((middle - offset) / factor) - np.log(4)  # of all but blendedness
    whole = whole * (slope - posterior.unit.log()).exp()
    axis = torch.linspace(-80, 13, 40001)
    along = middle.expand(len(axis), -1, -1).clone()
    along[..., -1] = axis.sigmoid()[:, None]
    density = posterior.log_prob(along).exp() * (along[..., -1] * (1 - along[..., -1]))
    torch.testing.assert_close(torch.trapezoid(density, axis, dim=0), whole, rtol=1e-3, atol=0)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "value"),
    [("flux", 0.0), ("flux", -5.0), ("hlr", -1.0), ("radius", 0.0), ("g1", 1.2), ("e2", -1.0),
     ("blendedness", -5e-4), ("blendedness", 0.0), ("blendedness", 1.0), ("blendedness", 1.5),
     ("flux", float("nan")), ("x", float("inf"))],
)  # fmt: skip
def test_where_no_source_can_be_there_is_no_density(posterior, name, value):
    draws = posterior.sample(2, generator=torch.Generator().manual_seed(5))
    changed = draws.clone()
    changed[:, 1, PARAMETERS.index(name)] = value
    said, usual = posterior.log_prob(changed), posterior.log_prob(draws)
    assert (said[:, 1] == -torch.inf).all()
    torch.testing.assert_close(said[:, [0, 2]], usual[:, [0, 2]])
    assert torch.isfinite(usual).all()


def test_the_gradient_stays_a_number_where_there_is_no_density(posterior):
    values = posterior.sample(1, generator=torch.Generator().manual_seed(5)).detach()
    values[0, 1, 0] = -3.0
    values.requires_grad_()
    posterior.log_prob(values)[0, [0, 2]].sum().backward()
    assert torch.isfinite(values.grad).all()


@torch.no_grad()
def test_the_posterior_of_some_sources_is_theirs(posterior):
    draws = posterior.sample(5, generator=torch.Generator().manual_seed(1))
    whole = posterior.log_prob(draws)
    for which, rows in ((1, [1]), (slice(1, 3), [1, 2]), (np.array([2, 0]), [2, 0]),
                        (np.array([True, False, True]), [0, 2]), (-1, [2])):  # fmt: skip
        part = posterior[which]
        assert len(part) == len(rows)
        torch.testing.assert_close(part.log_prob(draws[:, rows]), whole[:, rows])
    with pytest.raises(IndexError):
        posterior[3]
