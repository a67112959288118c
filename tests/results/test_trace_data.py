from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import naive
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from anydepth.errors import MeasureError
from anydepth.measures.measure import Similarity
from anydepth.results.trace_data import STATISTICS, Rows, by_field
from anydepth.tracing.trace import Trace

DEPTHS, CLASSES = 5, 4


def answers(count: int = 40, *, each: int = 1, seed: int = 0) -> naive.Answers:
    """Random logits that get better with depth; `each` answers for a sample."""
    rng = np.random.default_rng(seed)
    label = rng.integers(CLASSES, size=count)
    logits = rng.normal(size=(count, DEPTHS, CLASSES))
    logits[np.arange(count), :, label] += np.linspace(0, 2, DEPTHS)
    position = np.tile(np.arange(each), count)[:count]
    return naive.Answers(logits, label, np.arange(count) // each, position)


def trace_of(found: naive.Answers, *, labels: bool = True, **fields: Any) -> Trace:
    nats = -np.log(np.take_along_axis(found.probability, found.label[:, None, None], axis=2)[..., 0])
    rows = Rows(
        sample=found.sample.astype(np.int64),
        position=found.position.astype(np.int32),
        label=found.label.astype(np.int64) if labels else np.full(len(found.label), -100),
        prediction=found.prediction.astype(np.int32),
        cross_entropy=nats.astype(np.float32),
        confidence=found.probability.max(-1).astype(np.float32),
        entropy=found.entropies().astype(np.float32),
    )
    return Trace(
        names=tuple(map(str, range(DEPTHS))),
        **{"similarity": {}, "ids": tuple(f"s{index}" for index in range(int(found.sample.max()) + 1)), **fields},
        rows=rows,
    )


def matrices(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    upper = {name: np.triu(rng.uniform(size=(DEPTHS, DEPTHS)), 1) for name in ("cosine", "cka")}
    return {name: matrix + matrix.T + np.eye(DEPTHS) for name, matrix in upper.items()}


# --- statistics ------------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 30), st.integers(1, 4), st.integers(0, 10**6))
def test_statistics_are_those_of_plain_loops(count: int, each: int, seed: int) -> None:
    expected = answers(count, each=each, seed=seed)
    found = trace_of(expected)
    assert found.statistics == STATISTICS
    for name in STATISTICS:
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name)(), atol=1e-6, err_msg=name)
        assert getattr(found, name).dtype == np.float64
    assert found.saturation.tolist() == expected.saturation()
    assert found.saturation.sum() == count
    assert found.saturation[0] == 0
    table = found.by_class()
    assert list(table) == ["class", "count", "depth", "accuracy", "saturated"]
    loops = [(str(label), *rest) for label, *rest in expected.by_class()]
    np.testing.assert_allclose(table[["accuracy", "saturated"]], [row[3:] for row in loops], atol=1e-12)
    assert [tuple(row) for row in table[["class", "count", "depth"]].to_numpy()] == [row[:3] for row in loops]


def test_right_nowhere_is_nan_not_zero() -> None:
    found = answers(6)
    wrong = dataclasses.replace(found, label=(found.prediction[:, 1] + 1) % CLASSES)
    trace = trace_of(wrong)
    assert trace.accuracy[1] == 0
    assert np.isnan(trace.stays_correct[1])
    assert np.isnan(trace.interval("stays_correct")[:, 1]).all()
    assert np.isfinite(trace.interval("accuracy")).all()


def test_without_labels() -> None:
    trace = trace_of(answers(), labels=False)
    assert trace.statistics == ("confidence", "entropy", "agreement")
    for name in ("accuracy", "cross_entropy", "stays_correct"):
        with pytest.raises(MeasureError, match=rf"no '{name}' \(no labels\); it has: confidence, entropy, agreement"):
            getattr(trace, name)
        with pytest.raises(MeasureError, match=f"no '{name}'"):
            trace.interval(name)
    with pytest.raises(MeasureError, match="no 'accuracy'"):
        trace.by_class()
    assert np.isfinite(trace.interval("agreement")).all()


def test_without_entropy() -> None:
    """As in a trace that was made before it was kept."""
    whole = trace_of(answers())
    trace = dataclasses.replace(whole, rows=dataclasses.replace(whole.rows, entropy=None))
    assert trace.statistics == tuple(name for name in STATISTICS if name != "entropy")
    assert not {"entropy", "entropy_low"} & {*trace.to_frame(), *trace.to_frame("answers")}
    with pytest.raises(
        MeasureError, match=r"no 'entropy' \(traced before it was kept: trace again\); it has: accuracy"
    ):
        trace.interval("entropy")


def test_without_readout() -> None:
    trace = Trace(names=("0", "1"), similarity={})
    assert (trace.statistics, trace.depth) == ((), 1)
    for name in STATISTICS:
        with pytest.raises(MeasureError, match=r"no classifier, or was traced without readouts\); it has: none"):
            getattr(trace, name)
    for attribute in ("saturation", "saturation_depth"):
        with pytest.raises(MeasureError, match="no 'agreement'"):
            getattr(trace, attribute)
    with pytest.raises(MeasureError, match="no 'confidence'"):
        trace.to_frame("answers")


def test_what_is_no_statistic() -> None:
    for trace in (trace_of(answers()), Trace(names=("0", "1"), similarity={})):
        with pytest.raises(MeasureError, match="unknown statistic 'perplexity', expected one of accuracy, cross_entr"):
            trace.interval("perplexity")


# --- intervals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_shares_of_independent_samples_have_wilsons_interval(confidence: float) -> None:
    found = answers(40)
    trace = trace_of(found)
    right = found.prediction == found.label[:, None]
    agrees = found.prediction == found.prediction[:, -1:]
    stays = np.array([[row[depth:].all() for depth in range(DEPTHS)] for row in right])
    counted = {
        "accuracy": (right.sum(0), [40] * DEPTHS),
        "agreement": (agrees.sum(0), [40] * DEPTHS),
        "stays_correct": ((stays & right).sum(0), right.sum(0)),
    }
    for name, (hits, trials) in counted.items():
        pairs = zip(hits, trials, strict=True)
        tests = [scipy.stats.binomtest(int(k), int(n)).proportion_ci(confidence, method="wilson") for k, n in pairs]
        expected = np.array([[one.low for one in tests], [one.high for one in tests]])
        np.testing.assert_allclose(trace.interval(name, confidence), expected, atol=1e-12, err_msg=name)


def test_means_of_independent_samples_have_students_interval() -> None:
    trace = trace_of(answers(40))
    assert trace.rows is not None
    for name in ("confidence", "cross_entropy", "entropy"):
        rows = getattr(trace.rows, name).astype(float)
        low, high = scipy.stats.t.interval(0.95, 39, rows.mean(0), scipy.stats.sem(rows, axis=0))
        np.testing.assert_allclose(trace.interval(name), [low, high], rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("name", STATISTICS)
def test_answers_of_one_sample_are_not_independent(name: str) -> None:
    """Each answer five times over, as five positions of its sample: the interval must not get narrower for it."""
    single = answers(40)
    five = {field: np.repeat(getattr(single, field), 5, axis=0) for field in ("logits", "label", "sample")}
    together = trace_of(naive.Answers(**five, position=np.tile(np.arange(5), 40)))
    apart = trace_of(naive.Answers(**{**five, "sample": np.arange(200)}, position=np.zeros(200)))
    once = trace_of(single)
    np.testing.assert_allclose(getattr(together, name), getattr(once, name), atol=1e-12)

    def width(trace: Trace) -> float:
        low, high = trace.interval(name)
        return float((high - low)[2])

    assert width(together) == pytest.approx(width(once), rel=0.2)  # Wilson's against Student's, of 20 rows and more
    assert width(together) > 1.8 * width(apart)


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("each", [1, 4])
def test_intervals_hold_their_values(name: str, each: int) -> None:
    trace = trace_of(answers(60, each=each))
    value, (low, high) = getattr(trace, name), trace.interval(name)
    assert ((low <= value + 1e-12) & (value <= high + 1e-12)).all()
    wide, narrow = trace.interval(name, 0.99), trace.interval(name, 0.5)
    inner = slice(None, -1) if name == "agreement" and each > 1 else slice(None)  # no spread at the last depth
    assert (wide[0] <= narrow[0]).all()
    assert (wide[1] >= narrow[1]).all()
    assert (wide[1] - wide[0] > narrow[1] - narrow[0])[inner].sum() >= DEPTHS - 1


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95])
@pytest.mark.parametrize("name", ["accuracy", "confidence"])
def test_confidence_is_a_share(name: str, confidence: float) -> None:
    with pytest.raises(MeasureError, match="expected a share between 0 and 1"):
        trace_of(answers()).interval(name, float(confidence))


def test_one_sample_has_no_interval_of_a_mean() -> None:
    trace = trace_of(answers(1))
    assert np.isnan(trace.interval("confidence")).all()
    low, high = trace.interval("accuracy")  # Wilson's has one, a wide one
    assert (high - low > 0.5).all()


# --- tables ----------------------------------------------------------------------------------------------------------


def test_a_row_for_each_depth() -> None:
    trace = trace_of(answers(), similarity=matrices())
    frame = trace.to_frame()
    assert frame["depth"].tolist() == ["0", "1", "2", "3", "4"]
    for name in STATISTICS:
        np.testing.assert_array_equal(frame[name], getattr(trace, name))
        np.testing.assert_array_equal([frame[f"{name}_low"], frame[f"{name}_high"]], trace.interval(name))
    assert frame["saturated"].tolist() == trace.saturation.tolist()
    np.testing.assert_array_equal(frame["cka_to_last"], trace.similarity["cka"][:, -1])
    assert len(frame) == DEPTHS


def test_a_row_for_each_pair() -> None:
    values = matrices()
    bounds = {"cka": np.stack([values["cka"] - 0.1, values["cka"] + 0.1])}
    frame = trace_of(answers(), similarity=values, similarity_intervals=bounds).to_frame("similarity")
    assert list(frame) == ["depth_a", "depth_b", "measure", "value", "low", "high"]
    assert len(frame) == 2 * DEPTHS**2
    found = frame.set_index(["measure", "depth_a", "depth_b"])
    assert found.loc[("cka", "1", "3"), "value"] == values["cka"][1, 3]
    assert found.loc[("cka", "1", "3"), "low"] == bounds["cka"][0, 1, 3]
    assert found.loc[("cosine", "4", "0"), "value"] == values["cosine"][4, 0]
    assert np.isnan(found.loc[("cosine", "4", "0"), "high"])


def test_no_similarity_is_an_empty_table_with_its_columns() -> None:
    frame = trace_of(answers()).to_frame("similarity")
    assert len(frame) == 0
    assert list(frame) == ["depth_a", "depth_b", "measure", "value", "low", "high"]


def test_a_row_for_each_answer_and_depth() -> None:
    expected = answers(12, each=3)
    frame = trace_of(expected).to_frame("answers")
    assert len(frame) == 12 * DEPTHS
    row = frame[(frame["id"] == "s2") & (frame["position"] == 1) & (frame["depth"] == "3")].iloc[0]
    assert (row["label"], row["prediction"]) == (expected.label[7], expected.prediction[7, 3])
    assert row["confidence"] == pytest.approx(expected.probability[7, 3].max(), abs=1e-6)


def test_an_unknown_table() -> None:
    with pytest.raises(MeasureError, match="unknown frame 'depth', expected one of depths, similarity, answers"):
        trace_of(answers()).to_frame("depth")


def test_classes_have_the_names_the_model_gives_them() -> None:
    named = {"model": {"classes": {str(label): f"kind {label}" for label in range(CLASSES)}}}
    trace = trace_of(answers(), provenance=named)
    assert set(trace.by_class()["class"]) == {f"kind {label}" for label in range(CLASSES)}
    assert trace.class_name(99) == "99"
    assert trace_of(answers()).class_name(2) == "2"


# --- measures --------------------------------------------------------------------------------------------------------


def test_agreement_of_every_two_measures() -> None:
    values = matrices()
    values["knn"] = 1 - values["cosine"]
    found = trace_of(answers(), similarity=values).measure_agreement()
    assert list(found) == [("cosine", "cka"), ("cosine", "knn"), ("cka", "knn")]
    above = np.triu_indices(DEPTHS, 1)
    for (one, other), agreement in found.items():
        x, y = values[one][above], values[other][above]
        assert agreement.pearson[0] == pytest.approx(scipy.stats.pearsonr(x, y).statistic)
        assert agreement.spearman[0] == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
        assert agreement.pairs == 10
    assert found["cosine", "knn"].spearman == pytest.approx((-1, -1, -1), abs=1e-9)


def test_agreement_takes_two_measures() -> None:
    assert trace_of(answers(), similarity={"cka": matrices()["cka"]}).measure_agreement() == {}
    assert trace_of(answers(), similarity={}).measure_agreement() == {}


def test_measures_become_fields() -> None:
    value = np.eye(2)
    found = by_field(
        {
            "cka": Similarity(value, low=value - 1, high=value + 1, notes=("one", "two")),
            "cosine": Similarity(value, quantiles=np.zeros((5, 2, 2)), notes=("two", "three")),
        }
    )
    assert list(found["similarity"]) == ["cka", "cosine"]
    assert list(found["similarity_intervals"]) == ["cka"]
    assert found["similarity_intervals"]["cka"].shape == (2, 2, 2)
    assert list(found["quantiles"]) == ["cosine"]
    assert found["notes"] == ("one", "two", "three")
    assert found["moments"] is None


# --- the rest --------------------------------------------------------------------------------------------------------


def test_a_result_does_not_change() -> None:
    trace = trace_of(answers())
    with pytest.raises(dataclasses.FrozenInstanceError):
        trace.notes = ("changed",)  # type: ignore[misc]


def test_charts_and_report_are_a_call_away(tmp_path: Path) -> None:
    origin = {"model": {"name": "m"}, "data": {"name": "d"}, "samples": 40, "positions": 40, "tokens": "first"}
    trace = trace_of(answers(), similarity=matrices(), provenance=origin)
    spec = trace.plot("accuracy").to_dict()
    assert "$schema" in spec
    with pytest.raises(MeasureError, match="accuracy"):
        trace.plot("no such chart")
    written = trace.report(tmp_path / "report.html")
    assert written == tmp_path / "report.html"
    assert "<html" in written.read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
