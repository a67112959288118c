"""Pair the samples of two traces by their ids, whatever the order they were traced in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from anydepth.core.provenance import entry
from anydepth.core.windows import texts_of
from anydepth.errors import IncompatibleTraces
from anydepth.measures.engine.states import ArrayStates, epsilons
from anydepth.results.trace_data import TraceData, row_samples
from anydepth.storage.rows import StoredStates

CHECKS = {
    "data": "the traces are of different data",
    "tokens": "different positions stand for a sample",
}
"""What two traces must share, unless told otherwise."""


@dataclass(frozen=True, kw_only=True)
class SamplePairs:
    """Pairs of answers of two traces, as rows of each.

    Attributes:
        samples: how many samples both have.
        first: (n,) rows of the first trace's answers.
        second: (n,) the paired rows of the second trace's.
        sample: (n,) the sample of each pair; one number for all windows of a text, which are not independent (see
            `anydepth.core.windows`).
        notes: what was left out, one sentence each.
    """

    samples: int
    first: Int64[np.ndarray, " n"]
    second: Int64[np.ndarray, " n"]
    sample: Int64[np.ndarray, " n"]
    notes: tuple[str, ...]


def require_alike(a: TraceData, b: TraceData, despite: Sequence[str] = ()) -> None:
    """Raise `IncompatibleTraces` if two traces differ in one of `CHECKS` that `despite` does not name."""
    for name in despite:
        if name not in CHECKS:
            raise IncompatibleTraces(f"traces can be compared despite {', '.join(CHECKS)}, not despite {name!r}")
    for name, places in (("data", [("data", "name"), ("data", "split")]), ("tokens", [("tokens",)])):
        first, second = (
            " ".join(str(entry(trace.provenance, *keys, default="")) for keys in places).strip() for trace in (a, b)
        )
        if first != second and name not in despite:
            raise IncompatibleTraces(
                f"{CHECKS[name]}: {first} and {second}; trace both alike, or compare them all the same "
                f"(despite=['{name}'])"
            )


def pair_samples(a: TraceData, b: TraceData, despite: Sequence[str] = ()) -> SamplePairs:
    """Pair the answers of two traces by sample id, and by position where there are several to a sample.

    With "data" in `despite`, samples of one id may have other content.

    Raises:
        IncompatibleTraces: no sample is in both, one has another label or other content, or answers of a sample are at
            other positions.
    """
    if not a.ids or not b.ids:
        raise IncompatibleTraces(
            f"the {'second' if a.ids else 'first'} trace names no samples, by which the two are paired: "
            "give trace_states(..., ids=...)"
        )
    common = _common_samples(a, b)
    if not len(common):
        raise IncompatibleTraces(
            f"no sample is in both traces: the first has {_few(a.ids)}, the second {_few(b.ids)}; trace the same data, "
            "or name the column of ids"
        )
    if "data" not in despite:
        _require_same_content(a, b, common)
    notes = []
    if len(common) < max(len(a.ids), len(b.ids)):
        counts = f"{len(a.ids):,} of the first trace and {len(b.ids):,} of the second"
        notes.append(f"{len(common):,} samples are in both traces, of {counts}: only these are compared")
    first, second, sample = _paired_answers(a, b, common)
    return SamplePairs(samples=len(common), first=first, second=second, sample=sample, notes=tuple(notes))


def _common_samples(a: TraceData, b: TraceData) -> Int64[np.ndarray, "m 2"]:
    """The indices of each common sample in both traces, in the order of the first."""
    index_in_b = {sample: index for index, sample in enumerate(b.ids)}
    pairs = [(index, index_in_b[sample]) for index, sample in enumerate(a.ids) if sample in index_in_b]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _require_same_content(a: TraceData, b: TraceData, common: Int64[np.ndarray, "m 2"]) -> None:
    """Raise `IncompatibleTraces` if equal ids mean different samples, where content shows it.

    Models with other tokenizers or image sizes take other content of one sample, which shows nothing. But if the second
    trace has most samples of the first with the very same content, under whatever id, both were prepared alike, and
    samples of one id whose content differs are different samples.
    """
    if not len(a.digests) or not len(b.digests):
        return
    first, second = a.digests[common[:, 0]], b.digests[common[:, 1]]
    differing = np.flatnonzero(first != second)
    if len(differing) and 2 * np.isin(first, b.digests).sum() > len(first):
        sample = a.ids[common[differing[0], 0]]
        raise IncompatibleTraces(
            f"sample {sample!r} is not the same in the two traces, nor are {len(differing) - 1:,} more of "
            f"{len(common):,}: other data, another order under the same ids, or texts cut at another length; give "
            "samples ids of their own, or compare them all the same (despite=['data'])"
        )


def _paired_answers(
    a: TraceData, b: TraceData, common: Int64[np.ndarray, "m 2"]
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Rows of the first trace, the paired rows of the second, and the text of each pair."""
    if a.rows is None or b.rows is None:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64)
    of_a, of_b = _rows_of(a.rows.sample, len(a.ids)), _rows_of(b.rows.sample, len(b.ids))
    samples = [a.ids[index] for index in common[:, 0]]
    pairs = []
    for sample, text, (index_a, index_b) in zip(samples, texts_of(samples), common, strict=True):
        rows_a, rows_b = of_a[index_a], of_b[index_b]
        if not np.array_equal(a.rows.position[rows_a], b.rows.position[rows_b]):
            raise IncompatibleTraces(
                f"sample {sample!r} is answered at {len(rows_a)} positions in the first trace and {len(rows_b)} in "
                "the second: answers can be paired only where texts are cut into the same tokens"
            )
        labels = np.stack([a.rows.label[rows_a], b.rows.label[rows_b]])
        wrong = labels[:, (labels[0] != labels[1]) & (labels >= 0).all(0)]
        if wrong.size:
            raise IncompatibleTraces(
                f"sample {sample!r} has label {wrong[0, 0]} in the first trace and {wrong[1, 0]} in the second: ids or "
                "classes do not mean the same"
            )
        pairs.append(np.stack([rows_a, rows_b, np.full_like(rows_a, text)]))
    first, second, sample = np.concatenate(pairs, axis=1) if pairs else np.empty((3, 0), np.int64)
    return first, second, sample


def _rows_of(sample: Int64[np.ndarray, " n"], count: int) -> list[Int64[np.ndarray, " m"]]:
    """The rows of each sample, in order."""
    order = np.argsort(sample, kind="stable")
    return np.split(order, np.cumsum(np.bincount(sample, minlength=count))[:-1])


def _few(ids: Sequence[Any]) -> str:
    return ", ".join(map(repr, ids[:3])) + (", ..." if len(ids) > 3 else "")


class StatesSubset:
    """Some rows of kept states, in a given order, as measures read them."""

    def __init__(
        self, states: StoredStates | ArrayStates, rows: Int64[np.ndarray, " n"], groups: Int64[np.ndarray, " n"] | None
    ) -> None:
        self._states, self._rows = states, rows
        self.count, self.widths, self.groups = len(rows), states.widths, groups
        self.epsilons = epsilons(states)

    def chunks(self, size: int) -> Iterator[Tensor]:
        """The rows in their order, (<= size, K·D) at a time."""
        for start in range(0, self.count, size):
            yield torch.from_numpy(self._states.rows(self._rows[start : start + size]))


def common_states(a: TraceData, b: TraceData) -> tuple[StatesSubset, StatesSubset]:
    """The kept states of the samples that both traces have, row by row the same.

    Raises:
        IncompatibleTraces: a trace kept no states, or a sample has other numbers of rows in the two.
    """
    for trace, which in ((a, "first"), (b, "second")):
        if trace.states is None:
            raise IncompatibleTraces(
                f"the {which} trace kept no states, which similarity across models needs: trace it again with "
                "keep_states=True"
            )
    assert a.states is not None
    assert b.states is not None
    of_a, of_b = (_rows_of(row_samples(states), len(trace.ids)) for states, trace in ((a.states, a), (b.states, b)))
    common = _common_samples(a, b)
    first, second = [of_a[index] for index in common[:, 0]], [of_b[index] for index in common[:, 1]]
    samples = [a.ids[index] for index in common[:, 0]]
    for sample, rows_a, rows_b in zip(samples, first, second, strict=True):
        if len(rows_a) != len(rows_b):
            raise IncompatibleTraces(
                f"sample {sample!r} has {len(rows_a)} rows of states in the first trace and {len(rows_b)} in the second"
                ": trace both with one row for a sample (tokens='mean', 'first' or 'last')"
            )
    texts = np.repeat(texts_of(samples), [len(rows) for rows in first])
    groups = None if len(np.unique(texts)) == len(texts) else texts
    return (
        StatesSubset(a.states, np.concatenate(first), groups),
        StatesSubset(b.states, np.concatenate(second), groups),
    )
