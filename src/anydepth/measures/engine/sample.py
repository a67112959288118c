"""Random samples of rows, for measures that compare all pairs of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from anydepth.measures.engine.plan import no_temporary_space
from anydepth.measures.engine.states import StateMoments, States, chosen_rows, depth_slices, rows_per_chunk


class Sample:
    """Rows drawn from states at random, in order; in a temporary file where not all are drawn.

    Attributes:
        count: number of rows m.
        of: number of rows of the states.
        widths: width of each depth.
        ids: the sample of each row.
    """

    def __init__(self, states: States, most: int, seed: int) -> None:
        self.of, self.widths = states.count, states.widths
        self.count = min(most, self.of)
        drawn = np.arange(self.of)
        if self.count < self.of:
            drawn = np.sort(np.random.default_rng(seed).choice(self.of, self.count, replace=False))
        self.groups = None if states.groups is None else states.groups[drawn]
        self.ids: Int64[np.ndarray, " m"] = drawn if self.groups is None else self.groups
        self._states = states if self.count == self.of else None
        self._copy = None if self.count == self.of else _copy(states, drawn)

    def chunks(self, size: int) -> Iterator[Tensor]:
        """The rows in order, at most `size` at a time, (rows, sum of widths)."""
        if self._states is not None:
            yield from self._states.chunks(size)
        if self._copy is not None:
            for start in range(0, self.count, size):
                yield torch.from_numpy(np.array(self._copy[start : start + size]))

    def centred(
        self, location: StateMoments, depths: Sequence[int], memory: int
    ) -> Iterator[tuple[int, Float64[Tensor, "m d"]]]:
        """The rows of one depth after the other, minus the mean; about `memory` bytes, at least a depth, at a time."""
        slices, remaining = depth_slices(self.widths), list(depths)
        while remaining:
            size = np.cumsum([8 * self.count * self.widths[depth] for depth in remaining])
            now = remaining[: max(1, int((size <= memory).sum()))]
            remaining = remaining[len(now) :]
            held = {depth: torch.empty(self.count, self.widths[depth], dtype=torch.float64) for depth in now}
            start = 0
            for rows in self.chunks(rows_per_chunk(self.widths, megabytes=8)):
                for depth, kept in held.items():
                    part = slices[depth]
                    kept[start : start + len(rows)] = rows[:, part].double() - location.mean[part].to(rows.device)
                start += len(rows)
            for depth in now:
                yield depth, held.pop(depth)

    def directions(
        self, location: StateMoments, depths: Sequence[int], memory: int
    ) -> Iterator[tuple[int, Float64[Tensor, "m d"]]]:
        """The centred rows scaled to unit length; NaN where a row is the mean, to 8 roundings of the states' size."""
        for depth, y in self.centred(location, depths, memory):
            norms = torch.linalg.vector_norm(y, dim=1, keepdim=True)
            yield depth, y / torch.where(norms > location.rounding(depth), norms, torch.nan)

    def note(self, title: str) -> tuple[str, ...]:
        """A note on the number of rows, where not all were drawn."""
        return (f"similarity by {title}: over {self.count} of {self.of} rows",) if self.count < self.of else ()

    def directionless_note(self, title: str, depth: str, rows: int) -> str:
        """A note on rows that are the mean at a depth, for which a measure is undefined there."""
        reason = f"is the mean in {rows} of {self.count} rows: they have no direction"
        return f"similarity by {title} is undefined at {depth}, which {reason}"


def _copy(states: States, drawn: Int64[np.ndarray, " m"]) -> np.memmap[Any, np.dtype[Any]]:
    """Memory map of the drawn rows, in a temporary file without a name."""
    width, dtype = sum(states.widths), np.dtype(np.float32)
    with TemporaryFile() as file:
        try:
            for rows in chosen_rows(states, drawn):
                # Plain writes: through a memory map a full disk would kill the process.
                file.write(rows.numpy().tobytes())
                dtype = rows.numpy().dtype
            file.flush()
        except OSError as error:
            what, size = f"{len(drawn)} rows of {width} features", dtype.itemsize * len(drawn) * width
            raise no_temporary_space(what, size, error) from error
        return np.memmap(file, dtype=dtype, mode="r", shape=(len(drawn), width))
