"""What held-out scenes say of a network while it is trained."""

from collections.abc import Sequence

import numpy as np
import torch

from probablend.emulate.scenes import SceneBatch
from probablend.models.distribution import SegmentationNetwork
from probablend.models.field import FieldNetwork
from probablend.models.network import Network
from probablend.models.pairs import MASKS, PairNetwork, true_masks

__all__ = ["validate"]

_N_SAMPLES = 8


@torch.inference_mode()
def validate(model: Network, batches: Sequence[SceneBatch], *, seed: int) -> dict[str, float]:
    """Score a network on held-out scenes.

    Parameters
    ----------
    model : nn.Module
        The network.
    batches : sequence of SceneBatch
        Held-out scenes.
    seed : int
        Seeds the latents.

    Returns
    -------
    dict of float
        The terms of the loss with the KL term at full weight (nats per scene), and what
        the kind of network can be scored by.
    """
    model.eval()
    sums: dict[str, float] = {}
    for index, batch in enumerate(batches):
        generator = torch.Generator().manual_seed(seed + index)
        terms = model.training_loss(batch, generator=generator, beta=1.0)
        for key, value in terms.items():
            sums[key] = sums.get(key, 0.0) + float(value) * len(batch.image)
    n_scenes = sum(len(batch.image) for batch in batches)
    scores = {key: value / n_scenes for key, value in sums.items()}
    if isinstance(model, SegmentationNetwork):
        scores |= _class_scores(model, batches, seed)
    if isinstance(model, FieldNetwork):
        scores |= _flux_scores(model, batches)
    if isinstance(model, PairNetwork):
        scores |= _pair_scores(model, batches)
    return scores


def _class_scores(
    model: SegmentationNetwork, batches: Sequence[SceneBatch], seed: int
) -> dict[str, float]:
    """Intersection over union of "one or more" and of "blend", and how samples differ.

    ``diversity`` is the share of active pixels in which two samples differ on average: a
    posterior that has collapsed shows as ``kl`` near 0 and as a small diversity.
    """
    overlap, union = np.zeros(2), np.zeros(2)
    n_differ = n_active = 0.0
    for batch in batches:
        classes = batch.classes
        # (sample, batch, class, y, x)
        said = model(batch.image, **batch.known)
        draws = said.class_probabilities(_N_SAMPLES, seed=seed)
        mean = draws.mean(dim=0)
        known = classes >= 0  # where there is a truth
        for k, (p, truth) in enumerate(((1 - mean[:, 0], classes > 0), (mean[:, 2], classes == 2))):
            overlap[k] += float(((p > 0.5) & truth & known).sum())
            union[k] += float((((p > 0.5) | truth) & known).sum())
        active = (mean[:, 0] < 0.99) & known
        best = draws.argmax(dim=2)
        n_differ += float(((best[1:] != best[:-1]) & active).sum()) / max(1, len(best) - 1)
        n_active += float(active.sum())
    scores = {
        f"iou_{name}": float(o / u) if u else 1.0
        for name, o, u in zip(("galaxy", "blend"), overlap, union, strict=True)
    }
    return scores | {"diversity": n_differ / max(1.0, n_active)}


def _pair_scores(model: PairNetwork, batches: Sequence[SceneBatch]) -> dict[str, float]:
    """Intersection over union of the masks, and errors of the fluxes."""
    overlap, union, errors = np.zeros(3), np.zeros(3), []
    for batch in batches:
        said = model(batch.image)
        if said.mask_logits is not None:
            mask, truth = said.mask_logits > 0, true_masks(batch)
            overlap += (mask & truth).sum(dim=(0, 2, 3)).cpu().numpy()
            union += (mask | truth).sum(dim=(0, 2, 3)).cpu().numpy()
        if said.log_flux is not None:
            errors.append((said.log_flux - batch.sources.flux.reshape(-1, 2).log()).cpu())
    scores = {}
    if union.any():
        for name, o, u in zip(MASKS, overlap, union, strict=True):
            scores[f"iou_{name}"] = float(o / u) if u else 1.0
    if errors:
        error = torch.cat(errors)
        scores["flux_mean_relative"] = float(torch.expm1(error).abs().mean())
        middle = error.median()
        scores["flux_nmad"] = float(1.0857 * 1.4826 * (error - middle).abs().median())
    return scores


def _flux_scores(model: FieldNetwork, batches: Sequence[SceneBatch]) -> dict[str, float]:
    """Fluxes at true positions of blended galaxies above S/N 10."""
    errors, inside, off = [], [], []
    for batch in batches:
        said = model(batch.image, **batch.known)
        s, size = batch.sources, batch.image.shape[-1]
        centred = (s.y > 0) & (s.y < size - 1) & (s.x > 0) & (s.x < size - 1)
        s = s.keep(centred & s.blended & ~s.is_star & (s.snr > 10))
        generator = torch.Generator().manual_seed(0)
        posterior = said.sources(s.scene, s.y, s.x, torch.ones_like(s.y), detected=False)
        draws = posterior.sample(64, generator=generator)[..., :4].cpu()
        true = torch.stack([s.flux, s.hlr, s.g1, s.g2], dim=1).cpu()
        errors.append(2.5 * (draws[..., 0].median(dim=0).values / true[:, 0]).log10())
        # Among n draws the truth has n + 1 places.
        places = (draws < true).sum(dim=0) + torch.rand(true.shape, generator=generator)
        held = (places / 65 - 0.5).abs() < 0.34
        inside.append(held[:, 0])
        off.append(held[s.has_shape.cpu()])
    error = torch.cat(errors)
    if not len(error):
        return {}
    spread = 1.4826 * (error - error.median()).abs().median()
    coverage = torch.cat(off).float().mean(dim=0)
    return {
        "coverage_error": float((coverage - 0.68).abs().mean()),
        "flux_nmad": float(spread),
        "flux_outliers": float((error.abs() > 0.75).float().mean()),
        "flux_coverage68": float(torch.cat(inside).float().mean()),
    }
