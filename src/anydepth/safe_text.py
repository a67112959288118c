r"""Escape text of unknown origin for terminals and spreadsheets."""

from __future__ import annotations

import re
from typing import TypeVar

# C0 but tab and line feed, DEL, C1, line separators, marks that change the direction of writing, and surrogates
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# What a spreadsheet reads as a formula, where a cell begins with it; the last four are their full-width twins.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")

T = TypeVar("T")


def printable(text: str) -> str:
    r"""Escape the control characters of a text, so that they have no effect in a terminal; line breaks and tabs stay.

    Example:
        >>> print(printable("a \x1b[31mred\x1b[0m name, turned by \u202e"))
        a \x1b[31mred\x1b[0m name, turned by \u202e
    """
    return _CONTROLS.sub(lambda control: ascii(control[0])[1:-1], text)


def cell(value: T) -> T | str:
    """Quote a cell of a csv that a spreadsheet would run as a formula; numbers stay numbers.

    Example:
        >>> cell("=1+1"), cell("-dull"), cell("-0.5"), cell(-0.5), cell("great")
        ("'=1+1", "'-dull", '-0.5', -0.5, 'great')
    """
    if not isinstance(value, str) or not value.startswith(_FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
