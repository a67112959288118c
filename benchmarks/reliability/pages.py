"""Puts the figures of the campaigns into the pages of docs/ that speak of them, each between two marks.

    python benchmarks/reliability/pages.py

A campaign leaves its figures in results/NAME.json; on a page its place is between `<!-- NAME -->` and `<!-- /NAME -->`.
tests/project/test_reliability.py sees that the pages show what the files hold.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
DOCS = RESULTS.parents[2] / "docs"
Figures = dict[str, Any]


def row(cells: list[str]) -> str:
    """A line of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


def table(heads: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(map(row, [heads, ["---"] * len(heads), *rows]))


def counts(of: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in of.items())


def fuzz(figures: Figures) -> str:
    kinds = "; ".join(counts(figures[name]) for name in ("by_verb", "by_kind"))
    faults = table(["fault", "tries"], [[name, f"{count:,}"] for name, count in figures["faults"].items()])
    statuses = f"by exit status {counts(figures['by_status'])}"
    return f"{figures['tries']:,} tries with seed {figures['seed']} ({kinds}; {statuses}):\n\n{faults}"


def kills(figures: Figures) -> str:
    rows = [[name, f"{one['tries']:,}", f"{len(one['wrong']):,}"] for name, one in figures["jobs"].items()]
    return table(["command", f"SIG{figures['signal']} at a random moment, then again", "wrong"], rows)


def threads(figures: Figures) -> str:
    calls = figures["calls"]
    model = "as they were" if figures["intact"] else "changed"
    return (
        f"{sum(calls.values()):,} calls in {figures['threads']} threads ({counts(dict(sorted(calls.items())))}): "
        f"{sum(figures['wrong'].values()):,} differ; the models are {model}."
    )


CALIBRATIONS = ["setting", "violations (95 %)", "allowed", "without temperatures", "certified"]
CALIBRATIONS += ["mean depth", "without temperatures", "difference ± standard error"]


def calibrations(name: str, result: Figures) -> list[str]:
    """The row of a setting, under `CALIBRATIONS`."""
    return [
        name,
        f"{result['violations']:.4f} ({result['low']:.4f}–{result['high']:.4f})",
        f"{result['delta']:g}",
        f"{result['violations_without']:.4f}",
        f"{result['certified']:.3f}",
        f"{result['depth']:.3f}",
        f"{result['depth_without']:.3f}",
        f"{result['apart']:+.4f} ± {result['standard_error']:.4f}",
    ]


def certificates(figures: Figures) -> str:
    rows = [calibrations(*setting) for setting in figures["settings"].items()]
    return f"{figures['draws']:,} calibrations each:\n\n{table(CALIBRATIONS, rows)}"


def intervals(figures: Figures) -> str:
    rows: dict[tuple[str, str, str], list[str]] = {}
    for one in figures["cases"]:
        line = rows.setdefault((one["of"], str(one["within"] or ".5").lstrip("0"), one["lengths"]), [])
        line.append(" → ".join(f"{one[which]['held']:.3f}".lstrip("0") for which in ("before", "now")))
    heads = ["of", "correlation within a text", "lengths", "5 texts, before → now", "16 texts", "50 texts"]
    lines = [[of.replace("0.", "."), *rest, *line] for (of, *rest), line in rows.items()]
    return f"{figures['tries']:,} simulated data sets each:\n\n{table(heads, lines)}"


PLACES: dict[str, tuple[str, Callable[[Figures], str]]] = {
    "fuzz": ("reliability.md", fuzz),
    "kills": ("reliability.md", kills),
    "threads": ("reliability.md", threads),
    "certificates": ("reliability.md", certificates),
    "intervals": ("measures.md", intervals),
}


def with_figures(page: str, name: str, figures: Figures) -> str:
    """A page with the figures of a campaign in their place.

    Raises:
        ValueError: the page has no place for them, or several.
    """
    place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    page, places = place.subn(lambda marks: f"{marks[1]}{PLACES[name][1](figures)}\n{marks[2]}", page)
    if places != 1:
        raise ValueError(f"{places} places for {name!r}, and there should be one: <!-- {name} --> to <!-- /{name} -->")
    return page


def main() -> None:
    """Write all of them."""
    for name, (page, _) in PLACES.items():
        path, figures = DOCS / page, json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
        path.write_text(with_figures(path.read_text("utf-8"), name, figures), "utf-8")


if __name__ == "__main__":
    main()
