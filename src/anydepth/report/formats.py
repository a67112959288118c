"""Text for numbers, intervals and names, the same in charts, tables and sentences."""

from collections.abc import Callable

import numpy as np

from anydepth.measures.similarity import MEASURES
from anydepth.stats.means import Estimate

Unit = Callable[[float], str]


def percent(value: float) -> str:
    """Percentage with one decimal, from a share.

    Example:
        >>> percent(0.9425)
        '94.2%'
    """
    return f"{100 * value:.1f}%"


def plain(value: float) -> str:
    """Number with three decimals and a true minus sign.

    Example:
        >>> plain(-0.0315), plain(-0.0001)
        ('−0.032', '0.000')
    """
    return f"{round(value, 3) + 0.0:.3f}".replace("-", "−")  # adding 0 turns −0 into 0


def interval(low: float, high: float, unit: Unit) -> str:
    """Both ends of an interval; an empty string where one is undefined.

    Example:
        >>> interval(0.5, 0.625, percent), interval(float("nan"), 1.0, plain)
        ('50.0% to 62.5%', '')
    """
    return f"{unit(float(low))} to {unit(float(high))}" if np.isfinite(low) and np.isfinite(high) else ""


def with_interval(value: float, low: float, high: float, unit: Unit) -> str:
    """Number with its interval in brackets, if it has one; a dash where it is undefined.

    Example:
        >>> with_interval(0.5, 0.25, 0.75, percent), with_interval(float("nan"), 0.0, 1.0, percent)
        ('50.0% (25.0% to 75.0%)', '–')
    """
    if not np.isfinite(value):
        return "–"
    ends = interval(low, high, unit)
    return unit(float(value)) + (f" ({ends})" if ends else "")


def estimate_text(estimate: Estimate, unit: Unit) -> str:
    """A single number with its interval in brackets, as `with_interval` has it."""
    return with_interval(float(estimate.value), float(estimate.low), float(estimate.high), unit)


def number(value: float) -> float | None:
    """Float for JSON: None for NaN and infinity, which JSON lacks."""
    return float(value) if np.isfinite(value) else None


def measure_title(name: str) -> str:
    """Title of a similarity measure; an unknown name stays as it is.

    Example:
        >>> measure_title("cka"), measure_title("svcca")
        ('CKA, debiased', 'SVCCA')
    """
    return MEASURES[name].title if name in MEASURES else name


def plain_name(statistic: str) -> str:
    """Name of a readout statistic in running text.

    Example:
        >>> plain_name("cross_entropy"), plain_name("stays_correct")
        ('cross-entropy', 'stays right')
    """
    return {"cross_entropy": "cross-entropy", "stays_correct": "stays right"}.get(statistic, statistic)
