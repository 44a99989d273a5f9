"""Parts that the networks share: convolution blocks, an encoder and a decoder.

Nothing here computes a statistic over the image: batch normalisation uses its running
averages at inference, so that a pixel's answer depends on its neighbourhood alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ConvBlock", "Decoder", "Encoder"]


class ConvBlock(nn.Sequential):
    """``n_convs`` times 3×3 convolution, batch normalisation, SiLU."""

    def __init__(self, n_in: int, n_out: int, n_convs: int) -> None:
        layers: list[nn.Module] = []
        for k in range(n_convs):
            layers += [
                nn.Conv2d(n_in if k == 0 else n_out, n_out, 3, padding=1, bias=False),
                nn.BatchNorm2d(n_out),
                nn.SiLU(inplace=True),
            ]
        super().__init__(*layers)


class Encoder(nn.Module):
    """Contracting path: blocks with average pooling between them.

    Parameters
    ----------
    n_in : int
        Channels of the input.
    channels : sequence of int
        Channels of each level, finest first.
    n_convs : int
        Convolutions per level.
    """

    def __init__(self, n_in: int, channels: Sequence[int], n_convs: int) -> None:
        super().__init__()
        ins = [n_in, *channels[:-1]]
        self.blocks = nn.ModuleList(
            ConvBlock(i, o, n_convs) for i, o in zip(ins, channels, strict=True)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features of every level, finest first."""
        levels = []
        for k, block in enumerate(self.blocks):
            x = block(x if k == 0 else F.avg_pool2d(x, 2))
            levels.append(x)
        return levels


class Decoder(nn.Module):
    """Expanding path: bilinear upsampling, concatenation with the encoder, a block."""

    def __init__(self, channels: Sequence[int], n_convs: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ConvBlock(channels[k] + channels[k + 1], channels[k], n_convs)
            for k in reversed(range(len(channels) - 1))
        )

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Features of every level, finest first, from those of the encoder."""
        *skips, x = levels
        decoded = [x]
        for block, skip in zip(self.blocks, reversed(skips), strict=True):
            up = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = block(torch.cat([up, skip], dim=1))
            decoded.append(x)
        return decoded[::-1]
