"""Temperatures, tested depths and the path of levels, chosen on samples of their own before anything is certified."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from torch.nn import functional

from anydepth.errors import CertificateError
from anydepth.exits.costs import Costs
from anydepth.exits.exit_scores import ExitScores, PolicyInputs
from anydepth.exits.policies import Policy, Reads

LEVELS = 200
"""Most steps of the path. More cost no confidence, only time."""
_LEVELS_TO_COMPARE = 40
_ROWS_TO_COMPARE = 4_000
_LARGEST = 4.0
"""Temperatures lie within 1 / 4 and 4: beyond, a few samples would decide how sure all are."""
_BY_CHANCE = 1e-6
"""The p-value up to which the test for temperatures of each depth's own is significant."""
_ERRORS = 2.0
"""How many standard errors earlier samples must exit by the fitted temperatures."""


def tuned(
    policy: Policy, inputs: PolicyInputs, *, failure_share: float, tolerance: float, against: str, costs: Costs | None
) -> Policy:
    """The policy with temperatures, and with costs tested depths, chosen on samples that will certify nothing.

    The user's own settings are kept: a temperature other than 1, depths that are named. `failure_share` of the
    certifying samples may fail; for few samples that is less than the tolerance.
    """
    if policy.reads == Reads.LOGITS and policy.has_temperature and policy.temperature == 1.0 and unevenly_sure(inputs):
        fitted = replace(policy, temperature=temperatures(inputs))
        both = inputs.under(fitted), inputs.under(policy)
        policy = fitted if exits_earlier(*both, failures=failure_share * len(inputs), against=against) else policy
    if costs is not None and policy.depths is None:
        policy = replace(policy, depths=worthwhile(policy, inputs, costs, tolerance=tolerance, against=against))
    return policy


def unevenly_sure(inputs: PolicyInputs) -> bool:
    """Whether the depths need temperatures of their own, by a likelihood-ratio test against one for all of them.

    One for all hardly changes the order of the scores, and so the effect of nearly any threshold. Where the test is
    not significant, fitted temperatures are noise, and noise makes samples exit later.
    """
    from scipy.stats import chi2

    depths = len(inputs.depths) - 1
    if depths < 2:
        return False
    target, logits = torch.from_numpy(inputs.predictions[:, -1]), torch.from_numpy(inputs.seen).double()
    finite = logits.isfinite().all(2).all(1)
    target, logits = target[finite], logits[finite]
    if not len(target):
        return False

    def loss(temperature: float, places: Sequence[int]) -> float:
        return sum(_cross_entropy(logits[:, place] / temperature, target) for place in places)

    def least(places: Sequence[int]) -> float:
        return loss(_least(lambda temperature: loss(temperature, places)), places)

    apart, together = sum(least([place]) for place in range(depths)), least(range(depths))
    return bool(2 * (together - apart) > chi2.isf(_BY_CHANCE, depths - 1))


def exits_earlier(fitted: ExitScores, plain: ExitScores, *, failures: float, against: str) -> bool:
    """Whether samples exit earlier by fitted scores than by plain ones, by more than chance.

    Mean depths are compared at the loosest levels with the same number of failures, for each number near the one
    given: a single number would depend on a single sample, and where many more fail temperatures may save what they
    cost where few do.
    """
    near = range(int(failures / 2), int(1.5 * failures) + 3)
    depths = [
        np.mean([scores.depth_of(level) for level in _loosest_levels(scores, near, against)], axis=0)
        for scores in (fitted, plain)
    ]
    saved = depths[1] - depths[0]
    return bool(saved.mean() > _ERRORS * saved.std() / np.sqrt(len(saved)))


def _loosest_levels(scores: ExitScores, allowed: Sequence[int], against: str) -> list[float]:
    """For each number of failures, the last level of a path before there are more; +inf if the first has more."""
    path = levels(scores)
    most = np.maximum.accumulate(scores.failures_along(path, against))
    return [float([np.inf, *path][int(np.searchsorted(most, count, side="right"))]) for count in allowed]


def temperatures(inputs: PolicyInputs) -> dict[int, float]:
    """Temperature of each tested depth, fitted to the full model's predictions.

    The one that minimises the cross-entropy (temperature scaling, arXiv:1706.04599), drawn to 1 by a normal prior on
    its binary logarithm, of standard deviation 1: where hardly a prediction differs, the data say no more than
    "sharper". Whatever failures are counted against, it is fitted to the full model's predictions: fitted to labels it
    makes samples exit later, since where the full model is wrong too, an early prediction costs nothing.
    """
    target = torch.from_numpy(inputs.predictions[:, -1])
    return {
        depth: _temperature(torch.from_numpy(inputs.seen[:, place]).double(), target)
        for place, depth in enumerate(inputs.depths[:-1])
    }


def _temperature(logits: torch.Tensor, target: torch.Tensor) -> float:
    finite = logits.isfinite().all(1)
    if not finite.any():
        return 1.0
    logits, target = logits[finite], target[finite]
    return round(_least(lambda t: _cross_entropy(logits / t, target) + np.log2(t) ** 2 / 2), 4)


def _cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> float:
    return float(functional.cross_entropy(logits, target, reduction="sum"))


def _least(loss: Callable[[float], float]) -> float:
    """The temperature within bounds at which a loss is least."""
    from scipy.optimize import minimize_scalar

    bound = np.log2(_LARGEST)
    result = minimize_scalar(
        lambda power: loss(2**power), bounds=(-bound, bound), method="bounded", options={"xatol": 1e-3}
    )
    return float(2**result.x)


def worthwhile(
    policy: Policy, inputs: PolicyInputs, costs: Costs, *, tolerance: float, against: str
) -> tuple[int, ...]:
    """The depths whose test saves more than it costs, by backward elimination.

    It begins with all depths, and drops the one without which a batch is fastest, at the loosest level within the
    tolerance, until every further drop makes it slower.
    """
    some = inputs.rows(np.arange(min(len(inputs), _ROWS_TO_COMPARE)))

    @cache
    def cost(depths: tuple[int, ...]) -> float:
        scores = some.under(replace(policy, depths=depths))
        return costs.total(scores.depth_of(loosest(scores, tolerance, against)), depths, reads=policy.reads)

    depths = inputs.depths[:-1]
    while len(depths) > 1:
        fewer = min((tuple(depth for depth in depths if depth != dropped) for dropped in depths), key=cost)
        if cost(fewer) > cost(depths):
            break
        depths = fewer
    return depths


def loosest(scores: ExitScores, tolerance: float, against: str) -> float:
    """The last level of a coarse path before the share of failures first exceeds the tolerance; +inf if none."""
    path = levels(scores, _LEVELS_TO_COMPARE)
    beyond = scores.failures_along(path, against) > tolerance * len(scores)
    kept = int(beyond.argmax()) if beyond.any() else len(path)
    return path[kept - 1] if kept else float(np.inf)


def levels(scores: ExitScores, count: int = LEVELS) -> list[float]:
    """The path: scores that occur, from the highest down, evenly spread; a `CertificateError` if none is finite."""
    values = np.unique(scores.scores[np.isfinite(scores.scores)])[::-1]
    if not len(values):
        raise CertificateError("every score is NaN or infinite: the policy tells nothing of this model")
    kept = np.unique(np.linspace(0, len(values) - 1, min(count, len(values))).round().astype(int))
    return [float(level) for level in values[kept]]
