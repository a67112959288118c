"""Notes on a result: why depth 0 is blank, and that one text holds many of the answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from anydepth.results.trace_data import Rows

_LARGE_SHARE = 0.2  # of all answers in one text, above which a note says so


def explain_blank_depth_0(notes: Sequence[str], tokens: str) -> Iterator[str]:
    """The notes, with the reason for a blank depth 0 where `tokens` is "first": a class token is always the same."""
    for note in notes:
        if tokens == "first" and note.startswith("depth 0 "):
            note = (
                "similarity at depth 0 is blank by construction: before the first block, the first position is the "
                "same vector for every sample"
            )
        yield note


def unequal(texts: NDArray[np.int64], rows: Rows | None) -> Iterator[str]:
    """A note if one text holds a large share of all answers; `texts` is the text of each sample."""
    counts = np.zeros(0) if rows is None else np.bincount(texts[rows.sample])
    if counts.sum() > np.count_nonzero(counts) and counts.max() > _LARGE_SHARE * counts.sum():
        yield (
            f"one text holds {counts.max() / counts.sum():.0%} of all positions that have an answer, of "
            f"{np.count_nonzero(counts):,} texts: intervals are wide, and rest on few texts"
        )
