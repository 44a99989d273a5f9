"""What can have happened to a source, as bits of the catalogue's ``flags`` column."""

from enum import IntFlag

from astropy.table import Table

__all__ = ["Flag", "flag_table"]


class Flag(IntFlag):
    """Bits of ``flags``."""

    TRUNCATED = 1
    MASKED_PIXELS = 2
    SATURATED = 4
    OUT_OF_RANGE = 8
    NO_DATA = 16
    CUT = 32


_MEANINGS = {
    Flag.TRUNCATED: "touches the border of the image",
    Flag.MASKED_PIXELS: "touches or surrounds masked pixels",
    Flag.SATURATED: "holds a pixel at or above the saturation level",
    Flag.OUT_OF_RANGE: "PSF, flux, size or surroundings beyond what the model was trained on",
    Flag.NO_DATA: "the position lies outside the image or on a masked pixel: nothing measured",
    Flag.CUT: "larger than the margin of the blocks in which a huge image is processed",
}


def flag_table() -> Table:
    """Bit, name and meaning of every flag."""
    rows = [(flag.value, flag.name, text) for flag, text in _MEANINGS.items()]
    return Table(rows=rows, names=("bit", "name", "meaning"))
