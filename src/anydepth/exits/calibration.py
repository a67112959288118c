"""How loose a policy may be: thresholds tuned, certified and proved on different samples.

A path of levels, from strict to loose, is laid through the scores of the samples to tune on. Along it, on samples that
took no part in that, exact tests are made until one fails (`anydepth.certificates`); the last level that passed is
taken. A third part shows what it does, with no say in the choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64

from anydepth.calling import device_of, to_device
from anydepth.certificates import Certificate, certified, check_against, fails, least_samples
from anydepth.collect import Progress, as_batch
from anydepth.errors import CertificateError, DataError
from anydepth.exits.engine import EarlyExit
from anydepth.exits.policies import AtDepth
from anydepth.questions import Questions
from anydepth.surgery import evaluating

SHARES = (0.25, 0.5, 0.25)
"""Of the samples: to tune on, to certify by, and to prove it on."""
_LEVELS = 200
"""Steps of the path at most. More cost no confidence, only time."""


@dataclass(frozen=True)
class Shown:
    """What every tested depth shows of every sample: enough to tell what any level would do.

    Attributes:
        depths: those tested, ascending, and L.
        scores: (N, tested).
        predictions: (N, tested + 1) top class at each of `depths`.
        labels: the true classes; None if there are none.
    """

    depths: tuple[int, ...]
    scores: Float64[np.ndarray, "n t"]
    predictions: Int64[np.ndarray, "n s"]
    labels: Int64[np.ndarray, " n"] | None

    def __len__(self) -> int:
        return len(self.scores)

    def rows(self, which: Int64[np.ndarray, " m"]) -> Shown:
        """Some of the samples."""
        labels = None if self.labels is None else self.labels[which]
        return Shown(self.depths, self.scores[which], self.predictions[which], labels)

    def leaving(self, level: float) -> Int64[np.ndarray, " n"]:
        """Where each sample leaves at a level, as an index of `depths`."""
        reached = np.hstack([self.scores >= level, np.ones((len(self), 1), dtype=bool)])
        return np.asarray(reached.argmax(axis=1))

    def failures(self, level: float, against: str) -> int:
        """How many samples fail at a level; see `anydepth.certificates.fails`."""
        early = np.take_along_axis(self.predictions, self.leaving(level)[:, None], axis=1)[:, 0]
        return int(fails(early, self.predictions[:, -1], self.labels, against).sum())

    def mean_depth(self, level: float) -> float:
        """Blocks that a sample goes through at a level, on the mean."""
        return float(np.array(self.depths)[self.leaving(level)].mean())


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


def calibrate(
    exits: EarlyExit,
    data: Iterable[Any],
    *,
    tolerance: float = 0.01,
    confidence: float = 0.95,
    against: str = "model",
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[EarlyExit, Calibration]:
    """Find how loose a policy may be with a guarantee.

    Args:
        exits: with a policy of the kind wanted; its threshold is what is looked for.
        data: batches as `anydepth.trace` takes them; independent samples that were not trained on, drawn like those to
            come.
        tolerance: the probability of a failure that must not be exceeded, in (0, 1).
        confidence: of that promise over the draw of the data, in (0, 1).
        against: "model": a failure is another answer than the full model's. "labels": one that is wrong where the
            full model is right.
        seed: of the split into three parts.
        progress: called with what is done, how much there is, and what it is.

    Returns:
        The same with the threshold found, or with `AtDepth(L)` if none could be certified; and what was found.

    Raises:
        CertificateError: a level outside (0, 1), too few samples, no labels, or nothing to calibrate (`AtDepth`).
    """
    check_against(against)
    needed = least_samples(tolerance, confidence)
    if isinstance(exits.policy, AtDepth):
        raise CertificateError("AtDepth has no threshold to calibrate: see Trace.minimal_depth, and truncate")
    shown = look(exits, data, labels=against == "labels", progress=progress)
    order = np.random.default_rng(seed).permutation(len(shown))
    first, second = (round(share * len(shown)) for share in (SHARES[0], SHARES[0] + SHARES[1]))
    tune, certify, prove = (shown.rows(part) for part in np.split(order, [first, second]))
    if len(certify) < needed:
        raise CertificateError(
            f"there are {len(shown):,} samples, of which {len(certify):,} can certify, and to promise {tolerance:.3g} "
            f"with {confidence:.3g} confidence takes at least {needed:,}: get {round(needed / SHARES[1]):,} in all, or "
            "raise the tolerance"
        )
    found = settle(tune, certify, prove, tolerance=tolerance, confidence=confidence, against=against)
    last = exits.stack.depth
    policy = AtDepth(last) if found.level is None else exits.policy.at_level(found.level)
    return EarlyExit(exits.stack, policy), found


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


def levels(tune: Shown) -> list[float]:
    """The path: scores that were seen, from the highest down, evenly spread over how many samples they let go."""
    seen = np.unique(tune.scores[np.isfinite(tune.scores)])[::-1]
    if not len(seen):
        raise CertificateError("every score is NaN or infinite: the policy tells nothing of this model")
    kept = np.unique(np.linspace(0, len(seen) - 1, min(_LEVELS, len(seen))).round().astype(int))
    return [float(level) for level in seen[kept]]


def look(
    exits: EarlyExit,
    data: Iterable[Any],
    *,
    labels: bool,
    progress: Progress | None = None,
) -> Shown:
    """Score every sample at every tested depth, in one pass that lets nobody go.

    Raises:
        DataError: there is no batch.
    """
    stack, scores, predictions, truths = exits.stack, [], [], []
    device = device_of(stack.model)
    total = len(data) if isinstance(data, Sized) else None
    with evaluating(stack.model), torch.no_grad():
        for index, item in enumerate(data):
            batch, truth, _ = as_batch(item, 0)
            batch = to_device(batch, device)
            states, answer = stack.forward(batch)
            memory, of_batch, tops = None, [], []
            for depth in exits.tested:
                logits = stack.readout(states[depth], batch, depth=depth)
                score, memory = exits.policy.scores(depth, exits.seen(states[depth], batch, logits), memory)
                of_batch.append(score.double().cpu())
                tops.append(logits.argmax(1).cpu())
            scores.append(torch.stack(of_batch, 1))
            predictions.append(torch.stack([*tops, answer.argmax(1).cpu()], 1))
            if labels:
                truths.append(Questions.of(stack, batch, truth, answer).labels.cpu())
            if progress:
                progress(index + 1, total, "batches")
    if not scores:
        raise DataError("the data set is empty: expected at least one batch")
    depths = (*exits.tested, stack.depth)
    known = torch.cat(truths).numpy() if labels else None
    return Shown(depths, torch.cat(scores).numpy(), torch.cat(predictions).numpy(), known)
