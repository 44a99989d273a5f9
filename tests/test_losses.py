import pytest
import torch

from probablend.losses import Geco, hardest_pixels


def test_the_multiplier_rises_until_the_constraint_holds():
    """Minimise x² subject to (x − 3)² ≤ 1: the answer is x = 2."""
    geco = Geco(kappa=1.0, decay=0.5, rate=0.02).train()
    x = torch.tensor(0.0, requires_grad=True)
    optimizer = torch.optim.Adam([x], lr=0.02)
    seen = []
    for _ in range(6000):
        loss = geco((x - 3) ** 2, x**2, n_pixels=1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(x.item())
    # The multiplier circles around its fixed point.
    assert sum(seen[3000:]) / 3000 == pytest.approx(2.0, abs=0.05)


def test_evaluation_changes_nothing():
    geco = Geco(kappa=0.1).train()
    geco(torch.tensor(5.0), torch.tensor(1.0), n_pixels=10)
    geco.eval()
    before = {k: v.clone() for k, v in geco.state_dict().items()}
    geco(torch.tensor(50.0), torch.tensor(1.0), n_pixels=10)
    for key, value in geco.state_dict().items():
        assert torch.equal(value, before[key])


def test_the_gradient_is_that_of_the_newest_term():
    geco = Geco(kappa=0.1).train()
    x = torch.tensor(2.0, requires_grad=True)
    geco(3 * x, torch.zeros(()), n_pixels=1).backward()
    assert float(x.grad) == pytest.approx(3.0)


def test_hard_pixels_are_chosen_more_often_and_as_many_as_asked():
    nats = torch.zeros(2, 10, 10)
    nats[:, 0, :] = 8.0
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(10, 10)
    for _ in range(300):
        chosen = hardest_pixels(nats, 0.1, generator=generator)
        assert chosen.sum() == 20
        counts += chosen[0]
    assert counts[0].mean() > 290
    assert 0 < counts[1:].mean() < 2


def test_choosing_all_pixels_chooses_all():
    assert hardest_pixels(torch.rand(1, 4, 4), 1.0, generator=torch.Generator()).all()
