"""Cover a large image with overlapping tiles.

A tile is read with a halo as wide as the network's reach and answers for its core only:
every pixel of the image is in one core, and its answer is what the whole image would give.
"""

from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["WHOLE", "Tile", "Window", "cover"]


@dataclass(frozen=True)
class Window:
    """A part of an image that is looked at on its own.

    Parameters
    ----------
    origin_yx : tuple of int
        Its first pixel in the image.
    borders : tuple of bool
        Whether its first and last row, first and last column are those of the image.
    wanted : tuple of slice, optional
        Which of its own rows and columns hold the sources that are asked for; all if not given.
    """

    origin_yx: tuple[int, int] = (0, 0)
    borders: tuple[bool, bool, bool, bool] = (True, True, True, True)
    wanted: tuple[slice, slice] | None = None


WHOLE = Window()


@dataclass(frozen=True)
class Tile:
    """One tile.

    Parameters
    ----------
    core : tuple of slice
        Pixels of the image that the tile answers for, (y, x).
    outer : tuple of slice
        Pixels that it reads.
    """

    core: tuple[slice, slice]
    outer: tuple[slice, slice]

    @property
    def origin_yx(self) -> tuple[int, int]:
        """First pixel that is read."""
        return self.outer[0].start, self.outer[1].start

    @property
    def inner(self) -> tuple[slice, slice]:
        """The core, counted from the first pixel that is read."""
        return (
            slice(
                self.core[0].start - self.outer[0].start, self.core[0].stop - self.outer[0].start
            ),
            slice(
                self.core[1].start - self.outer[1].start, self.core[1].stop - self.outer[1].start
            ),
        )


def cover(
    shape_yx: tuple[int, int], *, core: int, halo: int, stride: int, even: bool = False
) -> Iterator[Tile]:
    """Tiles that cover an image.

    Parameters
    ----------
    shape_yx : tuple of int
        Shape of the image.
    core : int
        Side of a core, pixels; rounded up to the stride.
    halo : int
        Width of the margin, pixels; rounded up to the stride.
    stride : int
        Every tile starts at a multiple of it.
    even : bool
        Whether cores are as large as each other rather than as large as they may be.

    Yields
    ------
    Tile
        Row by row.
    """
    core = max(1, -(-core // stride)) * stride
    halo = -(-halo // stride) * stride

    def along(n: int) -> list[tuple[slice, slice]]:
        side = core
        if even:
            side = -(-n // (-(-n // core) * stride)) * stride
        return [
            (slice(s, min(s + side, n)), slice(max(0, s - halo), min(s + side + halo, n)))
            for s in range(0, n, side)
        ]

    for core_y, outer_y in along(shape_yx[0]):
        for core_x, outer_x in along(shape_yx[1]):
            yield Tile((core_y, core_x), (outer_y, outer_x))
