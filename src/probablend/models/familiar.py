"""Whether what surrounds a source looks like the training.

The coarsest features of a network say what kind of sky it sees: depth, sharpness, crowding,
whatever else. Their mean and covariance over the sources of the training make a distance
(Mahalanobis; Lee et al. 2018, arXiv:1807.03888); how far training-like scenes that were held
out reach, a limit. What lies beyond it was never learnt, whatever the posterior says: there
posteriors are made wider, as many times as the limit is surpassed.

Every part of the sky counts alike, not every source: where a square of a hundred pixels holds one
galaxy it would be outvoted by where it holds fifty, and be strange for that alone.
"""

import logging
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["FALSE_ALARMS", "Familiarity", "spread_of"]

log = logging.getLogger(__name__)

FALSE_ALARMS = 0.005  # share of held-out sources beyond the limit
_SHRINKAGE = 0.05  # of the correlations towards none
_FEWEST = 200  # sources, without which the limit means nothing
_FEWEST_BEYOND = 2  # sources beyond the limit, of as many that count alike
_LEAST = 1e-6  # spread of a feature that counts, of the widest


def spread_of(strangeness: Tensor) -> Tensor:
    """How many times wider than learnt posteriors are: the distance over its limit, at least 1.

    Parameters
    ----------
    strangeness : Tensor, shape (source,)
        As :class:`Familiarity` gives it.
    """
    return strangeness.clamp(min=1).sqrt()


class Familiarity(nn.Module):
    """Distance from the training, in units of its limit.

    Before :meth:`learn`, and with weights from before there was any, everything is at 0.

    Parameters
    ----------
    n_features : int
        Length of what is seen at a position.
    """

    mean: Tensor
    whitening: Tensor

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("whitening", torch.zeros(n_features, n_features))

    def forward(self, features: Tensor) -> Tensor:
        """Squared Mahalanobis distance over that of the limit, (source,).

        Parameters
        ----------
        features : Tensor, shape (source, feature)
        """
        return ((features - self.mean) @ self.whitening.T).square().sum(dim=1)

    def learn(
        self,
        seen: Tensor,
        held_out: Tensor,
        weights: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Take the statistics of the training, and the limit of what was held out.

        Too few sources teach nothing: then everything stays familiar.

        Parameters
        ----------
        seen, held_out : Tensor, shape (source, feature)
            Features at sources of the training and at others like them.
        weights : two Tensors of shape (source,), optional
            How much each of them counts; alike if not given.
        """
        if min(len(seen), len(held_out)) < _FEWEST:
            log.warning("too few sources to learn what the training looks like: no limit is set")
            return
        seen, held_out = seen.cpu().double(), held_out.cpu().double()
        if weights is None:
            weights = torch.ones(len(seen)), torch.ones(len(held_out))
        share, share_held_out = (w / w.sum() for w in (w.cpu().double() for w in weights))
        mean = share @ seen
        spread = (share @ (seen - mean).square()).sqrt()
        # What hardly ever changed would make the least change infinitely strange.
        spread = spread.clamp(min=_LEAST * float(spread.max()))
        correlation = torch.cov(((seen - mean) / spread).T, aweights=share, correction=0)
        shrunk = (1 - _SHRINKAGE) * correlation
        shrunk.diagonal().add_(_SHRINKAGE)
        whitening = torch.linalg.inv(torch.linalg.cholesky(shrunk)) / spread
        if (rests_on := FALSE_ALARMS / float(share_held_out.square().sum())) < _FEWEST_BEYOND:
            log.warning(
                "the limit of what looks like the training rests on some %.0f held-out sources: "
                "hold out more scenes",
                rests_on,
            )
        squared, order = ((held_out - mean) @ whitening.T).square().sum(dim=1).sort()
        place = torch.searchsorted(share_held_out[order].cumsum(0), 1 - FALSE_ALARMS)
        limit = squared[place.clamp(max=len(squared) - 1)]
        self.mean.copy_(mean)
        self.whitening.copy_(whitening / limit.sqrt())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name, start in self.named_buffers():
            state_dict.setdefault(prefix + name, start)
        super()._load_from_state_dict(state_dict, prefix, *rest)
