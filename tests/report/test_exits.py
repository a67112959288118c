"""The page of a calibration in a browser: every chart drawn, the values right, nothing asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_trace
import numpy as np
import pytest
from browser import Browser

from anydepth.early_exit.curve import ExitCurve
from anydepth.errors import MeasureError
from anydepth.exits.calibration import Calibration
from anydepth.exits.policies import AtDepth, Confidence
from anydepth.exits.summary import ExitSummary
from anydepth.report.pages import exits as page
from anydepth.stats.certificates import Certificate

pytestmark = pytest.mark.usefixtures("charts_checked")

LAST, POINTS = 6, 12


def curve(*, labelled: bool = True, lift: float = 0.0) -> ExitCurve:
    depth = np.linspace(LAST, 1, POINTS)
    agreement = 1 - 0.3 * ((LAST - depth) / 5) ** 2
    measured = np.full(POINTS, np.nan)
    measured[[1, 6, 11]] = (0.99, 0.6, 0.25)
    return ExitCurve(
        last=LAST,
        tested=(1, 2, 3, 4, 5),
        samples=400,
        level=np.concatenate([[np.inf], np.linspace(0.99, 0.3, POINTS - 1)]),
        depth=depth,
        agreement=agreement,
        accuracy=0.9 * agreement + lift if labelled else None,
        flops=depth / LAST + 0.01,
        predicted=depth / LAST + 0.03,
        measured=measured,
        batch=32,
    )


def calibration(*, certified: bool = True) -> Calibration:
    promise = Certificate(against="model", tolerance=0.01, confidence=0.95, samples=800, failures=2, p_value=0.0138)
    if not certified:
        return Calibration(
            certificate=None, level=None, samples=(400, 800, 400), held_out_failures=0, held_out_depth=float(LAST)
        )
    return Calibration(certificate=promise, level=0.8, samples=(400, 800, 400), held_out_failures=3, held_out_depth=3.5)


def exited(*, certified: bool = True, labelled: bool = True, name: str = "small-bert") -> ExitSummary:
    return ExitSummary(
        folder=Path("out"),
        model=name,
        data="reviews (test)",
        policy=Confidence(0.8) if certified else AtDepth(LAST),
        calibration=calibration(certified=certified),
        curve=curve(labelled=labelled),
        leaving=(0, 100, 120, 80, 40, 60) if certified else (0, 0, 0, 0, 0, 400),
        agreement=0.9925,
        accuracy=0.87 if labelled else None,
        full_accuracy=0.88 if labelled else None,
        predicted=0.61,
        measured=0.64,
        readout_in_blocks=0.02,
        notes=("one readout costs 0.02 blocks here, in batches of 32",),
    )


PAGES: dict[str, dict[str, ExitSummary]] = {
    "plain": {"small-bert": exited()},
    "without labels": {"small-bert": exited(labelled=False)},
    "nothing certified": {"small-bert": exited(certified=False)},
    "hostile": {fake_trace.HOSTILE: exited(name=fake_trace.HOSTILE)},
    "two": {"standard": exited(), "aligned": replace(exited(name="other"), curve=curve(lift=0.02))},
}
FIGURES = {"plain": 4, "without labels": 4, "nothing certified": 4, "hostile": 4, "two": 6}


@pytest.fixture(scope="module")
def browser(chromium: str) -> Any:
    with Browser(chromium) as running:
        yield running


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    return {name: page.write(found, folder / f"{name}.html") for name, found in PAGES.items()}


@pytest.mark.parametrize("name", PAGES)
def test_every_chart_is_drawn_without_a_complaint_or_a_request(browser: Any, written: Any, name: str) -> None:
    browser.open(written[name])
    assert browser.evaluate("document.querySelectorAll('svg.marks').length") == FIGURES[name]
    empty = "[...document.querySelectorAll('svg.marks')].filter(s => !s.querySelector('[class*=mark-] path[d]')).length"
    assert browser.evaluate(empty) == 0
    assert browser.complaints() == []
    assert browser.requests() == [written[name].as_uri()]


def test_marks_are_as_many_as_the_numbers(browser: Any, written: Any) -> None:
    browser.open(written["plain"])
    symbols = "document.querySelectorAll('.chart')[%d].querySelectorAll('.mark-symbol.role-mark path').length"
    assert browser.evaluate(symbols % 0) == POINTS + 1, "every threshold, and the certified policy"
    assert browser.evaluate(symbols % 2) == 3, "where the clock was on"
    bars = "document.querySelectorAll('.chart')[3].querySelectorAll('.mark-rect.role-mark path').length"
    assert browser.evaluate(bars) == LAST
    browser.open(written["nothing certified"])
    assert browser.evaluate(symbols % 0) == POINTS


def test_the_page_says_what_was_found(browser: Any, written: Any) -> None:
    browser.open(written["plain"])
    text = browser.evaluate("document.body.innerText")
    assert "A mean depth of 3.60 instead of 6" in text
    assert "By the clock 1.56 times as fast as the plain model, in batches of 32" in text
    assert "99.2% of the answers are the full model's" in text
    assert "Certified at 95 % confidence: P(answer ≠ full model's) ≤ 1 %" in text
    assert "87.0% are right, against 88.0% of the full model" in text
    read = browser.evaluate(
        "[...document.querySelectorAll('table.numbers tbody tr')].map(r => Number(r.querySelector('td').dataset.value))"
    )
    assert read == list(curve().quality)
    browser.open(written["nothing certified"])
    assert "Nothing could be certified" in browser.evaluate("document.body.innerText")


def test_hostile_strings_are_inert(browser: Any, written: Any) -> None:
    browser.open(written["hostile"])
    assert browser.evaluate("document.querySelector('h1').textContent") == fake_trace.HOSTILE
    assert browser.evaluate("document.querySelectorAll('main b, main img, body > img').length") == 0
    assert browser.complaints() == []


def test_a_phone_needs_no_sideways_scrolling(browser: Any, written: Any) -> None:
    browser.open(written["two"], width=390, height=844)
    assert browser.evaluate("document.documentElement.scrollWidth") == 390


def test_rivals_and_axes() -> None:
    rival = page.Rival(name="trained shallow", depth=3, quality=0.8, low=0.78, high=0.82)
    chart = page.tradeoff({"aligned": curve()}, "depth", rivals=[rival]).to_dict()
    points = [layer["data"]["values"] for layer in chart["layer"] if len(layer.get("data", {}).get("values", [])) == 1]
    assert points[0][0]["quality"] == 0.8
    with pytest.raises(MeasureError, match="curves are drawn against depth, flops, time, not 'money'"):
        page.tradeoff({"aligned": curve()}, "money")
