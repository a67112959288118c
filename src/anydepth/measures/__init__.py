"""Similarity of hidden states at all pairs of depths (CKA, CCA, cosine, RSA, ...), for states one already has.

`similarities` runs any of `MEASURES`; `readout` computes logit-lens statistics by depth; `metrics` wraps CKA and cosine
for torchmetrics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from anydepth.lazy import lazy_names
from anydepth.measures.engine.moments import Moments, merge
from anydepth.measures.engine.states import ArrayStates, States
from anydepth.measures.measure import Measure, Similarity
from anydepth.measures.similarity import MEASURES, similarities

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

__getattr__, __dir__ = lazy_names(__name__, dict.fromkeys(("CKA", "Cosine"), "anydepth.measures.metrics"))
