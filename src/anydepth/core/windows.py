"""A long text in windows that overlap: what each window holds, what it is asked about, and what it is called."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Int64

_NAME = re.compile(r"(.*)\[\d+:\]", re.DOTALL)


def spans(length: int, size: int, stride: int) -> Int64[np.ndarray, "w 3"]:
    """Cut a text into windows, so that each token but the first is told exactly once.

    A window tells the tokens that no earlier one has told: the first window all but its first token, every later one
    those after the end of the window before it. So a token is told by at least `size - stride` tokens, or by all there
    are before it.

    Args:
        length: tokens of the text.
        size: tokens of a window; the last may have fewer.
        stride: tokens from the start of a window to that of the next, below `size`: at `size` or above, a token would
            have nothing before it in its window.

    Returns:
        For each window its start, its end, and the first token that it is to tell; none for an empty text.

    Example:
        >>> spans(9, 4, 2).tolist()
        [[0, 4, 1], [2, 6, 4], [4, 8, 6], [6, 9, 8]]
        >>> spans(3, 4, 2).tolist()
        [[0, 3, 1]]
    """
    count = 1 + max(0, -(-(length - size) // stride)) if length else 0
    start = stride * np.arange(count, dtype=np.int64)
    end = np.minimum(start + size, length)
    return np.stack([start, end, np.concatenate([[1], end[:-1]])[:count]], axis=1)


def name(text: int | str, start: int) -> str:
    """The id of a window: the text's, and the token it starts at, written like a slice of Python.

    No two windows share one, whatever the texts are called: what is between the last brackets is the start, and all
    before them the text's id.

    Example:
        >>> name("cp26", 64)
        'cp26[64:]'
    """
    return f"{text}[{start}:]"


def texts_of(ids: Sequence[Hashable]) -> Int64[np.ndarray, " n"]:
    """The text of each sample: windows of one text are no independent evidence, their text is.

    Args:
        ids: of samples. Those that `name` gave share the text before the brackets; every other is a text of its own.

    Returns:
        Texts numbered from 0, in the order they come.

    Example:
        >>> texts_of(["a[0:]", "a[64:]", "b[0:]", "c", 7]).tolist()
        [0, 0, 1, 2, 3]
    """
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(_text(one), len(numbers)) for one in ids], dtype=np.int64)


def _text(id: Hashable) -> Hashable:
    found = _NAME.fullmatch(id) if isinstance(id, str) else None
    return id if found is None else found[1]
