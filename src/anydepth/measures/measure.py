"""A measure as data, and its result: `Measure` and `Similarity`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64

from anydepth.measures.engine.context import MeasureContext
from anydepth.measures.engine.moments import Moments

Invariance = Literal["orthogonal", "scaling", "translation", "permutation", "linear"]

INVARIANCES: dict[Invariance, str] = {
    "orthogonal": "an orthogonal map of the features",
    "scaling": "a factor > 0, the same for all features",
    "translation": "a shift, the same for all rows",
    "permutation": "another order of the features",
    "linear": "any invertible linear map of the features",
}


@dataclass(frozen=True)
class Similarity:
    """Values of one measure for pairs of depths: all pairs of one model's, or each of one with each of another's.

    Attributes:
        value: (K, K), or (K_a, K_b) across models; NaN where undefined.
        low: lower end of the 95 % interval, where the measure has one.
        high: upper end.
        quantiles: distribution over rows at `cosine.QUANTILES`, of the cosines.
        moments: mergeable sums, of CKA by the covariance route.
        notes: which depths are blank and why, and the route of the computation.
    """

    value: Float64[np.ndarray, "a b"]
    _: KW_ONLY
    low: Float64[np.ndarray, "a b"] | None = None
    high: Float64[np.ndarray, "a b"] | None = None
    quantiles: Float64[np.ndarray, "5 a b"] | None = None
    moments: Moments | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measure:
    """A measure of how alike two depths are. Its exact definition is the docstring of `of`, and in docs/measures.md.

    Attributes:
        name: in lists of measures.
        title: in running text.
        of: computes the values from the shared state of a call.
        range: least and greatest value.
        invariances: transformations of either of the two depths that do not change the value, keys of
            `INVARIANCES`; the others do change it.
        interval: method of the 95 % interval; empty where there is none.
        source: publications.
        about: what it asks and what to know of it, for the report.
        kind: a similarity is larger for what is more alike, and 1 for a depth with itself.
        symmetric: whether exchanging the two depths leaves the value.
    """

    name: str
    title: str
    of: Callable[[MeasureContext], Similarity]
    _: KW_ONLY
    range: tuple[int, int]
    invariances: frozenset[Invariance]
    source: str
    about: str
    interval: str = ""
    kind: Literal["similarity", "distance"] = "similarity"
    symmetric: bool = True
