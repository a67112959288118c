"""Protocol of the logit lens that its page reads: `anydepth.Lens` itself stands above the reports."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np


class LensSource(Protocol):
    """The part of `anydepth.Lens` that its page reads: T positions of a text, K = L + 1 depths."""

    @property
    def depth(self) -> int:
        """L, the number of blocks."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What is blank and why, and what else a reader should know."""

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Where the numbers come from."""

    @property
    def tokens(self) -> tuple[str, ...]:
        """(T) as text."""

    @property
    def targets(self) -> tuple[str | None, ...]:
        """(T) the token each position is to give; None where there is none."""

    @property
    def top(self) -> tuple[tuple[str, ...], ...]:
        """(K)(T) the most probable token."""

    @property
    def top_id(self) -> np.ndarray:
        """(K, T) its index."""

    @property
    def probability(self) -> np.ndarray:
        """(K, T) of the top token."""

    @property
    def entropy(self) -> np.ndarray:
        """(K, T) in nats."""

    @property
    def target_id(self) -> np.ndarray:
        """(T,) index of the target."""

    @property
    def target_probability(self) -> np.ndarray:
        """(K, T) of the target."""

    @property
    def target_rank(self) -> np.ndarray:
        """(K, T) from 1."""

    @property
    def next_token(self) -> bool:
        """Whether targets are the tokens that follow."""

    @property
    def saturation(self) -> np.ndarray:
        """(T,) depth of each position from which on the top token is the final one."""

    @property
    def perplexity(self) -> np.ndarray:
        """(K,) of the targets at each depth."""
