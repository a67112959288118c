"""Overlapping windows of a long text: their spans, the tokens each predicts, and their ids."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Int64

_NAME = re.compile(r"(.*)\[\d+:\]", re.DOTALL)


def spans(length: int, size: int, stride: int) -> Int64[np.ndarray, "w 3"]:
    """Spans of the windows of a text, so that each token but the first is predicted exactly once.

    The first window predicts all but its first token, every later one the tokens after the end of the window before it:
    each from at least `size - stride` tokens, or from all there are before it.

    Args:
        length: tokens of the text.
        size: tokens of a window; the last may have fewer.
        stride: tokens from the start of a window to that of the next, below `size`.

    Returns:
        For each window its start, its end, and the first token that it predicts; none for an empty text.

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
    """The id of a window: the text's id and the token it starts at, written like a slice of Python.

    It is unique, whatever the ids of texts: the last brackets hold the start.

    Example:
        >>> name("cp26", 64)
        'cp26[64:]'
    """
    return f"{text}[{start}:]"


def texts_of(ids: Sequence[Hashable]) -> Int64[np.ndarray, " n"]:
    """The text of each sample, numbered from 0 in order: windows of one text are not independent.

    Ids by `name` share the text before the brackets; every other id is a text of its own.

    Example:
        >>> texts_of(["a[0:]", "a[64:]", "b[0:]", "c", 7]).tolist()
        [0, 0, 1, 2, 3]
    """
    numbers: dict[Hashable, int] = {}
    texts = (match[1] if isinstance(id, str) and (match := _NAME.fullmatch(id)) else id for id in ids)
    return np.array([numbers.setdefault(text, len(numbers)) for text in texts], dtype=np.int64)
