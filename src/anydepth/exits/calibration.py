"""Calibration of a classifier's exit threshold with a certificate; of language models in `generation/calibration`.

On the samples to tune on, temperatures and tested depths are chosen and a path of levels is laid, from strict to
loose. Along it, on samples that took no part in that, exact tests are made until one fails; see
`anydepth.stats.certificates`. The last level that passed is taken. A third part of the samples, held out, takes no part
in the choice and tests its result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from anydepth.errors import CertificateError
from anydepth.exits.costs import Costs
from anydepth.exits.exit_scores import ExitScores, PolicyInputs
from anydepth.exits.policies import AtDepth, Policy
from anydepth.exits.tuning import levels, tuned
from anydepth.stats import certificates
from anydepth.stats.certificates import Certificate, Failures

SHARES = (0.25, 0.5, 0.25)
"""Of the distinct samples: to tune on, to certify by, and to hold out."""
_SURPRISING = 0.05
"""The p-value up to which failures beyond the tolerance are worth a warning."""
_CLASSES_LISTED = 6


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Result of a calibration.

    Attributes:
        certificate: of the level that was taken; None if none could be certified, or it holds no longer (`withheld`).
        level: the score from which on a sample exits; None if none could be certified.
        samples: how many tuned, certified, and were held out; contents that repeat count once.
        held_out_failures: how many of the held-out samples failed.
        held_out_depth: mean exit depth of the held-out samples.
        classes: failures of the samples that certified or were held out, by the class that the full model predicts;
            against labels, by the true class.
        withheld: why there is no guarantee although a level was certified.
    """

    certificate: Certificate | None
    level: float | None
    samples: tuple[int, int, int]
    held_out_failures: int
    held_out_depth: float
    classes: tuple[Failures, ...] = ()
    notes: tuple[str, ...] = ()
    withheld: str | None = None

    def __str__(self) -> str:
        return "; ".join(filter(None, (self.guarantee, self._by_class())))

    @property
    def guarantee(self) -> str:
        """The certificate in words, with the failures among the held-out samples and any warnings."""
        if self.certificate is None:
            return self.withheld or "nothing could be certified: every sample goes to the last depth"
        failing = certificates.counted(self.certificate.against)
        held_out = f"held out: {self.held_out} {failing}, at a mean depth of {self.held_out_depth:.2f}"
        return "; ".join([str(self.certificate), held_out, *self.warnings])

    @property
    def held_out(self) -> Failures:
        """Failures of the held-out samples."""
        return Failures(name="held out", samples=self.samples[2], failures=self.held_out_failures)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What speaks against the certificate, or against taking it for more than it is."""
        if self.certificate is None:
            return ()
        tolerance, warnings = self.certificate.tolerance, []
        if (p := self.held_out.excess(tolerance)) <= _SURPRISING:
            warnings.append(
                f"warning: the held-out samples contradict the certificate (so many failures have p = {p:.2g} at "
                f"{100 * tolerance:.3g} %): calibrate on more samples, or samples drawn like new ones"
            )
        # One class in hundreds looks bad by chance: the more classes, the smaller p must be (Bonferroni).
        for failures in self.classes:
            if failures.excess(tolerance) <= _SURPRISING / len(self.classes):
                warnings.append(
                    f"warning: class {failures.name!r} fails far more often than {100 * tolerance:.3g} %: {failures}; "
                    "what is certified is the share over all classes"
                )
        return tuple(warnings)

    def _by_class(self) -> str:
        """The classes that fail most often, all if they are few."""
        if self.certificate is None or not self.classes:
            return ""
        listed = self.classes
        if len(listed) > _CLASSES_LISTED:
            listed = tuple(sorted(listed, key=lambda failures: -failures.interval()[0])[: _CLASSES_LISTED // 2])
        return "by class: " + ", ".join(f"{failures.name} {failures}" for failures in listed)

    def without_certificate(self, reason: str) -> Calibration:
        """The same without a guarantee, for a reason."""
        return replace(self, certificate=None, withheld=f"nothing is guaranteed: {reason}")


def check_request(policy: Policy, *, tolerance: float, confidence: float, against: str) -> None:
    """Raise a `CertificateError` for a level outside (0, 1), an unknown `against`, or nothing to calibrate."""
    certificates.check_against(against)
    certificates.least_samples(tolerance, confidence)
    if isinstance(policy, AtDepth):
        raise CertificateError("AtDepth has no threshold to calibrate: see Trace.minimal_depth, and truncate")


def calibrate(
    policy: Policy,
    inputs: PolicyInputs,
    *,
    tolerance: float,
    confidence: float,
    against: str,
    costs: Costs | None = None,
    tune: bool = True,
    seed: int = 0,
    names: Sequence[str] = (),
) -> tuple[Policy, Calibration]:
    """Calibrate the threshold of a policy from policy inputs; see `EarlyExit.calibrate`, which names the classes.

    Returns:
        The policy with the calibrated threshold, or `AtDepth(L)` if none could be certified; and the calibration.

    Raises:
        CertificateError: too few distinct samples, no labels, or nothing to calibrate.
    """
    check_request(policy, tolerance=tolerance, confidence=confidence, against=against)
    to_tune, certify, _ = split = parted(inputs, seed)
    copies = len(inputs) - sum(map(len, split))
    certificates.require_samples(
        len(inputs) - copies,
        tolerance=tolerance,
        confidence=confidence,
        count=len(inputs),
        certifying=len(certify),
        share=SHARES[1],
    )
    if tune:
        allowed = certificates.most_failures(len(certify), tolerance, confidence) / len(certify)
        policy = tuned(policy, to_tune, failure_share=allowed, tolerance=tolerance, against=against, costs=costs)
    calibration = loosest_certified(
        *(part.under(policy) for part in split),
        every=inputs.under(policy) if copies else None,
        tolerance=tolerance,
        confidence=confidence,
        against=against,
        names=names,
    )
    calibration = replace(calibration, notes=(*certificates.repeats(copies, len(inputs)), *calibration.notes))
    if calibration.level is None:
        return AtDepth(inputs.depths[-1]), calibration
    return policy.at_level(calibration.level), calibration


def parted(inputs: PolicyInputs, seed: int) -> tuple[PolicyInputs, PolicyInputs, PolicyInputs]:
    """The distinct samples in three parts: to tune on, to certify by, and to hold out."""
    distinct = inputs.distinct(seed)
    order = np.random.default_rng(seed).permutation(len(distinct))
    ends = [round(share * len(distinct)) for share in (SHARES[0], SHARES[0] + SHARES[1])]
    tune, certify, held_out = map(distinct.rows, np.split(order, ends))
    return tune, certify, held_out


def loosest_certified(
    tune: ExitScores,
    certify: ExitScores,
    held_out: ExitScores,
    *,
    tolerance: float,
    confidence: float,
    against: str,
    every: ExitScores | None = None,
    names: Sequence[str] = (),
) -> Calibration:
    """Calibration to the loosest level that can be certified, from the scores of the three parts.

    Where samples repeat, `certify` has each once, and `every` has all: their share of failures must pass, too.
    """
    path = levels(tune)

    def failures() -> Iterator[int]:
        counts = certify.failures_along(path, against).tolist()
        if every is None:
            yield from counts
            return
        for count, count_of_all in zip(counts, every.failures_along(path, against).tolist(), strict=True):
            if not certificates.passes(count_of_all, len(every), tolerance=tolerance, confidence=confidence):
                return
            yield count

    passed = certificates.certified(
        failures(), len(certify), against=against, tolerance=tolerance, confidence=confidence
    )
    samples = (len(tune), len(certify), len(held_out))
    if not passed:
        depth, notes = float(held_out.depths[-1]), _note_on_ties(tune, path[0])
        return Calibration(
            certificate=None, level=None, samples=samples, held_out_failures=0, held_out_depth=depth, notes=notes
        )
    level = path[len(passed) - 1]
    return Calibration(
        certificate=passed[-1],
        level=level,
        samples=samples,
        held_out_failures=held_out.failures(level, against),
        held_out_depth=held_out.mean_depth(level),
        classes=_failures_by_class((certify, held_out), level, against, names),
    )


def _note_on_ties(tune: ExitScores, level: float) -> tuple[str, ...]:
    """A note where many samples exit together at the strictest level: a path cannot begin more strictly."""
    tied = float((tune.depth_of(level) < tune.depths[-1]).mean())
    if tied * len(tune) < 2:
        return ()
    return (
        f"{100 * tied:.1f} % of the tuning samples share the highest score, and samples of one score exit together: a "
        "score with fewer ties (confidence, margin) could begin more strictly",
    )


def _failures_by_class(
    parts: tuple[ExitScores, ...], level: float, against: str, names: Sequence[str]
) -> tuple[Failures, ...]:
    """Failures of some samples at a level, class by class, of the classes that occur."""
    failed = np.concatenate([part.failed(level, against) for part in parts])
    of = [part.predictions[:, -1] if against == "model" or part.labels is None else part.labels for part in parts]
    classes, place, counts = np.unique(np.concatenate(of), return_inverse=True, return_counts=True)
    wrong = np.bincount(place, weights=failed, minlength=len(classes)).astype(int)
    return tuple(
        Failures(name=names[index] if 0 <= index < len(names) else str(index), samples=int(total), failures=int(count))
        for index, total, count in zip(classes.tolist(), counts, wrong, strict=True)
    )
