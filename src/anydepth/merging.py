"""Two traces of one model on different samples, made into the trace of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from anydepth.assembly import explained
from anydepth.errors import IncompatibleTraces
from anydepth.measures.cka import cka
from anydepth.measures.moments import merge as merge_moments
from anydepth.measures.similarity import blank_notes, similarities
from anydepth.provenance import data_fingerprint, now
from anydepth.result import Rows, Trace, by_field
from anydepth.store import StoredStates
from anydepth.windows import texts_of

_FROM_SUMS = ("cka", "cka_biased")
_ABOUT_SIMILARITY = ("depth ", "CKA ", "similarity ", "debiased ", "cosine ")


def merge(a: Trace, b: Trace) -> Trace:
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
        states = StoredStates([*a.states.parts, *b.states.parts], a.states.widths, None if alone else groups)
    similarity = _similarity(a, b, states and _by_text(states, a.ids + b.ids))
    # what was said of both and not of their similarities, which are measured anew
    said = [note for note in a.notes if note in b.notes and not note.startswith(_ABOUT_SIMILARITY)]
    notes = (*said, *explained(similarity.pop("notes", ()), a.provenance.get("tokens", "")))
    digests = np.concatenate([a.digests, b.digests])
    samples, rows = a.provenance["samples"] + b.provenance["samples"], _rows(a, b)
    data = {**a.provenance["data"], "fingerprint": data_fingerprint(digests), "samples": samples}
    positions = a.provenance["positions"] + b.provenance["positions"]
    return Trace(
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


def _similarity(a: Trace, b: Trace, states: StoredStates | None) -> dict[str, Any]:
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


def _by_text(states: StoredStates, ids: Sequence[Any]) -> StoredStates:
    """The states as measures take them: what belongs together are the rows of a text, not of each window of it."""
    groups = texts_of(ids)[_groups(states)]
    return StoredStates(states.parts, states.widths, None if len(np.unique(groups)) == len(groups) else groups)


def _groups(states: StoredStates) -> Any:
    return np.arange(states.count) if states.groups is None else states.groups


def _rows(a: Trace, b: Trace) -> Rows | None:
    if a.rows is None or b.rows is None:
        return None
    # both have the same columns: `_require_alike` holds their statistics against each other
    first, second = a.rows.columns, b.rows.columns
    joined = {name: np.concatenate([column, second[name]]) for name, column in first.items()}
    joined["sample"] = np.concatenate([a.rows.sample, b.rows.sample + len(a.ids)])
    return Rows(**joined)


def _require_alike(a: Trace, b: Trace) -> None:
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


def _of(trace: Trace, *keys: str) -> Any:
    value: Any = trace.provenance
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value
