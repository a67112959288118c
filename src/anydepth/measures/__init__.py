"""Measures of what lies between depths, on states one already has.

`similarities` runs any of `MEASURES` over all pairs of depths, of one model or two; `readout` and `intervals` work on
the short rows a trace keeps; `metrics` wraps CKA and cosine for torchmetrics. In reading order: `states`, `precision`,
`intervals`, `jackknife`, `moments`, `gram`, `cka`, `cosine`, `plan`; what all pairs of rows need, `sample` and
`neighbours`; `covariance` and `wide`; `measure`, `run`, `chance`; a file for each family, `cca`, `procrustes`, `rsa`,
`knn`, `kernels`; `agreement` and `similarity`; then `readout` and `metrics`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anydepth.measures.measure import Measure
from anydepth.measures.moments import Moments, merge
from anydepth.measures.similarity import MEASURES, Similarity, similarities
from anydepth.measures.states import ArrayStates, States

if TYPE_CHECKING:
    from anydepth.measures.metrics import CKA, Cosine

__all__ = [
    "CKA",
    "MEASURES",
    "ArrayStates",
    "Cosine",
    "Measure",
    "Moments",
    "Similarity",
    "States",
    "merge",
    "similarities",
]


def __getattr__(name: str) -> Any:
    # torchmetrics takes a second to import, and only its two classes need it.
    if name in ("CKA", "Cosine"):
        from anydepth.measures import metrics

        return getattr(metrics, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
