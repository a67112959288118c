"""What is chosen before anything is certified, on samples of its own: temperatures, tested depths, and the path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional

from anydepth.errors import CertificateError
from anydepth.exits.costs import Costs
from anydepth.exits.looking import Looked, Shown
from anydepth.exits.policies import Policy

LEVELS = 200
"""Steps of the path at most. More cost no confidence, only time."""
_LEVELS_TO_COMPARE = 40
_ROWS_TO_COMPARE = 4_000


def tuned(policy: Policy, looked: Looked, *, tolerance: float, against: str, costs: Costs | None) -> Policy:
    """The policy with its temperatures, and with costs its tested depths, chosen by what these samples show.

    Args:
        policy: settings of the user's are left as they are: a temperature other than 1, depths that are named.
        looked: samples that will certify nothing.
        tolerance: see `anydepth.exits.calibration.calibrate`.
        against: likewise.
        costs: what testing costs; None to test all depths that were looked at.
    """
    if policy.reads == "logits" and policy.has_temperature and policy.temperature == 1.0:
        policy = replace(policy, temperature=temperatures(looked))
    if costs is not None and policy.depths is None:
        policy = replace(policy, depths=worthwhile(policy, looked, costs, tolerance=tolerance, against=against))
    return policy


def temperatures(looked: Looked) -> dict[int, float]:
    """For each tested depth the temperature at which its confidence tells best how often it answers as the full model.

    The one that minimises the cross-entropy with the full model's answers (temperature scaling, arXiv:1706.04599).
    Whatever failures are counted against, it is held to those: fitted to labels it makes depths leave later, since
    where the full model is wrong too, an early answer costs nothing.
    """
    target = torch.from_numpy(looked.predictions[:, -1])
    return {
        depth: _temperature(torch.from_numpy(looked.seen[:, place]).double(), target)
        for place, depth in enumerate(looked.depths[:-1])
    }


def _temperature(logits: torch.Tensor, target: torch.Tensor) -> float:
    from scipy.optimize import minimize_scalar

    finite = logits.isfinite().all(1)
    if not finite.any():
        return 1.0
    logits, target = logits[finite], target[finite]
    found = minimize_scalar(
        lambda power: float(functional.cross_entropy(logits / 2**power, target)), bounds=(-5, 5), method="bounded"
    )
    return round(float(2**found.x), 4)


def worthwhile(policy: Policy, looked: Looked, costs: Costs, *, tolerance: float, against: str) -> tuple[int, ...]:
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


def loosest(shown: Shown, tolerance: float, against: str) -> float:
    """The last level of a coarse path before the share of failures first exceeds the tolerance; +inf if none."""
    found = np.inf
    for level in levels(shown, _LEVELS_TO_COMPARE):
        if shown.failures(level, against) > tolerance * len(shown):
            break
        found = level
    return float(found)


def levels(shown: Shown, count: int = LEVELS) -> list[float]:
    """The path: scores that were seen, from the highest down, evenly spread over them.

    Raises:
        CertificateError: no score is finite.
    """
    seen = np.unique(shown.scores[np.isfinite(shown.scores)])[::-1]
    if not len(seen):
        raise CertificateError("every score is NaN or infinite: the policy tells nothing of this model")
    kept = np.unique(np.linspace(0, len(seen) - 1, min(count, len(seen))).round().astype(int))
    return [float(level) for level in seen[kept]]
