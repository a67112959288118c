"""The report in a browser: every chart drawn, the values right, nothing asked for, nothing complained about."""

import base64

import fake_trace
import pytest
from browser import Browser

from anydepth.report import theme
from anydepth.report.charts import trace as charts
from anydepth.report.pages import trace as page

pytestmark = pytest.mark.usefixtures("charts_checked")

FIGURES = {"plausible": 13, "features_only": 6, "arrays": 6, "blank_first": 13, "tiny": 13, "hostile": 13, "two": 18}
LIGHT, DARK = theme.config()["mark"]["color"], theme.config(dark=True)["mark"]["color"]
LINE_COLOUR = "document.querySelector('.chart .mark-line path').getAttribute('stroke')"


def traces(name):
    if name == "two":
        return [fake_trace.plausible(), fake_trace.make(depth=8, seed=5, name="other")]
    return [fake_trace.ALL[name]()]


@pytest.fixture(scope="module")
def browser(chromium):
    with Browser(chromium) as running:
        yield running


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")

    class Written(dict):  # each when it is first asked for
        def __missing__(self, name):
            self[name] = page.write(traces(name), folder / f"{name}.html")
            return self[name]

    return Written()


def at(browser, selector, place=0):
    """Where in the viewport the middle of an element is, scrolled into view."""
    return browser.evaluate(
        f"(() => {{ const e = document.querySelectorAll({selector!r})[{place}]; e.scrollIntoView({{block: 'center'}});"
        "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2] })()"
    )


def tooltip(browser, selector, place=0):
    """What the page says of an element under the pointer: {key: value}."""
    browser.point(1, 1)
    browser.wait("!document.querySelector('#vg-tooltip-element.visible')")
    x, y = at(browser, selector, place)

    def seen():
        browser.point(x, y)  # again and again: right after scrolling the first may go astray
        return browser.evaluate("!!document.querySelector('#vg-tooltip-element.visible')")

    browser.wait_for(seen, f"a tooltip at {selector}")
    return dict(
        browser.evaluate(
            "[...document.querySelectorAll('#vg-tooltip-element tr')]"
            ".map(row => [...row.querySelectorAll('td')].map(cell => cell.textContent.trim()))"
        )
    )


@pytest.mark.parametrize("name", FIGURES)
def test_every_chart_is_drawn_without_a_complaint_or_a_request(browser, written, name):
    browser.open(written[name])
    assert browser.evaluate("document.querySelectorAll('svg.marks').length") == FIGURES[name]
    empty = "[...document.querySelectorAll('svg.marks')].filter(s => !s.querySelector('[class*=mark-] path[d]')).length"
    assert browser.evaluate(empty) == 0
    assert browser.complaints() == []
    assert browser.requests() == [written[name].as_uri()]


def test_marks_are_as_many_as_the_numbers(browser, written):
    browser.open(written["blank_first"])
    count = "document.querySelectorAll('.map')[1].querySelectorAll('.mark-rect.role-mark path').length"
    assert browser.evaluate(count) == 13 * 13
    dashed = "[...document.querySelectorAll('.map')[1].querySelectorAll('.mark-rect path[stroke-dasharray]')].length"
    assert browser.evaluate(dashed) == 25
    assert (
        browser.evaluate("document.querySelector('.chart').querySelectorAll('.mark-symbol.role-mark path').length")
        == 13
    )


def test_values_under_the_pointer_are_the_trace_s(browser, written):
    trace = fake_trace.blank_first()
    browser.open(written["blank_first"])
    # Blank cells are drawn first, row by row; the others follow.
    known = [(a, b) for a in range(13) for b in range(13) if a and b]
    place = known.index((11, 4))
    said = tooltip(browser, ".map:nth-child(2) .mark-rect path", 25 + place)
    low, high = trace.similarity_intervals["cka"][:, 11, 4]
    value = trace.similarity["cka"][11, 4]
    assert said == {"depths": "11 and 4", "CKA, debiased": f"{value:.3f} ({low:.3f} to {high:.3f})"}
    said = tooltip(browser, ".map:nth-child(2) .mark-rect path", 3)
    assert "depth 0 is the same vector" in said["blank"]
    said = tooltip(browser, ".hits_marks path", 7)
    low, high = trace.interval("accuracy")[:, 7]
    assert said == {"depth": "7", "accuracy": f"{trace.accuracy[7]:.1%} ({low:.1%} to {high:.1%})"}


def test_one_tooltip_tells_the_values_of_all_traces(browser, written):
    browser.open(written["two"])
    said = tooltip(browser, ".hits_marks path", 9)
    assert said["depth"] == "9"
    assert said["small-vit"].startswith(f"{traces('two')[0].accuracy[9]:.1%}")
    assert said["other"] == "–"  # it has eight blocks


def test_the_table_on_the_page_is_the_trace_s(browser, written):
    trace = fake_trace.plausible()
    browser.open(written["plausible"])
    read = browser.evaluate(
        "[...document.querySelectorAll('table.numbers tbody tr')].map(r => [...r.querySelectorAll('td')]"
        ".map(c => [c.firstChild.textContent, Number(c.dataset.value)]))"
    )
    assert [row[0][1] for row in read] == trace.accuracy.tolist()
    assert [row[0][0] for row in read] == [f"{value:.1%}" for value in trace.accuracy]
    assert [row[5][1] for row in read] == trace.saturation.tolist()
    align = "getComputedStyle(document.querySelector('table.numbers td')).textAlign"
    assert browser.evaluate(align) == "right"


def test_depths_are_called_by_their_names(browser, written):
    browser.open(written["arrays"])
    labels = browser.evaluate("[...document.querySelectorAll('.map .role-axis-label text')].map(t => t.textContent)")
    assert {"early", "last", 'it\'s \\ "late"'} <= set(labels)
    assert tooltip(browser, ".hits_marks path", 1)["depth"] == fake_trace.HOSTILE
    assert browser.complaints() == []


def test_hostile_strings_are_inert(browser, written):
    browser.open(written["hostile"])
    assert browser.evaluate("document.querySelector('h1').textContent") == fake_trace.HOSTILE
    assert browser.evaluate("document.title") == f"{fake_trace.HOSTILE} by depth"
    assert browser.evaluate("document.querySelectorAll('main b, main img, body > img').length") == 0
    labels = browser.evaluate("[...document.querySelectorAll('.role-axis-label text')].map(t => t.textContent)")
    assert "<b>bold</b>" in labels
    assert "{{ 7*7 }} ${1}" in labels
    said = tooltip(browser, "[aria-label^='Map: accuracy'] .mark-rect path", 0)
    assert said["class"] in fake_trace.HOSTILE_LABELS
    assert browser.complaints() == []  # a dialog would be one


@pytest.mark.parametrize("name", ["plausible", "hostile", "two"])
def test_a_phone_needs_no_sideways_scrolling(browser, written, name):
    browser.open(written[name], width=390, height=844)
    browser.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    browser.wait("[...document.querySelectorAll('.chart')].every(c => c.querySelector('svg.marks'))")
    assert browser.evaluate("document.documentElement.scrollWidth") == 390
    widths = browser.evaluate("[...document.querySelectorAll('svg.marks')].map(s => s.getBoundingClientRect().right)")
    assert max(widths) <= 390
    cell = "document.querySelector('.map .mark-rect path').getBoundingClientRect().width"
    assert browser.evaluate(cell) > 15
    wide = (
        "(() => { const s = document.querySelector('.numbers').parentElement; return s.scrollWidth > s.clientWidth })()"
    )
    assert browser.evaluate(wide)  # the table scrolls in its own frame


def test_colours_follow_the_scheme_and_paper_is_light(browser, written):
    browser.open(written["plausible"], dark=True)
    assert browser.evaluate(LINE_COLOUR) == DARK
    dark_page = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    browser.scheme("light")
    browser.wait(f"{LINE_COLOUR} === {LIGHT!r}")
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)" != dark_page
    browser.scheme("dark")
    browser.wait(f"{LINE_COLOUR} === {DARK!r}")
    browser.evaluate(f"addEventListener('beforeprint', () => {{ window.printed = {LINE_COLOUR} }})")
    assert base64.b64decode(browser.call("Page.printToPDF")["data"]).startswith(b"%PDF")
    assert browser.evaluate("window.printed") == LIGHT
    browser.wait(f"{LINE_COLOUR} === {DARK!r}")
    assert browser.complaints() == []


def test_what_is_folded_away_is_drawn_when_opened(browser, written):
    browser.open(written["plausible"])
    assert browser.evaluate("document.querySelectorAll('details.more svg').length") == 0
    browser.evaluate("document.querySelector('details.more').open = true")
    browser.wait("document.querySelectorAll('details.more svg.marks').length === 2")
    assert browser.evaluate("document.querySelector('details.more svg.marks').clientWidth") > 400


def test_every_picture_has_a_name_and_words(browser, written):
    browser.open(written["plausible"])
    said = browser.evaluate("[...document.querySelectorAll('[role=graphics-document]')].map(e => e.ariaLabel)")
    assert len(said) == len(set(said)) == FIGURES["plausible"]
    trace = fake_trace.plausible()
    first, last = trace.accuracy[0], trace.accuracy[12]
    assert said[0] == f"Line chart: Accuracy by depth. From {first:.1%} at depth 0 to {last:.1%} at depth 12."
    assert browser.evaluate("[...document.querySelectorAll('.chart h3')].every(h => h.textContent.length > 5)")


def test_the_page_may_not_reach_the_network(browser, written):
    browser.open(written["tiny"])
    refused = browser.evaluate(
        "new Promise(done => { document.addEventListener('securitypolicyviolation', e => done(e.effectiveDirective));"
        "fetch('http://127.0.0.1:9/').catch(() => {}) })"
    )
    assert refused == "connect-src"


@pytest.mark.parametrize(("kind", "start"), [("svg", b"<svg"), ("png", b"\x89PNG")])
def test_a_chart_can_be_saved_from_the_page(browser, written, tmp_path, kind, start):
    browser.open(written["tiny"])
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    browser.evaluate(f"document.querySelector('button[data-kind={kind}]').click()")
    target = tmp_path / f"figure-1.{kind}"
    browser.wait_for(target.exists)
    assert target.read_bytes().startswith(start)
    assert browser.complaints() == []


def test_a_chart_saved_alone_is_drawn(browser, tmp_path):
    saved = charts.save(charts.plot(fake_trace.hostile(), "overview"), tmp_path / "chart.html")
    browser.open(saved)
    assert browser.evaluate("document.querySelectorAll('svg.marks').length") == 1
    assert browser.complaints() == []
