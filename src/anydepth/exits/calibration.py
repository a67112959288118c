"""How loose a policy may be: thresholds tuned, certified and proved on different samples.

On the samples to tune on, temperatures and tested depths are chosen and a path of levels is laid, from strict to
loose. Along it, on samples that took no part in that, exact tests are made until one fails (`anydepth.certificates`);
the last level that passed is taken. A third part shows what it does, with no say in the choice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anydepth.certificates import Certificate, certified, check_against, least_samples
from anydepth.errors import CertificateError
from anydepth.exits.costs import Costs
from anydepth.exits.looking import Looked, Shown
from anydepth.exits.policies import AtDepth, Policy
from anydepth.exits.tuning import levels, tuned

SHARES = (0.25, 0.5, 0.25)
"""Of the samples: to tune on, to certify by, and to prove it on."""


@dataclass(frozen=True)
class Calibration:
    """What a calibration came to.

    Attributes:
        certificate: of the level that was taken; None if none could be certified.
        level: the score from which on a sample leaves; None likewise.
        samples: how many tuned, certified and proved it.
        proved_failures: how many of the last failed.
        proved_depth: their mean depth.
    """

    certificate: Certificate | None
    level: float | None
    samples: tuple[int, int, int]
    proved_failures: int
    proved_depth: float

    def __str__(self) -> str:
        if self.certificate is None:
            return "nothing could be certified: every sample goes to the last depth"
        proof = f"{self.proved_failures:,} of {self.samples[2]:,} others, at a mean depth of {self.proved_depth:.2f}"
        return f"{self.certificate}; proved on others: {proof}"


def check_request(policy: Policy, *, tolerance: float, confidence: float, against: str) -> None:
    """See that a calibration makes sense, before anything is computed.

    Raises:
        CertificateError: a level outside (0, 1), something unknown to hold answers against, or nothing to calibrate.
    """
    check_against(against)
    least_samples(tolerance, confidence)
    if isinstance(policy, AtDepth):
        raise CertificateError("AtDepth has no threshold to calibrate: see Trace.minimal_depth, and truncate")


def calibrate(
    policy: Policy,
    looked: Looked,
    *,
    tolerance: float,
    confidence: float,
    against: str,
    costs: Costs | None = None,
    tune: bool = True,
    seed: int = 0,
) -> tuple[Policy, Calibration]:
    """Find how loose a policy may be with a guarantee, from what was seen of every sample.

    Args:
        policy: of the kind wanted; its threshold is what is looked for.
        looked: independent samples that were not trained on, drawn like those to come.
        tolerance: the probability of a failure that must not be exceeded, in (0, 1).
        confidence: of that promise over the draw of the data, in (0, 1).
        against: "model" or "labels"; see `anydepth.certificates.fails`.
        costs: what testing costs, to leave out depths whose test costs more than it saves.
        tune: whether to choose temperatures and tested depths where the policy does not name them.
        seed: of the split into three parts.

    Returns:
        The policy with the threshold found, or `AtDepth(L)` if none could be certified; and what was found.

    Raises:
        CertificateError: too few samples, no labels, or nothing to calibrate.
    """
    check_request(policy, tolerance=tolerance, confidence=confidence, against=against)
    to_tune, certify, prove = (looked.rows(part) for part in parts(len(looked), seed))
    if len(certify) < (needed := least_samples(tolerance, confidence)):
        raise CertificateError(
            f"there are {len(looked):,} samples, of which {len(certify):,} can certify, and to promise {tolerance:.3g} "
            f"with {confidence:.3g} confidence takes at least {needed:,}: get {round(needed / SHARES[1]):,} in all, or "
            "raise the tolerance"
        )
    if tune:
        policy = tuned(policy, to_tune, tolerance=tolerance, against=against, costs=costs)
    shown = (part.under(policy) for part in (to_tune, certify, prove))
    found = settle(*shown, tolerance=tolerance, confidence=confidence, against=against)
    return AtDepth(looked.depths[-1]) if found.level is None else policy.at_level(found.level), found


def parts(count: int, seed: int) -> list[np.ndarray]:
    """Which samples tune, certify and prove."""
    order = np.random.default_rng(seed).permutation(count)
    return np.split(order, [round(share * count) for share in (SHARES[0], SHARES[0] + SHARES[1])])


def settle(
    tune: Shown, certify: Shown, prove: Shown, *, tolerance: float, confidence: float, against: str
) -> Calibration:
    """The loosest level that can be certified, from what the three parts show."""
    path = levels(tune)
    failures = (certify.failures(level, against) for level in path)
    passed = certified(failures, len(certify), against=against, tolerance=tolerance, confidence=confidence)
    samples = (len(tune), len(certify), len(prove))
    if not passed:
        return Calibration(None, None, samples, 0, float(prove.depths[-1]))
    level = path[len(passed) - 1]
    return Calibration(passed[-1], level, samples, prove.failures(level, against), prove.mean_depth(level))
