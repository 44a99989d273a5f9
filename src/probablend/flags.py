"""What can have happened to a source, as bits of the catalogue's ``flags`` column."""

from enum import IntFlag

from astropy.table import Table

__all__ = ["Flag", "flag_table"]


class Flag(IntFlag):
    """Bits of ``flags``."""

    TRUNCATED = 1
    MASKED_PIXELS = 2


_MEANINGS = {
    Flag.TRUNCATED: "touches the border of the image",
    Flag.MASKED_PIXELS: "touches or surrounds masked pixels",
}


def flag_table() -> Table:
    """Bit, name and meaning of every flag."""
    rows = [(flag.value, flag.name, text) for flag, text in _MEANINGS.items()]
    return Table(rows=rows, names=("bit", "name", "meaning"))
