"""Puts the figures of the campaigns into the pages of docs/ that speak of them, each between two marks.

    python benchmarks/reliability/pages.py

A campaign leaves its figures in results/NAME.json; on a page its place is between `<!-- NAME -->` and `<!-- /NAME -->`.
tests/test_reliability.py sees that the pages show what the files hold.
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


def table(heads: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [heads, ["---"] * len(heads), *rows])


def counts(of: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in of.items())


def fuzz(found: Figures) -> str:
    kinds = "; ".join(counts(found[name]) for name in ("by_verb", "by_kind"))
    faults = table(["fault", "tries"], [[name, f"{count:,}"] for name, count in found["faults"].items()])
    statuses = f"by exit status {counts(found['by_status'])}"
    return f"{found['tries']:,} tries with seed {found['seed']} ({kinds}; {statuses}):\n\n{faults}"


def kills(found: Figures) -> str:
    rows = [[name, f"{one['tries']:,}", f"{len(one['wrong']):,}"] for name, one in found["jobs"].items()]
    return table(["command", f"SIG{found['signal']} at a random moment, then again", "wrong"], rows)


def threads(found: Figures) -> str:
    calls = found["calls"]
    model = "as they were" if found["intact"] else "changed"
    return (
        f"{sum(calls.values()):,} calls in {found['threads']} threads ({counts(dict(sorted(calls.items())))}): "
        f"{sum(found['wrong'].values()):,} differ; the models are {model}."
    )


def certificates(found: Figures) -> str:
    heads = ["setting", "violations (95 %)", "allowed", "without temperatures"]
    heads += ["mean depth", "without temperatures", "difference ± standard error"]
    rows = [
        [
            name,
            f"{one['violations']:.4f} ({one['low']:.4f}–{one['high']:.4f})",
            f"{one['delta']:g}",
            f"{one['violations_without']:.4f}",
            f"{one['depth']:.3f}",
            f"{one['depth_without']:.3f}",
            f"{one['apart']:+.4f} ± {one['standard_error']:.4f}",
        ]
        for name, one in found["settings"].items()
    ]
    return f"{found['draws']:,} calibrations each:\n\n{table(heads, rows)}"


def intervals(found: Figures) -> str:
    rows: dict[tuple[str, str, str], list[str]] = {}
    for one in found["cases"]:
        row = rows.setdefault((one["of"], str(one["within"] or ".5").lstrip("0"), one["lengths"]), [])
        row.append(" → ".join(f"{one[which]['held']:.3f}".lstrip("0") for which in ("before", "now")))
    heads = ["of", "correlation within a text", "lengths", "5 texts, before → now", "16 texts", "50 texts"]
    told = [[of.replace("0.", "."), *rest, *row] for (of, *rest), row in rows.items()]
    return f"{found['tries']:,} simulated data sets each:\n\n{table(heads, told)}"


PLACES: dict[str, tuple[str, Callable[[Figures], str]]] = {
    "fuzz": ("reliability.md", fuzz),
    "kills": ("reliability.md", kills),
    "threads": ("reliability.md", threads),
    "certificates": ("reliability.md", certificates),
    "intervals": ("measures.md", intervals),
}


def with_figures(page: str, name: str, found: Figures) -> str:
    """A page with the figures of a campaign in their place.

    Raises:
        ValueError: the page has no place for them, or several.
    """
    place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    page, places = place.subn(lambda marks: f"{marks[1]}{PLACES[name][1](found)}\n{marks[2]}", page)
    if places != 1:
        raise ValueError(f"{places} places for {name!r}, and there should be one: <!-- {name} --> to <!-- /{name} -->")
    return page


def main() -> None:
    """Write all of them."""
    for name, (page, _) in PLACES.items():
        path, found = DOCS / page, json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
        path.write_text(with_figures(path.read_text("utf-8"), name, found), "utf-8")


if __name__ == "__main__":
    main()
