"""What a measure is, as data, and what it gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float64

from anydepth.measures.engine.moments import Moments

if TYPE_CHECKING:
    from anydepth.measures.engine.context import MeasureContext

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
    """One measure over pairs of depths: all pairs of one model's, or those of one model with those of another.

    Attributes:
        value: (K, K), or (K_a, K_b) across models; NaN where undefined.
        low: lower end of the 95 % interval, where the measure has one.
        high: upper end.
        quantiles: distribution over rows at `cosine.QUANTILES`, of the cosines.
        moments: mergeable sums the value follows from, of CKA by the covariance route.
        notes: what is blank and why, and the route taken.
    """

    value: Float64[np.ndarray, "a b"]
    low: Float64[np.ndarray, "a b"] | None = None
    high: Float64[np.ndarray, "a b"] | None = None
    quantiles: Float64[np.ndarray, "5 a b"] | None = None
    moments: Moments | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measure:
    """A measure of how alike two depths are. Its exact definition is the docstring of `of`, and in docs/measures.md.

    Attributes:
        name: by which it is asked for.
        title: what it is called in running text.
        of: from what the measures of one call share to the values.
        range: least and greatest value.
        invariances: what may be done to either of the two depths, by itself, without changing the value: keys of
            `INVARIANCES`. Those that are not named do change it.
        interval: how its 95 % interval comes about, in a few words; empty where it has none.
        source: where it is from.
        kind: a similarity is larger for what is more alike, and 1 for a depth with itself.
        symmetric: whether exchanging the two depths leaves the value.
    """

    name: str
    title: str
    of: Callable[[MeasureContext], Similarity]
    range: tuple[int, int]
    invariances: frozenset[Invariance]
    source: str
    interval: str = ""
    kind: Literal["similarity", "distance"] = "similarity"
    symmetric: bool = True
