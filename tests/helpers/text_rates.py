"""Repetition and diversity as one number for some texts, from the counts that anydepth takes of each."""

from __future__ import annotations

from collections.abc import Sequence

from anydepth.generation.text_metrics import counts, different


def repetition(texts: Sequence[str], n: int) -> float:
    return 1 - float(different(counts(texts, (n,)).sum(0))[0])


def diversity(texts: Sequence[str]) -> float:
    return float(different(counts(texts).sum(0)).prod())
