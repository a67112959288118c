from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from exit_models import batches

from anydepth.early_exit.classifier import EarlyExit
from anydepth.errors import CertificateError, DataError
from anydepth.exits.calibration import Calibration, loosest_certified
from anydepth.exits.exit_scores import ExitScores
from anydepth.exits.policies import AtDepth, Confidence, Convergence, Entropy, Margin, Patience, Policy
from anydepth.exits.tuning import levels
from anydepth.stats import certificates


def population(count: int, *, seed: int = 0) -> ExitScores:
    """Three tested depths of four; the surer and the deeper, the likelier it is to agree with the last."""
    rng = np.random.default_rng(seed)
    final = rng.integers(0, 10, count)
    scores = rng.random((count, 3))
    agrees = rng.random((count, 3)) < 1 - 0.6 * (1 - scores) ** np.array([1.0, 1.5, 2.0])
    early = np.where(agrees, final[:, None], (final[:, None] + 1) % 10)
    return ExitScores(
        depths=(1, 2, 3, 4),
        scores=scores,
        predictions=np.hstack([early, final[:, None]]),
        labels=rng.integers(0, 10, count),
    )


POOL = population(20_000)


def violations(tolerance: float, draws: int, size: int) -> tuple[int, int]:
    """How often the level taken truly fails more often than promised, and how often one was taken.

    Samples are drawn with replacement, so that the pool is the population, and its share of failures the truth.
    """
    rng = np.random.default_rng(1)
    broken = taken = 0
    for _ in range(draws):
        tune, certify = (POOL.rows(rng.integers(0, len(POOL), size)) for _ in range(2))
        found = loosest_certified(tune, certify, tune, tolerance=tolerance, confidence=0.9, against="model")
        if found.level is not None:
            taken += 1
            broken += POOL.failures(found.level, "model") / len(POOL) > tolerance
    return broken, taken


DRAWS = 300
"""So many tell a promise that is kept from one of p-values four times too small, as the second test shows."""
ALLOWED = 0.1 * DRAWS + 3 * math.sqrt(DRAWS * 0.1 * 0.9)


def test_the_promise_is_kept() -> None:
    broken, taken = violations(0.1, DRAWS, 400)
    assert taken > 0.99 * DRAWS, "and it is not vacuous"
    assert broken <= ALLOWED


def test_a_wrong_p_value_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = certificates.p_value
    monkeypatch.setattr(certificates, "p_value", lambda *given: right(*given) / 4)
    broken, _ = violations(0.1, DRAWS, 400)
    assert broken > ALLOWED


def test_more_samples_let_more_go() -> None:
    """Against the best level there is, known from the whole pool."""
    best = min(level for level in levels(POOL) if POOL.failures(level, "model") / len(POOL) <= 0.1)
    saved = {}
    for size in (500, 2_000, 10_000):
        rng = np.random.default_rng(size)
        kept = []
        for _ in range(20):
            tune, certify = (POOL.rows(rng.integers(0, len(POOL), size)) for _ in range(2))
            found = loosest_certified(tune, certify, tune, tolerance=0.1, confidence=0.95, against="model")
            assert found.level is not None
            kept.append((4 - POOL.mean_depth(found.level)) / (4 - POOL.mean_depth(best)))
        saved[size] = np.mean(kept)
    assert 0.7 < saved[500] < saved[2_000] < saved[10_000] <= 1.01


def test_what_a_level_would_do() -> None:
    shown = population(300, seed=3)
    for level in (-1.0, 0.3, 0.9, 2.0):
        leaving = [next((i for i, score in enumerate(row) if score >= level), 3) for row in shown.scores]
        assert shown.exit_index(level).tolist() == leaving
        assert shown.mean_depth(level) == pytest.approx(np.mean([shown.depths[i] for i in leaving]))
        differing = [row[i] != row[-1] for i, row in zip(leaving, shown.predictions, strict=True)]
        assert shown.failures(level, "model") == sum(differing)


def test_the_path_goes_from_strict_to_loose_and_knows_its_own_part_only() -> None:
    tune = population(100, seed=5)
    path = levels(tune)
    assert path == sorted(path, reverse=True)
    assert path[0] == tune.scores.max()
    assert path[-1] == tune.scores.min()
    assert set(path) <= set(tune.scores.ravel())
    depths = [tune.mean_depth(level) for level in path]
    assert depths == sorted(depths, reverse=True)


def test_nothing_to_certify() -> None:
    shown = population(400)
    never = ExitScores(
        depths=shown.depths,
        scores=shown.scores,
        predictions=np.hstack([shown.predictions[:, :3] * 0 - 1, shown.predictions[:, 3:]]),
        labels=None,
    )
    found = loosest_certified(never, never, never, tolerance=0.01, confidence=0.95, against="model")
    assert found == Calibration(
        certificate=None, level=None, samples=(400, 400, 400), held_out_failures=0, held_out_depth=4.0
    )
    assert str(found) == "nothing could be certified: every sample goes to the last depth"


@pytest.mark.parametrize(
    "policy", [Confidence(0.5), Margin(0.5), Entropy(0.5), Patience(2), Convergence(0.5), Confidence(0.5, depths=(2,))]
)
def test_what_was_looked_at_is_what_the_engine_does(policy: Policy) -> None:
    model, parts = batches("bert")
    exits = EarlyExit(model, policy).calibrate(parts, tolerance=0.4, confidence=0.6, against="labels", tune=False)
    found = exits.calibration
    assert found is not None
    assert found.level is not None
    assert type(exits.policy) is type(policy)
    assert exits.policy.level == found.level, "to the last bit"
    assert exits.policy.depths == policy.depths
    shown = exits.look(parts, labels=True).under(exits.policy)
    near = 0.0 if isinstance(policy, Patience) else 1e-4  # counts are exact
    close = (np.abs(shown.scores - found.level) < near).any(axis=1)
    assert close.mean() < 0.2
    depths = np.array(shown.depths)[shown.exit_index(found.level)]
    left = torch.cat([exits(batch).depth for batch in parts]).numpy()
    assert np.array_equal(depths[~close], left[~close])
    assert shown.labels is not None
    assert shown.labels.tolist() == torch.cat([batch["labels"] for batch in parts]).tolist()


def test_the_parts_do_not_overlap_and_the_split_follows_the_seed() -> None:
    model, parts = batches("bert", count=80)
    exits = EarlyExit(model, Confidence(0.5))
    settings = {"tolerance": 0.3, "confidence": 0.8}
    one, same, other = (exits.calibrate(parts, **settings, seed=seed).calibration for seed in (0, 0, 1))
    assert one is not None
    assert other is not None
    assert one == same
    assert one.samples == other.samples == (20, 40, 20)
    assert one.level != other.level
    assert one.certificate is not None
    assert one.certificate.samples == 40
    assert str(one).startswith("certified at 80 % confidence: P(answer ≠ full model's) ≤ 30 % (")
    assert f"held out: {one.held_out_failures} of 20 (" in str(one)
    assert "; by class: " in str(one)
    assert sum(of.samples for of in one.classes) == 60, "those that certified and those held out"


def test_bad_input() -> None:
    model, parts = batches("bert")
    exits = EarlyExit(model, Confidence(0.5))

    def message(given: EarlyExit = exits, data: Any = parts, **settings: Any) -> str:
        with pytest.raises((CertificateError, DataError)) as caught:
            given.calibrate(data, **settings)
        return str(caught.value)

    assert message() == (
        "there are 40 samples, of which 20 can certify, and to certify a tolerance of 0.01 with 0.95 confidence takes "
        "at least 299, even without a failure: get 558 more, or raise the tolerance"
    )
    assert message(tolerance=0.0) == "tolerance is 0.0, expected a number between 0 and 1"
    assert message(confidence=1.0) == "confidence is 1.0, expected a number between 0 and 1"
    assert message(against="taste") == "against is 'taste', expected 'model' or 'labels'"
    assert message(data=[]) == "the data set is empty: expected at least one batch"
    assert message(EarlyExit(model, AtDepth(2))).startswith("AtDepth has no threshold to calibrate: see Trace.minimal_")
    first_depth = EarlyExit(model, Convergence(0.5, depths=(1,)))
    assert message(first_depth, tolerance=0.4, confidence=0.6).startswith("every score is NaN or infinite: the policy")
