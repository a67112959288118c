"""Every interval covers 95 % ± 2 %, in simulations at n = 200 and 1,000; minutes, so left to `make bench`.

Those of `rsa` and `cka_rbf` are in their own files, the permutation test's size is in test_chance.py, and Wilson's
interval is held against exact probabilities in test_intervals.py.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from naive_measures import Ragged
from scipy import stats

from anydepth.measures import MEASURES, similarities
from anydepth.stats.agreement import agreement
from anydepth.stats.intervals import t_interval
from anydepth.stats.paired import paired

pytestmark = pytest.mark.slow

DEPTHS = 13
SIZES = [(200, 800), (1000, 400)]
Draw = Callable[[np.random.Generator, int], np.ndarray]


def near(share: float, runs: int) -> bool:
    """Within 2 points of 95 %, but for two standard errors of the simulation itself."""
    return abs(share - 0.95) <= 0.02 + 2 * (0.05 * 0.95 / runs) ** 0.5


# --- similarity ------------------------------------------------------------------------------------------------------


def drifting(rng: np.random.Generator, n: int, width: int, noise: float, *, alike: bool = False) -> list[np.ndarray]:
    """Two depths of which the second is the first, bent, moved away from the origin, and with noise of its own.

    The variance of feature k is 1 / k, as that of states falls off; or that of all of them is `alike`.
    """
    turn = np.random.default_rng(7).normal(size=(width, width)) / width**0.5
    scale = np.ones(width) if alike else np.arange(1, width + 1) ** -0.5
    first = (rng.normal(size=(n, width)) + 0.5) * scale
    return [first, first + np.maximum(first @ turn, 0) + noise * scale * rng.normal(size=(n, width))]


def coverage(n: int, runs: int, width: int, noise: float, *, alike: bool = False) -> dict[str, float]:
    """Share of intervals that hold the values of 300,000 rows."""
    many = drifting(np.random.default_rng(99), 300_000, width, noise, alike=alike)
    truth = similarities(Ragged(many), list(COVERED), jackknife_groups=None)
    held = dict.fromkeys(COVERED, 0)
    for run in range(runs):
        states = Ragged(drifting(np.random.default_rng(run), n, width, noise, alike=alike))
        for name, one in similarities(states, list(COVERED)).items():
            assert one.low is not None
            assert one.high is not None
            held[name] += int(one.low[0, 1] <= truth[name].value[0, 1] <= one.high[0, 1])
    return {name: count / runs for name, count in held.items()}


COVERED = ("cosine", "cosine_raw", "cka")


def test_no_measure_with_an_interval_is_forgotten() -> None:
    assert {name for name, measure in MEASURES.items() if measure.interval} == {*COVERED, "rsa", "cka_rbf"}


@pytest.mark.parametrize(("n", "runs"), SIZES)
@pytest.mark.parametrize(("width", "noise"), [(8, 0.5), (8, 2.0), (100, 1.0)])
def test_intervals_of_similarity(n: int, runs: int, width: int, noise: float) -> None:
    found = coverage(n, runs, width, noise)
    assert all(near(share, runs) for share in found.values()), found


def test_the_interval_of_cka_is_too_wide_rather_than_too_narrow_where_all_directions_are_alike() -> None:
    """What single rows add is then little beside what pairs of them do, which the jackknife counts twice."""
    found = coverage(200, 400, 100, 1.0, alike=True)
    assert near(found["cosine"], 400)
    assert found["cka"] > 0.95


# --- differences -----------------------------------------------------------------------------------------------------


def logits(rng: np.random.Generator, n: int, better: float) -> tuple[np.ndarray, np.ndarray]:
    """How sure two models are of the right answer, (n, 13) each: of samples that are hard or easy for both."""
    depth, hard = np.linspace(-1, 1.5, DEPTHS), rng.normal(size=(n, 1))
    one, other = (depth - hard + 0.6 * rng.normal(size=(n, 1)) + 0.3 * rng.normal(size=(n, DEPTHS)) for _ in range(2))
    return one, other + better


def accuracy(rng: np.random.Generator, n: int, better: float) -> np.ndarray:
    one, other = logits(rng, n, better)
    return (other > 0).astype(float) - (one > 0)


def confidence(rng: np.random.Generator, n: int, better: float) -> np.ndarray:
    one, other = logits(rng, n, better)
    return 1 / (1 + np.exp(-2 * other)) - 1 / (1 + np.exp(-2 * one))


@pytest.mark.parametrize(("n", "runs"), SIZES)
@pytest.mark.parametrize("better", [0.0, 0.3])
@pytest.mark.parametrize("statistic", [accuracy, confidence])
def test_paired_differences_and_bands_for_all_depths_together(
    statistic: Callable[..., np.ndarray], better: float, n: int, runs: int
) -> None:
    """With `better` 0 the two do not differ: a band that leaves out zero anywhere is a false verdict."""
    draws = [statistic(np.random.default_rng(10**6 + draw), 100_000, better).mean(0) for draw in range(20)]
    truth = np.mean(draws, axis=0) if better else np.zeros(DEPTHS)
    own, together, verdicts = np.zeros(DEPTHS), 0, 0
    for run in range(runs):
        found = paired(statistic(np.random.default_rng(run), n, better), seed=run)
        own += (found.low <= truth) & (truth <= found.high)
        together += bool(((found.low_all <= truth) & (truth <= found.high_all)).all())
        verdicts += set(found.verdicts) != {"not significant"}
    assert all(near(share, runs) for share in own / runs), own / runs
    assert near(together / runs, runs), together / runs
    if not better:
        assert near(1 - verdicts / runs, runs)


def test_bands_of_answers_that_hardly_ever_differ_are_too_wide_rather_than_too_narrow() -> None:
    runs, together = 400, 0
    for run in range(runs):
        rng = np.random.default_rng(run)
        rows = rng.choice([-1.0, 0.0, 1.0], p=[0.01, 0.98, 0.01], size=(200, DEPTHS))
        found = paired(rows, seed=run)
        together += bool(((found.low_all <= 0) & (found.high_all >= 0)).all())
    assert together / runs >= 0.93


# --- means of the readout --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "runs"), [(200, 4000), (1000, 4000)])
@pytest.mark.parametrize("skewed", [False, True])
def test_means_of_samples(skewed: bool, n: int, runs: int) -> None:
    """Confidence is bounded; cross-entropy has a long tail."""

    def draw(rng: np.random.Generator) -> np.ndarray:
        return rng.exponential(size=(n, 1)) if skewed else rng.beta(4, 1, size=(n, 1))

    truth, held = (1.0 if skewed else 0.8), 0
    for run in range(runs):
        low, high = t_interval(draw(np.random.default_rng(run)))
        held += int(low[0] <= truth <= high[0])
    assert near(held / runs, runs)


# --- agreement of measures -------------------------------------------------------------------------------------------


def depths_drawn(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two measures of depths drawn from one population: what pairs share comes from the depths they are made of."""
    place, first, second = rng.uniform(size=count), rng.normal(size=count), rng.normal(size=count)
    apart = np.abs(place[:, None] - place)
    a = np.exp(-2 * apart) + 0.08 * (first[:, None] + first)
    b = np.exp(-3 * apart**2) + 0.08 * (second[:, None] + second)
    return a, b


@pytest.mark.parametrize("count", [13, 25, 49])
def test_agreement_over_other_choices_of_depths(count: int) -> None:
    """Of as many depths as models have: not n = 200, but what there is. It errs, if at all, on the safe side."""
    a, b = (matrix[np.triu_indices(1500, 1)] for matrix in depths_drawn(1500, np.random.default_rng(0)))
    truth = {"pearson": stats.pearsonr(a, b).statistic, "spearman": stats.spearmanr(a, b).statistic}
    runs, held = 400, dict.fromkeys(truth, 0)
    for run in range(runs):
        found = agreement(*depths_drawn(count, np.random.default_rng(run + 1)))
        for name, value in truth.items():
            _, low, high = getattr(found, name)
            held[name] += int(low <= value <= high)
    assert all(0.92 <= share / runs <= 0.99 for share in held.values()), held
