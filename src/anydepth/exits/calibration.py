"""How loose a policy may be: thresholds tuned, certified and held out on different samples.

On the samples to tune on, temperatures and tested depths are chosen and a path of levels is laid, from strict to
loose. Along it, on samples that took no part in that, exact tests are made until one fails; see
`anydepth.stats.certificates`. The last level that passed is taken. A third part shows what it does, with no say in the
choice.
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
from anydepth.stats.certificates import (
    Certificate,
    Failures,
    certified,
    check_against,
    counted,
    least_samples,
    most_failures,
    passes,
    repeats,
    require_samples,
)

SHARES = (0.25, 0.5, 0.25)
"""Of the distinct samples: to tune on, to certify by, and to hold out."""
_SURPRISING = 0.05
"""The p-value from which on failures beyond the tolerance are worth a warning."""
_CLASSES_TOLD = 6


@dataclass(frozen=True)
class Calibration:
    """What a calibration came to.

    Attributes:
        certificate: of the level that was taken; None if none could be certified, or it holds no longer (`withheld`).
        level: the score from which on a sample leaves; None if none could be certified.
        samples: how many tuned and certified it, and were held out; contents that repeat count once.
        proved_failures: how many of the last failed.
        proved_depth: their mean depth.
        classes: failures of the samples that certified or were held out, by the class that the full model answers;
            against labels, by the true class.
        notes: what a reader should know, one sentence each.
        withheld: why nothing is promised although a level was certified.
    """

    certificate: Certificate | None
    level: float | None
    samples: tuple[int, int, int]
    proved_failures: int
    proved_depth: float
    classes: tuple[Failures, ...] = ()
    notes: tuple[str, ...] = ()
    withheld: str | None = None

    def __str__(self) -> str:
        return "; ".join(filter(None, (self.promise, self._by_class())))

    @property
    def promise(self) -> str:
        """What is promised, what was seen on held-out samples, and what speaks against it."""
        if self.certificate is None:
            return self.withheld or "nothing could be certified: every sample goes to the last depth"
        does = counted(self.certificate.against)
        proof = f"held out: {self.held_out} {does}, at a mean depth of {self.proved_depth:.2f}"
        return "; ".join([str(self.certificate), proof, *self.warnings])

    @property
    def held_out(self) -> Failures:
        """Failures of the samples that had no say."""
        return Failures(name="held out", samples=self.samples[2], failures=self.proved_failures)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What speaks against the certificate, or against taking it for more than it is."""
        return () if self.certificate is None else tuple(self._warnings(self.certificate.tolerance))

    def _warnings(self, tolerance: float) -> Iterator[str]:
        if (p := self.held_out.excess(tolerance)) <= _SURPRISING:
            yield (
                f"warning: the held-out samples contradict it (so many failures have p = {p:.2g} at "
                f"{100 * tolerance:.3g} %): calibrate on more samples, or samples drawn like new ones"
            )
        # a class in hundreds looks bad by chance: each is asked for as much more
        for one in self.classes:
            if one.excess(tolerance) <= _SURPRISING / len(self.classes):
                yield (
                    f"warning: class {one.name!r} fails far more often than {100 * tolerance:.3g} %: {one}; what is "
                    "certified is the share over all classes"
                )

    def _by_class(self) -> str:
        """The classes that fail most often, all if they are few."""
        if self.certificate is None or not self.classes:
            return ""
        worst = sorted(self.classes, key=lambda one: one.interval()[0], reverse=True)
        shown = self.classes if len(self.classes) <= _CLASSES_TOLD else worst[: _CLASSES_TOLD // 2]
        return "by class: " + ", ".join(f"{one.name} {one}" for one in shown)

    def without_certificate(self, reason: str) -> Calibration:
        """The same where nothing is promised.

        Args:
            reason: why.
        """
        return replace(self, certificate=None, withheld=f"nothing is promised: {reason}")


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
    looked: PolicyInputs,
    *,
    tolerance: float,
    confidence: float,
    against: str,
    costs: Costs | None = None,
    tune: bool = True,
    seed: int = 0,
    names: Sequence[str] = (),
) -> tuple[Policy, Calibration]:
    """Find how loose a policy may be with a guarantee, from what was seen of every sample.

    Args:
        policy: of the kind wanted; its threshold is what is looked for.
        looked: independent samples that were not trained on, drawn like those to come. Contents that repeat count once
            in each part, and all rows must keep to the tolerance as well.
        tolerance: the probability of a failure that must not be exceeded, in (0, 1).
        confidence: of that promise over the draw of the data, in (0, 1).
        against: "model" or "labels"; see `anydepth.stats.certificates.fails`.
        costs: what testing costs, to leave out depths whose test costs more than it saves.
        tune: whether to choose temperatures and tested depths where the policy does not name them.
        seed: of the split into three parts.
        names: of the classes, for what is said of each.

    Returns:
        The policy with the threshold found, or `AtDepth(L)` if none could be certified; and what was found.

    Raises:
        CertificateError: too few distinct samples, no labels, or nothing to calibrate.
    """
    check_request(policy, tolerance=tolerance, confidence=confidence, against=against)
    to_tune, certify, _ = split = parted(looked, seed)
    copies = len(looked) - sum(map(len, split))
    require_samples(
        len(looked) - copies,
        tolerance=tolerance,
        confidence=confidence,
        count=len(looked),
        certifying=len(certify),
        share=SHARES[1],
    )
    if tune:
        let_pass = most_failures(len(certify), tolerance, confidence) / len(certify)
        policy = tuned(policy, to_tune, let_pass=let_pass, tolerance=tolerance, against=against, costs=costs)
    shown = (part.under(policy) for part in split)
    every = looked.under(policy) if copies else None
    found = settle(*shown, every=every, tolerance=tolerance, confidence=confidence, against=against, names=names)
    found = replace(found, notes=(*repeats(copies, len(looked)), *found.notes))
    return AtDepth(looked.depths[-1]) if found.level is None else policy.at_level(found.level), found


def parted(looked: PolicyInputs, seed: int) -> tuple[PolicyInputs, PolicyInputs, PolicyInputs]:
    """The distinct samples that tune, that certify, and that are held out."""
    distinct = looked.distinct(seed)
    tune, certify, prove = (distinct.rows(part) for part in parts(len(distinct), seed))
    return tune, certify, prove


def parts(count: int, seed: int) -> list[np.ndarray]:
    """Which samples tune, certify and are held out."""
    order = np.random.default_rng(seed).permutation(count)
    return np.split(order, [round(share * count) for share in (SHARES[0], SHARES[0] + SHARES[1])])


def settle(
    tune: ExitScores,
    certify: ExitScores,
    prove: ExitScores,
    *,
    tolerance: float,
    confidence: float,
    against: str,
    every: ExitScores | None = None,
    names: Sequence[str] = (),
) -> Calibration:
    """The loosest level that can be certified, from what the three parts show.

    Args:
        tune: lays the path.
        certify: distinct samples that the tests are made on.
        prove: held out.
        tolerance: see `calibrate`.
        confidence: likewise.
        against: likewise.
        every: all samples with their copies, if some repeat: their share of failures must pass, too.
        names: of the classes.
    """
    path = levels(tune)

    def failures() -> Iterator[int]:
        counts = certify.failures_along(path, against).tolist()
        if every is None:
            yield from counts
            return
        for count, of_all in zip(counts, every.failures_along(path, against).tolist(), strict=True):
            if not passes(of_all, len(every), tolerance=tolerance, confidence=confidence):
                return
            yield count

    passed = certified(failures(), len(certify), against=against, tolerance=tolerance, confidence=confidence)
    samples = (len(tune), len(certify), len(prove))
    if not passed:
        return Calibration(None, None, samples, 0, float(prove.depths[-1]), notes=_on_ties(tune, path[0]))
    level = path[len(passed) - 1]
    return Calibration(
        passed[-1],
        level,
        samples,
        prove.failures(level, against),
        prove.mean_depth(level),
        _by_class((certify, prove), level, against, names),
    )


def _on_ties(tune: ExitScores, level: float) -> tuple[str, ...]:
    """A note where the strictest level there is lets many go at once: a path cannot begin more strictly."""
    tied = float((tune.depth_of(level) < tune.depths[-1]).mean())
    if tied * len(tune) < 2:
        return ()
    return (
        f"{100 * tied:.1f} % of the tuning samples share the highest score, and samples of one score leave together: a "
        "score with fewer ties (confidence, margin) could begin more strictly",
    )


def _by_class(parts: tuple[ExitScores, ...], level: float, against: str, names: Sequence[str]) -> tuple[Failures, ...]:
    """Failures of some samples at a level, class by class, of those that occur."""
    failed = np.concatenate([part.failed(level, against) for part in parts])
    of = [part.predictions[:, -1] if against == "model" or part.labels is None else part.labels for part in parts]
    classes, place, counts = np.unique(np.concatenate(of), return_inverse=True, return_counts=True)
    wrong = np.bincount(place, weights=failed, minlength=len(classes)).astype(int)
    return tuple(
        Failures(name=names[one] if 0 <= one < len(names) else str(one), samples=int(total), failures=int(count))
        for one, total, count in zip(classes.tolist(), counts, wrong, strict=True)
    )
