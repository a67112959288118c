"""Files of rows: appended during a pass, and read back in chunks."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from anydepth.errors import TraceFileError, one_line
from anydepth.storage.disk import write_errors

_HEADER_BYTES = 128
_FINGERPRINT_ROWS = 1000


class RowFile:
    """A `.npy` file to which rows are appended: after each `commit`, `numpy.load` reads the committed rows.

    Args:
        path: in an existing folder.
        dtype: of the entries.
        columns: entries per row; None for a flat array.
        rows: number of rows of an existing file to keep; the rest is truncated.
    """

    def __init__(self, path: Path, dtype: DTypeLike, columns: int | None = None, *, rows: int = 0) -> None:
        self.path, self.dtype, self.columns, self.rows = path, np.dtype(dtype), columns, rows
        with write_errors(path):
            self._file = path.open("r+b" if rows else "w+b")
            self._file.truncate(_HEADER_BYTES + rows * self._row_bytes)
            self.commit()

    @property
    def _row_bytes(self) -> int:
        return self.dtype.itemsize * (1 if self.columns is None else self.columns)

    @property
    def bytes(self) -> int:
        """The size of the rows on disk."""
        return self.rows * self._row_bytes

    def append(self, rows: NDArray[Any]) -> None:
        """Add rows; they count from the next `commit` on."""
        with write_errors(self.path):
            self._file.write(np.ascontiguousarray(rows, dtype=self.dtype).data)
        self.rows += len(rows)

    def commit(self) -> None:
        """Make the rows appended so far part of the file."""
        shape = (self.rows,) if self.columns is None else (self.rows, self.columns)
        fields = f"{{'descr': '{self.dtype.str}', 'fortran_order': False, 'shape': {shape}, }}"
        text = fields.ljust(_HEADER_BYTES - 11) + "\n"
        with write_errors(self.path):
            self._file.seek(0)
            self._file.write(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode("ascii"))
            self._file.seek(0, os.SEEK_END)
            self._file.flush()

    def close(self) -> None:
        """Commit and close the file; closing twice does nothing."""
        if not self._file.closed:
            try:
                self.commit()
            finally:
                with write_errors(self.path):
                    self._file.close()


class StoredStates:
    """Hidden states of the selected positions at all depths, on disk, for measures to read in chunks.

    Args:
        parts: `.npy` files of (n, K·D) float32 rows, in order.
        widths: D of each depth.
        groups: (n,) the sample of each row; None if every row is its own.
        order: (n,) in which the rows of all parts are read; None as they lie. `groups` are in that order.
    """

    def __init__(
        self,
        parts: list[Path],
        widths: tuple[int, ...],
        groups: NDArray[np.int64] | None = None,
        *,
        order: NDArray[np.intp] | None = None,
    ) -> None:
        self.parts, self.widths, self.groups = parts, widths, groups
        self._rows: list[NDArray[np.float32]] = [_memory_map(part, sum(widths)) for part in parts]
        self.count = sum(len(rows) for rows in self._rows)
        self._order = None if order is None or np.array_equal(order, np.arange(self.count)) else order

    def chunks(self, size: int) -> Iterator[Tensor]:
        """The rows in order, (<= size, K·D) float32 at a time."""
        if self._order is not None:
            for start in range(0, self.count, size):
                yield torch.from_numpy(self.rows(np.arange(start, min(start + size, self.count))))
            return
        for rows in self._rows:
            for start in range(0, len(rows), size):
                # a copy: the map is read-only, and torch needs writable memory
                yield torch.from_numpy(np.array(rows[start : start + size]))

    def rows(self, which: NDArray[np.int64]) -> NDArray[np.float32]:
        """Some of the rows, (m, K·D), in any order."""
        which = which if self._order is None else self._order[which]
        starts = np.cumsum([0, *(len(rows) for rows in self._rows)])
        part = np.searchsorted(starts, which, side="right") - 1
        selected = np.empty((len(which), sum(self.widths)), np.float32)
        for index, rows in enumerate(self._rows):
            here = part == index
            selected[here] = rows[which[here] - starts[index]]
        return selected

    @property
    def fingerprint(self) -> str:
        """A hash of the shape, the groups, and at most a thousand rows at equal distances."""
        digest = hashlib.blake2b(f"{self.widths} {self.count}".encode(), digest_size=16)
        sampled = np.unique(np.linspace(0, max(self.count - 1, 0), _FINGERPRINT_ROWS).astype(np.int64))[: self.count]
        for part in np.array_split(sampled, 10):
            digest.update(self.rows(part).tobytes())
        groups = np.arange(self.count) if self.groups is None else self.groups
        digest.update(groups.astype(np.int64).tobytes())
        return digest.hexdigest()

    @property
    def bytes(self) -> int:
        """The size of the states on disk."""
        return 4 * self.count * sum(self.widths)


def _memory_map(path: Path, columns: int) -> NDArray[np.float32]:
    try:
        rows: NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as problem:
        raise TraceFileError(f"{path} cannot be read as kept states: {one_line(problem)}") from None
    if rows.dtype != np.float32 or rows.ndim != 2 or rows.shape[1] != columns:
        raise TraceFileError(f"{path} holds {rows.dtype} {rows.shape}, expected float32 rows of {columns}")
    return rows
