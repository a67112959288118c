"""Comparing two traces, against the plainest way: samples matched by hand, means and differences by numpy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_traces import CLASSES, COUNT, traced

import anydepth as ad
from anydepth.errors import IncompatibleTraces, MeasureError, TraceFileError
from anydepth.measures.engine.states import ArrayStates
from anydepth.measures.similarity import MEASURES, similarities
from anydepth.report.pages.comparison import write
from anydepth.stats.paired import paired
from anydepth.storage.files import plain, replacing_folder
from anydepth.storage.rows import StoredStates
from anydepth.tracing.comparison import COMPARE_OUTPUT, _closeness, compare, write_comparisons

pytestmark = pytest.mark.usefixtures("charts_checked")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[ad.Trace, ad.Trace]:
    """Two models, the second traced in another order and on fewer images."""
    root = tmp_path_factory.mktemp("traces")
    shuffled = np.random.default_rng(0).permutation(COUNT)[:50].tolist()
    return traced(root / "a", 0, list(range(COUNT))), traced(root / "b", 1, shuffled)


def by_hand(trace: ad.Trace) -> dict[Any, int]:
    assert trace.rows is not None
    return {trace.ids[sample]: row for row, sample in enumerate(trace.rows.sample)}


def test_differences_are_of_the_same_samples(pair: tuple[ad.Trace, ad.Trace]) -> None:
    a, b = pair
    found = compare(a, b)
    rows_a, rows_b = by_hand(a), by_hand(b)
    common = [one for one in a.ids if one in rows_b]
    assert found.samples == len(common) == 50
    assert "50 samples are in both traces, of 60 of the first trace and 50 of the second" in found.notes[0]
    assert a.rows is not None
    assert b.rows is not None
    for name, column in (("confidence", "confidence"), ("cross_entropy", "cross_entropy")):
        one = np.array([getattr(a.rows, column)[rows_a[sample]] for sample in common], dtype=float)
        other = np.array([getattr(b.rows, column)[rows_b[sample]] for sample in common], dtype=float)
        np.testing.assert_allclose(found.differences[name].value, (other - one).mean(0), atol=1e-12)
        np.testing.assert_allclose(found.values[name], [one.mean(0), other.mean(0)], atol=1e-12)
    right = [
        np.array([trace.rows.prediction[rows[one]] == trace.rows.label[rows[one]] for one in common])
        for trace, rows in ((a, rows_a), (b, rows_b))
        if trace.rows is not None
    ]
    np.testing.assert_allclose(found.differences["accuracy"].value, right[1].mean(0) - right[0].mean(0), atol=1e-12)
    settled = [
        np.array([trace.saturation_depth[rows[one]] for one in common])[:, None] <= np.arange(4)
        for trace, rows in ((a, rows_a), (b, rows_b))
    ]
    np.testing.assert_allclose(found.differences["settled"].value, settled[1].mean(0) - settled[0].mean(0), atol=1e-12)


def states_by_hand(trace: ad.Trace, common: list[Any]) -> np.ndarray:
    assert trace.states is not None
    rows = np.concatenate([np.asarray(chunk) for chunk in trace.states.chunks(7)])
    places = {one: index for index, one in enumerate(trace.ids)}
    return rows[[places[one] for one in common]]


def test_similarity_is_of_the_same_samples(pair: tuple[ad.Trace, ad.Trace]) -> None:
    a, b = pair
    found = compare(a, b, measures=["cka", "cosine", "procrustes"])
    common = [one for one in a.ids if one in set(b.ids)]
    one, other = (
        ArrayStates({str(k): rows[:, 16 * k : 16 * (k + 1)] for k in range(4)})
        for rows in (states_by_hand(a, common), states_by_hand(b, common))
    )
    expected = similarities(one, ["cka", "cosine", "procrustes"], other=other)
    for name, measured in expected.items():
        np.testing.assert_allclose(found.similarity[name], measured.value, atol=1e-6)
    assert np.isnan(found.similarity["cka"][0]).all(), "depth 0 of a ViT is the same vector for every image"
    matches = found.matches("cka")
    assert matches[0] is None
    for depth in (1, 2, 3):
        match = matches[depth]
        assert match is not None
        row = expected["cka"].value[depth]
        assert match.depth == int(np.nanargmax(row))
        assert match.value == pytest.approx(row[match.depth], abs=1e-6)


def test_cosine_to_the_last_depth_is_paired(pair: tuple[ad.Trace, ad.Trace]) -> None:
    a, b = pair
    found = compare(a, b).differences["cosine_to_last"]
    common = [one for one in a.ids if one in set(b.ids)]
    cosines = []
    for trace in (a, b):
        rows = states_by_hand(trace, common).astype(np.float64)
        depths = [rows[:, 16 * k : 16 * (k + 1)] - rows[:, 16 * k : 16 * (k + 1)].mean(0) for k in range(1, 4)]
        last = depths[-1] / np.linalg.norm(depths[-1], axis=1, keepdims=True)
        cosines.append(np.stack([(one / np.linalg.norm(one, axis=1, keepdims=True) * last).sum(1) for one in depths]))
    np.testing.assert_allclose(found.value[1:], (cosines[1] - cosines[0]).mean(1), atol=1e-5)
    assert np.isnan(found.value[0])
    assert found.verdicts[3] == "not significant", "it is 1 in both"


def test_a_model_does_not_differ_from_itself(pair: tuple[ad.Trace, ad.Trace]) -> None:
    a, _ = pair
    found = compare(a, a)
    for name, difference in found.differences.items():
        known = np.isfinite(difference.value)
        assert (difference.value[known] == 0).all(), name
        expected = np.where(known, "not significant", "undefined")
        assert list(difference.verdicts) == expected.tolist()
    diagonal = found.similarity["cka"].diagonal()[1:]
    np.testing.assert_allclose(diagonal, 1, atol=1e-6)
    assert [None if one is None else one.depth for one in found.matches("cka")] == [None, 1, 2, 3]


def test_models_of_other_depth_and_width(pair: tuple[ad.Trace, ad.Trace], tmp_path: Path) -> None:
    a, _ = pair
    deeper = traced(tmp_path / "deep", 2, list(range(COUNT)), blocks=6, width=8)
    found = compare(a, deeper)
    assert found.depths == ((0, 0), (0, 1), (1, 2), (2, 3), (2, 4), (2, 5), (3, 6))
    assert found.similarity["cka"].shape == (4, 7)
    assert "cosine" not in found.similarity, "widths differ"
    assert any("depths are compared by their share of L" in note for note in found.notes)
    assert compare(deeper, a).depths == tuple((other, one) for one, other in found.depths)
    np.testing.assert_allclose(
        compare(deeper, a).differences["accuracy"].value, -found.differences["accuracy"].value, atol=1e-12
    )


def test_what_does_not_compare(pair: tuple[ad.Trace, ad.Trace], tmp_path: Path) -> None:
    a, b = pair

    def message(first: ad.Trace, second: ad.Trace, **settings: Any) -> str:
        with pytest.raises((IncompatibleTraces, MeasureError)) as caught:
            compare(first, second, **settings)
        return str(caught.value)

    other = replace(b, provenance={**b.provenance, "data": {"name": "others", "split": "test"}})
    assert message(a, other).startswith("the traces are of different data: images test and others test; trace both al")
    assert compare(a, other, despite=["data"]).samples == 50
    tokens = replace(b, provenance={**b.provenance, "tokens": "mean"})
    assert message(a, tokens).startswith("different positions stand for a sample: first and mean; trace both alike, or")
    assert message(a, b, despite=["luck"]) == "traces can be compared despite data, tokens, not despite 'luck'"
    strangers = replace(b, ids=tuple(f"picture {index}" for index in range(len(b.ids))))
    assert message(a, strangers).startswith(
        "no sample is in both traces: the first has 'image 0', 'image 1', 'image 2'"
    )
    assert b.rows is not None
    wrong = b.rows.label.copy()
    place = int(np.flatnonzero(b.rows.sample == b.ids.index("image 7"))[0]) if "image 7" in b.ids else 0
    wrong[place] = (wrong[place] + 1) % CLASSES
    named = b.ids[b.rows.sample[place]]
    relabelled = replace(b, rows=replace(b.rows, label=wrong))
    assert message(a, relabelled).startswith(f"sample {named!r} has label ")
    bare = replace(b, states=None)
    assert message(a, bare, measures=["cka"]).startswith("the second trace kept no states, which similarity across")
    assert "similarity between the two needs their states" in " ".join(compare(a, bare).notes)
    assert message(a, b, measures=["likeness"]).startswith("unknown measure 'likeness'")
    with pytest.raises(IncompatibleTraces, match="there is no 'rsa' between the two; there is cka, cosine"):
        compare(a, b).matches("rsa")


# --- measures that are undefined, memory that does not suffice -------------------------------------------------------


def arrays(out: Path, count: int, widths: tuple[int, ...], seed: int = 0) -> ad.Trace:
    """A trace that kept these states, without a model."""
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(count, sum(widths))).astype(np.float32)
    out.mkdir()
    np.save(out / "states.npy", states)
    names = tuple(map(str, range(len(widths))))
    return ad.Trace(
        names=names, similarity={}, ids=tuple(range(count)), states=StoredStates([out / "states.npy"], widths)
    )


def test_cosine_between_widths_that_differ_is_blank_and_says_why(tmp_path: Path) -> None:
    a, b = arrays(tmp_path / "a", 30, (6, 6)), arrays(tmp_path / "b", 30, (4, 4), seed=1)
    found = compare(a, b, measures=["cosine", "cka"])
    assert np.isnan(found.similarity["cosine"]).all()
    assert np.isfinite(found.similarity["cka"]).all()
    assert "cosine is undefined between depths of different widths (6, 6, 4, 4)" in found.notes
    assert found.matches("cosine") == (None, None)
    write([found], tmp_path / "report.html", {"a": a, "b": b})
    assert "Nothing is defined between the two." in (tmp_path / "report.html").read_text()


UNDEFINED = {
    "cka": (3, "debiased CKA is undefined for 3 rows: it needs at least 4"),
    "cka_rbf": (3, "similarity by RBF-CKA is undefined for 3 rows: it needs at least 4"),
    "knn": (11, "similarity by kNN is undefined for 11 rows: it needs at least 12"),
    "cca": (
        6,
        "similarity by CCA is undefined at depth 0 of the first model, which has as many directions as 6 rows can "
        "have: every correlation is 1",
    ),
}


@pytest.mark.parametrize("measure", UNDEFINED)
def test_a_measure_of_too_few_rows_is_blank_and_says_why(measure: str, tmp_path: Path) -> None:
    count, why = UNDEFINED[measure]
    a, b = arrays(tmp_path / "a", count, (6, 6)), arrays(tmp_path / "b", count, (6, 5), seed=1)
    found = compare(a, b, measures=[measure])
    assert np.isnan(found.similarity[measure]).all()
    assert why in found.notes
    assert json.loads(json.dumps(found.as_plain()))["similarity"][measure] == [[None, None], [None, None]]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_hardly_any_samples_are_compared_as_far_as_they_go(count: int, tmp_path: Path) -> None:
    a, b = (traced(tmp_path / name, seed, list(range(count))) for seed, name in enumerate(("a", "b")))
    found = compare(a, b, measures=list(MEASURES))
    assert found.samples == count
    assert set(found.similarity) == set(MEASURES)
    assert set(found.differences["accuracy"].verdicts) == {"not significant"}
    if count == 2:  # half of what there is to draw is undefined
        write([found], tmp_path / "report.html", {"a": a, "b": b})


@pytest.mark.parametrize("measure", ["cka", "cca", "procrustes", "rsa"])
def test_memory_that_would_not_suffice_is_refused_in_one_line(
    measure: str, pair: tuple[ad.Trace, ad.Trace], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anydepth.measures.similarity.available_memory", lambda: 2000)
    with pytest.raises(MeasureError, match=r"needs? [\d.]+ .B, but [\d.]+ .B are allowed: ") as caught:
        compare(*pair, measures=[measure])
    assert "\n" not in str(caught.value)


# --- chance ----------------------------------------------------------------------------------------------------------


def test_whether_two_models_are_alike_by_more_than_chance(pair: tuple[ad.Trace, ad.Trace], tmp_path: Path) -> None:
    a, b = pair
    found = compare(a, b, permutations=99)
    assert found.chance is not None
    assert (found.chance.samples, found.chance.permutations) == (50, 99)
    assert np.isnan(found.chance.p[0]).all(), "depth 0 of a ViT is the same vector for every image"
    assert (found.chance.p[1:, 1:] == 0.01).all(), "both see the same images"
    assert (found.chance.high[1:, 1:] < found.similarity["cka"][1:, 1:]).all()
    said = "more than chance in 9 of 9 pairs of depths, at 5% for all together (99 permutations of 50 samples)"
    assert f"CKA is {said}" in found.notes
    assert found.as_plain()["chance"]["p"][1][1] == 0.01
    assert found.as_plain()["chance"]["p"][0] == [None] * 4
    write([found], tmp_path / "report.html", {"a": a, "b": b})
    page = (tmp_path / "report.html").read_text()
    assert f"M{said[1:]}." in page
    assert "in 95% of permutations; p = 0.010 for all pairs" in page
    assert compare(a, b).chance is None


def test_models_that_share_nothing_are_not(tmp_path: Path) -> None:
    a, b = arrays(tmp_path / "a", 60, (6, 6)), arrays(tmp_path / "b", 60, (6, 5), seed=1)
    found = compare(a, b, permutations=199, confidence=0.99)
    assert any(note.startswith("CKA is more than chance in 0 of 4 pairs of depths, at 1% for") for note in found.notes)


def test_permutations_that_test_nothing_are_refused(pair: tuple[ad.Trace, ad.Trace]) -> None:
    a, b = pair
    for settings, measured in (({"measures": ["rsa"]}, "rsa"), ({"measures": []}, "nothing")):
        with pytest.raises(MeasureError, match=f"permutations are to test cka, and what is measured is {measured}"):
            compare(a, b, permutations=99, **settings)
    with pytest.raises(MeasureError, match="and what is measured is nothing"):
        compare(a, replace(b, states=None), permutations=99)
    with pytest.raises(MeasureError, match="5 permutations can show nothing at 5 %: expected at least 19"):
        compare(a, b, permutations=5)


# --- intervals -------------------------------------------------------------------------------------------------------


def test_bands_hold_for_all_depths_together() -> None:
    """Of differences that are all zero the joint bands leave out zero in about 5 % of draws, single ones oftener."""
    rng = np.random.default_rng(0)
    joint = single = 0
    draws = 150  # test_coverage.py has more
    for seed in range(draws):
        shared = rng.normal(size=(120, 1))
        found = paired(0.6 * shared + rng.normal(size=(120, 8)), seed=seed)
        joint += any(verdict != "not significant" for verdict in found.verdicts)
        single += bool(((found.low > 0) | (found.high < 0)).any())
    assert joint / draws <= 0.1
    assert single / draws > 0.15


def test_rows_of_one_sample_count_as_one() -> None:
    rng = np.random.default_rng(1)
    own = rng.normal(size=(50, 2))
    alone, fivefold = paired(own), paired(np.repeat(own, 5, axis=0), np.repeat(np.arange(50), 5))
    np.testing.assert_allclose(fivefold.low, alone.low, atol=1e-9)
    np.testing.assert_allclose(fivefold.high_all, alone.high_all, atol=1e-9)


def test_a_depth_at_which_hardly_anything_differs_does_not_blow_up_the_bands() -> None:
    rng = np.random.default_rng(2)
    rows = np.stack([np.zeros(1000), np.zeros(1000), rng.normal(size=1000) + 0.5], 1)
    rows[[3, 700], 0] = -1.0
    found = paired(rows)
    assert found.verdicts == ("not significant", "not significant", "higher")
    assert found.low_all[0] > -0.02
    assert (found.low_all[1], found.high_all[1]) == (0.0, 0.0), "nothing differs at all"
    assert found.low_all[2] > 0.5 - 5 / np.sqrt(1000)


def test_the_last_depth_is_as_close_to_itself_in_every_model() -> None:
    """Rounding must not make a verdict of it."""
    rng = np.random.default_rng(0)
    first, second = (ArrayStates({name: rng.normal(size=(200, 12)) for name in ("h0", "h1", "h2")}) for _ in range(2))
    values, found = _closeness(first, second, ((0, 0), (1, 1), (2, 2)), 0.95, 0)
    assert (values[:, -1] == 1).all()
    assert found.value[-1] == 0
    assert found.verdicts[-1] == "not significant"


# --- files and charts ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tested(pair: tuple[ad.Trace, ad.Trace]) -> ad.Comparison:
    return compare(*pair, permutations=19, names=("first", "second"))


def test_a_saved_comparison_is_the_one_that_is_loaded(tested: ad.Comparison, tmp_path: Path) -> None:
    assert tested.save(tmp_path / "out") == tmp_path / "out"
    loaded = ad.Comparison.load(tmp_path / "out")
    assert loaded == tested
    assert loaded != replace(tested, samples=49)
    assert loaded.differences["accuracy"].verdicts == tested.differences["accuracy"].verdicts
    assert loaded.matches("cka") == tested.matches("cka")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"compare.json", "report.html"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<title>first and second" in page
    assert loaded.provenance["second"]["samples"] == 50
    assert loaded.report(tmp_path / "again.html").read_text() == page


def test_saving_replaces_a_comparison_and_nothing_else(tested: ad.Comparison, tmp_path: Path) -> None:
    tested.save(tmp_path / "out")
    tested.save(tmp_path / "out", report=False)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["compare.json"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(IncompatibleTraces, match="holds something else already"):
        tested.save(tmp_path / "other")


def test_folders_that_hold_no_single_comparison(tested: ad.Comparison, tmp_path: Path) -> None:
    with pytest.raises(TraceFileError, match=r"compare\.json does not exist: compare again"):
        ad.Comparison.load(tmp_path)
    other = replace(tested, names=("first", "third"))
    (tmp_path / "two").mkdir()
    with replacing_folder(tmp_path / "two", COMPARE_OUTPUT) as beside:
        write_comparisons([tested, other], beside)
    with pytest.raises(TraceFileError, match=r"holds 2 comparisons \(second, third\): use Comparison.load_all"):
        ad.Comparison.load(tmp_path / "two")
    assert ad.Comparison.load_all(tmp_path / "two") == (tested, other)
    text = (tmp_path / "two" / "compare.json").read_text()
    (tmp_path / "two" / "compare.json").write_text(text.replace('"samples": 50', '"samples": 51'))
    with pytest.raises(TraceFileError, match="was changed after it was written: compare again"):
        ad.Comparison.load(tmp_path / "two")


@pytest.mark.parametrize(
    ("name", "title"),
    [(None, "Accuracy: the difference"), ("settled", "Share of answers that have saturated"), ("cka", "CKA, debiased")],
)
def test_charts_of_a_comparison(tested: ad.Comparison, name: str | None, title: str) -> None:
    spec = tested.plot(name).to_dict()
    assert spec["title"]["text"].startswith(title)
    rows = [row for part in (spec, *spec["layer"]) if "data" in part for row in part["data"]["values"]]
    if name == "cka":
        values = {(row["a"], row["b"]): row["value"] for row in rows}
        expected = {place: plain(value) for place, value in np.ndenumerate(tested.similarity["cka"])}
        assert values == expected
    else:
        drawn = {row["depth"]: row["value"] for row in rows if "verdict" in row}
        assert drawn == dict(enumerate(tested.differences[name or "accuracy"].value))


def test_a_chart_that_is_not_there_names_those_that_are(tested: ad.Comparison) -> None:
    with pytest.raises(MeasureError, match="no chart is called 'rsa'; this comparison has accuracy, confidence, .*cka"):
        tested.plot("rsa")
