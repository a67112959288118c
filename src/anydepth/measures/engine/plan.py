"""Choice of the route to the sums of CKA: covariance or Gram tiles, the cheaper that fits in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from anydepth.errors import MeasureError
from anydepth.measures.engine.gram import STRIP, TILE
from anydepth.measures.engine.moments import Moments
from anydepth.measures.engine.states import rows_per_chunk

Route = Literal["covariance", "gram"]

LEAST, HELD = 4096, 2**30  # rows of a block of the Gram route, or as many as so many bytes hold, where memory allows
_NAMES: dict[Route, str] = {"covariance": "the covariance of all depths", "gram": "Gram tiles"}


@dataclass(frozen=True)
class Plan:
    """The route to CKA's sums, the rows of a chunk or block, a note with the reason, and the cost (multiply-adds)."""

    route: Route
    rows: int
    note: str
    cost: float = 0


def plan(count: int, widths: tuple[int, ...], memory: int, *, mergeable: bool = False) -> Plan:
    """The cheaper of the routes that fit in `memory` bytes, both exact; if `mergeable`, the covariance where it fits.

    Raises:
        MeasureError: neither fits.

    Example:
        >>> plan(50_000, (384,) * 13, 2**30).note
        'CKA by the covariance of all depths: cheaper than Gram tiles for 50000 rows of 4992 features'
        >>> plan(50_000, (1024,) * 25, 2**30).note
        'CKA by Gram tiles: the covariance of all depths would need 4.4 GB, 1.1 GB are allowed'
    """
    total = sum(widths)
    rows: dict[Route, int] = {
        "covariance": min(count, rows_per_chunk(widths, megabytes=64, least=1024)),
        "gram": _gram_rows(count, widths, memory),
    }
    needs = {
        "covariance": _covariance_bytes(rows["covariance"], widths),
        "gram": _gram_bytes(rows["gram"], widths),
    }
    cost = {"covariance": count * total, "gram": count * (count + min(count, STRIP))}  # times ΣD / 2 products
    ranked: list[Route] = sorted(rows, key=lambda route: cost[route])
    fitting = [route for route in ranked if needs[route] <= memory]
    if not fitting:
        raise MeasureError(
            f"CKA of {len(widths)} depths, {total} features in all, needs {_gb(min(needs.values()))}, "
            f"but {_gb(memory)} are allowed: allow more memory or measure fewer depths"
        )
    chosen = "covariance" if mergeable and "covariance" in fitting else fitting[0]
    other: Route = "gram" if chosen == "covariance" else "covariance"
    reason = f"cheaper than {_NAMES[other]} for {count} rows of {total} features"
    if chosen == "covariance" and mergeable:
        reason = "its sums can be merged with those of other samples"
    elif chosen != ranked[0]:
        reason = f"{_NAMES[other]} would need {_gb(needs[other])}, {_gb(memory)} are allowed"
    return Plan(chosen, rows[chosen], f"CKA by {_NAMES[chosen]}: {reason}", cost[chosen] * total / 2)


def _covariance_bytes(chunk: int, widths: tuple[int, ...]) -> int:
    """Memory for the sums, a float32 copy for the intervals, and a chunk as it is read, centred, and multiplied."""
    return 12 * Moments.size(widths) + 12 * sum(widths) * chunk


def _gram_rows(count: int, widths: tuple[int, ...], memory: int) -> int:
    """Rows of a block: all where they take a gigabyte, else so many that reading costs little, as memory allows."""
    row, fixed = _gram_bytes(1, widths) - _gram_bytes(0, widths), _gram_bytes(0, widths)
    return max(1, min(count, max(LEAST, HELD // row), (memory - fixed) // row))


def _gram_bytes(block: int, widths: tuple[int, ...]) -> int:
    """Memory for two blocks of rows, each as it is read and centred, and a tile of them at every depth."""
    return 16 * sum(widths) * block + 4 * max(TILE, STRIP**2 * len(widths))


def available_memory() -> int:
    """Bytes of main memory that are free or can be freed."""
    import psutil  # type: ignore[import-untyped]

    return int(psutil.virtual_memory().available)


def no_temporary_space(what: str, size: int, error: OSError) -> MeasureError:
    """The error for `size` bytes that cannot be written to a temporary file."""
    needs = f"{what} need {size // 2**20} MB in the folder for temporary files"
    return MeasureError(f"{needs} ({error.strerror}): set TMPDIR to a roomier one")


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
