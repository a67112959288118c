"""What is chosen before anything is certified, on samples of its own: temperatures, tested depths, and the path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional

from anydepth.errors import CertificateError
from anydepth.exits.costs import Costs
from anydepth.exits.exit_scores import ExitScores, PolicyInputs
from anydepth.exits.policies import Policy

LEVELS = 200
"""Steps of the path at most. More cost no confidence, only time."""
_LEVELS_TO_COMPARE = 40
_ROWS_TO_COMPARE = 4_000
_LARGEST = 4.0
"""Temperatures lie within 1 / 4 and 4: beyond, a few samples would decide how sure all are."""
_BY_CHANCE = 1e-6
"""How likely chance may make depths look so unevenly sure as they must for temperatures to be taken."""
_ERRORS = 2.0
"""How many standard errors earlier samples must leave by the fitted temperatures."""


def tuned(
    policy: Policy, looked: PolicyInputs, *, let_pass: float, tolerance: float, against: str, costs: Costs | None
) -> Policy:
    """The policy with its temperatures, and with costs its tested depths, chosen by what these samples show.

    Args:
        policy: settings of the user's are left as they are: a temperature other than 1, depths that are named.
        looked: samples that will certify nothing.
        let_pass: the share of those that will certify that may fail; less than the tolerance, for few samples.
        tolerance: see `anydepth.exits.calibration.calibrate`.
        against: likewise.
        costs: what testing costs; None to test all depths that were looked at.
    """
    if policy.reads == "logits" and policy.has_temperature and policy.temperature == 1.0 and unevenly_sure(looked):
        fitted = replace(policy, temperature=temperatures(looked))
        both = looked.under(fitted), looked.under(policy)
        policy = fitted if leaves_earlier(*both, failures=let_pass * len(looked), against=against) else policy
    if costs is not None and policy.depths is None:
        policy = replace(policy, depths=worthwhile(policy, looked, costs, tolerance=tolerance, against=against))
    return policy


def unevenly_sure(looked: PolicyInputs) -> bool:
    """Whether the depths need temperatures of their own, by a likelihood-ratio test against one for all of them.

    One for all changes hardly who is surer than whom, and so what nearly any threshold does. Where the test says
    nothing, fitted temperatures are noise, and noise makes samples leave later.
    """
    from scipy.stats import chi2

    depths = len(looked.depths) - 1
    if depths < 2:
        return False
    target = torch.from_numpy(looked.predictions[:, -1])
    seen = [torch.from_numpy(looked.seen[:, place]).double() for place in range(depths)]
    finite = torch.stack([logits.isfinite().all(1) for logits in seen]).all(0)
    seen, target = [logits[finite] for logits in seen], target[finite]
    if not len(target):
        return False

    def loss(temperature: float, places: Sequence[int]) -> float:
        return sum(float(functional.cross_entropy(seen[i] / temperature, target, reduction="sum")) for i in places)

    def least(places: Sequence[int]) -> float:
        return loss(_least(lambda temperature: loss(temperature, places)), places)

    apart, together = sum(least([place]) for place in range(depths)), least(range(depths))
    return bool(2 * (together - apart) > chi2.isf(_BY_CHANCE, depths - 1))


def leaves_earlier(fitted: ExitScores, plain: ExitScores, *, failures: float, against: str) -> bool:
    """Whether samples leave earlier by fitted scores than by plain ones, by more than chance.

    What is compared are mean depths at the loosest levels with the same number of failures, for each number near the
    one given: one alone would hang on a single sample, and where many more fail temperatures may save what they cost
    where few do.

    Args:
        fitted: samples under the policy with temperatures fitted to them.
        plain: the same without.
        failures: of so many samples, that are likely to be certified.
        against: see `anydepth.exits.calibration.calibrate`.
    """
    near = range(int(failures / 2), int(1.5 * failures) + 3)
    depths = [
        np.mean([shown.depth_of(level) for level in _loosest(shown, near, against)], axis=0)
        for shown in (fitted, plain)
    ]
    saved = depths[1] - depths[0]
    return bool(saved.mean() > _ERRORS * saved.std() / np.sqrt(len(saved)))


def _loosest(shown: ExitScores, allowed: Sequence[int], against: str) -> list[float]:
    """For each number of failures, the last level of a path before more are seen; +inf if the first has more."""
    path = levels(shown)
    most = np.maximum.accumulate(shown.failures_along(path, against))
    return [float([np.inf, *path][int(np.searchsorted(most, count, side="right"))]) for count in allowed]


def temperatures(looked: PolicyInputs) -> dict[int, float]:
    """For each tested depth the temperature at which its confidence tells best how often it answers as the full model.

    The one that minimises the cross-entropy with the full model's answers (temperature scaling, arXiv:1706.04599),
    drawn to 1 by a normal prior on its binary logarithm, of standard deviation 1: where hardly an answer differs, the
    data say no more than "sharper". Whatever failures are counted against, it is held to the full model's answers:
    fitted to labels it makes depths leave later, since where the full model is wrong too, an early answer costs
    nothing.
    """
    target = torch.from_numpy(looked.predictions[:, -1])
    return {
        depth: _temperature(torch.from_numpy(looked.seen[:, place]).double(), target)
        for place, depth in enumerate(looked.depths[:-1])
    }


def _temperature(logits: torch.Tensor, target: torch.Tensor) -> float:
    finite = logits.isfinite().all(1)
    if not finite.any():
        return 1.0
    logits, target = logits[finite], target[finite]
    return round(
        _least(lambda t: float(functional.cross_entropy(logits / t, target, reduction="sum")) + np.log2(t) ** 2 / 2), 4
    )


def _least(loss: Callable[[float], float]) -> float:
    """The temperature within bounds at which a loss is least."""
    from scipy.optimize import minimize_scalar

    bound = np.log2(_LARGEST)
    found = minimize_scalar(
        lambda power: loss(2**power), bounds=(-bound, bound), method="bounded", options={"xatol": 1e-3}
    )
    return float(2**found.x)


def worthwhile(
    policy: Policy, looked: PolicyInputs, costs: Costs, *, tolerance: float, against: str
) -> tuple[int, ...]:
    """The depths whose test saves more than it costs.

    All are taken to begin with; again and again the one is left out without which a batch is fastest, at the loosest
    level within the tolerance, until leaving one out makes it slower.

    Args:
        policy: with its temperatures.
        looked: samples that will certify nothing.
        costs: of blocks and readouts, measured.
        tolerance: see `anydepth.exits.calibration.calibrate`.
        against: likewise.
    """
    some = looked.rows(np.arange(min(len(looked), _ROWS_TO_COMPARE)))

    def cost(depths: tuple[int, ...]) -> float:
        shown = some.under(replace(policy, depths=depths))
        return costs.total(shown.depth_of(loosest(shown, tolerance, against)), depths, reads=policy.reads)

    return _without_the_idle(looked.depths[:-1], cost)


def _without_the_idle(depths: tuple[int, ...], cost: Callable[[tuple[int, ...]], float]) -> tuple[int, ...]:
    best = cost(depths)
    while len(depths) > 1:
        fewer = [tuple(one for one in depths if one != left_out) for left_out in depths]
        found = [cost(one) for one in fewer]
        if min(found) > best:
            break
        best = min(found)
        depths = fewer[found.index(best)]
    return depths


def loosest(shown: ExitScores, tolerance: float, against: str) -> float:
    """The last level of a coarse path before the share of failures first exceeds the tolerance; +inf if none."""
    path = levels(shown, _LEVELS_TO_COMPARE)
    beyond = shown.failures_along(path, against) > tolerance * len(shown)
    kept = int(beyond.argmax()) if beyond.any() else len(path)
    return path[kept - 1] if kept else float(np.inf)


def levels(shown: ExitScores, count: int = LEVELS) -> list[float]:
    """The path: scores that were seen, from the highest down, evenly spread over them.

    Raises:
        CertificateError: no score is finite.
    """
    seen = np.unique(shown.scores[np.isfinite(shown.scores)])[::-1]
    if not len(seen):
        raise CertificateError("every score is NaN or infinite: the policy tells nothing of this model")
    kept = np.unique(np.linspace(0, len(seen) - 1, min(count, len(seen))).round().astype(int))
    return [float(level) for level in seen[kept]]
