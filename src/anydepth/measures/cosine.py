"""Cosine similarity of a row's states at every two depths: mean, quantiles and interval over rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from anydepth.measures.engine.context import MeasureContext
from anydepth.measures.engine.hsic import normalised
from anydepth.measures.engine.plan import no_temporary_space
from anydepth.measures.engine.states import (
    StateMoments,
    States,
    depth_slices,
    epsilons,
    locate,
    rows_per_chunk,
    sample_ids,
    undefined,
)
from anydepth.measures.measure import Similarity
from anydepth.stats.intervals import around
from anydepth.stats.jackknife import PartSums, Split

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True, kw_only=True)
class Cosines:
    """The distribution over rows of the cosine of every two depths.

    Attributes:
        mean: the paper's COS.
        std: standard deviation over rows (n - 1).
        quantiles: at `QUANTILES`, exact.
        directionless: of each depth, the number of rows that are the zero vector there: they have no cosine.
        parts: sums over the parts of a split, if one was given.
    """

    mean: Float64[np.ndarray, "k k"]
    std: Float64[np.ndarray, "k k"]
    quantiles: Float64[np.ndarray, "5 k k"]
    directionless: Int64[np.ndarray, " k"]
    parts: PartSums | None


def cosine(
    states: States, *, centred: bool = True, location: StateMoments | None = None, split: Split | None = None
) -> Cosines:
    """Distribution over rows of the cosine `<h_k, h_l> / (|h_k| |h_l|)`, for every two depths.

    Arithmetic is float64. The values of all rows lie in a temporary file (4 bytes a row and pair, in `TMPDIR`), from
    which the quantiles are taken: memory does not grow with n.

    Args:
        states: of n rows at K depths.
        centred: subtract the features' global mean first, as a footnote of the paper says.
        location: of the states, where known.
        split: of the samples, for an interval of the mean.

    Returns:
        Values in -1..1; NaN between depths of different widths, and in the row and column of a depth that is not
        finite or holds zero vectors.

    Raises:
        MeasureError: the temporary file cannot be written.

    Example:
        >>> from anydepth.measures.engine.states import ArrayStates
        >>> x = np.random.default_rng(0).normal(size=(100, 8))
        >>> cosine(ArrayStates({"h0": x, "h1": 2 * x + 1})).mean[0, 1]
        np.float64(1.000)
    """
    widths = states.widths
    size = rows_per_chunk(widths, megabytes=8)
    if centred and location is None:
        location = locate(states.chunks(size), widths, epsilons(states))
    upper = np.triu_indices(len(widths), 1)
    parts = None if split is None else PartSums(split, len(widths))
    running = _Running(len(widths))
    with TemporaryFile() as file:
        values = _Columns(file, states.count, len(upper[0]))
        for rows in states.chunks(size):
            samples = sample_ids(states.groups, running.count, running.count + len(rows))
            y = location.centre(rows) if centred and location is not None else rows
            cosines = pair_cosines(y, widths).cpu().numpy()
            values.write(running.count, cosines[:, upper[0], upper[1]])
            running.add(cosines)
            if parts is not None:
                parts.add(parts.split.part_of(samples), cosines)
        quantiles = np.broadcast_to(running.mean, (len(QUANTILES), *running.mean.shape)).copy()
        for pair, (a, b) in enumerate(zip(*upper, strict=True)):
            quantiles[:, a, b] = quantiles[:, b, a] = values.quantiles(pair)
    return Cosines(
        mean=running.mean, std=running.std, quantiles=quantiles, directionless=running.directionless, parts=parts
    )


def pair_cosines(rows: Float[Tensor, "b w"], widths: tuple[int, ...]) -> Float64[Tensor, "b k k"]:
    """Cosine of every row's states at every two depths, in float64.

    Returns:
        (b, K, K) in -1..1; NaN between depths of different widths and where a state is the zero vector.

    Example:
        >>> pair_cosines(torch.tensor([[3.0, 4.0, 4.0, 3.0]]), (2, 2))[0]
        tensor([[1.0000, 0.9600],
                [0.9600, 1.0000]], dtype=torch.float64)
    """
    value = torch.full((len(rows), len(widths), len(widths)), torch.nan, dtype=torch.float64, device=rows.device)
    slices = depth_slices(widths)
    for width in sorted(set(widths)):
        depths = torch.tensor([depth for depth, other in enumerate(widths) if other == width], device=rows.device)
        states = torch.stack([rows[:, slices[depth]] for depth in depths.tolist()], dim=1).double()
        value[:, depths[:, None], depths] = normalised(states @ states.mT)
    return value


class _Running:
    """Mean and standard deviation over rows that come in chunks (Chan et al. 1979)."""

    def __init__(self, depths: int) -> None:
        self.count = 0
        self.mean = np.zeros((depths, depths))
        self.squares = np.zeros((depths, depths))
        self.directionless = np.zeros(depths, dtype=np.int64)

    def add(self, values: Float64[np.ndarray, "b k k"]) -> None:
        mean, share = values.mean(0), len(values) / (self.count + len(values))
        step = mean - self.mean
        self.mean = self.mean + share * step
        self.squares = self.squares + ((values - mean) ** 2).sum(0) + self.count * share * step**2
        self.count += len(values)
        self.directionless += np.isnan(values.diagonal(axis1=1, axis2=2)).sum(0)

    @property
    def std(self) -> Float64[np.ndarray, "k k"]:
        return np.sqrt(self.squares / (self.count - 1)) if self.count > 1 else np.full_like(self.mean, np.nan)


class _Columns:
    """A matrix in a file, written by rows and read by columns."""

    def __init__(self, file: IO[bytes], rows: int, columns: int) -> None:
        self.file, self.rows, self.columns = file, rows, columns

    def write(self, start: int, values: Float64[np.ndarray, "b p"]) -> None:
        # Plain writes: through a memory map a full disk would kill the process.
        try:
            for column, entries in enumerate(values.T.astype(np.float32)):
                self.file.seek(4 * (column * self.rows + start))
                self.file.write(entries.tobytes())
            self.file.flush()
        except OSError as error:
            raise no_temporary_space("the cosines of every row", 4 * self.rows * self.columns, error) from error

    def quantiles(self, column: int) -> Float64[np.ndarray, " 5"]:
        """Quantiles of a column, interpolated linearly; sorts it in place as far as needed."""
        values = self._mapped[column]
        ranks = np.array(QUANTILES) * (self.rows - 1)
        below, above = np.floor(ranks).astype(int), np.ceil(ranks).astype(int)
        values.partition(np.unique([*below, *above, self.rows - 1]))  # NaN sorts last
        if np.isnan(values[-1]):
            return np.full(len(QUANTILES), np.nan)
        low, high = values[below].astype(np.float64), values[above].astype(np.float64)
        return np.asarray(low + (ranks - below) * (high - low))

    @cached_property
    def _mapped(self) -> np.memmap[Any, np.dtype[np.float32]]:
        return np.memmap(self.file, dtype=np.float32, mode="r+", shape=(self.columns, self.rows))


def cosine_similarity(run: MeasureContext, *, centred: bool) -> Similarity:
    """Mean cosine of all pairs of depths, with an interval over samples and quantiles."""
    states = run.states.during("cosine" if centred else "raw cosine")
    split = run.split(run.states.count) if states.groups is not None else None
    cosines = cosine(states, centred=centred, location=run.location, split=split)
    blank = run.location.blank
    notes = run.blank_notes
    if len(set(states.widths)) > 1:
        notes.append(f"cosine is undefined between depths of different widths {states.widths}")
    notes += [
        f"{run.named(depth)} is the zero vector in {rows} of {states.count} rows, which have no cosine"
        for depth, rows in enumerate(cosines.directionless)
        if rows and depth not in blank
    ]
    low = high = None
    if run.jackknife_groups is not None and states.count > 1:
        error, freedom = cosines.std / np.sqrt(states.count), float(states.count - 1)
        if cosines.parts is not None:
            error, freedom = cosines.parts.error(states.count), cosines.parts.freedom
        bounds = around(cosines.mean, error, freedom).clip(-1, 1)  # where no mean of cosines lies beyond
        low, high = (run.block(undefined(blank, bound)) for bound in bounds)
    mean, quantiles = (run.block(undefined(blank, values)) for values in (cosines.mean, cosines.quantiles))
    return Similarity(mean, low=low, high=high, quantiles=quantiles, notes=tuple(notes))
