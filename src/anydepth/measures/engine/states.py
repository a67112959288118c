"""Hidden states of n rows at K depths, read in chunks of rows with the depths side by side; their mean and spread."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from anydepth.errors import DataError

_PIECE = 128  # rows whose spread is summed at a time
_FIRST_ROWS = 1000  # that tell whether numbers of float64 use it
_FARTHEST = 500  # powers of two whose squares float64 holds
_FAR_FROM_ONE = 10  # powers of two from which on float32 products are taken of scaled states


@runtime_checkable
class States(Protocol):
    """Hidden states of n rows at K depths, which can be read several times.

    A row is a sample (or one of its tokens); the depths lie side by side in it.
    """

    @property
    def count(self) -> int:
        """Number of rows n."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Width D of each of the K depths; they may differ."""

    @property
    def groups(self) -> np.ndarray | None:
        """The sample of each row, (n,) int64; `None` where every row is a sample."""

    def chunks(self, size: int) -> Iterator[Tensor]:
        """All rows in order, at most `size` at a time, (rows, sum of widths), as float32 or float64."""


class ArrayStates:
    """Hidden states given as arrays, tensors or memory maps of shape (n, D), one per depth.

    Args:
        arrays: name of each depth -> its states (n, D), real numbers of any dtype, in anything that numpy or torch
            reads. Nothing is copied: a memory map is read chunk by chunk. Where one holds float64 or large integers,
            all are read as float64.
        groups: the sample of each row, (n,) integers, where several rows share one.

    Raises:
        DataError: no depths, a depth that is not a matrix of numbers, or depths with different numbers of rows.

    Example:
        >>> states = ArrayStates({"a": np.zeros((5, 2)), "b": torch.ones(5, 3)})
        >>> states.count, states.widths
        (5, (2, 3))
        >>> [tuple(chunk.shape) for chunk in states.chunks(4)]
        [(4, 5), (1, 5)]
    """

    def __init__(
        self, arrays: Mapping[str, np.ndarray | Tensor], groups: np.ndarray | Sequence[int] | Tensor | None = None
    ) -> None:
        if not arrays:
            raise DataError("no states were given: expected at least one array of shape (n, D)")
        self.names = tuple(arrays)
        self.arrays = [as_numbers(name, array) for name, array in arrays.items()]
        for name, array in zip(self.names, self.arrays, strict=True):
            if array.ndim != 2:
                raise DataError(f"states {name!r} have shape {tuple(array.shape)}: expected (n, D), one row a sample")
        counts = {name: len(array) for name, array in zip(self.names, self.arrays, strict=True)}
        if len(set(counts.values())) > 1:
            raise DataError(f"every depth needs the same rows, but they number {counts}")
        self.count = counts[self.names[0]]
        self.widths = tuple(array.shape[1] for array in self.arrays)
        self.groups = None if groups is None else _as_groups(groups, self.count)
        self.parts: list[Path] = []  # the files they lie in: none
        self.dtype = torch.float64 if any(_needs_double(array) for array in self.arrays) else torch.float32

    def chunks(self, size: int) -> Iterator[Float[Tensor, "_ w"]]:
        """All rows in order, at most `size` at a time, the depths side by side."""
        for start in range(0, self.count, size):
            yield self._read(slice(start, start + size))

    @property
    def bytes(self) -> int:
        """What the states take on disk, in float32."""
        return 4 * self.count * sum(self.widths)

    def rows(self, which: Int64[np.ndarray, " m"]) -> Float[np.ndarray, "m w"]:
        """Some of the rows, in any order."""
        return np.asarray(self._read(which).numpy())

    def _read(self, which: slice | Int64[np.ndarray, " m"]) -> Float[Tensor, "m w"]:
        parts = [array[which] for array in self.arrays]
        rows = torch.empty(len(parts[0]), sum(self.widths), dtype=self.dtype, device="cpu")
        with np.errstate(all="ignore"):  # what float64 cannot hold becomes infinite, which makes the depth blank
            for part, array in zip(depth_slices(self.widths), parts, strict=True):
                if isinstance(array, Tensor):
                    rows[:, part] = array
                else:
                    rows.numpy()[:, part] = array
        return rows

    @cached_property
    def epsilons(self) -> tuple[float, ...]:
        """Relative rounding of the numbers of each depth: float64's where they use it, else float32's."""
        first = self._read(slice(_FIRST_ROWS)).double()
        exact = (first == first.float()) | first.isnan()
        return tuple(
            torch.finfo(torch.float32 if exact[:, part].all() else torch.float64).eps
            for part in depth_slices(self.widths)
        )


def as_numbers(name: str, array: Any) -> np.ndarray | Tensor:
    """Convert anything array-like to an array or tensor of real numbers, without gradients.

    Args:
        name: in error messages.
        array: a numpy array, a tensor, or what converts to an array (`__array__`), such as nested lists.

    Raises:
        DataError: it holds no real numbers, rows of unequal length, or masked entries.
    """
    if isinstance(array, Tensor):
        if array.is_complex() or array.is_quantized or array.layout != torch.strided or array.device.type == "meta":
            kind = f"{str(array.layout).removeprefix('torch.')} {str(array.dtype).removeprefix('torch.')}"
            raise DataError(
                f"states {name!r} are a tensor of {kind} on {array.device.type!r}: expected a dense one of real numbers"
            )
        return array.detach()
    if np.ma.is_masked(array):
        raise DataError(f"states {name!r} have masked entries: fill them, or leave their rows out at all depths")
    try:
        numbers = np.asarray(array)
    except (TypeError, ValueError, RuntimeError):
        kind = type(array).__name__
        raise DataError(f"states {name!r} are a {kind} that is no array: expected (n, D), rows of one length") from None
    if numbers.dtype.kind == "V" and numbers.dtype.name.startswith(("bfloat16", "float8")):  # as jax gives them
        numbers = numbers.astype(np.float32)
    if numbers.dtype.kind not in "fiub":
        raise DataError(f"states {name!r} are of dtype {numbers.dtype}: expected real numbers")
    return numbers


def _needs_double(array: np.ndarray | Tensor) -> bool:
    """Whether numbers of this type may be beyond float32's precision."""
    if isinstance(array, Tensor):
        return array.dtype in (torch.float64, torch.int32, torch.int64)
    return array.dtype.itemsize > (4 if array.dtype.kind == "f" else 2)


def _as_groups(groups: Any, count: int) -> Int64[np.ndarray, " n"]:
    try:
        ids = np.asarray(groups.cpu() if isinstance(groups, Tensor) else groups)
    except ValueError:
        ids = np.asarray(None)
    if ids.shape != (count,):
        raise DataError(f"groups have shape {ids.shape}: expected one for each of the {count} rows")
    if ids.dtype.kind not in "iu":
        raise DataError(
            f"groups are of dtype {ids.dtype}: expected whole numbers, as numpy.unique(groups, "
            "return_inverse=True)[1] makes of names"
        )
    return ids.astype(np.int64)


class JoinedStates:
    """The states of two models for the same rows, side by side: the depths of the first, then those of the second.

    Args:
        first: states of n rows.
        second: states of the same n rows in the same order, which is not checked.

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
        a, b = first.groups, second.groups
        if a is not b and (a is None or b is None or not np.array_equal(a, b)):
            raise DataError("the rows of the two models belong to different samples: expected the same, in one order")
        self.first, self.second = first, second
        self.count, self.groups = first.count, first.groups
        self.widths = (*first.widths, *second.widths)
        self.epsilons = (*epsilons(first), *epsilons(second))

    def chunks(self, size: int) -> Iterator[Tensor]:
        """All rows in order, at most `size` at a time; in shorter pieces where the two are cut differently."""
        others = self.second.chunks(size)
        right = torch.empty(0, sum(self.second.widths), dtype=torch.float32, device="cpu")
        for left in self.first.chunks(size):
            while len(left):
                right = right if len(right) else next(others)
                common = min(len(left), len(right))
                yield torch.cat([left[:common], right[:common].to(left.device)], dim=1)
                left, right = left[common:], right[common:]


class ScaledStates:
    """States with every depth multiplied by a power of two, which changes nothing but their size.

    Example:
        >>> states = ScaledStates(ArrayStates({"a": np.full((1, 2), 1e-30, np.float32)}), (100,))
        >>> next(states.chunks(1))
        tensor([[1.2677, 1.2677]])
    """

    def __init__(self, states: States, exponents: tuple[int, ...]) -> None:
        self.states, self.exponents = states, exponents
        self.count, self.widths, self.groups = states.count, states.widths, states.groups
        self.epsilons = epsilons(states)

    def chunks(self, size: int) -> Iterator[Float[Tensor, "_ w"]]:
        """All rows in order, at most `size` at a time."""
        factors = by_feature(self.exponents, self.widths)
        for rows in self.states.chunks(size):
            # in float64: the factor itself may be beyond what float32 holds
            yield (rows.double() * factors.to(rows.device)).to(rows.dtype)


def by_feature(exponents: Sequence[int], widths: tuple[int, ...]) -> Float64[Tensor, " w"]:
    """The power of two of its depth, for every feature."""
    return powers_of_two(exponents).repeat_interleave(torch.tensor(widths, device="cpu"))


def powers_of_two(exponents: Sequence[int]) -> Float64[Tensor, " k"]:
    """2 to each of the exponents."""
    return torch.tensor([math.ldexp(1.0, exponent) for exponent in exponents], dtype=torch.float64, device="cpu")


def epsilons(states: States) -> tuple[float, ...]:
    """Relative rounding of the numbers of each depth: float32's, unless the states have `epsilons`."""
    rounding: tuple[float, ...] | None = getattr(states, "epsilons", None)
    return (torch.finfo(torch.float32).eps,) * len(states.widths) if rounding is None else rounding


def depth_slices(widths: tuple[int, ...]) -> list[slice]:
    """The slice of each depth in a row.

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
    """Number of rows of a chunk of about `megabytes` in float32, at least `least`.

    Example:
        >>> rows_per_chunk((384,) * 12, megabytes=64)
        3640
    """
    return max(least, megabytes * 2**20 // (4 * sum(widths)))


@dataclass(frozen=True, kw_only=True)
class StateMoments:
    """Mean and spread of the states, for centring and to find blank depths.

    Attributes:
        count: number of rows n.
        mean: of every feature.
        variance: of each depth, mean squared distance of a row from the mean.
        size: of each depth, mean squared norm of a row.
        coarse: of each depth, relative rounding of its numbers; float32's by default.
    """

    count: int
    mean: Float64[Tensor, " w"]
    variance: Float64[Tensor, " k"]
    size: Float64[Tensor, " k"]
    coarse: tuple[float, ...] = ()

    def centre(self, rows: Float[Tensor, "b w"]) -> Float32[Tensor, "b w"]:
        """The rows minus the mean, in float32, without the rounding of the mean: it is subtracted in two parts."""
        if rows.dtype == torch.float64:
            return (rows - self.mean).float()
        near = self.mean.float()
        return (rows.float() - near).sub_((self.mean - near).float())

    def rounding(self, depth: int) -> float:
        """Size of arithmetic noise at a depth: 8 roundings of its root mean square."""
        coarse = self.coarse[depth] if self.coarse else torch.finfo(torch.float32).eps
        return 8 * coarse * float(self.size[depth].sqrt())

    @property
    def blank(self) -> dict[int, str]:
        """Depths for which no similarity is defined, with the reason.

        A depth is constant when its standard deviation is at most 8 roundings of its root mean square.
        """
        reasons = {}
        for depth, (variance, size) in enumerate(zip(self.variance.tolist(), self.size.tolist(), strict=True)):
            if not (math.isfinite(variance) and math.isfinite(size)):
                reasons[depth] = "holds NaN or infinite values"
            elif variance <= (noise := self.rounding(depth) ** 2):
                reasons[depth] = "is the same for every row" + ("" if variance <= noise / 2**6 else ", to rounding")
        return reasons

    def exponents(self, widths: tuple[int, ...]) -> tuple[int, ...]:
        """Powers of two by which to multiply depths so that float32 products of them are right; 0 for most.

        A factor changes no similarity. But squares of numbers beyond 1e19 are infinite in float32, and those of numbers
        below 1e-23 are 0.
        """
        exponents = []
        for width, variance in zip(widths, self.variance.tolist(), strict=True):
            spread = math.sqrt(variance / width) if 0 < variance < math.inf else 1.0
            exponent = max(-_FARTHEST, min(_FARTHEST, -round(math.log2(spread))))
            exponents.append(exponent if abs(exponent) > _FAR_FROM_ONE else 0)
        return tuple(exponents)

    def scaled(self, exponents: tuple[int, ...], widths: tuple[int, ...]) -> StateMoments:
        """Moments of the same rows with every depth multiplied by a power of two."""
        squares = powers_of_two(exponents).square().to(self.size.device)
        factors = by_feature(exponents, widths).to(self.mean.device)
        return replace(self, mean=self.mean * factors, variance=self.variance * squares, size=self.size * squares)


def locate(chunks: Iterator[Tensor], widths: tuple[int, ...], coarse: tuple[float, ...] = ()) -> StateMoments:
    """Mean and spread of rows (b, sum of widths) in one pass, in float64; for `coarse` see `epsilons`.

    Example:
        >>> rows = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
        >>> locate(iter([rows]), (1, 1)).blank
        {1: 'is the same for every row'}
    """
    count = 0
    shift, total = torch.zeros(2, sum(widths), dtype=torch.float64, device="cpu")
    squares = torch.zeros(len(widths), dtype=torch.float64, device="cpu")
    z = shift.new_empty(0)
    for rows in chunks:
        if count == 0:
            shift = rows.mean(0, dtype=torch.float64)  # squares about a far-away origin would cancel to noise
            z, total, squares = (part.to(rows.device) for part in (z, total, squares))
        # few rows at a time, in memory that is used again: fresh memory costs as much as sums
        for piece in torch.split(rows, _PIECE):
            # in float64: in float32, squares would leave its range for states that do not
            torch.sub(piece, shift, out=z.resize_(piece.shape))
            total += z.sum(0)
            squares += squared_norms(z, widths).sum(0)
        count += len(rows)
    offset = total / count
    mean = shift + offset
    variance = squares / count - sum_by_depth(offset.square(), widths)
    size = variance + sum_by_depth(mean.square(), widths)
    return StateMoments(count=count, mean=mean, variance=variance, size=size, coarse=coarse)


def undefined(blank: dict[int, str], value: Float64[np.ndarray, "... k k"]) -> Float64[np.ndarray, "... k k"]:
    """`value` with NaN in the rows and columns of the blank depths."""
    value = value.copy()
    for depth in blank:
        value[..., depth, :] = value[..., :, depth] = np.nan
    return value


def sample_ids(groups: Int64[np.ndarray, " n"] | None, start: int, stop: int) -> Int64[np.ndarray, " b"]:
    """The sample of each of the rows start..stop."""
    return np.arange(start, stop, dtype=np.int64) if groups is None else groups[start:stop]


def chosen_rows(states: States, indices: Int64[np.ndarray, " m"]) -> Iterator[Float[Tensor, "_ w"]]:
    """The rows at ascending indices, in chunks."""
    start = 0
    for rows in states.chunks(rows_per_chunk(states.widths, megabytes=8)):
        first, last = np.searchsorted(indices, (start, start + len(rows)))
        yield rows[torch.from_numpy(indices[first:last] - start)]
        start += len(rows)
