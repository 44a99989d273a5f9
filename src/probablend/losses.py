"""Objectives that more than one network uses."""

import torch
from torch import Tensor, nn

__all__ = ["Geco", "hardest_pixels"]


class Geco(nn.Module):
    r"""Reconstruction as a constraint: minimise KL subject to cross-entropy ≤ κ · pixels.

    The loss is :math:`\lambda (\bar R - \kappa n) + \mathrm{KL}` where :math:`\bar R` is a
    moving average of the reconstruction term, through which only the newest value has a
    gradient. λ grows while the constraint is violated and shrinks while it holds. Average and
    multiplier are buffers: they are saved and resumed with the weights.

    Parameters
    ----------
    kappa : float
        Cross-entropy per pixel that is good enough, nats.
    decay : float
        Of the moving average.
    rate : float
        Step of log λ, per nat and pixel of violation.

    References
    ----------
    Rezende & Viola 2018, arXiv:1810.00597; Kohl et al. 2019, arXiv:1905.13077, section 3.
    """

    average: Tensor
    log_multiplier: Tensor

    def __init__(self, *, kappa: float, decay: float = 0.99, rate: float = 1.0) -> None:
        super().__init__()
        self.kappa, self.decay, self.rate = kappa, decay, rate
        self.register_buffer("average", torch.tensor(float("nan")))
        self.register_buffer("log_multiplier", torch.zeros(()))

    def forward(self, reconstruction: Tensor, divergence: Tensor, n_pixels: int) -> Tensor:
        """Loss for a batch; in training mode it also moves average and multiplier.

        Parameters
        ----------
        reconstruction : Tensor, shape ()
            Cross-entropy summed over pixels, batch mean, nats.
        divergence : Tensor, shape ()
            KL, batch mean, nats.
        n_pixels : int
            Pixels per image.
        """
        now = reconstruction.detach()
        average = torch.where(torch.isnan(self.average), now, self.average)
        average = self.decay * average + (1 - self.decay) * now
        # Value of the average, gradient of the newest term.
        violation = (average - self.kappa * n_pixels) + (reconstruction - now)
        loss = self.log_multiplier.exp() * violation + divergence
        if self.training:
            step = self.rate * (average - self.kappa * n_pixels) / n_pixels
            self.average.copy_(average)
            self.log_multiplier.add_(step).clamp_(-10.0, 10.0)
        return loss


def hardest_pixels(nats: Tensor, share: float, *, generator: torch.Generator) -> Tensor:
    """Mask of the pixels with the largest cross-entropy, drawn with some chance.

    Gumbel noise on the cross-entropy makes the choice a draw without replacement with
    probabilities ∝ exp(nats).

    Parameters
    ----------
    nats : Tensor, shape (batch, y, x)
        Cross-entropy per pixel.
    share : float
        Share of the pixels to choose.
    generator : torch.Generator
        Draws the noise.

    Returns
    -------
    Tensor of bool, shape (batch, y, x)
    """
    flat = nats.detach().flatten(1)
    uniform = torch.rand(flat.shape, generator=generator).clamp(1e-12, 1 - 1e-7).to(flat)
    score = flat - torch.log(-torch.log(uniform))
    n = max(1, round(share * flat.shape[1]))
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    chosen.scatter_(1, score.topk(n, dim=1).indices, True)
    return chosen.reshape(nats.shape)
