"""Sentences that say what is blank in a result, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from anydepth.results.trace_data import Rows


def explain_blank_depth_0(notes: Sequence[str], tokens: str) -> Iterator[str]:
    """Depth 0 under `first` is a class token that no sample has changed yet: expected, and said as such."""
    for note in notes:
        if tokens == "first" and note.startswith("depth 0 "):
            note = (
                "similarity at depth 0 is blank by construction: before the first block, the first position is the "
                "same vector for every sample"
            )
        yield note


MOST = 0.2  # of all answers, beyond which a text weighs so much that a note says it


def unequal(texts: NDArray[np.int64], rows: Rows | None) -> Iterator[str]:
    """That one text holds a great part of all answers, if one does.

    Args:
        texts: of each sample.
        rows: the answers.
    """
    counts = np.zeros(0) if rows is None else np.bincount(texts[rows.sample])
    if counts.sum() > np.count_nonzero(counts) and counts.max() > MOST * counts.sum():
        yield (
            f"one text holds {counts.max() / counts.sum():.0%} of all positions that have an answer, of "
            f"{np.count_nonzero(counts):,} texts: intervals are wide, and rest on few texts"
        )
