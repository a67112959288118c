"""Sentences that say what is blank in a result, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def explained(notes: Sequence[str], tokens: str) -> Iterator[str]:
    """Depth 0 under `first` is a class token that no sample has changed yet: expected, and said as such."""
    for note in notes:
        if tokens == "first" and note.startswith("depth 0 "):
            note = (
                "similarity at depth 0 is blank by construction: before the first block, the first position is the "
                "same vector for every sample"
            )
        yield note
