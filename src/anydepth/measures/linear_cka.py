"""Linear CKA as a measure, debiased with a jackknife interval, or biased; its formula is in `engine/hsic.py`."""

from __future__ import annotations

import numpy as np

from anydepth.measures.engine.context import MeasureContext
from anydepth.measures.engine.hsic import cka
from anydepth.measures.measure import Similarity

_FOURTH_POWERS = 250  # powers of two whose fourth powers, which the sums hold, float64 holds


def linear_cka(run: MeasureContext, *, debiased: bool) -> Similarity:
    """CKA of all pairs of depths; with a jackknife interval where it is debiased, and with sums to merge."""
    sums, parts = run.cka_sums
    value = cka(sums, debiased=debiased).cpu().numpy()
    n, blank = run.states.count, sums.location.blank
    notes = [run.plan.note, *run.blank_notes]
    if debiased and n <= 3:
        notes.append(f"debiased CKA is undefined for {n} rows: it needs at least 4")
    elif debiased:
        notes += [
            f"{run.named(depth)} has no positive HSIC with itself: debiased CKA is undefined there"
            for depth in np.flatnonzero(np.isnan(value.diagonal())).tolist()
            if depth not in blank
        ]
    usable = debiased and parts is not None and len(parts.sizes) > 1
    low, high = run.correlation_interval(value, parts if usable else None, n)
    moments = run.moments if run.first is None else None
    if moments is not None and any(run.exponents):
        # Back to the states as given, where float64 holds the sums.
        representable = max(map(abs, run.exponents)) < _FOURTH_POWERS
        moments = moments.scaled(tuple(-exponent for exponent in run.exponents)) if representable else None
    return Similarity(run.block(value), low=low, high=high, moments=moments, notes=tuple(notes))
