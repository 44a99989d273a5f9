"""Light and features around positions: what a source is measured from."""

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["STEEP", "gather", "light", "light_by_sector", "symmetric"]

STEEP = 4.0  # how differences of logarithms of sums of light are stretched
_AT_ONCE = 2048  # sources whose surroundings are held at once
_PATCHES_AT_ONCE = 256  # the same, where all pixels of the surroundings are looked at
_ON_GPU = 32  # times as many


def gather(features: Tensor, scene: Tensor, y: Tensor, x: Tensor, cell: int) -> Tensor:
    """Bilinear value of (batch, channel, y', x') at positions in pixels, (..., channel)."""
    n_y, n_x = features.shape[-2:]
    rows = features.movedim(1, -1).reshape(-1, features.shape[1])
    v = ((y + 0.5) / cell - 0.5).clamp(0, n_y - 1)
    u = ((x + 0.5) / cell - 0.5).clamp(0, n_x - 1)
    v0, u0 = v.floor().long(), u.floor().long()
    v1, u1 = (v0 + 1).clamp(max=n_y - 1), (u0 + 1).clamp(max=n_x - 1)
    fv, fu = v - v0, u - u0
    corners = torch.stack([v0 * n_x + u0, v0 * n_x + u1, v1 * n_x + u0, v1 * n_x + u1])
    weights = torch.stack([(1 - fv) * (1 - fu), (1 - fv) * fu, fv * (1 - fu), fv * fu])
    return (rows[scene * (n_y * n_x) + corners] * weights[..., None]).sum(dim=0)


def light(image: Tensor, scene: Tensor, y: Tensor, x: Tensor, widths: tuple[float, ...]) -> Tensor:
    """Gaussian-weighted sums of light of (batch, y', x') at positions, (source, width).

    Scaled to the flux of a source that has the shape of the weight. Between pixels the sums, not
    the weights, are interpolated.
    """
    reach = math.ceil(3 * max(widths))
    t = torch.arange(-reach, reach + 2, device=image.device, dtype=image.dtype)
    weights = []  # about the pixel below a position, and about the next one
    for shift in (0, 1):
        rows = []
        for width in widths:
            weight = torch.exp(-0.5 * ((t - shift) / width) ** 2)
            weight = weight * ((t - shift).abs() <= math.ceil(3 * width))
            # Unit noise, then the flux of a matched source.
            scale = math.sqrt(2 * math.sqrt(math.pi) * width)
            rows.append(weight / (weight**2).sum().sqrt() * scale)
        weights.append(torch.stack(rows))
    n_y, n_x = image.shape[-2:]
    padded = F.pad(image, (reach, reach + 1, reach, reach + 1))
    span = torch.arange(len(t), device=image.device)
    sums = []
    for part in torch.arange(len(y), device=y.device).split(_AT_ONCE):
        along = []
        for place, n in ((y[part], n_y), (x[part], n_x)):
            place = place.clamp(0, n - 1)
            first = place.floor()
            rest = (place - first)[:, None, None]
            along.append((first.long(), (1 - rest) * weights[0] + rest * weights[1]))
        (row, down), (column, across) = along
        patch = padded[
            scene[part][:, None, None], (row[:, None] + span)[:, :, None],
            (column[:, None] + span)[:, None],
        ]  # fmt: skip
        sums.append(((down @ patch) * across).sum(dim=-1))
    return torch.cat(sums) if sums else image.new_zeros(0, len(widths))


def light_by_sector(
    image: Tensor, scene: Tensor, y: Tensor, x: Tensor, widths: tuple[float, ...], n_sectors: int
) -> Tensor:
    """What :func:`light` sums, by sectors around the position, (source, width, sector)."""
    reach = math.ceil(3 * max(widths))
    weights = _sector_weights(widths, n_sectors, image.device).to(image.dtype)
    n_y, n_x = image.shape[-2:]
    padded = F.pad(image, (reach, reach + 1, reach, reach + 1))
    span = torch.arange(2 * reach + 2, device=image.device)
    sums = [image.new_zeros(0, len(widths) * n_sectors)]
    at_once = _PATCHES_AT_ONCE * (1 if image.device.type == "cpu" else _ON_GPU)
    for part in torch.arange(len(y), device=y.device).split(at_once):
        row, column = y[part].clamp(0, n_y - 1), x[part].clamp(0, n_x - 1)
        first_row, first_column = row.floor(), column.floor()
        patch = padded[
            scene[part][:, None, None], (first_row.long()[:, None] + span)[:, :, None],
            (first_column.long()[:, None] + span)[:, None],
        ]  # fmt: skip
        patch = torch.lerp(patch[:, :-1], patch[:, 1:], (row - first_row)[:, None, None])
        patch = torch.lerp(patch[..., :-1], patch[..., 1:], (column - first_column)[:, None, None])
        sums.append(patch.flatten(1) @ weights)
    return torch.cat(sums).unflatten(1, (len(widths), n_sectors))


@cache
def _sector_weights(widths: tuple[float, ...], n_sectors: int, device: torch.device) -> Tensor:
    """Weights of pixels around a position, (pixel, width · sector); their sum is light's."""
    reach = math.ceil(3 * max(widths))
    t = np.arange(-reach, reach + 1)
    dy, dx = np.meshgrid(t, t, indexing="ij")
    # A pixel and the opposite one lie in opposite sectors, on borders too.
    upper = (dy > 0) | ((dy == 0) & (dx > 0))
    angle = np.arctan2(np.where(upper, dy, -dy), np.where(upper, dx, -dx))
    sector = (angle / (2 * np.pi) * n_sectors).astype(int) % (n_sectors // 2)
    sector = np.where(upper, sector, sector + n_sectors // 2)
    member = sector.ravel()[:, None] == np.arange(n_sectors)
    member = np.where(((dy == 0) & (dx == 0)).ravel()[:, None], 1 / n_sectors, member)
    columns = []
    for width in widths:
        line = np.exp(-0.5 * (t / width) ** 2) * (np.abs(t) <= math.ceil(3 * width))
        line = line / np.sqrt((line**2).sum()) * math.sqrt(2 * math.sqrt(math.pi) * width)
        columns.append(np.outer(line, line).reshape(-1, 1) * member)
    with torch.inference_mode(False):  # it outlives whoever asks first
        return torch.from_numpy(np.concatenate(columns, axis=1).astype(np.float32)).to(device)


def symmetric(by_sector: Tensor, widths: tuple[float, ...]) -> Tensor:
    """Light that has a counterpart on the other side of the centre, (source, width).

    Of each sector and the opposite one the lesser: the principle by which SDSS deblends (Lupton et
    al. 2001, ASP Conf. 238, 269). The lesser of two noisy numbers is too low; as much is added.
    """
    n = by_sector.shape[-1]
    pairs = by_sector.unflatten(-1, (2, n // 2))
    noise = by_sector.new_tensor(widths) * 2 * math.sqrt(math.pi) / math.sqrt(n)
    return 2 * pairs.amin(dim=-2).sum(dim=-1) + n / math.sqrt(math.pi) * noise
