"""Samples of the campaigns in benchmarks/reliability, and the pages that show their figures."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "reliability"))
import certificates
import pages

DRAWS = 40


@pytest.mark.parametrize("name", pages.PLACES)
def test_pages_show_the_recorded_figures(name: str) -> None:
    page = (pages.DOCS / pages.PLACES[name][0]).read_text("utf-8")
    found = json.loads((pages.RESULTS / f"{name}.json").read_text("utf-8"))
    assert pages.with_figures(page, name, found) == page
    with pytest.raises(ValueError, match="0 places"):
        pages.with_figures("", name, found)


@pytest.mark.parametrize(
    "name", ["24 samples, 20 % at 90 %", "ties, 600, 5 %", "unevenly sure depths, 600", "depths by costs, 600, 5 %"]
)
def test_certificates_hold_and_temperatures_pay(name: str) -> None:
    """More violations than 3 standard errors above the level, or later exits by temperatures, would be a fault."""
    found = certificates.run(certificates.settings()[name], DRAWS, seed=7)
    level = found["delta"]
    assert found["certified"] > 0.9, "and it is not vacuous"
    assert found["violations"] <= level + 3 * math.sqrt(level * (1 - level) / DRAWS)
    assert found["apart"] <= 3 * found["standard_error"]


def test_a_certificate_without_a_test_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anydepth.stats.certificates.p_value", lambda failures, samples, tolerance: 0.0)
    found = certificates.run(certificates.settings()["unevenly sure depths, 600"], 10, seed=7)
    assert found["violations"] == 1
