"""What every measure reads: the states of n rows at K depths, side by side, in chunks of rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from anydepth.errors import DataError

# A depth whose spread is below a few roundings of its size holds no information, only the noise of its arithmetic.
CONSTANT = 8 * torch.finfo(torch.float32).eps


@runtime_checkable
class States(Protocol):
    """The states of n rows at K depths, readable as often as a measure needs to.

    A row is what stands for a sample (or one of its tokens); the depths lie side by side in it.
    """

    @property
    def count(self) -> int:
        """Number of rows n."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Width D of each of the K depths; they may differ."""

    @property
    def groups(self) -> np.ndarray | None:
        """The sample each row belongs to, (n,) int64; `None` where every row is a sample of its own."""

    def chunks(self, size: int) -> Iterator[Tensor]:
        """All rows in order, at most `size` at a time, as float32 (rows, sum of widths)."""


class ArrayStates:
    """States one already has, as arrays, tensors or memory maps of shape (n, D), one per depth.

    Args:
        arrays: name of each depth -> its states (n, D), real numbers of any dtype. Nothing is copied: a memory map is
            read chunk by chunk.
        groups: the sample each row belongs to, (n,) integers, where several rows share one.

    Raises:
        DataError: no depths, a depth that is not a matrix of numbers, or depths with different numbers of rows.

    Example:
        >>> states = ArrayStates({"a": np.zeros((5, 2)), "b": torch.ones(5, 3)})
        >>> states.count, states.widths
        (5, (2, 3))
        >>> [tuple(chunk.shape) for chunk in states.chunks(4)]
        [(4, 5), (1, 5)]
    """

    def __init__(self, arrays: Mapping[str, np.ndarray | Tensor], groups: np.ndarray | None = None) -> None:
        if not arrays:
            raise DataError("no states were given: expected at least one array of shape (n, D)")
        self.names = tuple(arrays)
        self.arrays = [array.detach() if isinstance(array, Tensor) else np.asarray(array) for array in arrays.values()]
        for name, array in zip(self.names, self.arrays, strict=True):
            if array.ndim != 2:
                raise DataError(f"states {name!r} have shape {tuple(array.shape)}: expected (n, D), one row a sample")
            if isinstance(array, np.ndarray) and array.dtype.kind not in "fiub":
                raise DataError(f"states {name!r} are of dtype {array.dtype}: expected real numbers")
        counts = {name: len(array) for name, array in zip(self.names, self.arrays, strict=True)}
        if len(set(counts.values())) > 1:
            raise DataError(f"every depth needs the same rows, but they number {counts}")
        self.count = counts[self.names[0]]
        self.widths = tuple(array.shape[1] for array in self.arrays)
        if groups is not None and np.shape(groups) != (self.count,):
            raise DataError(f"groups have shape {np.shape(groups)}: expected one for each of the {self.count} rows")
        self.groups = None if groups is None else np.asarray(groups, dtype=np.int64)

    def chunks(self, size: int) -> Iterator[Float32[Tensor, "_ w"]]:
        """All rows in order, at most `size` at a time, the depths side by side."""
        for start in range(0, self.count, size):
            rows = torch.empty(min(size, self.count - start), sum(self.widths))
            for part, array in zip(depth_slices(self.widths), self.arrays, strict=True):
                if isinstance(array, Tensor):
                    rows[:, part] = array[start : start + size]
                else:
                    rows.numpy()[:, part] = array[start : start + size]
            yield rows


class JoinedStates:
    """The states of two models for the same rows, side by side: the depths of the first, then those of the second.

    Args:
        first: states of n rows.
        second: states of the same n rows in the same order; nothing here can tell whether they are.

    Raises:
        DataError: the numbers of rows differ, or the samples they belong to.

    Example:
        >>> joined = JoinedStates(ArrayStates({"a": np.zeros((5, 2))}), ArrayStates({"b": np.ones((5, 3))}))
        >>> joined.widths, [tuple(rows.shape) for rows in joined.chunks(4)]
        ((2, 3), [(4, 5), (1, 5)])
    """

    def __init__(self, first: States, second: States) -> None:
        if first.count != second.count:
            raise DataError(f"{first.count} rows and {second.count}: states of two models need the same rows")
        if not _same_samples(first.groups, second.groups):
            raise DataError("the rows of the two models belong to different samples: expected the same, in one order")
        self.first, self.second = first, second
        self.count, self.groups = first.count, first.groups
        self.widths = (*first.widths, *second.widths)

    def chunks(self, size: int) -> Iterator[Tensor]:
        """All rows in order, at most `size` at a time; in shorter pieces where the two are cut differently."""
        others = self.second.chunks(size)
        right = torch.empty(0, sum(self.second.widths))
        for left in self.first.chunks(size):
            while len(left):
                right = right if len(right) else next(others)
                common = min(len(left), len(right))
                yield torch.cat([left[:common], right[:common].to(left.device)], dim=1)
                left, right = left[common:], right[common:]


def _same_samples(first: np.ndarray | None, second: np.ndarray | None) -> bool:
    if first is None or second is None:
        return first is second
    return np.array_equal(first, second)


def depth_slices(widths: tuple[int, ...]) -> list[slice]:
    """Where each depth lies in a row.

    Example:
        >>> depth_slices((2, 3))
        [slice(0, 2, None), slice(2, 5, None)]
    """
    return [slice(start, stop) for start, stop in pairwise(accumulate(widths, initial=0))]


def sum_by_depth(x: Float[Tensor, "... w"], widths: tuple[int, ...]) -> Float[Tensor, "... k"]:
    """Sum over the features of each depth."""
    return torch.stack([x[..., part].sum(-1) for part in depth_slices(widths)], dim=-1)


def squared_norms(x: Float[Tensor, "b w"], widths: tuple[int, ...]) -> Float[Tensor, "b k"]:
    """Squared norm of each row at each depth."""
    norms = [torch.linalg.vector_norm(x[:, part], dim=1) for part in depth_slices(widths)]
    return torch.stack(norms, dim=1).square()


def rows_per_chunk(widths: tuple[int, ...], *, megabytes: int, least: int = 1) -> int:
    """How many rows make a chunk of about `megabytes` in float32, at least `least`.

    Example:
        >>> rows_per_chunk((384,) * 12, megabytes=64)
        3640
    """
    return max(least, megabytes * 2**20 // (4 * sum(widths)))


@dataclass(frozen=True)
class Location:
    """Where the states lie and how far they spread: what centring and the search for blank depths need.

    Attributes:
        count: number of rows n.
        mean: global mean of every feature.
        variance: of each depth, mean squared distance of a row from the mean.
        size: of each depth, mean squared norm of a row.
    """

    count: int
    mean: Float64[Tensor, " w"]
    variance: Float64[Tensor, " k"]
    size: Float64[Tensor, " k"]

    def centre(self, rows: Float[Tensor, "b w"]) -> Float32[Tensor, "b w"]:
        """The rows about the mean, in float32 without the rounding of the mean: it is taken off in two parts."""
        near = self.mean.float()
        return (rows.float() - near).sub_((self.mean - near).float())

    @property
    def blank(self) -> dict[int, str]:
        """Depths no similarity is defined for, with the reason.

        A depth is constant when its standard deviation is at most 8 float32 roundings of its root mean square.
        """
        finite = torch.isfinite(self.size) & torch.isfinite(self.variance)
        constant = finite & (self.variance <= CONSTANT**2 * self.size)
        reasons = {}
        for depth in range(len(self.size)):
            if not finite[depth]:
                reasons[depth] = "holds NaN or infinite values"
            elif constant[depth]:
                reasons[depth] = "is the same for every row"
        return reasons


def locate(chunks: Iterator[Tensor], widths: tuple[int, ...]) -> Location:
    """Mean and spread of the states in one pass, in float64.

    Args:
        chunks: rows (b, sum of widths).
        widths: width of each depth.

    Example:
        >>> rows = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
        >>> locate(iter([rows]), (1, 1)).blank
        {1: 'is the same for every row'}
    """
    count, shift = 0, torch.zeros(sum(widths))
    total, squares = torch.zeros(sum(widths), dtype=torch.float64), torch.zeros(len(widths), dtype=torch.float64)
    for rows in chunks:
        if count == 0:
            shift = rows.mean(0).float()  # squares about a far-away origin would cancel to noise
            total, squares = total.to(rows.device), squares.to(rows.device)
        z = rows - shift
        count += len(z)
        total += z.double().sum(0)
        squares += squared_norms(z, widths).double().sum(0)
    offset = total / count
    mean = shift.to(total) + offset
    variance = squares / count - sum_by_depth(offset.square(), widths)
    return Location(count, mean, variance, variance + sum_by_depth(mean.square(), widths))


def undefined(blank: dict[int, str], value: Float64[np.ndarray, "... k k"]) -> Float64[np.ndarray, "... k k"]:
    """`value` with NaN in the rows and columns of the blank depths."""
    value = value.copy()
    for depth in blank:
        value[..., depth, :] = value[..., :, depth] = np.nan
    return value


def sample_ids(groups: Int64[np.ndarray, " n"] | None, start: int, stop: int) -> Int64[np.ndarray, " b"]:
    """The sample that each of the rows start..stop belongs to."""
    return np.arange(start, stop, dtype=np.int64) if groups is None else groups[start:stop]
