"""The report without a browser: rows equal the trace, sentences say what holds, files are whole and harmless."""

import base64
import errno
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import fake_trace
import numpy as np
import pytest

from anydepth import trace_states
from anydepth.errors import MeasureError, TraceFileError
from anydepth.report import html, rows, theme
from anydepth.report import sentences as words
from anydepth.report.charts import trace as charts
from anydepth.report.pages import tables
from anydepth.report.pages import trace as page
from anydepth.report.pages.agreement import summary
from anydepth.stats.agreement import Agreement

pytestmark = pytest.mark.usefixtures("charts_checked")

TAGS = {
    *("html", "head", "meta", "title", "style", "script", "noscript", "body", "main", "header", "section", "aside"),
    *(
        "figure",
        "figcaption",
        "div",
        "span",
        "p",
        "h1",
        "h2",
        "h3",
        "ul",
        "li",
        "strong",
        "i",
        "small",
        "dl",
        "dt",
        "dd",
    ),
    *("table", "caption", "thead", "tbody", "tr", "th", "td", "details", "summary", "button"),
}


class Page(HTMLParser):
    """What a reader of the file gets: specifications, tables, text, and every tag with its attributes."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.specs, self.cells = [], [], [], []
        self._script = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "script":
            self._script = dict(attributes)
        if tag == "td":
            self.cells.append(dict(attributes).get("data-value"))

    def handle_endtag(self, tag):
        if tag == "script":
            self._script = None

    def handle_data(self, data):
        if self._script is None:
            self.words.append(data)
        elif self._script.get("class") == "spec":
            self.specs.append(json.loads(data, parse_constant=lambda name: pytest.fail(f"{name} is no JSON")))

    def spec(self, *fields):
        """Rows of the first chart whose data has these fields."""
        for spec in self.specs:
            for values in ([spec["data"]["values"]] if "data" in spec else []) + [
                layer["data"]["values"] for layer in spec["layer"] if "data" in layer
            ]:
                if values and set(fields) <= values[0].keys():
                    return values
        raise AssertionError(f"no chart has {fields}")


def read(trace, *more):
    return Page(page.render(page.label([trace, *more])))


# --- Rows ---------------------------------------------------------------------------------------------------


def test_map_rows_are_the_matrix_and_say_why_a_cell_is_blank():
    trace = fake_trace.blank_first()
    found = rows.pairs(trace, "cka")
    matrix = np.full((13, 13), np.nan)
    for row in found:
        matrix[row["a"], row["b"]] = np.nan if row["value"] is None else row["value"]
    np.testing.assert_array_equal(matrix, trace.similarity["cka"])
    blank = [row for row in found if row["value"] is None]
    assert len(blank) == 25
    assert all("depth 0 is the same vector" in row["why"] for row in blank)
    assert all("why" not in row for row in found if row["value"] is not None)


def test_curve_rows_are_the_statistic_with_its_interval():
    trace = fake_trace.plausible()
    found = rows.curve({"a": trace, "none": fake_trace.features_only()}, "cross_entropy")
    assert [row["trace"] for row in found] == ["a"] * 13
    np.testing.assert_array_equal([row["value"] for row in found], trace.cross_entropy)
    np.testing.assert_array_equal([[row["low"], row["high"]] for row in found], trace.interval("cross_entropy").T)


def test_columns_put_the_lines_of_a_depth_side_by_side():
    values = [
        {"trace": "a", "depth": 0, "text": "one"},
        {"trace": "a", "depth": 1, "text": "two"},
        {"trace": "b", "depth": 0, "text": "three"},
    ]
    wide, names = rows.columns(values, ("0", "late"), "trace", "unused")
    assert names == ("a", "b")
    assert wide == [
        {"name": "0", "from": 0, "to": 0.5, "s0": "one", "s1": "three"},
        {"name": "late", "from": 0.5, "to": 1, "s0": "two", "s1": "–"},
    ]


def test_saturation_rows_add_up():
    trace = fake_trace.plausible()
    found = rows.saturation({"a": trace})
    assert [row["depth"] for row in found] == list(range(1, 13))
    assert [row["count"] for row in found] == trace.saturation[1:].tolist()
    np.testing.assert_allclose(np.cumsum([row["share"] for row in found]), [row["cumulative"] for row in found])
    assert found[-1]["cumulative"] == 1


@pytest.mark.parametrize(("against", "other"), [("last", lambda k: 12), ("next", lambda k: k + 1)])
def test_spread_rows_are_the_quantiles_of_the_named_pair(against, other):
    trace = fake_trace.plausible()
    for k, row in enumerate(rows.spread({"a": trace}, "cosine", against)):
        assert [row[q] for q in ("q05", "q25", "q50", "q75", "q95")] == trace.quantiles["cosine"][
            :, k, other(k)
        ].tolist()
        assert row["mean"] == trace.similarity["cosine"][k, other(k)]
        assert row["pair"] == f"{k} → {other(k)}"


def test_class_rows_put_the_earliest_class_first_and_keep_the_most_frequent():
    trace = fake_trace.plausible()
    found = rows.classes(trace)
    table = trace.by_class().groupby("class")["accuracy"].mean()
    assert list(dict.fromkeys(row["class"] for row in found)) == table.sort_values(ascending=False).index.tolist()
    many = fake_trace.make(samples=100, classes=40, depth=3)
    many.classes.loc[many.classes["class"] == "class 39", "count"] = 1000
    kept = {row["class"] for row in rows.classes(many)}
    assert len(kept) == rows.MOST_CLASSES
    assert "class 39" in kept


# --- Sentences ----------------------------------------------------------------------------------------------


def with_values(**values):
    """A small trace with statistics of one's own."""
    trace = fake_trace.make(samples=40, depth=4, classes=4)
    for name, value in values.items():
        trace.values[name] = np.array(value)
        trace.intervals[name] = np.array([np.array(value) - 0.1, np.array(value) + 0.1])
    return trace


@pytest.mark.parametrize(
    ("value", "claim"),
    [
        ([0.1, 0.2, 0.895, 0.9, 0.9], "From depth 2 on, accuracy stays within one point of the last depth's."),
        # Depth 1 is as good, but it is lost again: it must not be named.
        ([0.1, 0.9, 0.3, 0.9, 0.9], "From depth 3 on, accuracy stays within one point of the last depth's."),
        ([0.1, 0.2, 0.3, 0.889, 0.9], "No depth before the last comes within one point of its accuracy."),
        ([0.95, 0.95, 0.95, 0.95, 0.9], "From depth 0 on, accuracy stays within one point of the last depth's."),
    ],
)
def test_accuracy_is_said_to_stay_only_where_it_stays(value, claim):
    finding = words.accuracy(with_values(accuracy=value))
    assert finding.claim == claim
    assert f"{100 * value[-1]:.1f}% (" in finding.detail  # with its interval


def test_accuracy_that_is_undefined_is_not_spoken_of():
    assert words.accuracy(with_values(accuracy=[0.1, 0.2, 0.3, 0.4, np.nan])) is None


@pytest.mark.parametrize(
    ("counts", "claim", "detail"),
    [
        (
            [0, 1, 1, 1, 1],
            "Half of the samples have saturated by depth 2 of 4.",
            "50.0% by depth 2, 75.0%",
        ),
        ([0, 0, 0, 1, 9], "Most of the samples saturate only at the last depth.", "Saturated: 10.0% before the last"),
    ],
)
def test_saturation_names_the_first_depth_at_which_half_have_saturated(counts, claim, detail):
    trace = fake_trace.make(samples=40, depth=4, classes=4)
    trace.counts[:] = counts
    finding = words.findings(trace)[0]
    assert finding.claim == claim
    assert detail in finding.detail


def test_positions_are_not_called_samples():
    trace = fake_trace.plausible()
    trace.provenance.update(positions=5000, answers=5000, tokens="each")
    assert "the positions have" in words.findings(trace)[0].claim
    assert words.what(trace).startswith(
        "The states of 12 blocks on 240 samples of clothes (test) (5,000 positions), at"
    )


def test_a_trace_without_readout_speaks_of_states_alone():
    trace = fake_trace.features_only()
    text = " ".join(finding.claim + finding.detail for finding in words.findings(trace))
    assert "least alike" in text
    assert not re.search("accuracy|answer|readout", text + words.what(trace))


def test_least_alike_neighbours():
    trace = fake_trace.plausible()
    steps = np.diag(trace.similarity["cosine"], 1)
    at = int(np.argmin(steps))
    finding = words.turn(trace)
    assert f"depths {at} and {at + 1} are least alike" in finding.claim
    assert f"cosine is {steps[at]:.3f} (" in finding.detail
    trace.similarity["cosine"][:] = np.nan
    assert words.turn(trace) is None


@pytest.mark.parametrize(
    ("low", "verdict"),
    [
        (0.95, "put the pairs in almost the same"),
        (0.75, "put the pairs in much the same"),
        (0.4, "agree in tendency"),
        (0.1, "agree weakly"),
        (-0.5, "do not clearly"),
    ],
)
def test_the_verdict_on_agreement_rests_on_the_lower_end(low, verdict, monkeypatch):
    one = Agreement(pearson=(0.99, 0.98, 0.995), spearman=(0.97, low, 0.99), pairs=10)
    monkeypatch.setattr(fake_trace.FakeTrace, "measure_agreement", lambda self: {("cka", "cosine"): one})
    agreement = summary(fake_trace.plausible())
    assert f"Over the 10 pairs of different depths, CKA and cosine {verdict}" in agreement.meaning
    assert agreement.title == "Do CKA and cosine agree?"
    assert agreement.pearson == "0.990 (0.980 to 0.995)"
    assert agreement.map is None
    assert "Of all measures" not in agreement.meaning


def test_of_several_measures_the_page_tells_which_agree_best_and_least():
    trace = fake_trace.plausible()
    found, agreement = trace.measure_agreement(), summary(trace)
    assert agreement.title == "Do cosine and CKA agree?"
    ranked = sorted(found, key=lambda pair: found[pair].spearman[0])
    assert set(ranked[-1]) == {"cosine", "cosine_raw"}, "the one is a straight-line function of the other"
    said = agreement.meaning.partition(" Of all measures here, ")[2]
    best, least = (f"{found[pair].spearman[0]:.3f} (" for pair in (ranked[-1], ranked[0]))
    assert said.startswith(f"cosine and cosine_raw agree best, {best}")
    assert f"; {' and '.join(ranked[0])} least, {least}" in said
    cells = agreement.map.spec["data"]["values"]
    assert len(cells) == 4 * 3
    for row in cells:
        one = found.get((row["a"], row["b"])) or found[row["b"], row["a"]]
        assert row["value"] == one.spearman[0]
        assert row["Pearson"].startswith(f"{one.pearson[0]:.3f} (")
    table = agreement.map.table
    assert table.columns == ("Spearman", "cosine", "cosine_raw", "cka")
    assert [len(row) for row in table.rows] == [2, 3, 4]
    assert table.rows[1][2].value == found["cosine_raw", "cka"].spearman[0]


def test_undefined_agreement_says_so():
    agreement = summary(fake_trace.tiny())
    assert "0 pairs" in agreement.meaning
    assert agreement.map.table.rows[-1][3].why == "too few pairs of depths, or one measure is the same for all"
    trace = fake_trace.plausible()
    for name in ("cka", "cosine_raw", "cka_biased"):
        del trace.similarity[name]
    assert summary(trace) is None


def test_the_page_holds_how_well_measures_agree():
    text = page.render({"one": fake_trace.plausible()})
    assert text.count("Do cosine and CKA agree?") == 1
    assert "Which measures agree" in text
    both = page.render({"one": fake_trace.plausible(), "other": fake_trace.features_only()})
    assert "Do cosine and CKA agree? other" in both


# --- Colours ------------------------------------------------------------------------------------------------


def oklab(colour):
    """OKLab coordinates of a hex colour (Ottosson 2020)."""
    srgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    to_lms = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    to_lab = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    return np.array(to_lab) @ np.cbrt(np.array(to_lms) @ linear)


@pytest.mark.parametrize("dark", [False, True])
def test_heat_colours_step_evenly_and_are_ordered_by_lightness(dark):
    colours = theme.config(dark=dark)["range"]
    assert len(colours["heatmap"]) == len(theme.HEAT_STOPS)
    assert len(colours["diverging"]) == len(theme.COLD_STOPS + theme.HEAT_STOPS)
    assert colours["diverging"][len(theme.COLD_STOPS) :] == colours["heatmap"]  # a value keeps its colour
    points = np.array([oklab(colour) for colour in colours["heatmap"]])
    lightness = points[:, 0] if dark else -points[:, 0]
    assert (np.diff(lightness) > 0.015).all()
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    assert steps.max() < 1.35 * steps.min()


def test_maps_side_by_side_share_their_domain():
    trace = fake_trace.plausible()
    assert charts.domain_of({"a": trace}, ("cosine", "cka")) == (0, 1)
    trace.similarity["cka"][1, 2] = -0.3
    assert charts.domain_of({"a": trace}, ("cosine", "cka")) == (-1, 1)
    trace.similarity["cka"][1, 2] = np.nan
    assert charts.domain_of({"a": trace}, ("cosine", "cka")) == (0, 1)


# --- Charts by name -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", charts.PLOTS)
def test_every_chart_has_a_title_a_description_and_strict_json(name):
    chart = charts.plot(fake_trace.plausible(), name)
    text = chart.to_json(allow_nan=False)
    assert '"description"' in text
    assert '"title"' in text


def test_curves_of_several_traces_share_a_chart_and_maps_stand_below_each_other():
    one, two = fake_trace.plausible(), fake_trace.tiny()
    spec = charts.plot({"before": one, "after": two}, "accuracy").to_dict()
    drawn = {
        (row["trace"], row["depth"]): row["value"]
        for layer in spec["layer"]
        for row in layer["data"]["values"]
        if "trace" in row
    }
    expected = {(name, k): v for name, t in (("before", one), ("after", two)) for k, v in enumerate(t.accuracy)}
    assert drawn == pytest.approx(expected)
    maps = charts.plot([one, two], "similarity").to_dict()
    titles = [panel["title"]["subtitle"] for row in maps["vconcat"] for panel in row["hconcat"]]
    assert titles == [name for name in charts.label([one, two]) for _ in range(2)]


@pytest.mark.parametrize("name", charts.PLOTS)
def test_every_chart_is_drawn_of_two_traces(name, tmp_path):
    path = tmp_path / "chart.json"
    chart = charts.plot([fake_trace.plausible(), fake_trace.plausible()], name, path=path)
    assert json.loads(path.read_text())["config"] == json.loads(chart.to_json())["config"]


def test_traces_that_have_nothing_to_draw_in_common():
    one, two = fake_trace.plausible(), fake_trace.features_only()
    with pytest.raises(MeasureError, match="needs accuracy, which this trace lacks"):
        charts.plot([one, two], "accuracy")
    with pytest.raises(MeasureError, match="no trace came"):
        charts.plot([], "accuracy")
    two.similarity["svcca"] = two.similarity.pop("cka")
    for name in list(two.similarity):
        if name != "svcca":
            del two.similarity[name]
    with pytest.raises(MeasureError, match="no similarity in common: .*; trace with the same measures"):
        charts.plot([one, two], "similarity")


def test_charts_of_reports_are_compared_with_their_schema_here_and_nowhere_else():
    import altair as alt

    from anydepth.report.pages.sections import figure

    chart = alt.Chart({"values": [{"a": 1}]}, title=alt.TitleParams("a")).mark_point().encode(x="a:Q")
    assert figure(chart, "").title == "a"
    chart.mark = {"type": "no mark"}
    with pytest.raises(alt.utils.schemapi.SchemaValidationError):
        figure(chart, "")


def test_an_unknown_chart_names_the_choices():
    with pytest.raises(
        MeasureError, match="no chart is called 'acuracy'; choose one of similarity, similarity_to_last"
    ):
        charts.plot(fake_trace.plausible(), "acuracy")


@pytest.mark.parametrize("name", ["accuracy", "confidence", "cross_entropy", "agreement", "saturation", "classes"])
def test_a_chart_of_what_was_not_measured_says_what_is_missing(name):
    with pytest.raises(
        MeasureError, match=rf"the chart '{name}' needs \w+, which this trace lacks .*no classifier"
    ) as e:
        charts.plot(fake_trace.features_only(), name)
    assert "\n" not in str(e.value)


def test_charts_of_missing_similarities_say_so():
    trace = fake_trace.plausible()
    trace.quantiles.clear()
    with pytest.raises(MeasureError, match="needs quantiles"):
        charts.plot(trace, "distributions")
    trace.similarity.clear()
    for name in ("similarity", "similarity_to_last"):
        with pytest.raises(MeasureError, match="lacks .its similarities: none"):
            charts.plot(trace, name)


def test_a_trace_with_another_measure_alone_is_drawn_with_it():
    trace = fake_trace.features_only()
    trace.similarity["svcca"] = trace.similarity.pop("cka")
    for name in ("cosine", "cosine_raw", "cka_biased"):
        del trace.similarity[name]
    trace.quantiles.clear()
    assert '"SVCCA"' in charts.plot(trace, "similarity").to_json()
    assert "svcca with the last depth" in charts.plot(trace, "overview").to_json().lower()
    assert "SVCCA" in page.render({"a": trace})


# --- Files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "start"),
    [(".png", b"\x89PNG"), (".svg", b"<svg"), (".pdf", b"%PDF"), (".html", b"<!doctype"), (".json", b"{")],
)
def test_charts_are_saved_by_the_ending_of_the_name(tmp_path, ending, start):
    chart = charts.plot(fake_trace.tiny(), "overview")
    saved = charts.save(chart, tmp_path / f"chart{ending}")
    assert saved.read_bytes().startswith(start)
    assert [path.name for path in tmp_path.iterdir()] == [f"chart{ending}"]


def test_an_unknown_ending_names_the_choices(tmp_path):
    with pytest.raises(TraceFileError, match=r"'chart.bmp': end the name in one of .png, .pdf, .svg, .json, .html"):
        charts.save(charts.plot(fake_trace.tiny(), "similarity"), tmp_path / "chart.bmp")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TraceFileError, match=r"cannot write .*report\.html: ") as caught:
        page.write([fake_trace.tiny()], tmp_path / "file" / "report.html")
    assert "\n" not in str(caught.value)
    with pytest.raises(TraceFileError, match=r"cannot write .*chart\.json: "):
        charts.save(charts.plot(fake_trace.tiny(), "similarity"), tmp_path / "file" / "chart.json")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("method", ["write_text", "replace"])
def test_a_full_disk_leaves_the_old_report_and_nothing_else(tmp_path, monkeypatch, method):
    target = tmp_path / "report.html"
    target.write_text("old")

    def full(path, content, **_):
        if method == "write_text":
            with path.open("w") as file:
                file.write(content[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, method, full)
    with pytest.raises(TraceFileError, match="No space left on device"):
        page.write([fake_trace.tiny()], target)
    monkeypatch.undo()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_report_replaces_the_old_one(tmp_path):
    target = tmp_path / "report.html"
    target.write_text("old")
    assert page.write([fake_trace.tiny()], target) == target
    assert target.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert list(tmp_path.iterdir()) == [target]


# --- Page ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", fake_trace.ALL)
def test_a_page_asks_for_nothing_and_runs_nothing_but_ours(name):
    text = page.render(page.label([fake_trace.ALL[name]()]))
    found = Page(text)
    assert not [(tag, a) for tag, a in found.tags if {"src", "href", "srcset", "data", "action"} & a.keys()]
    assert not [(tag, a) for tag, a in found.tags if any(key.startswith("on") for key in a)]
    assert {tag for tag, _ in found.tags} <= TAGS
    policy = next(a["content"] for tag, a in found.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    scripts = re.findall(r'<script type="module">(.*?)</script>', text, flags=re.DOTALL)
    assert len(scripts) == 2
    for script in scripts:
        assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy


def test_the_inlined_scripts_hold_nothing_that_ends_them():
    for text in (html._bundle(), html._FOLDER.joinpath("page.js").read_text("utf-8")):
        assert not re.search(r"</script|<!--|<script", text, flags=re.IGNORECASE)


def test_the_numbers_in_the_charts_are_the_trace_s():
    trace = fake_trace.plausible()
    found = read(trace)
    matrix = {(row["a"], row["b"]): row["value"] for row in found.spec("a", "b")}
    assert matrix == {(a, b): trace.similarity["cosine"][a, b] for a in range(13) for b in range(13)}
    assert [row["value"] for row in found.spec("depth", "low")] == trace.accuracy.tolist()
    assert [row["count"] for row in found.spec("count", "cumulative")] == trace.saturation[1:].tolist()


def test_the_numbers_in_the_table_are_the_trace_s():
    trace = fake_trace.plausible()
    table = tables.numbers(trace)
    expected = {
        "Accuracy": trace.accuracy,
        "Top probability": trace.confidence,
        "Agreement": trace.agreement,
        "Cross-entropy": trace.cross_entropy,
        "Stays right": trace.stays_correct,
        "Saturate here": trace.saturation,
        "Saturated by here": np.cumsum(trace.saturation) / 240,
        "Cosine to last": trace.similarity["cosine"][:, 12],
        "CKA to last": trace.similarity["cka"][:, 12],
    }
    assert set(table.columns) == {"Depth", *expected}
    for place, name in enumerate(table.columns[1:], start=1):
        np.testing.assert_array_equal([row[place].value for row in table.rows], expected[name])
    cell = table.rows[12][1]
    low, high = trace.interval("accuracy")[:, 12]
    assert (cell.text, cell.interval) == (f"{trace.accuracy[12]:.1%}", f"{low:.1%} to {high:.1%}")
    written = [float(value) for value in read(trace).cells if value is not None]
    assert set(np.concatenate(list(expected.values()))) <= set(written)


def test_a_matrix_is_written_out_once_per_pair():
    table = tables.matrix(fake_trace.blank_first(), "cka")
    assert [len(row) for row in table.rows] == list(range(2, 15))
    assert (table.rows[3][1].text, table.rows[3][1].value) == ("–", None)
    assert "depth 0" in table.rows[3][1].why


def test_hostile_strings_are_text_and_nothing_else():
    found = read(fake_trace.hostile())
    text = "".join(found.words)
    assert fake_trace.HOSTILE in text
    assert "depth 0 <b>is</b> blank & \u2028 odd" in text
    assert {row["class"] for row in found.spec("class")} == set(fake_trace.HOSTILE_LABELS)


def test_states_without_a_model_are_called_by_their_names():
    trace = fake_trace.arrays()
    found = read(trace)
    text = "".join(found.words)
    assert "4 sets of states of 240 samples." in text
    assert "Depth 0 is the embedding" not in text
    assert {row["pair"] for row in found.spec("a", "b")} >= {"early and last", f"last and {fake_trace.HOSTILE}"}
    assert [row[0].text for row in tables.numbers(trace).rows] == list(trace.names)
    assert "least alike" in text


def test_provenance_sums_up_what_is_long():
    trace = fake_trace.plausible()
    trace.provenance["model"]["classes"] = {str(c): f"kind {c}" for c in range(1000)}
    text = "".join(read(trace).words)
    assert "kind 7, ... (1,000)" in text
    assert "kind 8" not in text


def test_a_raw_readout_is_called_so():
    trace = fake_trace.plausible()
    assert "the model's own final norm and classifier read the state" in "".join(read(trace).words)
    trace.provenance["readout"] = "raw"
    assert "with the final norm at the last depth only, reads the state" in "".join(read(trace).words)


def test_a_folder_given_in_full_is_called_by_its_last_part():
    trace = fake_trace.plausible()
    trace.provenance["model"]["name"] = "/home/me/models/bert"
    assert list(page.label([trace])) == ["bert"]


def test_a_trace_without_readout_has_no_answer_section():
    text = "".join(read(fake_trace.features_only()).words)
    assert "Where the answer forms" not in text
    assert "How alike the depths are" in text
    assert "the model has no classifier" in text


def test_several_traces_share_curves_and_keep_their_maps():
    first, second = fake_trace.plausible(), fake_trace.make(depth=6, seed=9, name="other")
    found = read(first, second)
    assert {row["trace"] for row in found.spec("depth", "low")} == {"small-vit", "other"}
    maps = [spec for spec in found.specs if {"a", "b"} <= spec.get("data", {"values": [{}]})["values"][0].keys()]
    assert len(maps) == 8 + 2  # four measures of each, two of them folded away; how well they agree, for each
    assert "Cosine, other" in "".join(found.words)


def test_labels_are_made_to_differ_or_refused():
    one, two = fake_trace.tiny(), fake_trace.tiny()
    assert list(page.label([one, two, fake_trace.hostile()])) == ["tiny", "tiny (2)", fake_trace.HOSTILE]
    assert list(page.label([one, two], ["standard", "aligned"])) == ["standard", "aligned"]
    for traces, labels in (([], None), ([one, two], ["a"]), ([one, two], ["a", "a"])):
        with pytest.raises(MeasureError, match="give "):
            page.label(traces, labels)


def test_the_same_trace_gives_the_same_page():
    assert page.render({"a": fake_trace.tiny()}) == page.render({"a": fake_trace.tiny()})


def test_a_trace_of_arrays_is_drawn():
    rng = np.random.default_rng(0)
    first = rng.normal(size=(60, 5))
    trace = trace_states({"in": first, "same": np.ones((60, 5)), "out": first + rng.normal(size=(60, 5))})
    values = {(row["a"], row["b"]): row["value"] for row in read(trace).spec("a", "b")}
    assert values[2, 0] == trace.similarity["cosine"][2, 0]
    assert values[1, 0] is None


def test_importing_the_report_imports_no_charts():
    code = "import sys, anydepth.report; sys.exit('altair' in sys.modules or 'vl_convert' in sys.modules)"
    source = Path(html.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(source)}, check=False).returncode == 0


def test_a_name_that_is_no_text_is_spelled_out(tmp_path):
    page = html.save("data: \udcff.csv", tmp_path / "report.html")
    assert page.read_text("utf-8") == "data: \\udcff.csv"
