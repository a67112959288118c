"""What a finite sample can promise of stopping early: exact tests, one after the other along a path stated beforehand.

A loss of 0 or 1 is looked at on n samples, drawn independently from where new inputs will come from. If its
probability is more than the tolerance, then the chance of seeing as few failures as were seen is at most the binomial
p-value, exactly. Candidates are tested along a path fixed before the data are looked at, and testing stops at the
first that fails: so all that pass hold together with the stated confidence, with no price for their number (fixed
sequence testing; Learn then Test, arXiv:2110.01052).

Copies of a sample are not drawn independently, so each content counts once. Where copies say how often an input comes
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
"""What an early answer is held against: the full model's answer, or the labels."""

_EVENT = {"model": "answer ≠ full model's", "labels": "answer wrong where the full model's is right"}
_COUNTED = {"model": "differ", "labels": "are wrong there"}


@dataclass(frozen=True)
class Certificate:
    """What is promised, of what, and on what grounds.

    Attributes:
        against: "model" or "labels".
        tolerance: the probability of a failure that is promised not to be exceeded.
        confidence: of the promise, over the draw of the samples it was tested on.
        samples: how many those were.
        failures: on how many of them it failed.
        p_value: of the test; at most 1 - confidence.
    """

    against: str
    tolerance: float
    confidence: float
    samples: int
    failures: int
    p_value: float

    def __str__(self) -> str:
        seen = f"{self.failures:,} of {self.samples:,} calibration samples {counted(self.against)}"
        return (
            f"certified at {100 * self.confidence:.3g} % confidence: P({_EVENT[self.against]}) ≤ "
            f"{100 * self.tolerance:.3g} % ({seen}, exact binomial p = {self.p_value:.2g}; assumes new inputs drawn "
            "like these)"
        )


def counted(against: str) -> str:
    """What samples that fail do, as a verb: "differ", or "are wrong there"."""
    return _COUNTED[against]


@dataclass(frozen=True, kw_only=True)
class Failures:
    """How many of some samples fail.

    Attributes:
        name: of these samples: a class, or a part of the data.
        samples: how many they are.
        failures: how many of them fail.
    """

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
    """The chance of at most so many failures if each sample fails with the probability `tolerance`.

    Exact, and right for any larger probability too: a valid p-value of "it fails more often than the tolerance".

    Args:
        failures: seen, 0..samples.
        samples: looked at.
        tolerance: in (0, 1).

    Example:
        >>> round(p_value(0, 299, 0.01), 4), round(p_value(0, 298, 0.01), 4)
        (0.0495, 0.05)
    """
    from scipy.special import bdtr

    return float(bdtr(failures, samples, tolerance))


def least_samples(tolerance: float, confidence: float) -> int:
    """How many samples it takes to promise anything at all: with no failure among them.

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
    """How many of as many samples may fail for a promise still to be made; -1 if not even none.

    Args:
        samples: that certify.
        tolerance: see `certified`.
        confidence: likewise.

    Example:
        >>> most_failures(1000, 0.01, 0.95), most_failures(299, 0.01, 0.95), most_failures(298, 0.01, 0.95)
        (4, 0, -1)
    """
    from scipy.special import bdtr

    return int((bdtr(np.arange(samples + 1), samples, tolerance) <= 1 - confidence).sum()) - 1


def certified(
    failures: Iterable[int], samples: int, *, against: str, tolerance: float, confidence: float
) -> list[Certificate]:
    """Test candidates in order until one fails.

    Args:
        failures: of each candidate on the same samples, along a path that was fixed before they were looked at, from
            the safest on.
        samples: how many those are.
        against: "model" or "labels".
        tolerance: the probability of failure that must not be exceeded, in (0, 1).
        confidence: with which all that pass hold together, in (0, 1).

    Returns:
        A certificate for each candidate up to the first that could not be certified; none if that is the first.

    Raises:
        CertificateError: a level outside (0, 1), something unknown to hold answers against, or too few samples.

    Example:
        >>> found = certified([0, 3, 40, 2], 1000, against="model", tolerance=0.01, confidence=0.95)
        >>> [one.failures for one in found]
        [0, 3]
    """
    check_against(against)
    if samples < (needed := least_samples(tolerance, confidence)):
        raise CertificateError(
            f"there are {samples:,} samples, and to promise {tolerance:.3g} with {confidence:.3g} confidence takes at "
            f"least {needed:,}, even without a failure: get {needed - samples:,} more, or raise the tolerance"
        )
    found = []
    for count in failures:
        p = p_value(count, samples, tolerance)
        if p > 1 - confidence:
            break
        found.append(Certificate(against, tolerance, confidence, samples, count, p))
    return found


def passes(failures: int, samples: int, *, tolerance: float, confidence: float) -> bool:
    """Whether so few failures show, by the exact test, that the tolerance is kept."""
    return p_value(failures, samples, tolerance) <= 1 - confidence


def one_of_each(contents: Shaped[np.ndarray, " n"], seed: int = 0) -> Int64[np.ndarray, " m"]:
    """One row of each distinct content, in order; which of several copies stays is drawn by a seed.

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
    """Where an early answer fails.

    Args:
        early: top classes of the early answers.
        final: those of the full model.
        labels: the true classes; needed against labels only.
        against: "model": the two differ. "labels": the full model is right and the early answer wrong, which bounds
            how far accuracy can fall.

    Example:
        >>> early, final, labels = np.array([0, 1, 2]), np.array([0, 2, 1]), np.array([0, 1, 1])
        >>> fails(early, final, labels, "model").tolist(), fails(early, final, labels, "labels").tolist()
        ([False, True, True], [False, False, True])
    """
    if against == "model":
        return np.asarray(early != final)
    if labels is None:
        raise CertificateError("there are no labels to hold answers against: add them, or take against='model'")
    return np.asarray((final == labels) & (early != labels))


@dataclass(frozen=True)
class MinimalDepth:
    """The shallowest depth that was certified to take the place of the last one.

    Attributes:
        depth: 1..L; L if nothing shallower could be certified.
        last: L.
        certificate: what is promised of `depth`; None at L, where there is nothing to promise.
        notes: what a reader should know: whether samples repeat.
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
    """The shallowest depth that can take the place of L: tested downwards from L - 1, up to the first that fails.

    Args:
        predictions: top class of each sample at the depths 0..L; samples must be independent.
        labels: the true classes; needed against labels only.
        against: "model": a failure is an answer that differs from depth L's. "labels": one that is wrong where depth
            L's is right.
        tolerance: the probability of a failure that must not be exceeded, in (0, 1).
        confidence: of that promise over the draw of the samples, in (0, 1).
        contents: what tells the content of each sample: of several with the same one counts. None if none repeats.

    Raises:
        CertificateError: a level outside (0, 1), no labels, or too few distinct samples.

    Example:
        >>> settled = np.tile([9, 1, 2, 2], (500, 1))
        >>> found = minimal_depth(settled, None, against="model", tolerance=0.01, confidence=0.95)
        >>> found.depth, found.certificate.failures
        (2, 0)
    """
    last, count = predictions.shape[1] - 1, len(predictions)
    kept = np.arange(count) if contents is None else one_of_each(contents)
    needed = least_samples(tolerance, confidence)
    if len(kept) < min(needed, count):
        raise CertificateError(too_few(len(kept), count, needed, tolerance, confidence))

    def failures() -> Iterator[int]:
        for depth in range(last - 1, 0, -1):
            failed = fails(predictions[:, depth], predictions[:, last], labels, against)
            if len(kept) < count and not passes(int(failed.sum()), count, tolerance=tolerance, confidence=confidence):
                return
            yield int(failed[kept].sum())

    found = certified(failures(), len(kept), against=against, tolerance=tolerance, confidence=confidence)
    return MinimalDepth(last - len(found), last, found[-1] if found else None, repeats(count - len(kept), count))


def repeats(copies: int, count: int, what: str = "samples") -> tuple[str, ...]:
    """A note on samples that repeat others; none if there are none."""
    if not copies:
        return ()
    return (f"{copies:,} of {count:,} {what} repeat others: each content counts once, {count - copies:,} in all",)


def too_few(distinct: int, count: int, needed: int, tolerance: float, confidence: float, what: str = "samples") -> str:
    """What to say of too few distinct samples."""
    return (
        f"there are {distinct:,} distinct {what} among {count:,}, and to promise {tolerance:.3g} with {confidence:.3g} "
        f"confidence takes at least {needed:,}, even without a failure: repeated ones count once; get more, or raise "
        "the tolerance"
    )


def check_against(against: str) -> None:
    """See that there is such a thing to hold answers against.

    Raises:
        CertificateError: there is not.
    """
    if against not in get_args(Against):
        raise CertificateError(f"answers are held against {against!r}, expected 'model' or 'labels'")


def check_level(name: str, value: float) -> None:
    """See that a probability lies strictly between 0 and 1, and so far from both that rounding cannot tell it apart.

    Raises:
        CertificateError: it does not.
    """
    if not (0 < value < 1 and 0 < 1 - value < 1):
        raise CertificateError(f"{name} is {value}, expected a number between 0 and 1")
