"""Certificates for early exit: exact binomial tests of the failure rate, along a path of candidates fixed beforehand.

A loss of 0 or 1 is counted on n calibration samples, drawn independently like new inputs. If its probability is more
than the tolerance, then the chance of so few failures is at most the binomial p-value, exactly. Candidates are tested
in an order fixed before the data are looked at, and testing stops at the first that fails: so all that pass hold
together with the stated confidence, whatever their number (fixed sequence testing; Learn then Test, arXiv:2110.01052).

Copies of a sample are not drawn independently, so each content counts once. Where copies tell how often an input comes
up, leaving them out would hide a frequent one that fails: so the share of all rows, copies too, must pass as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Int64, Integer, Shaped

from anydepth.errors import CertificateError

Against = Literal["model", "labels"]
"""What an early answer is compared with: the full model's answer, or the labels."""

_EVENT = {"model": "answer ≠ full model's", "labels": "answer wrong where the full model's is right"}
_COUNTED = {"model": "differ", "labels": "are wrong there"}


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """Guarantee that the probability of a failure is at most the tolerance, with the test behind it.

    Attributes:
        against: "model" or "labels".
        tolerance: maximum probability of a failure, α.
        confidence: level of the guarantee over the draw of the calibration samples, 1 - δ.
        samples: number of calibration samples.
        failures: how many of them failed.
        p_value: of the exact binomial test; at most 1 - confidence.
    """

    against: str
    tolerance: float
    confidence: float
    samples: int
    failures: int
    p_value: float

    def __str__(self) -> str:
        counts = f"{self.failures:,} of {self.samples:,} calibration samples {counted(self.against)}"
        return (
            f"certified at {100 * self.confidence:.3g} % confidence: P({_EVENT[self.against]}) ≤ "
            f"{100 * self.tolerance:.3g} % ({counts}, exact binomial p = {self.p_value:.2g}; assumes new inputs drawn "
            "like these)"
        )


def counted(against: str) -> str:
    """The verb for samples that fail: "differ" from the model's answer, or "are wrong there" by the labels."""
    return _COUNTED[against]


@dataclass(frozen=True, kw_only=True)
class Failures:
    """Number of failures among the samples of a class, or of a part of the data."""

    name: str
    samples: int
    failures: int

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Exact interval of the probability to fail (Clopper and Pearson 1934); (0, 1) of no samples."""
        from scipy.stats import beta

        if not self.samples:
            return 0.0, 1.0
        half, k, n = (1 - confidence) / 2, self.failures, self.samples
        low = 0.0 if k == 0 else float(beta.ppf(half, k, n - k + 1))
        return low, 1.0 if k == n else float(beta.ppf(1 - half, k + 1, n - k))

    def excess(self, tolerance: float) -> float:
        """The chance of at least so many failures if each sample fails with the probability `tolerance`.

        A valid p-value of "it fails no more often than the tolerance".
        """
        from scipy.special import bdtrc

        return float(bdtrc(self.failures - 1, self.samples, tolerance))

    def __str__(self) -> str:
        low, high = (100 * bound for bound in self.interval())
        share = 100 * self.failures / max(1, self.samples)
        return f"{self.failures:,} of {self.samples:,} ({share:.1f} %, exact 95 % interval {low:.1f}–{high:.1f})"


def p_value(failures: int, samples: int, tolerance: float) -> float:
    """Exact binomial p-value: the chance of at most so many failures if each sample fails with probability `tolerance`.

    It bounds the chance for any larger probability too: a valid p-value of "it fails more often than the tolerance".

    Example:
        >>> round(p_value(0, 299, 0.01), 4), round(p_value(0, 298, 0.01), 4)
        (0.0495, 0.05)
    """
    from scipy.special import bdtr

    return float(bdtr(failures, samples, tolerance))


def least_samples(tolerance: float, confidence: float) -> int:
    """The minimum number of samples for a certificate: enough if none of them fails.

    Example:
        >>> least_samples(0.01, 0.95), least_samples(0.05, 0.95)
        (299, 59)
    """
    check_level("tolerance", tolerance)
    check_level("confidence", confidence)
    fewest = max(1, math.ceil(math.log1p(-confidence) / math.log1p(-tolerance)))
    # rounding may be off by one either way; the test itself decides
    while p_value(0, fewest, tolerance) > 1 - confidence:
        fewest += 1
    while fewest > 1 and p_value(0, fewest - 1, tolerance) <= 1 - confidence:
        fewest -= 1
    return fewest


def most_failures(samples: int, tolerance: float, confidence: float) -> int:
    """The maximum number of failures among so many samples that still gives a certificate; -1 if none does.

    Example:
        >>> most_failures(1000, 0.01, 0.95), most_failures(299, 0.01, 0.95), most_failures(298, 0.01, 0.95)
        (4, 0, -1)
    """
    from scipy.special import bdtr

    return int((bdtr(np.arange(samples + 1), samples, tolerance) <= 1 - confidence).sum()) - 1


def certified(
    failures: Iterable[int], samples: int, *, against: str, tolerance: float, confidence: float
) -> list[Certificate]:
    """Certificates of the candidates that pass, tested in order up to the first that fails.

    `failures` are those of each candidate on the same samples, the safest first, in an order fixed before looking at
    them. `confidence` is the level of all certificates together.

    Raises:
        CertificateError: a level outside (0, 1), an unknown `against`, or too few samples.

    Example:
        >>> certificates = certified([0, 3, 40, 2], 1000, against="model", tolerance=0.01, confidence=0.95)
        >>> [certificate.failures for certificate in certificates]
        [0, 3]
    """
    check_against(against)
    require_samples(samples, tolerance=tolerance, confidence=confidence)
    certificates = []
    for count in failures:
        if not passes(count, samples, tolerance=tolerance, confidence=confidence):
            break
        certificate = Certificate(
            against=against,
            tolerance=tolerance,
            confidence=confidence,
            samples=samples,
            failures=count,
            p_value=p_value(count, samples, tolerance),
        )
        certificates.append(certificate)
    return certificates


def passes(failures: int, samples: int, *, tolerance: float, confidence: float) -> bool:
    """Whether the exact test certifies the tolerance from so many failures."""
    return p_value(failures, samples, tolerance) <= 1 - confidence


def one_of_each(contents: Shaped[np.ndarray, " n"], seed: int = 0) -> Int64[np.ndarray, " m"]:
    """Indices of one row of each distinct content, in order; which of several copies is drawn by a seed.

    Copies may have different labels, and no rule that looks at these would be fair.

    Example:
        >>> one_of_each(np.array([7, 7, 3, 7])).tolist()
        [0, 2]
    """
    order = np.random.default_rng(seed).permutation(len(contents))
    first = np.unique(contents[order], return_index=True)[1]
    return np.sort(order[first])


def fails(
    early: Integer[np.ndarray, " n"],
    final: Integer[np.ndarray, " n"],
    labels: Integer[np.ndarray, " n"] | None,
    against: str,
) -> Bool[np.ndarray, " n"]:
    """Which early answers fail.

    Against "model": where the top classes `early` at the exit and `final` of the full model differ. Against "labels":
    where the full model is right and the early answer wrong, which bounds how far accuracy can fall.

    Example:
        >>> early, final, labels = np.array([0, 1, 2]), np.array([0, 2, 1]), np.array([0, 1, 1])
        >>> fails(early, final, labels, "model").tolist(), fails(early, final, labels, "labels").tolist()
        ([False, True, True], [False, False, True])
    """
    if against == "model":
        return np.asarray(early != final)
    if labels is None:
        raise CertificateError("there are no labels to compare answers with: add them, or use against='model'")
    return np.asarray((final == labels) & (early != labels))


@dataclass(frozen=True, kw_only=True)
class MinimalDepth:
    """The shallowest depth whose answers are certified to replace those of depth L.

    Attributes:
        depth: 1..L; L if nothing shallower could be certified.
        last: L.
        certificate: of `depth`; None at L, which needs none.
        notes: whether samples repeat.
    """

    depth: int
    last: int
    certificate: Certificate | None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.certificate is None:
            return f"depth {self.last}: nothing shallower could be certified"
        return f"depth {self.depth} of {self.last}: {self.certificate}"


def minimal_depth(
    predictions: Integer[np.ndarray, "n k"],
    labels: Integer[np.ndarray, " n"] | None,
    *,
    against: str,
    tolerance: float,
    confidence: float,
    contents: Shaped[np.ndarray, " n"] | None = None,
) -> MinimalDepth:
    """The shallowest depth certified to replace depth L: tested downwards from L - 1, up to the first that fails.

    Args:
        predictions: top class of each sample at the depths 0..L; samples must be independent.
        labels: the true classes; needed against labels only.
        against: what counts as a failure, see `fails`.
        tolerance: maximum probability of a failure, in (0, 1).
        confidence: level of the certificate over the draw of the samples, in (0, 1).
        contents: a value for each sample that is equal where contents repeat: these count once. None if none repeats.

    Raises:
        CertificateError: a level outside (0, 1), no labels, or too few distinct samples.

    Example:
        >>> predictions = np.tile([9, 1, 2, 2], (500, 1))
        >>> minimal = minimal_depth(predictions, None, against="model", tolerance=0.01, confidence=0.95)
        >>> minimal.depth, minimal.certificate.failures
        (2, 0)
    """
    last, count = predictions.shape[1] - 1, len(predictions)
    kept = np.arange(count) if contents is None else one_of_each(contents)
    require_samples(len(kept), tolerance=tolerance, confidence=confidence, count=count)

    def failures() -> Iterator[int]:
        for depth in range(last - 1, 0, -1):
            failed = fails(predictions[:, depth], predictions[:, last], labels, against)
            if len(kept) < count and not passes(int(failed.sum()), count, tolerance=tolerance, confidence=confidence):
                return
            yield int(failed[kept].sum())

    passed = certified(failures(), len(kept), against=against, tolerance=tolerance, confidence=confidence)
    return MinimalDepth(
        depth=last - len(passed),
        last=last,
        certificate=passed[-1] if passed else None,
        notes=repeats(count - len(kept), count),
    )


def repeats(copies: int, count: int, what: str = "samples") -> tuple[str, ...]:
    """A note on samples that repeat others; none without copies."""
    if not copies:
        return ()
    return (f"{copies:,} of {count:,} {what} repeat others: each content counts once, {count - copies:,} in all",)


def require_samples(
    distinct: int,
    *,
    tolerance: float,
    confidence: float,
    count: int | None = None,
    certifying: int | None = None,
    share: float = 1.0,
    what: str = "samples",
) -> None:
    """Check that there are enough distinct samples, among `count` in all, to certify a tolerance.

    Where only a `share` of the distinct samples certifies, `certifying` is their number. `what` names them.

    Raises:
        CertificateError: there are not.
    """
    needed, available = least_samples(tolerance, confidence), distinct if certifying is None else certifying
    if available >= needed:
        return
    repeated = count is not None and distinct < count
    samples = f"{distinct:,} distinct {what} among {count:,}" if repeated else f"{distinct:,} {what}"
    part = "" if certifying is None else f", of which {certifying:,} can certify"
    missing = f"{max(1, round(needed / share) - distinct):,} {'other ones' if repeated else 'more'}"
    raise CertificateError(
        f"there are {samples}{part}, and to certify a tolerance of {tolerance:.3g} with {confidence:.3g} confidence "
        f"takes at least {needed:,}, even without a failure: get {missing}, or raise the tolerance"
    )


def check_against(against: str) -> None:
    """Check that `against` is "model" or "labels".

    Raises:
        CertificateError: it is not.
    """
    if against not in get_args(Against):
        raise CertificateError(f"against is {against!r}, expected 'model' or 'labels'")


def check_level(name: str, value: float) -> None:
    """Check that a probability lies strictly between 0 and 1, so far from both that rounding cannot tell it apart.

    Raises:
        CertificateError: it does not.
    """
    if not (0 < value < 1 and 0 < 1 - value < 1):
        raise CertificateError(f"{name} is {value}, expected a number between 0 and 1")
