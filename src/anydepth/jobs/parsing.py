"""Values out of the text of settings."""

from __future__ import annotations

from anydepth.errors import ObjectiveError, PolicyError


def names_of(text: str) -> tuple[str, ...]:
    """Names, out of a list with commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def none_or_names_of(text: str) -> tuple[str, ...]:
    """Names, out of a list with commas; "none" for none."""
    return () if text == "none" else names_of(text)


def depths_of(text: str) -> tuple[int, ...]:
    """Depths out of "2,4,6".

    Raises:
        PolicyError: something between the commas is no whole number.
    """
    try:
        return tuple(int(depth) for depth in text.split(","))
    except ValueError:
        raise PolicyError(f"the tested depths are {text!r}, expected whole numbers with commas: 2,4,6") from None


def weights_of(text: str) -> str | tuple[float, ...]:
    """Weights of depths: numbers separated by commas, or else a name, which is not checked.

    Example:
        >>> weights_of("uniform"), weights_of("1,2.5")
        ('uniform', (1.0, 2.5))
    """
    try:
        return tuple(float(weight) for weight in text.split(","))
    except ValueError:
        return text


def exits_of(text: str) -> str | tuple[int, ...]:
    """Exits to train: "all", "sampled", or depths separated by commas.

    Raises:
        ObjectiveError: neither.

    Example:
        >>> exits_of("all"), exits_of("4,8,12")
        ('all', (4, 8, 12))
    """
    try:
        return text if text in ("all", "sampled") else tuple(int(depth) for depth in text.split(","))
    except ValueError:
        raise ObjectiveError(f"exits are {text!r}, expected all, sampled, or depths: 4,8,12") from None
