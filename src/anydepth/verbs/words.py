"""What verbs make of the words they are given."""

from __future__ import annotations

import re
from pathlib import Path

from anydepth.errors import PolicyError


def depths_of(text: str) -> tuple[int, ...]:
    """Depths to test, out of "2,4,6".

    Raises:
        PolicyError: there is something else between the commas than whole numbers.
    """
    try:
        return tuple(int(one) for one in text.split(","))
    except ValueError:
        raise PolicyError(f"the tested depths are {text!r}, expected whole numbers with commas: 2,4,6") from None


def names_of(text: str) -> tuple[str, ...]:
    """Names, out of a list with commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def slug(name: str) -> str:
    """A model or data set as part of a folder's name."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", Path(name).name if Path(name).exists() else name).strip("-.") or "trace"
