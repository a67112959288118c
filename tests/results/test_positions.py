"""Statistics of a language model's answers by position and by frequency, and the section of a report on them."""

import json
from collections import Counter
from dataclasses import replace

import fake_trace
import numpy as np
import pytest
import tiny_models
import vl_convert
from hypothesis import given, settings
from hypothesis import strategies as st

from anydepth.core.windows import name as window
from anydepth.errors import MeasureError
from anydepth.report.pages import positions as report
from anydepth.results.positions import RANKS, Band, BandedStatistics, by_frequency, by_position, tells_next_token
from anydepth.results.trace_data import Rows
from anydepth.stats.intervals import t_interval, wilson
from anydepth.tracing.run import trace, trace_states
from anydepth.tracing.trace import Trace

pytestmark = pytest.mark.usefixtures("charts_checked")

DEPTHS = 4  # K
LANGUAGE_MODEL = {"model": {"class": "GPT2LMHeadModel"}}


def made(lengths=(1, 5, 9, 30, 2, 17), *, vocabulary=400, seed=0, ids=None, labelled=True, nats=0.5) -> Trace:
    """The trace of a language model that never was: every text has an answer at each of its positions."""
    rng, count = np.random.default_rng(seed), sum(lengths)
    shape = (count, DEPTHS)
    rows = Rows(
        sample=np.repeat(np.arange(len(lengths)), lengths),
        position=np.concatenate([np.arange(length) for length in lengths]).astype(np.int32),
        label=np.minimum(rng.zipf(1.3, count), vocabulary) - 1 if labelled else np.full(count, -100),
        prediction=rng.integers(0, 3, shape).astype(np.int32),
        cross_entropy=(rng.exponential(nats, shape) if labelled else np.full(shape, np.nan)).astype(np.float32),
        confidence=rng.random(shape).astype(np.float32),
    )
    names, ids = tuple(map(str, range(DEPTHS))), ids or tuple(range(len(lengths)))
    return Trace(names=names, similarity={}, rows=rows, ids=ids, provenance=LANGUAGE_MODEL)


def naive(found: Trace, places: list[int], text: list[int], inside) -> dict:
    """All statistics of the answers whose place is inside a band, one answer at a time."""
    rows, kept = found.rows, [row for row, place in enumerate(places) if inside(place)]
    values: dict = {name: [] for name in ("accuracy", "cross_entropy", "confidence", "agreement", "settled")}
    saturation = []
    for row in kept:
        told = rows.prediction[row].tolist()
        depth = next(k for k in range(1, DEPTHS) if set(told[k:]) == {told[-1]})
        saturation.append(depth)
        values["accuracy"].append([float(one == rows.label[row]) for one in told])
        values["cross_entropy"].append(rows.cross_entropy[row].tolist())
        values["confidence"].append(rows.confidence[row].tolist())
        values["agreement"].append([float(one == told[-1]) for one in told])
        values["settled"].append([float(depth <= k) for k in range(DEPTHS)])
    return {
        "count": len(kept),
        "text": np.array([text[row] for row in kept]),
        "tokens": len({int(rows.label[row]) for row in kept}),
        "values": {name: np.array(rows, dtype=float) for name, rows in values.items()},
        "saturation": np.array(saturation, dtype=float),
    }


def check(band: Band, found: BandedStatistics, at: int, expected: dict) -> None:
    assert (band.count, band.tokens) == (expected["count"], expected["tokens"])
    texts = expected["text"]
    assert band.texts == len(set(texts.tolist()))
    for name, rows in expected["values"].items():
        one = found.values[name]
        np.testing.assert_allclose(one.value[at], rows.mean(0), atol=1e-12, err_msg=name)
        if name in ("cross_entropy", "confidence"):
            np.testing.assert_allclose([one.low[at], one.high[at]], t_interval(rows, texts), atol=1e-9, err_msg=name)
        elif band.texts > 1:
            assert (one.low[at] - 1e-12 <= one.value[at]).all()
            assert (one.value[at] <= one.high[at] + 1e-12).all()
            assert ((one.low[at] >= 0) & (one.high[at] <= 1)).all()
    saturation = expected["saturation"]
    assert found.saturation.value[at] == pytest.approx(saturation.mean())
    ends = t_interval(saturation, texts).clip(1, DEPTHS - 1)
    np.testing.assert_allclose([found.saturation.low[at], found.saturation.high[at]], ends, atol=1e-9)


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=8), seed=st.integers(0, 99))
def test_bands_of_positions_are_as_counted_one_by_one(lengths, seed):
    given_trace = made(tuple(lengths), seed=seed)
    found = by_position(given_trace)
    places = [int(one) + 1 for one in given_trace.rows.position]
    for at, band in enumerate(found.bands):
        assert (band.first, band.last) == (2**at, 2 ** (at + 1) - 1)  # none is left out: texts start at their start
        expected = naive(
            given_trace, places, given_trace.rows.sample.tolist(), range(band.first, band.last + 1).__contains__
        )
        check(band, found, at, expected)
    assert found.bands[-1].first <= max(lengths) <= found.bands[-1].last
    assert sum(band.count for band in found.bands) == sum(lengths)


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 400), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_bands_of_frequency_are_as_counted_one_by_one(lengths, seed):
    given_trace = made(tuple(lengths), seed=seed, vocabulary=2000)
    counts = Counter(given_trace.rows.label.tolist())
    order = sorted(counts, key=lambda token: (-counts[token], token))
    ranks = [order.index(token) + 1 for token in given_trace.rows.label.tolist()]
    found = by_frequency(given_trace)
    firsts = [1, *(last + 1 for last in RANKS)]
    assert [band.first for band in found.bands] == [first for first in firsts if first <= len(order)]
    for at, band in enumerate(found.bands):
        last = band.last or 10**9
        assert last == [*RANKS, 10**9][at]
        text = given_trace.rows.sample.tolist()
        check(band, found, at, naive(given_trace, ranks, text, lambda rank, a=band.first, b=last: a <= rank <= b))
    assert sum(band.tokens for band in found.bands) == len(order)


def test_bands_together_are_the_trace():
    given_trace = made()
    for found in (by_position(given_trace), by_frequency(given_trace)):
        weights = np.array([band.count for band in found.bands])
        for name in ("accuracy", "cross_entropy", "confidence", "agreement"):
            whole = weights @ found.values[name].value / weights.sum()
            np.testing.assert_allclose(whole, getattr(given_trace, name), err_msg=name)
        settled = weights @ found.values["settled"].value / weights.sum()
        np.testing.assert_allclose(settled, np.cumsum(given_trace.saturation) / len(given_trace.rows))
        assert weights @ found.saturation.value / weights.sum() == pytest.approx(given_trace.saturation_depth.mean())


def test_windows_of_one_text_are_one_piece_of_evidence():
    lengths = (12,) * 6
    apart = made(lengths, ids=("a", "b", "c", "d", "e", "f"))
    ids = tuple(window("ab"[place // 3], 8 * (place % 3)) for place in range(6))
    together = replace(apart, ids=ids)
    text = together.rows.sample // 3
    one, other = by_position(apart), by_position(together)
    assert [band.texts for band in one.bands] == [6] * 4
    assert [band.texts for band in other.bands] == [2] * 4
    for at, band in enumerate(other.bands):
        own = (together.rows.position + 1 >= band.first) & (together.rows.position + 1 <= band.last)
        ends = t_interval(together.rows.cross_entropy[own].astype(float), text[own])
        np.testing.assert_allclose(
            [other.values["cross_entropy"].low[at], other.values["cross_entropy"].high[at]], ends
        )
        np.testing.assert_array_equal(one.values["cross_entropy"].value[at], other.values["cross_entropy"].value[at])


def test_a_band_with_one_answer_of_each_text_is_a_plain_share():
    given_trace = made((4,) * 30)
    found = by_position(given_trace)
    first = given_trace.rows.position == 0
    right = (given_trace.rows.prediction == given_trace.rows.label[:, None])[first]
    low, high = wilson(right.sum(0), 30)
    np.testing.assert_allclose(found.values["accuracy"].low[0], low)
    np.testing.assert_allclose(found.values["accuracy"].high[0], high)


def test_intervals_hold_the_truth():
    """Texts of their own level: about 95 of 100 draws hold it, however many positions a text has."""
    rng, held = np.random.default_rng(0), 0
    base = made((8,) * 25)
    for _ in range(300):
        level = rng.normal(size=25)
        nats = (5 + level[base.rows.sample, None] + rng.normal(size=(200, DEPTHS))).astype(np.float32)
        one = by_position(replace(base, rows=replace(base.rows, cross_entropy=nats))).values["cross_entropy"]
        held += one.low[2, 1] <= 5 <= one.high[2, 1]
    assert 0.91 <= held / 300 <= 0.985


def test_what_is_so_by_definition_has_no_width():
    found = by_position(made())
    for name, depth, value in (("agreement", -1, 1), ("settled", -1, 1), ("settled", 0, 0)):
        one = found.values[name]
        for ends in (one.value, one.low, one.high):
            assert (ends[:, depth] == value).all()


def test_one_text_has_no_interval():
    found = by_position(made((9,)))
    assert np.isnan(found.values["cross_entropy"].low).all()
    assert np.isfinite(found.values["cross_entropy"].value).all()
    assert np.isnan(found.values["accuracy"].high[1:]).all()
    assert found.values["accuracy"].high[0, 0] == pytest.approx(wilson(np.array([0]), 1)[1, 0])  # one answer: it may


def test_many_answers_are_taken_in_pieces(monkeypatch):
    whole = by_position(made())
    monkeypatch.setattr("anydepth.results.positions._AT_ONCE", 3)
    pieces = by_position(made())
    for name, one in whole.values.items():
        np.testing.assert_allclose(pieces.values[name].value, one.value)
        np.testing.assert_allclose(pieces.values[name].low, one.low)


def test_without_labels_there_is_what_needs_none():
    found = by_position(made(labelled=False))
    assert sorted(found.values) == ["agreement", "confidence", "settled"]
    assert {band.tokens for band in found.bands} == {0}
    assert "perplexity" not in found.to_frame()
    with pytest.raises(
        MeasureError, match="bands of frequency are of the tokens to come, and this trace has no labels"
    ):
        by_frequency(made(labelled=False))


def test_the_frame():
    found = by_position(made())
    frame = found.to_frame()
    assert list(frame) == [
        "band", "first", "last", "depth", "count", "texts", "tokens",
        *(name + end for name in ("cross_entropy", "confidence", "accuracy", "agreement", "settled", "perplexity")
          for end in ("", "_low", "_high")),
    ]  # fmt: skip
    assert len(frame) == len(found.bands) * DEPTHS
    assert frame["depth"].tolist() == [0, 1, 2, 3] * len(found.bands)
    one = frame[(frame["first"] == 8) & (frame["depth"] == 2)].iloc[0]
    assert (one["band"], one["last"]) == ("8–15", 15)
    assert one["accuracy"] == found.values["accuracy"].value[3, 2]
    assert one["perplexity_high"] == np.exp(found.values["cross_entropy"].high[3, 2])
    frequent = by_frequency(made((3000,), vocabulary=5000)).to_frame()
    assert frequent["last"].isna().sum() in (0, DEPTHS)
    assert frequent["last"].dropna().isin(RANKS).all()


def test_a_saved_trace_says_the_same(tmp_path):
    given_trace = made(ids=("a", "b", "c", "d", "e", "f"))
    given_trace.save(tmp_path, report=False)
    for band in (by_position, by_frequency):
        assert band(Trace.load(tmp_path)).to_frame().equals(band(given_trace).to_frame())


# --- whose traces ----------------------------------------------------------------------------------------------------


def traced(name: str) -> Trace:
    model, batch = tiny_models.build(name)
    labels = {}
    if name == "bert tagger":
        labels = {"labels": batch["input_ids"] % tiny_models.CLASSES}
    return trace(model, [batch | labels], measures=[], labels=bool(labels) or name in tiny_models.DECODERS)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt2", True),
        ("llama", True),
        ("gemma2", True),
        ("bert tagger", False),
        ("bert", False),
        ("gpt2 classifier", False),
    ],
)
@pytest.mark.filterwarnings("ignore:texts are padded on the left")
def test_a_language_model_is_known_by_its_trace(name, expected):
    found = traced(name)
    assert tells_next_token(found) is expected
    if expected:
        assert sum(band.count for band in by_position(found).bands) == 11 + 6 + 3
        return
    for band in (by_position, by_frequency):
        with pytest.raises(
            MeasureError, match=r"this trace is of (Bert|GPT2)\w+: expected one of a causal language model"
        ):
            band(found)


def test_what_the_trace_says_of_itself_counts():
    own = {"model": {"class": "MyOwnModel"}}
    assert not tells_next_token(replace(made(), provenance=own))
    assert tells_next_token(replace(made(), provenance=own | {"next_token": True}))
    assert not tells_next_token(replace(made(), provenance=LANGUAGE_MODEL | {"next_token": False}))


def test_states_alone_have_no_bands():
    with pytest.raises(
        MeasureError, match="this trace is of states without a model: expected one of a causal language"
    ):
        by_position(trace_states({"a": np.eye(5), "b": np.eye(5)}))


# --- the report ------------------------------------------------------------------------------------------------------


def test_the_section_draws_both_maps_and_where_answers_saturate():
    found = report.section(made(), ", mine")
    assert found.title == "By position, and by token, mine"
    assert [one.title for one in found.figures] == [
        "Cross-entropy, in nats, by depth and tokens of context, mine",
        "Cross-entropy, in nats, by depth and rank of the token to come, mine",
        "Mean saturation depth, by band, mine",
    ]
    for one in found.figures:
        spec = {key: value for key, value in one.spec.items() if key != "autosize"} | {"width": 300, "height": 200}
        assert "Error" not in vl_convert.vegalite_to_svg(json.dumps(spec))


def test_every_number_of_the_maps_is_in_a_table():
    given_trace = made()
    position, frequency, _ = report.section(given_trace).figures
    for figure, found in ((position, by_position(given_trace)), (frequency, by_frequency(given_trace))):
        assert figure.table.columns == ("Depth", *(band.name for band in found.bands))
        numbers = [[cell.value for cell in row[1:]] for row in figure.table.rows]
        np.testing.assert_array_equal(np.array(numbers).T, found.values["cross_entropy"].value)
        drawn = (
            [row["value"] for data in figure.spec["datasets"].values() for row in data]
            if "datasets" in figure.spec
            else None
        )
        values = drawn or [row["value"] for row in figure.spec["data"]["values"]]
        assert values == found.values["cross_entropy"].value.ravel().tolist()


def test_both_maps_share_their_colours():
    scales = [figure.spec["layer"][1]["encoding"]["color"]["scale"] for figure in report.section(made()).figures[:2]]
    assert scales[0] == scales[1]
    domain = scales[0]["domain"]
    assert domain == sorted(domain, reverse=True)  # strong, at the end, is low


@pytest.mark.parametrize(("nats", "shown"), [(0.5, "cross_entropy"), (60.0, "accuracy")])
def test_cross_entropy_is_shown_where_it_means_something(nats, shown):
    given_trace = made(nats=nats)
    counts = np.array(list(Counter(given_trace.rows.label.tolist()).values()))
    mark = -(counts / counts.sum() * np.log(counts / counts.sum())).sum()
    found = report.choose(given_trace)
    assert found.name == shown
    assert f"{mark:.3f} nats" in found.reason
    depths = 3 if shown == "cross_entropy" else 0
    assert f"at {depths} of the 3 depths" in found.reason
    note = report.section(given_trace).figures[0].note
    assert found.reason in note
    assert ("perplexity" in note) == (shown == "cross_entropy")


def test_half_of_the_depths_are_enough():
    given_trace = made(nats=0.5)
    nats = given_trace.rows.cross_entropy.copy()
    nats[:, 0] += 50
    nats[:, 1] += 50
    names = []
    for depths in (nats, nats[:, [0, 1, 1, 3]]):
        names.append(report.choose(replace(given_trace, rows=replace(given_trace.rows, cross_entropy=depths))).name)
    assert names == ["cross_entropy", "accuracy"]
    spans = report.choose(replace(given_trace, rows=replace(given_trace.rows, cross_entropy=nats))).depths
    assert spans.tolist() == [2, 3]


def test_the_words_are_the_numbers():
    given_trace = made()
    position, frequency, settling = (one.note for one in report.section(given_trace).figures)
    found = by_position(given_trace)
    last, first = found.perplexity.value[-1, 3], found.perplexity.value[0, 3]
    assert position.startswith(f"At depth 3, perplexity is {first:,.1f} (")
    assert f" and {last:,.1f} (" in position
    assert "with a context of 1 and" in position
    assert "; at depth 1, it is " in position
    assert "at tokens of rank 1–10" in frequency
    assert f"{found.saturation.value[0]:.2f} (" in settling
    assert f"{by_frequency(given_trace).saturation.value[-1]:.2f} (" in settling


def test_one_band_is_said_once():
    note = report.section(made((1, 1, 1))).figures[0].note
    assert note.count("with a context of 1") == 2  # at depth L, and half way


@pytest.mark.parametrize("other", ["bert", "unlabelled", "fake"])
def test_other_traces_have_no_section(other):
    given_trace = {
        "bert": lambda: traced("bert"),
        "unlabelled": lambda: made(labelled=False),
        "fake": fake_trace.plausible,
    }[other]()
    assert report.section(given_trace) is None
