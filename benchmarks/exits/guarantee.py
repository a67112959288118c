"""Does the guarantee hold, and at what price? Calibrations simulated on what real models show.

All samples of a model play the population: draws with replacement from them are independent, and the share of failures
over all of them is the truth. A calibration is done as `EarlyExit.calibrate` does it, temperatures and all.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from anydepth.errors import CertificateError
from anydepth.exits.calibration import calibrate
from anydepth.exits.exit_scores import PolicyInputs
from anydepth.exits.policies import AtDepth, Policy
from anydepth.exits.tuning import levels, temperatures
from anydepth.stats.certificates import certified

CONFIDENCE = 0.95
SIZES = (500, 2_000, 10_000)
TOLERANCES = (0.01, 0.05)


def truth(pool: PolicyInputs, policy: Policy) -> tuple[float, float]:
    """Share of failures and mean depth over the whole population."""
    if isinstance(policy, AtDepth):
        return 0.0, float(policy.threshold)
    shown = pool.under(policy)
    return shown.failures(policy.level, "model") / len(pool), shown.mean_depth(policy.level)


def oracle(pool: PolicyInputs, policy: Policy, tolerance: float) -> float:
    """The least mean depth of a level that keeps the tolerance on the population; temperatures fitted to all of it."""
    shown = pool.under(replace(policy, temperature=temperatures(pool)))
    kept = [level for level in levels(shown, 2_000) if shown.failures(level, "model") <= tolerance * len(pool)]
    return min((shown.mean_depth(level) for level in kept), default=float(pool.depths[-1]))


def simulate(
    pool: PolicyInputs, policy: Policy, *, size: int, tolerance: float, draws: int, seed: int
) -> dict[str, float]:
    """Calibrate again and again on so many samples."""
    rng, last = np.random.default_rng(seed), pool.depths[-1]
    best = oracle(pool, policy, tolerance)
    broken, saved = 0, []
    for draw in range(draws):
        sample = pool.rows(rng.integers(0, len(pool), size))
        try:
            found, _ = calibrate(policy, sample, tolerance=tolerance, confidence=CONFIDENCE, against="model", seed=draw)
        except CertificateError:  # too few to certify anything
            return {"size": size, "tolerance": tolerance, "draws": 0, "broken": 0, "kept": 0.0, "oracle": best}
        share, depth = truth(pool, found)
        broken += share > tolerance
        saved.append((last - depth) / (last - best))
    kept = float(np.mean(saved))
    return {"size": size, "tolerance": tolerance, "draws": draws, "broken": broken, "kept": kept, "oracle": best}


def just_above(
    pool: PolicyInputs, policy: Policy, *, size: int, tolerance: float, draws: int, seed: int
) -> dict[str, float]:
    """How often the strictest level that fails a little too often is certified, tested by itself: at most 5 %."""
    shown = pool.under(policy)
    wrong = next(level for level in levels(shown, 5_000) if shown.failures(level, "model") > tolerance * len(pool))
    rng, passed = np.random.default_rng(seed), 0
    early = shown.answers(wrong) != shown.predictions[:, -1]
    for _ in range(draws):
        failures = int(early[rng.integers(0, len(pool), size)].sum())
        passed += bool(certified([failures], size, against="model", tolerance=tolerance, confidence=CONFIDENCE))
    return {"size": size, "tolerance": tolerance, "draws": draws, "certified": passed, "truth": float(early.mean())}
