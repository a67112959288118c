from __future__ import annotations

import itertools
import math

import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

import anydepth as ad
from anydepth.errors import CertificateError, MeasureError
from anydepth.stats.certificates import (
    Certificate,
    certified,
    fails,
    least_samples,
    minimal_depth,
    most_failures,
    p_value,
)


@pytest.mark.parametrize("tolerance", [0.05, 0.3, 0.5])
@pytest.mark.parametrize("samples", [1, 4, 9])
def test_the_p_value_by_enumeration(samples: int, tolerance: float) -> None:
    """Every outcome of n draws, each with its probability."""
    chance = [0.0] * (samples + 1)
    for outcome in itertools.product((0, 1), repeat=samples):
        failed = sum(outcome)
        chance[failed] += tolerance**failed * (1 - tolerance) ** (samples - failed)
    for failures in range(samples + 1):
        assert p_value(failures, samples, tolerance) == pytest.approx(math.fsum(chance[: failures + 1]), rel=1e-12)


@given(st.floats(1e-4, 0.5), st.floats(0.5, 0.999))
def test_the_least_number_of_samples(tolerance: float, confidence: float) -> None:
    fewest = least_samples(tolerance, confidence)
    assert p_value(0, fewest, tolerance) <= 1 - confidence
    assert fewest == 1 or p_value(0, fewest - 1, tolerance) > 1 - confidence


@given(st.integers(1, 2_000), st.floats(1e-4, 0.5), st.floats(0.5, 0.999))
def test_the_most_failures_that_pass(samples: int, tolerance: float, confidence: float) -> None:
    most = most_failures(samples, tolerance, confidence)
    assert most < 0 or p_value(most, samples, tolerance) <= 1 - confidence
    assert most == samples or p_value(most + 1, samples, tolerance) > 1 - confidence
    assert (most >= 0) == (samples >= least_samples(tolerance, confidence))


def test_the_first_that_fails_ends_it() -> None:
    def passed(*failures: int) -> list[int]:
        found = certified(failures, 1000, against="model", tolerance=0.01, confidence=0.95)
        return [one.failures for one in found]

    # 4 of 1,000 is the most that 1 % at 95 % lets pass
    assert p_value(4, 1000, 0.01) < 0.05 < p_value(5, 1000, 0.01)
    assert passed(0, 4, 3) == [0, 4, 3]
    assert passed(0, 5, 0) == [0], "what comes after a failed test is not looked at"
    assert passed(5, 0) == []


def test_the_promise_is_kept_as_often_as_it_says() -> None:
    """10,000 calibrations of candidates that truly fail more and more often; those beyond the tolerance must not pass.

    The second candidate is barely beyond: a p-value half as large, or one of the wrong tail, would let it pass far more
    often than 1 in 20.
    """
    rng = np.random.default_rng(0)
    truth, tolerance, n = np.array([0.02, 0.0501, 0.08]), 0.05, 400
    counts = rng.binomial(n, truth, size=(10_000, 3))
    passed = np.array(
        [len(certified(row.tolist(), n, against="model", tolerance=tolerance, confidence=0.95)) for row in counts]
    )
    violated = (passed >= 2).mean()
    assert violated <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 10_000)
    # exact tests are discrete: this is the share that its largest passing count gives
    most = max(k for k in range(n) if p_value(k, n, tolerance) <= 0.05)
    assert violated == pytest.approx(p_value(most, n, 0.0501), abs=0.007)
    assert (passed >= 1).mean() > 0.9, "and it is not vacuous"


def test_what_a_failure_is() -> None:
    rng = np.random.default_rng(1)
    early, final, labels = rng.integers(0, 3, size=(3, 200))
    model = [e != f for e, f in zip(early, final, strict=True)]
    wrong = [f == y and e != y for e, f, y in zip(early, final, labels, strict=True)]
    assert fails(early, final, None, "model").tolist() == model
    assert fails(early, final, labels, "labels").tolist() == wrong
    # what the promise against labels is worth: accuracy falls by no more than the share of failures
    assert (final == labels).mean() - (early == labels).mean() <= np.mean(wrong)


def test_shapes_in_signatures_are_checked_while_tests_run() -> None:
    three, two = np.zeros(3, dtype=np.int64), np.zeros(2, dtype=np.int64)
    with pytest.raises(TypeCheckError):
        fails(three, two, None, "model")
    with pytest.raises(TypeCheckError):
        fails(three.astype(float), three, None, "model")


def test_the_minimal_depth_stops_at_the_first_gap() -> None:
    predictions = np.zeros((400, 6), dtype=np.int64)
    predictions[:, 0] = 7
    predictions[:40, 2] = 1  # depth 2 differs often; depth 1, where nothing differs, must not be reached
    found = minimal_depth(predictions, None, against="model", tolerance=0.01, confidence=0.95)
    assert (found.depth, found.last) == (3, 5)
    assert found.certificate == Certificate(
        against="model", tolerance=0.01, confidence=0.95, samples=400, failures=0, p_value=p_value(0, 400, 0.01)
    )
    predictions[:30, 4] = 1
    nothing = minimal_depth(predictions, None, against="model", tolerance=0.01, confidence=0.95)
    assert (nothing.depth, nothing.certificate, str(nothing)) == (
        5,
        None,
        "depth 5: nothing shallower could be certified",
    )


def test_in_words() -> None:
    certificate = Certificate(
        against="labels", tolerance=0.01, confidence=0.95, samples=2000, failures=9, p_value=0.00447
    )
    assert str(certificate) == (
        "certified at 95 % confidence: P(answer wrong where the full model's is right) ≤ 1 % (9 of 2,000 calibration "
        "samples are wrong there, exact binomial p = 0.0045; assumes new inputs drawn like these)"
    )


def test_what_makes_no_sense() -> None:
    def message(samples: int = 1000, **settings: object) -> str:
        given = {"against": "model", "tolerance": 0.01, "confidence": 0.95} | settings
        with pytest.raises(CertificateError) as caught:
            certified([0], samples, **given)  # type: ignore[arg-type]
        return str(caught.value)

    assert message(298) == (
        "there are 298 samples, and to certify a tolerance of 0.01 with 0.95 confidence takes at least 299, even "
        "without a failure: get 1 more, or raise the tolerance"
    )
    assert message(tolerance=0.0) == "tolerance is 0.0, expected a number between 0 and 1"
    assert message(tolerance=1.0) == "tolerance is 1.0, expected a number between 0 and 1"
    assert message(tolerance=1e-320) == "tolerance is 1e-320, expected a number between 0 and 1"
    assert message(confidence=float("nan")) == "confidence is nan, expected a number between 0 and 1"
    assert message(against="me") == "against is 'me', expected 'model' or 'labels'"
    with pytest.raises(CertificateError, match="there are no labels to compare answers with: add them, or use"):
        fails(np.array([1]), np.array([1]), None, "labels")


def test_a_trace_knows_its_minimal_depth() -> None:
    import tiny_models

    model, _ = tiny_models.build("bert")
    texts, labels = naive.sentences(400), naive.classes(400)
    trace = ad.trace(model, naive.padded(texts, labels, 50), measures=[])
    rows = trace.rows
    assert rows is not None
    found = trace.minimal_depth(0.2, 0.9)
    expected = trace.depth
    while expected > 1:
        differing = int((rows.prediction[:, expected - 1] != rows.prediction[:, -1]).sum())
        if p_value(differing, 400, 0.2) > 0.1:
            break
        expected -= 1
    assert found.depth == expected
    assert trace.minimal_depth(0.2, 0.9, against="labels").depth <= trace.depth
    assert trace.effective_depth(1.0) == 1
    assert trace.effective_depth(0.0) == trace.depth
    unlabelled = ad.trace(model, naive.padded(texts, None, 50), measures=[], labels=False)
    assert unlabelled.minimal_depth(0.2, 0.9) == found
    with pytest.raises(MeasureError, match="this trace has no 'accuracy'"):
        unlabelled.minimal_depth(against="labels")


def test_positions_of_a_text_are_not_independent() -> None:
    import tiny_models

    model, _ = tiny_models.build("gpt2")
    trace = ad.trace(model, naive.padded(naive.sentences(30), None, 10), measures=[])
    with pytest.raises(CertificateError, match="answers at positions of one sequence are not independent"):
        trace.minimal_depth()
