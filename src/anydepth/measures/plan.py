"""Which way to CKA's sums is cheaper and fits in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from anydepth.errors import MeasureError
from anydepth.measures.moments import Moments
from anydepth.measures.states import rows_per_chunk

TILES = (512, 256, 128, 64)  # rows of a Gram tile, best first


@dataclass(frozen=True)
class Plan:
    """How CKA's sums are come by.

    Attributes:
        route: the covariance of all depths side by side, or tiles of their Gram matrices.
        rows: in a chunk, or in a tile.
        note: the choice and its reason, in words.
    """

    route: Literal["covariance", "gram"]
    rows: int
    note: str


def plan(count: int, widths: tuple[int, ...], memory: int) -> Plan:
    """The cheaper of the routes that fit in `memory` bytes; both are exact.

    Args:
        count: number of rows n.
        widths: width of each depth.
        memory: bytes that may be used.

    Raises:
        MeasureError: neither fits.

    Example:
        >>> plan(50_000, (384,) * 13, 2**30).note
        'CKA by the covariance of all depths: cheaper than Gram tiles for 50000 rows of 4992 features'
        >>> plan(50_000, (1024,) * 25, 2**30).note
        'CKA by Gram tiles: the covariance would need 4.4 GB, 1.1 GB are allowed'
    """
    total, depths = sum(widths), len(widths)
    chunk = min(count, rows_per_chunk(widths, megabytes=64, least=1024))
    # The sums, a float32 copy for the intervals, and a chunk as read, centred, and multiplied.
    covariance_bytes = 12 * Moments.size(widths) + 3 * 4 * total * chunk
    # Two chunks, each read and centred, and their tile at every depth.
    tiles = [min(count, rows) for rows in TILES]
    gram_bytes = {rows: 4 * rows * (4 * total + depths * rows) for rows in tiles}
    rows = next((rows for rows in tiles if gram_bytes[rows] <= memory), tiles[-1])
    gram_fits, covariance_fits = gram_bytes[rows] <= memory, covariance_bytes <= memory
    if not gram_fits and not covariance_fits:
        least = min(gram_bytes[rows], covariance_bytes)
        raise MeasureError(
            f"CKA of {depths} depths, {total} features in all, needs {_gb(least)}, but {_gb(memory)} are allowed: "
            "allow more memory or measure fewer depths"
        )
    gram_is_cheaper = count + rows < total
    what = f"{count} rows of {total} features"
    if covariance_fits and not (gram_is_cheaper and gram_fits):
        reason = (
            f"Gram tiles would need {_gb(gram_bytes[rows])}"
            if gram_is_cheaper
            else f"cheaper than Gram tiles for {what}"
        )
        return Plan("covariance", chunk, f"CKA by the covariance of all depths: {reason}")
    reason = (
        f"cheaper than their covariance for {what}"
        if gram_is_cheaper
        else f"the covariance would need {_gb(covariance_bytes)}, {_gb(memory)} are allowed"
    )
    return Plan("gram", rows, f"CKA by Gram tiles: {reason}")


def available_memory() -> int:
    """Bytes of main memory that are free or can be freed."""
    import psutil  # type: ignore[import-untyped]

    return int(psutil.virtual_memory().available)


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
