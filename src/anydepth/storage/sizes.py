"""Sizes in bytes, formatted with units and parsed."""

from __future__ import annotations

import re

from anydepth.errors import DataError

_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def in_words(size: int) -> str:
    """A number of bytes with a unit.

    Example:
        >>> in_words(123_456_789)
        '123.5 MB'
    """
    power = 0
    while size >= 1000 ** (power + 1) and power < 4:
        power += 1
    return f"{size / 1000**power:.{1 if power else 0}f} {_UNITS[power]}"


def as_bytes(size: int | str, name: str) -> int:
    """Parse a size above 0: a number of bytes, or one with a unit of `in_words`, with powers of 1,000.

    Raises:
        DataError: it is none; the message calls it `name`.

    Example:
        >>> as_bytes("1.5 GB", "states_limit"), as_bytes(2000, "states_limit")
        (1500000000, 2000)
    """
    units = [unit.lower() for unit in _UNITS]
    match = re.fullmatch(rf"(\d*\.?\d+) ?({'|'.join(units)}|)", str(size).lower())
    count = 0 if match is None else round(float(match[1]) * 1000 ** units.index(match[2] or "bytes"))
    if count < 1:
        raise DataError(f"{name} is {size!r}, expected a size such as '20GB', or a number of bytes")
    return count
