"""Two traces of one model on different samples, made into the trace of all of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from anydepth.core.provenance import data_fingerprint, now
from anydepth.core.windows import texts_of
from anydepth.errors import IncompatibleTraces
from anydepth.measures.engine.context import blank_notes
from anydepth.measures.engine.hsic import cka
from anydepth.measures.engine.moments import merge as merge_moments
from anydepth.measures.engine.states import ArrayStates
from anydepth.measures.similarity import similarities
from anydepth.results.notes import explain_blank_depth_0, unequal
from anydepth.results.trace_data import Rows, TraceData, by_field
from anydepth.storage.rows import StoredStates

T = TypeVar("T", bound=TraceData)
_FROM_SUMS = ("cka", "cka_biased")
_BLANK = re.compile(r"the (state|readout) at depth ")
_ABOUT_SIMILARITY = ("depth ", "CKA ", "similarity ", "debiased ", "cosine ")


def merge(a: T, b: T) -> T:
    """The trace of the samples of both.

    Everything comes out as if all samples had been traced at once. CKA needs the sums of both traces; the cosine
    (whose centring needs all samples) and every interval and quantile of similarity need the states.

    Args:
        a: a trace.
        b: one of the same model, made the same way, of other samples.

    Raises:
        IncompatibleTraces: models, settings or depths differ, a sample is in both, or a measure needs states that
            were not kept.
    """
    _require_alike(a, b)
    states = None
    if a.states is not None and b.states is not None:
        alone = a.states.groups is None and b.states.groups is None
        groups = np.concatenate([_groups(a.states), _groups(b.states) + len(a.ids)])
        states = _joined(a.states, b.states, None if alone else groups)
    similarity = _similarity(a, b, states and _by_text(states, a.ids + b.ids))
    # what was said of both and not of their similarities, which are measured anew
    said = [note for note in a.notes if note in b.notes and not note.startswith(_ABOUT_SIMILARITY)]
    said = [note for note in said if not note.startswith("one text ")]
    said += [note for trace in (a, b) for note in trace.notes if _BLANK.match(note) and note not in said]
    said += unequal(texts_of(a.ids + b.ids), _rows(a, b)) if a.ids and b.ids else ()
    notes = (*said, *explain_blank_depth_0(similarity.pop("notes", ()), a.provenance.get("tokens", "")))
    digests = np.concatenate([a.digests, b.digests])
    samples, rows = a.provenance["samples"] + b.provenance["samples"], _rows(a, b)
    data = {**a.provenance["data"], "fingerprint": data_fingerprint(digests), "samples": samples}
    positions = a.provenance["positions"] + b.provenance["positions"]
    return type(a)(
        names=a.names,
        **similarity,
        notes=notes,
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
            f"{', '.join(missing)} cannot be merged without the states: trace both with keep_states=True "
            f"(--keep-states), or with measures={list(_FROM_SUMS)} alone"
        )
    if not names:
        return {"similarity": {}}
    if a.moments is None or b.moments is None:
        raise IncompatibleTraces(
            "cka cannot be merged: one of the traces has neither its sums nor its states (sums are left out on "
            "request, or where they did not fit in memory); trace both with keep_states=True (--keep-states)"
        )
    moments = merge_moments(a.moments, b.moments)
    found = {name: cka(moments, debiased=name == "cka").cpu().numpy() for name in names}
    return {"similarity": found, "moments": moments, "notes": blank_notes(moments.location)}


def _joined(
    first: StoredStates | ArrayStates, second: StoredStates | ArrayStates, groups: Any
) -> StoredStates | ArrayStates | None:
    """The rows of both; None where one lies in files and the other in memory."""
    if isinstance(first, StoredStates) and isinstance(second, StoredStates):
        return StoredStates([*first.parts, *second.parts], first.widths, groups)
    if isinstance(first, ArrayStates) and isinstance(second, ArrayStates):
        pairs = zip(first.names, first.arrays, second.arrays, strict=True)
        return ArrayStates({name: _stacked(one, other) for name, one, other in pairs}, groups)
    return None


def _stacked(one: np.ndarray | Tensor, other: np.ndarray | Tensor) -> np.ndarray | Tensor:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return torch.cat([torch.as_tensor(each).cpu() for each in (one, other)])
    return np.concatenate([one, other])


def _by_text(states: StoredStates | ArrayStates, ids: Sequence[Any]) -> StoredStates | ArrayStates:
    """The states as measures take them: what belongs together are the rows of a text, not of each window of it."""
    groups = texts_of(ids)[_groups(states)]
    given = None if len(np.unique(groups)) == len(groups) else groups
    if isinstance(states, ArrayStates):
        return ArrayStates(dict(zip(states.names, states.arrays, strict=True)), given)
    return StoredStates(states.parts, states.widths, given)


def _groups(states: StoredStates | ArrayStates) -> Any:
    return np.arange(states.count) if states.groups is None else states.groups


def _rows(a: TraceData, b: TraceData) -> Rows | None:
    if a.rows is None or b.rows is None:
        return None
    # both have the same columns: `_require_alike` holds their statistics against each other
    first, second = a.rows.columns, b.rows.columns
    joined = {name: np.concatenate([column, second[name]]) for name, column in first.items()}
    joined["sample"] = np.concatenate([a.rows.sample, b.rows.sample + len(a.ids)])
    return Rows(**joined)


def _require_alike(a: TraceData, b: TraceData) -> None:
    compared = {
        "depths": (a.names, b.names),
        "measures": (tuple(a.similarity), tuple(b.similarity)),
        "readouts": (a.statistics, b.statistics),
        "models": (_of(a, "model", "fingerprint"), _of(b, "model", "fingerprint")),
        "token policies": (_of(a, "tokens"), _of(b, "tokens")),
        "readout modes": (_of(a, "readout"), _of(b, "readout")),
    }
    for what, (one, other) in compared.items():
        if one != other:
            raise IncompatibleTraces(f"the traces differ in their {what}: {one} and {other}; merge traces made alike")
    known = set(a.ids)
    both = [one for one in b.ids if one in known]
    if both:
        raise IncompatibleTraces(
            f"sample {both[0]!r} is in both traces; merging would count it twice: give ids that tell samples apart"
        )


def _of(trace: TraceData, *keys: str) -> Any:
    value: Any = trace.provenance
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value
