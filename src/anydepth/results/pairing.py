"""The same samples in two traces: joined by their ids, whatever the order they were traced in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from anydepth.core.windows import texts_of
from anydepth.errors import IncompatibleTraces
from anydepth.measures.engine.states import ArrayStates, epsilons
from anydepth.results.trace_data import TraceData
from anydepth.storage.rows import StoredStates

CHECKS = {
    "data": "the traces are of different data",
    "tokens": "different positions stand for a sample",
}
"""What two traces must share, unless told otherwise."""


@dataclass(frozen=True)
class SamplePairs:
    """Which rows of two traces belong together.

    Attributes:
        samples: how many samples both have.
        first: rows of the first trace's answers, (n,).
        second: those of the second's that go with them.
        sample: (n,) the sample of each pair of answers; one number for all windows of a text, which are no independent
            evidence (see `anydepth.core.windows`).
        notes: what was left out, one sentence each.
    """

    samples: int
    first: Int64[np.ndarray, " n"]
    second: Int64[np.ndarray, " n"]
    sample: Int64[np.ndarray, " n"]
    notes: tuple[str, ...]


def require_alike(a: TraceData, b: TraceData, despite: Sequence[str] = ()) -> None:
    """See that two traces may be compared.

    Args:
        a: a trace.
        b: another.
        despite: keys of `CHECKS` in which they may differ.

    Raises:
        IncompatibleTraces: they differ in something else, or `despite` names no check.
    """
    for name in despite:
        if name not in CHECKS:
            raise IncompatibleTraces(f"traces can be compared despite {', '.join(CHECKS)}, not despite {name!r}")
    seen = {
        "data": tuple(_of(trace, "data", "name") + _of(trace, "data", "split") for trace in (a, b)),
        "tokens": tuple(_of(trace, "tokens") for trace in (a, b)),
    }
    for name, (one, other) in seen.items():
        if one != other and name not in despite:
            raise IncompatibleTraces(
                f"{CHECKS[name]}: {' '.join(one)} and {' '.join(other)}; trace both alike, or compare them all the "
                f"same (despite=['{name}'], --despite {name})"
            )


def _of(trace: TraceData, *keys: str) -> tuple[str, ...]:
    value: Any = trace.provenance
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return (str(value),) if value is not None else ()


def pair_samples(a: TraceData, b: TraceData, despite: Sequence[str] = ()) -> SamplePairs:
    """Match the answers of two traces by sample id, and by position where there are several to a sample.

    Args:
        a: a trace.
        b: another.
        despite: with "data", a sample may have been shown with other content; see `CHECKS`.

    Raises:
        IncompatibleTraces: no sample is in both, one has another label or other content, or answers of a sample are at
            other positions.
    """
    places = {one: index for index, one in enumerate(b.ids)}
    common = [(index, places[one]) for index, one in enumerate(a.ids) if one in places]
    if not a.ids or not b.ids:
        raise IncompatibleTraces(
            f"the {'second' if a.ids else 'first'} trace names no samples, by which the two are joined: "
            "give trace_states(..., ids=...)"
        )
    if not common:
        raise IncompatibleTraces(
            f"no sample is in both traces: the first has {_few(a.ids)}, the second {_few(b.ids)}; trace the same data, "
            "or name the column of ids (--id-column)"
        )
    if "data" not in despite:
        _require_same_content(a, b, np.array(common, dtype=np.int64))
    notes = []
    if len(common) < max(len(a.ids), len(b.ids)):
        left = f"{len(a.ids):,} of the first trace and {len(b.ids):,} of the second"
        notes.append(f"{len(common):,} samples are in both traces, of {left}: only these are compared")
    first, second, sample = _answers(a, b, np.array(common, dtype=np.int64))
    return SamplePairs(len(common), first, second, sample, tuple(notes))


def _require_same_content(a: TraceData, b: TraceData, common: Int64[np.ndarray, "m 2"]) -> None:
    """See that ids mean the same samples, where this can be told.

    Models with other tokenizers or image sizes are shown other content of one sample, and then nothing can be told. If
    the second trace has most samples of the first with the very same content, under whatever id, both were prepared
    alike, and a sample whose content differs is another one.
    """
    if not len(a.digests) or not len(b.digests):
        return
    one, other = a.digests[common[:, 0]], b.digests[common[:, 1]]
    differing = np.flatnonzero(one != other)
    if len(differing) and 2 * np.isin(one, b.digests).sum() > len(one):
        named = a.ids[common[differing[0], 0]]
        raise IncompatibleTraces(
            f"sample {named!r} is not the same in the two traces, nor are {len(differing) - 1:,} more of "
            f"{len(common):,}: other data, another order under the same ids, or texts cut at another length; give "
            "samples ids of their own (--id-column), or compare them all the same (despite=['data'], --despite data)"
        )


def _answers(
    a: TraceData, b: TraceData, common: Int64[np.ndarray, "m 2"]
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    if a.rows is None or b.rows is None:
        none = np.empty(0, np.int64)
        return none, none, none
    of_a, of_b = _rows_of(a.rows.sample, len(a.ids)), _rows_of(b.rows.sample, len(b.ids))
    pairs, texts = [], texts_of([a.ids[one] for one in common[:, 0]])
    for text, (one, other) in zip(texts, common, strict=True):
        rows_a, rows_b = of_a[one], of_b[other]
        where = a.rows.position[rows_a], b.rows.position[rows_b]
        if not np.array_equal(*where):
            raise IncompatibleTraces(
                f"sample {a.ids[one]!r} is answered at {len(rows_a)} positions in the first trace and {len(rows_b)} in "
                "the second: answers can be paired only where texts are cut into the same tokens"
            )
        labels = a.rows.label[rows_a], b.rows.label[rows_b]
        wrong = np.flatnonzero((labels[0] != labels[1]) & (labels[0] >= 0) & (labels[1] >= 0))
        if len(wrong):
            here, there = (int(found[wrong[0]]) for found in labels)
            raise IncompatibleTraces(
                f"sample {a.ids[one]!r} has label {here} in the first trace and {there} in the second: ids or classes "
                "do not mean the same"
            )
        pairs.append(np.stack([rows_a, rows_b, np.full_like(rows_a, text)]))
    first, second, sample = np.concatenate(pairs, axis=1) if pairs else np.empty((3, 0), np.int64)
    return first, second, sample


def _rows_of(sample: Int64[np.ndarray, " n"], count: int) -> list[Int64[np.ndarray, " m"]]:
    """For each sample the rows that are its own, in order."""
    order = np.argsort(sample, kind="stable")
    return np.split(order, np.cumsum(np.bincount(sample, minlength=count))[:-1])


def _few(ids: Sequence[Any]) -> str:
    return ", ".join(repr(one) for one in ids[:3]) + (", ..." if len(ids) > 3 else "")


class StatesSubset:
    """Rows of kept states in an order of their own, as measures read them."""

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
                "keep_states=True (--keep-states)"
            )
    assert a.states is not None
    assert b.states is not None
    places = {one: index for index, one in enumerate(b.ids)}
    of_a, of_b = (_rows_of(_samples(states), len(trace.ids)) for states, trace in ((a.states, a), (b.states, b)))
    first, second, known = [], [], []
    for index, one in enumerate(a.ids):
        if one not in places:
            continue
        rows_a, rows_b = of_a[index], of_b[places[one]]
        if len(rows_a) != len(rows_b):
            raise IncompatibleTraces(
                f"sample {one!r} has {len(rows_a)} rows of states in the first trace and {len(rows_b)} in the second: "
                "trace both with one row for a sample (--tokens mean, first or last)"
            )
        first.append(rows_a)
        second.append(rows_b)
        known.append(one)
    texts = np.repeat(texts_of(known), [len(rows) for rows in first])
    groups = None if len(np.unique(texts)) == len(texts) else texts
    return (
        StatesSubset(a.states, np.concatenate(first), groups),
        StatesSubset(b.states, np.concatenate(second), groups),
    )


def _samples(states: StoredStates | ArrayStates) -> Int64[np.ndarray, " n"]:
    return np.arange(states.count) if states.groups is None else states.groups
