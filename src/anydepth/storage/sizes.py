"""Sizes in bytes, as people write them."""

from __future__ import annotations

import re

from anydepth.errors import DataError

_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def in_words(size: int) -> str:
    """A number of bytes as people write it.

    Example:
        >>> in_words(123_456_789)
        '123.5 MB'
    """
    power = 0
    while size >= 1000 ** (power + 1) and power < 4:
        power += 1
    return f"{size / 1000**power:.{1 if power else 0}f} {_UNITS[power]}"


def as_bytes(size: int | str, name: str) -> int:
    """A size as people write it, as a number of bytes; the counterpart of `in_words`.

    Args:
        size: a number of bytes, or one with a unit of `in_words`, whose powers are of 1,000.
        name: what the size is of, for the message.

    Raises:
        DataError: it is no size above 0.

    Example:
        >>> as_bytes("1.5 GB", "states_limit"), as_bytes(2000, "states_limit")
        (1500000000, 2000)
    """
    units = [unit.lower() for unit in _UNITS]
    found = re.fullmatch(rf"(\d*\.?\d+) ?({'|'.join(units)}|)", str(size).lower())
    count = 0 if found is None else round(float(found[1]) * 1000 ** units.index(found[2] or "bytes"))
    if count < 1:
        raise DataError(f"{name} is {size!r}, expected a size such as '20GB', or a number of bytes")
    return count
