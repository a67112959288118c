"""When a sample has had enough blocks: small pure objects that score what a tested depth shows.

A sample leaves at the first tested depth at which its score reaches the policy's level, else at L. The higher the
score, the surer; NaN never leaves.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from anydepth.errors import PolicyError


@dataclass(frozen=True)
class Policy(ABC):
    """What all policies have in common. Use one of its kinds.

    Args:
        threshold: what the kind says.
        depths: which depths are tested; None for all below L.
        temperature: logits are divided by it before they are looked at; one number, or one for each tested depth.

    Raises:
        PolicyError: a threshold or temperature out of range, or depths that are none.
    """

    threshold: int | float
    depths: Sequence[int] | None = None
    temperature: int | float | Mapping[int, float] = 1.0

    reads: ClassVar[str] = "logits"
    """What is looked at: "logits", "state" (no readout is needed to decide), or "nothing"."""
    has_temperature: ClassVar[bool] = False
    """Whether the temperature matters."""
    _range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __post_init__(self) -> None:
        low, high = self._range
        if not low <= self.threshold <= high:
            raise PolicyError(f"the threshold of {type(self).__name__} is {self.threshold}, expected {low:g}..{high:g}")
        temperatures = self.temperature.values() if isinstance(self.temperature, Mapping) else [self.temperature]
        for one in temperatures:
            if not 0 < one < math.inf:
                raise PolicyError(f"a temperature is {one}, expected a number above 0")
        if self.depths is not None and (not self.depths or min(self.depths) < 1):
            raise PolicyError(f"the tested depths are {list(self.depths)}, expected some of 1..L")

    @property
    def level(self) -> float:
        """The score from which on a sample leaves."""
        return float(self.threshold)

    def at_level(self, level: float) -> Policy:
        """The same policy with the threshold that has this level."""
        return replace(self, threshold=level)

    def tested(self, last: int) -> tuple[int, ...]:
        """The depths below L at which samples may leave, ascending.

        Args:
            last: L.

        Raises:
            PolicyError: one is beyond L.
        """
        if self.depths is None:
            return tuple(range(1, last))
        if max(self.depths) > last:
            raise PolicyError(f"the policy tests depth {max(self.depths)}, and the model has {last} blocks")
        return tuple(sorted(depth for depth in set(self.depths) if depth < last))

    @abstractmethod
    def scores(
        self, depth: int, seen: Float[Tensor, "n d"], memory: Float[Tensor, "n m"] | None
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n m"] | None]:
        """How sure to be of each sample at a tested depth.

        Args:
            depth: where.
            seen: what the policy reads: logits, or the states that stand for the samples.
            memory: what this gave at the tested depth before; None at the first.

        Returns:
            A score for each sample, and what to remember of it.
        """


@dataclass(frozen=True)
class _OfLogits(Policy):
    """Scores the logits of each depth by themselves, divided by the temperature."""

    has_temperature = True

    def scores(
        self, depth: int, seen: Float[Tensor, "n c"], memory: Float[Tensor, "n m"] | None
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n m"] | None]:
        known = self.temperature
        logits = seen if seen.dtype == torch.float64 else seen.float()
        return self.of_logits(logits / (known.get(depth, 1.0) if isinstance(known, Mapping) else known)), None

    @abstractmethod
    def of_logits(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
        """The score of each row of logits."""


@dataclass(frozen=True)
class Confidence(_OfLogits):
    """Leaves where the top class has at least this probability.

    Example:
        >>> Confidence(0.8).of_logits(torch.tensor([[2.0, 0.0], [0.0, 0.0]]))
        tensor([0.8808, 0.5000])
    """

    def of_logits(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
        """The probability of the top class, 1/C..1."""
        return logits.softmax(1).amax(1)


@dataclass(frozen=True)
class Margin(_OfLogits):
    """Leaves where the top class is ahead of the next by at least this much probability.

    Example:
        >>> Margin(0.5).of_logits(torch.tensor([[2.0, 0.0, -9.0]]))
        tensor([0.7616])
    """

    def of_logits(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
        """The probability of the top class less that of the next, 0..1."""
        first, second = logits.softmax(1).topk(2, dim=1).values.unbind(1)
        ahead: Tensor = first - second
        return ahead


@dataclass(frozen=True)
class Entropy(_OfLogits):
    """Leaves where the entropy is at most this share of the largest there is, ln C.

    Example:
        >>> Entropy(0.5).of_logits(torch.tensor([[2.0, 0.0], [0.0, 0.0]]))
        tensor([-0.5271, -1.0000])
    """

    @property
    def level(self) -> float:
        """The score from which on a sample leaves: less entropy is a higher score."""
        return -float(self.threshold)

    def at_level(self, level: float) -> Policy:
        """The same policy with the threshold that has this level."""
        return replace(self, threshold=-level)

    def of_logits(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
        """Minus the entropy over ln C, -1..0."""
        entropy: Tensor = torch.special.entr(logits.softmax(1)).sum(1)
        return -entropy / math.log(logits.shape[1])


@dataclass(frozen=True)
class Patience(Policy):
    """Leaves where this many tested depths in a row, this one the last of them, have the same top class.

    Example:
        >>> policy = Patience(2)
        >>> score, memory = policy.scores(1, torch.tensor([[1.0, 0.0]]), None)
        >>> policy.scores(2, torch.tensor([[3.0, 0.0]]), memory)[0]
        tensor([2.])
    """

    _range = (1.0, math.inf)

    def scores(
        self, depth: int, seen: Float[Tensor, "n c"], memory: Float[Tensor, "n m"] | None
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n m"] | None]:
        """How many tested depths in a row agree; NaN logits agree with nothing."""
        top = seen.argmax(1).float().masked_fill(seen.isnan().any(1), math.nan)
        run = torch.ones_like(top)
        if memory is not None:
            run = torch.where(top == memory[:, 0], memory[:, 1] + 1, run)
        return run.masked_fill(top.isnan(), math.nan), torch.stack([top, run], dim=1)


@dataclass(frozen=True)
class Convergence(Policy):
    """Leaves where the state has this cosine with that of the tested depth before. Needs no readout.

    Example:
        >>> policy = Convergence(0.9)
        >>> _, memory = policy.scores(1, torch.tensor([[1.0, 0.0]]), None)
        >>> policy.scores(2, torch.tensor([[1.0, 1.0]]), memory)[0]
        tensor([0.7071])
    """

    reads = "state"
    _range = (-1.0, 1.0)

    def scores(
        self, depth: int, seen: Float[Tensor, "n d"], memory: Float[Tensor, "n m"] | None
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n m"] | None]:
        """The cosine with the state before; minus infinity at the first tested depth: nothing can have converged."""
        if memory is None:
            return torch.full_like(seen[:, 0], -math.inf), seen
        return torch.nn.functional.cosine_similarity(seen, memory, dim=1), seen


@dataclass(frozen=True)
class AtDepth(Policy):
    """Every sample leaves at one depth.

    Args:
        threshold: that depth, 1..L.

    Example:
        >>> AtDepth(3).tested(12)
        (3,)
    """

    reads = "nothing"
    _range = (1.0, math.inf)

    @property
    def level(self) -> float:
        """Whatever the score."""
        return -math.inf

    def tested(self, last: int) -> tuple[int, ...]:
        """The depth itself, if it is below L."""
        if self.threshold > last:
            raise PolicyError(f"the policy leaves at depth {self.threshold}, and the model has {last} blocks")
        return (int(self.threshold),) if self.threshold < last else ()

    def scores(
        self, depth: int, seen: Float[Tensor, "n d"], memory: Float[Tensor, "n m"] | None
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n m"] | None]:
        """Nothing is looked at: 0 for all."""
        return torch.zeros(len(seen), device=seen.device), None


# --- By name ---------------------------------------------------------------------------------------------------------

POLICIES: dict[str, type[Policy]] = {
    "confidence": Confidence,
    "margin": Margin,
    "entropy": Entropy,
    "patience": Patience,
    "convergence": Convergence,
    "depth": AtDepth,
}
_START = {"patience": 2, "depth": 1}


def policy_named(name: str, *, depths: Sequence[int] | None = None) -> Policy:
    """A policy of a kind, with a threshold that says nothing yet: what calibration starts from.

    Args:
        name: a key of `POLICIES`.
        depths: those to test; None for all below L.

    Raises:
        PolicyError: there is no such kind.

    Example:
        >>> policy_named("margin", depths=(2, 4))
        Margin(threshold=0.5, depths=(2, 4), temperature=1.0)
    """
    if name not in POLICIES:
        near = get_close_matches(name, POLICIES, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise PolicyError(f"unknown policy {name!r}, expected one of {', '.join(POLICIES)}{hint}")
    return POLICIES[name](_START.get(name, 0.5), depths)


def as_plain(policy: Policy) -> dict[str, Any]:
    """A policy as values that JSON holds.

    Raises:
        PolicyError: it is of a kind that `POLICIES` does not list.
    """
    name = next((name for name, kind in POLICIES.items() if type(policy) is kind), None)
    if name is None:
        raise PolicyError(f"{type(policy).__name__} is no policy of anydepth's, and cannot be saved: make it anew")
    shared = policy.temperature
    temperature = {str(depth): one for depth, one in shared.items()} if isinstance(shared, Mapping) else shared
    depths = None if policy.depths is None else list(policy.depths)
    return {"kind": name, "threshold": policy.threshold, "depths": depths, "temperature": temperature}


def from_plain(plain: Mapping[str, Any]) -> Policy:
    """A policy from what `as_plain` gave.

    Raises:
        PolicyError: it is none, or one out of range.

    Example:
        >>> from_plain(as_plain(Confidence(0.9, depths=(3,), temperature={3: 1.5})))
        Confidence(threshold=0.9, depths=(3,), temperature={3: 1.5})
    """
    policy = policy_named(str(plain.get("kind")))
    temperature, depths = plain["temperature"], plain["depths"]
    if isinstance(temperature, Mapping):
        temperature = {int(depth): one for depth, one in temperature.items()}
    return replace(
        policy,
        threshold=plain["threshold"],
        depths=None if depths is None else tuple(depths),
        temperature=temperature,
    )
