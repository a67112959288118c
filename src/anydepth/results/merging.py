"""Merge traces of one model on different samples into the trace of all of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from anydepth.core.provenance import data_fingerprint, entry, now
from anydepth.core.windows import texts_of
from anydepth.errors import IncompatibleTraces
from anydepth.measures.engine.context import blank_notes
from anydepth.measures.engine.hsic import cka
from anydepth.measures.engine.moments import merge as merge_moments
from anydepth.measures.engine.states import ArrayStates
from anydepth.measures.similarity import similarities
from anydepth.results.notes import explain_blank_depth_0, unequal
from anydepth.results.trace_data import Rows, TraceData, by_field, row_samples
from anydepth.storage.rows import StoredStates

T = TypeVar("T", bound=TraceData)
_FROM_SUMS = ("cka", "cka_biased")
_BLANK = re.compile(r"the (state|readout) at depth ")
# How the notes begin that are written anew for the merged trace.
_REPLACED = ("depth ", "CKA ", "similarity ", "debiased ", "cosine ", "one text ")


def merge(a: T, b: T) -> T:
    """The trace of the samples of both traces, as if all had been traced at once.

    CKA needs the sums of both traces; the cosine (whose centring needs all samples) and every interval and quantile of
    similarity need the states.

    Raises:
        IncompatibleTraces: models, settings or depths differ, a sample is in both, or a measure needs states that
            were not kept.
    """
    _require_alike(a, b)
    states = None
    if a.states is not None and b.states is not None:
        alone = a.states.groups is None and b.states.groups is None
        groups = np.concatenate([row_samples(a.states), row_samples(b.states) + len(a.ids)])
        states = _concatenated(a.states, b.states, None if alone else groups)
    similarity = _similarity(a, b, states and _grouped_by_text(states, a.ids + b.ids))
    rows, digests = _rows(a, b), np.concatenate([a.digests, b.digests])
    samples, positions = (a.provenance[name] + b.provenance[name] for name in ("samples", "positions"))
    data = {**a.provenance["data"], "fingerprint": data_fingerprint(digests), "samples": samples}
    notes = [note for note in a.notes if note in b.notes and not note.startswith(_REPLACED)]
    notes += [note for trace in (a, b) for note in trace.notes if _BLANK.match(note) and note not in notes]
    notes += unequal(texts_of(a.ids + b.ids), rows) if a.ids and b.ids else ()
    notes += explain_blank_depth_0(similarity.pop("notes", ()), a.provenance.get("tokens", ""))
    return type(a)(
        names=a.names,
        **similarity,
        notes=tuple(notes),
        rows=rows,
        ids=a.ids + b.ids,
        digests=digests,
        provenance={
            **a.provenance,
            "data": data,
            "positions": positions,
            "samples": samples,
            "answers": 0 if rows is None else len(rows),
            "created": now(),
        },
        states=states,
    )


def _similarity(a: TraceData, b: TraceData, states: StoredStates | ArrayStates | None) -> dict[str, Any]:
    names = tuple(a.similarity)
    if states is not None:
        return by_field(similarities(states, names))
    missing = [name for name in names if name not in _FROM_SUMS]
    if missing:
        raise IncompatibleTraces(
            f"{', '.join(missing)} cannot be merged without the states: trace both with keep_states=True, or "
            f"with measures={list(_FROM_SUMS)} alone"
        )
    if not names:
        return {"similarity": {}}
    if a.moments is None or b.moments is None:
        raise IncompatibleTraces(
            "cka cannot be merged: one of the traces has neither its sums nor its states; trace both with sums=True "
            "(--sums), or, where sums do not fit in memory, with keep_states=True (--keep-states)"
        )
    moments = merge_moments(a.moments, b.moments)
    matrices = {name: cka(moments, debiased=name == "cka").cpu().numpy() for name in names}
    return {"similarity": matrices, "moments": moments, "notes": blank_notes(moments.location)}


def _concatenated(
    first: StoredStates | ArrayStates, second: StoredStates | ArrayStates, groups: Any
) -> StoredStates | ArrayStates | None:
    """The rows of both; None where one lies in files and the other in memory."""
    if isinstance(first, StoredStates) and isinstance(second, StoredStates):
        return StoredStates([*first.parts, *second.parts], first.widths, groups)
    if isinstance(first, ArrayStates) and isinstance(second, ArrayStates):
        pairs = zip(first.names, first.arrays, second.arrays, strict=True)
        return ArrayStates({name: _concatenated_arrays(*arrays) for name, *arrays in pairs}, groups)
    return None


def _concatenated_arrays(*arrays: np.ndarray | Tensor) -> np.ndarray | Tensor:
    if any(isinstance(array, Tensor) for array in arrays):
        return torch.cat([torch.as_tensor(array).cpu() for array in arrays])
    return np.concatenate(arrays)


def _grouped_by_text(states: StoredStates | ArrayStates, ids: Sequence[Any]) -> StoredStates | ArrayStates:
    """The states with one group for each text, not for each window of a text."""
    texts = texts_of(ids)[row_samples(states)]
    groups = None if len(np.unique(texts)) == len(texts) else texts
    if isinstance(states, ArrayStates):
        return ArrayStates(dict(zip(states.names, states.arrays, strict=True)), groups)
    return StoredStates(states.parts, states.widths, groups)


def _rows(a: TraceData, b: TraceData) -> Rows | None:
    if a.rows is None or b.rows is None:
        return None
    # both have the same columns, since `_require_alike` compares their statistics
    first, second = a.rows.columns, {**b.rows.columns, "sample": b.rows.sample + len(a.ids)}
    return Rows(**{name: np.concatenate([column, second[name]]) for name, column in first.items()})


def _require_alike(a: TraceData, b: TraceData) -> None:
    compared = {
        "depths": (a.names, b.names),
        "measures": (tuple(a.similarity), tuple(b.similarity)),
        "readouts": (a.statistics, b.statistics),
        "models": tuple(entry(trace.provenance, "model", "fingerprint") for trace in (a, b)),
        "token policies": tuple(entry(trace.provenance, "tokens") for trace in (a, b)),
        "readout modes": tuple(entry(trace.provenance, "readout") for trace in (a, b)),
    }
    for what, (first, second) in compared.items():
        if first != second:
            raise IncompatibleTraces(
                f"the traces differ in their {what}: {first} and {second}; merge traces made alike"
            )
    ids = set(a.ids)
    repeated = [sample for sample in b.ids if sample in ids]
    if repeated:
        raise IncompatibleTraces(
            f"sample {repeated[0]!r} is in both traces; merging would count it twice: give ids that tell samples apart"
        )
