"""Exit policies: when a sample has had enough blocks, decided by a score of what a tested depth shows.

A sample exits at the first tested depth at which its score reaches the policy's level, else at L. A higher score means
a surer prediction; a score that is NaN never exits.

Probabilities are scored as log-odds, log(p / (1 - p)), in float64 and from the logits: a float32 softmax is exactly 1
from a lead of 17 on, which would leave no order among the surest samples, and no threshold between them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from anydepth.errors import PolicyError, choose
from anydepth.exits.policy_names import POLICY_CLASSES

THRESHOLDS = (0.9999, 0.999, 0.995, 0.99, 0.98, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)
"""Probabilities from strict to loose: a path that is fixed, so that no sample is spent on laying it."""

Memory = Float[Tensor, "n m"] | None
"""What a policy remembers of each sample from one tested depth to the next."""
Scores = tuple[Float[Tensor, " n"], Memory]


class Reads(StrEnum):
    """What a policy looks at: the logits of a readout, the states (then no readout is needed to decide), or nothing."""

    LOGITS = "logits"
    STATE = "state"
    NOTHING = "nothing"


@dataclass(frozen=True)
class Policy(ABC):
    """Base of the exit policies; use one of the subclasses.

    Args:
        threshold: see the subclass.
        depths: which depths are tested; None for all below L.
        temperature: logits are divided by it before they are scored; one number, or one for each tested depth.
        log_odds: of the threshold, where it is a probability too near to 0 or 1 to be written as one; calibration sets
            it. None: those of `threshold`.

    Raises:
        PolicyError: a threshold, temperature or depth out of range, or log-odds of another threshold.
    """

    threshold: int | float
    depths: Sequence[int] | None = None
    temperature: int | float | Mapping[int, float] = 1.0
    log_odds: float | None = field(default=None, repr=False)

    reads: ClassVar[Reads] = Reads.LOGITS
    has_temperature: ClassVar[bool] = False
    """Whether the temperature matters."""
    default_threshold: ClassVar[int | float] = 0.5
    """Where calibration starts from."""
    _range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __post_init__(self) -> None:
        low, high = self._range
        if not low <= self.threshold <= high:
            raise PolicyError(f"the threshold of {type(self).__name__} is {self.threshold}, expected {low:g}..{high:g}")
        temperatures = self.temperature.values() if isinstance(self.temperature, Mapping) else [self.temperature]
        for temperature in temperatures:
            if not 0 < temperature < math.inf:
                raise PolicyError(f"a temperature is {temperature}, expected a number above 0")
        if self.log_odds is not None:
            self._check_log_odds(self.log_odds)
        if self.depths is not None and (not self.depths or min(self.depths) < 1):
            raise PolicyError(f"the tested depths are {list(self.depths)}, expected some of 1..L")

    def _check_log_odds(self, log_odds: float) -> None:
        raise PolicyError(f"{type(self).__name__} has no threshold that is a probability: leave log_odds out")

    @property
    def level(self) -> float:
        """The score from which on a sample exits."""
        return float(self.threshold)

    def at_level(self, level: float) -> Policy:
        """The same policy with the threshold that has this level."""
        return replace(self, threshold=level)

    def threshold_path(self) -> Sequence[int | float]:
        """Thresholds from strict to loose, to certify one after the other where scores cannot lay a path.

        Example:
            >>> Entropy(0.5).threshold_path()[:2], Patience(2, depths=(2, 4, 6)).threshold_path()
            ([0.0001, 0.001], [3, 2, 1])
        """
        return THRESHOLDS

    def tested(self, last: int, first: int = 1) -> tuple[int, ...]:
        """The depths below L (`last`) at which samples may exit, ascending.

        Args:
            last: L.
            first: the first depth at which they may: of a model in several stages, after the last one's first block.

        Raises:
            PolicyError: one of the depths is beyond L, or before the first.
        """
        if self.depths is None:
            return tuple(range(first, last))
        if max(self.depths) > last:
            raise PolicyError(f"the policy tests depth {max(self.depths)}, and the model has {last} blocks")
        _require_from(min(self.depths), first)
        return tuple(sorted(depth for depth in set(self.depths) if depth < last))

    @abstractmethod
    def scores(self, depth: int, seen: Float[Tensor, "n d"], memory: Memory) -> Scores:
        """Score each sample at a tested depth.

        Args:
            depth: the tested depth.
            seen: what the policy reads: logits, or the states that stand for the samples.
            memory: what this returned at the tested depth before; None at the first.

        Returns:
            A score for each sample, and what to remember of it.
        """


@dataclass(frozen=True)
class _OfLogits(Policy):
    """Scores the logits of each depth by themselves, divided by the temperature."""

    has_temperature = True

    def scores(self, depth: int, seen: Float[Tensor, "n c"], memory: Memory) -> Scores:
        temperature = self.temperature
        if isinstance(temperature, Mapping):
            temperature = temperature.get(depth, 1.0)
        return self.of_logits(_exact(seen) / temperature), None

    @abstractmethod
    def of_logits(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
        """The score of each row of logits."""


@dataclass(frozen=True)
class _OfOdds(_OfLogits):
    """The threshold is a probability, and the score its log-odds."""

    @property
    def level(self) -> float:
        """The log-odds from which on a sample exits."""
        return _log_odds_of(float(self.threshold)) if self.log_odds is None else self.log_odds

    def at_level(self, level: float) -> Policy:
        """The same policy with the threshold that has exactly these log-odds."""
        threshold = _probability_of(level)
        return replace(self, threshold=threshold, log_odds=None if _log_odds_of(threshold) == level else level)

    def _check_log_odds(self, log_odds: float) -> None:
        if not (math.isfinite(log_odds) and math.isclose(_probability_of(log_odds), self.threshold, abs_tol=1e-9)):
            raise PolicyError(
                f"log_odds is {log_odds}, expected those of the threshold {self.threshold} "
                f"({_log_odds_of(float(self.threshold)):.6g}): set both, or log_odds to None"
            )


@dataclass(frozen=True)
class Confidence(_OfOdds):
    """Exit where the top class has at least this probability; scored by its log-odds.

    Example:
        >>> Confidence(0.8).of_logits(torch.tensor([[2.0, 0.0], [0.0, 0.0]], dtype=torch.float64)).sigmoid()
        tensor([0.8808, 0.5000], dtype=torch.float64)
    """

    def of_logits(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
        """The log-odds of the top class."""
        return -_behind(logits).logsumexp(1)


@dataclass(frozen=True)
class Margin(_OfOdds):
    """Exit where the top class is ahead of the next by at least this much probability; scored by its log-odds.

    Example:
        >>> Margin(0.5).of_logits(torch.tensor([[2.0, 0.0, -9.0]], dtype=torch.float64)).sigmoid()
        tensor([0.7616], dtype=torch.float64)
    """

    def of_logits(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
        """The log-odds of the top class's probability minus that of the next: -inf where two classes are first."""
        others = _behind(logits)
        second = others.amax(1)
        # m = (1 - e2) / Z and 1 - m = (S + e2) / Z, with S what all others add up to, beside the first's 1
        return torch.log1p(-second.exp()) - torch.logaddexp(others.logsumexp(1), second)


@dataclass(frozen=True)
class Entropy(_OfLogits):
    """Exit where the entropy is at most this share of the largest possible, ln C.

    Example:
        >>> Entropy(0.5).of_logits(torch.tensor([[2.0, 0.0], [0.0, 0.0]], dtype=torch.float64))
        tensor([-0.5271, -1.0000], dtype=torch.float64)
    """

    @property
    def level(self) -> float:
        """The score from which on a sample exits: less entropy is a higher score."""
        return -float(self.threshold)

    def at_level(self, level: float) -> Policy:
        """The same policy with the threshold that has this level."""
        return replace(self, threshold=-level)

    def threshold_path(self) -> Sequence[int | float]:
        """The shares of the largest entropy that go with the path of probabilities."""
        return [round(1 - threshold, 6) for threshold in THRESHOLDS]

    def of_logits(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
        """Minus the entropy over ln C, -1..0."""
        others = _behind(logits)
        rest = others.exp().sum(1)
        # H = ln Z - sum of p (x - x_top): both terms vanish with the others' share, so none is lost beside the other
        expected = others.exp().mul(others.clamp(min=-1e300)).sum(1) / (1 + rest)
        entropy = torch.log1p(rest) - expected
        return -(entropy / math.log(logits.shape[1])).clamp(0, 1)


def _exact(values: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    """The values in float64; in float32, whose order of scores is coarser, on devices without it."""
    return values.float() if values.device.type == "mps" else values.double()


def _behind(logits: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    """Each logit minus the top one: the others' log-odds against it. The top one itself is -inf."""
    top = logits.max(1, keepdim=True)
    return (logits - top.values).scatter(1, top.indices, -math.inf)


def _log_odds_of(probability: float) -> float:
    if probability in (0.0, 1.0):
        return -math.inf if probability == 0.0 else math.inf
    return math.log(probability) - math.log1p(-probability)


def _probability_of(log_odds: float) -> float:
    return 1 / (1 + math.exp(-log_odds)) if log_odds > -700 else 0.0


@dataclass(frozen=True)
class Patience(Policy):
    """Exit where this many tested depths in a row, the last of them included, have the same top class.

    Example:
        >>> policy = Patience(2)
        >>> score, memory = policy.scores(1, torch.tensor([[1.0, 0.0]]), None)
        >>> policy.scores(2, torch.tensor([[3.0, 0.0]]), memory)[0]
        tensor([2.])
    """

    default_threshold = 2
    _range = (1.0, math.inf)

    def threshold_path(self) -> Sequence[int | float]:
        """Every number of tested depths, from all of them down to 1."""
        return list(range(len(self.depths or (1,)), 0, -1))

    def scores(self, depth: int, seen: Float[Tensor, "n c"], memory: Memory) -> Scores:
        """How many tested depths in a row agree; NaN logits agree with nothing."""
        top = seen.argmax(1).float().masked_fill(seen.isnan().any(1), math.nan)
        run = torch.ones_like(top)
        if memory is not None:
            run = torch.where(top == memory[:, 0], memory[:, 1] + 1, run)
        return run.masked_fill(top.isnan(), math.nan), torch.stack([top, run], dim=1)


@dataclass(frozen=True)
class Convergence(Policy):
    """Exit where the state has this cosine with that of the tested depth before. Needs no readout to decide.

    Example:
        >>> policy = Convergence(0.9)
        >>> _, memory = policy.scores(1, torch.tensor([[1.0, 0.0]]), None)
        >>> policy.scores(2, torch.tensor([[1.0, 1.0]]), memory)[0]
        tensor([0.7071], dtype=torch.float64)
    """

    reads = Reads.STATE
    _range = (-1.0, 1.0)

    def scores(self, depth: int, seen: Float[Tensor, "n d"], memory: Memory) -> Scores:
        """The cosine with the state before; -inf at the first tested depth, where nothing can have converged."""
        if memory is None:
            return torch.full_like(_exact(seen)[:, 0], -math.inf), seen
        return torch.nn.functional.cosine_similarity(_exact(seen), _exact(memory), dim=1).clamp(-1, 1), seen


@dataclass(frozen=True)
class AtDepth(Policy):
    """Exit at one depth, `threshold` in 1..L, whatever the sample.

    Example:
        >>> AtDepth(3).tested(12)
        (3,)
    """

    reads = Reads.NOTHING
    default_threshold = 1
    _range = (1.0, math.inf)

    @property
    def level(self) -> float:
        """-inf: any score reaches it."""
        return -math.inf

    def tested(self, last: int, first: int = 1) -> tuple[int, ...]:
        """The depth itself, if it is below L."""
        if self.threshold > last:
            raise PolicyError(f"the policy exits at depth {self.threshold}, and the model has {last} blocks")
        _require_from(int(self.threshold), first)
        return (int(self.threshold),) if self.threshold < last else ()

    def scores(self, depth: int, seen: Float[Tensor, "n d"], memory: Memory) -> Scores:
        """0 for all."""
        return torch.zeros(len(seen), device=seen.device), None


def _require_from(depth: int, first: int) -> None:
    if depth < first:
        raise PolicyError(
            f"the policy tests depth {depth}, and the model runs in stages: samples may exit from depth {first} on, "
            "after a block of the last stage"
        )


POLICIES: dict[str, type[Policy]] = {name: globals()[kind] for name, kind in POLICY_CLASSES.items()}


def policy_named(name: str, *, depths: Sequence[int] | None = None) -> Policy:
    """A policy by its key in `POLICIES`, with its default threshold: what calibration starts from.

    Example:
        >>> policy_named("margin", depths=(2, 4))
        Margin(threshold=0.5, depths=(2, 4), temperature=1.0)
    """
    kind = POLICIES[choose(name, POLICIES, "policy", PolicyError)]
    return kind(kind.default_threshold, depths)


def as_plain(policy: Policy) -> dict[str, Any]:
    """A policy as values that JSON holds; raises a `PolicyError` if its class is not in `POLICIES`."""
    name = next((name for name, kind in POLICIES.items() if type(policy) is kind), None)
    if name is None:
        raise PolicyError(f"{type(policy).__name__} is no policy of anydepth's, and cannot be saved: make it anew")
    temperature: Any = policy.temperature
    if isinstance(temperature, Mapping):
        temperature = {str(depth): value for depth, value in temperature.items()}
    return {
        "kind": name,
        "threshold": policy.threshold,
        "log_odds": policy.log_odds,
        "depths": None if policy.depths is None else list(policy.depths),
        "temperature": temperature,
    }


def from_plain(plain: Mapping[str, Any]) -> Policy:
    """A policy from the values of `as_plain`; an unknown one, or values out of range, raise a `PolicyError`.

    Example:
        >>> from_plain(as_plain(Confidence(0.9, depths=(3,), temperature={3: 1.5})))
        Confidence(threshold=0.9, depths=(3,), temperature={3: 1.5})
    """
    temperature, depths = plain["temperature"], plain["depths"]
    if isinstance(temperature, Mapping):
        temperature = {int(depth): value for depth, value in temperature.items()}
    return replace(
        policy_named(str(plain.get("kind")), depths=None if depths is None else tuple(depths)),
        threshold=plain["threshold"],
        temperature=temperature,
        log_odds=plain["log_odds"],
    )
