"""Recipes in the terminal: the list of them, and what one found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from anydepth.cli.render import present
from anydepth.reproduce.claims import Claim
from anydepth.reproduce.listing import RecipeStatus
from anydepth.reproduce.recipe import Recipe
from anydepth.reproduce.results import RecipeResults
from anydepth.reproduce.subjects import SCALES
from anydepth.storage.files import plain

_STYLES = {"holds": "green", "does not hold": "red", "undecided": "yellow"}


def show_listed(found: Sequence[RecipeStatus], out: Path, seeds: int, *, as_json: bool) -> None:
    """All recipes: one line each, with what so many seeds take at each scale and how far they are in a folder."""
    table = Table(title=f"Recipes, {seeds} seed{'' if seeds == 1 else 's'}", title_justify="left", show_lines=True)
    for name in ("recipe", "figures", "about", *(f"--scale {scale}" for scale in SCALES)):
        table.add_column(name, no_wrap=name == "recipe")
    for one in found:
        scales = [
            Text.assemble(one.scales[scale].cost, "\n", (one.scales[scale].state, "dim")) if scale in one.scales else ""
            for scale in SCALES
        ]
        table.add_row(one.name, "\n".join(one.figures), one.title, *scales)
    what = {"out": str(out), "seeds": seeds, "recipes": plain(list(found))}
    present(
        what,
        table,
        (),
        f"How far they are is told of --out {out}. GPU hours are estimates, for one large GPU.",
        as_json,
    )


def show_found(
    recipe: Recipe,
    found: RecipeResults,
    claims: Sequence[Claim],
    *,
    results: Path,
    figures: Sequence[Path],
    page: Path | None,
    as_json: bool,
) -> None:
    """What a recipe found: a verdict on each claim, and where results, figure and verdict page are.

    Args:
        recipe: what was run.
        found: what came of it.
        claims: its claims.
        results: where the numbers lie.
        figures: where the figure lies, in each of its forms.
        page: the verdict page; None of a trial, which has none.
        as_json: one line for machines instead.
    """
    what = {
        "recipe": recipe.name,
        "scale": found.scale,
        "seeds": sorted(found.seeds),
        "trial": found.steps is not None,
        "steps": found.steps,
        "claims": [_plain(one) for one in claims],
        "results": str(results),
        "figures": [str(path) for path in figures],
        "verdict": None if page is None else str(page),
    }
    places = [("Results", results), *(("Figure", path) for path in figures[:1])]
    places += [("Verdict", page)] if page is not None else []
    notes = []
    if found.steps is not None:
        notes.append(f"A trial of {found.steps} steps: it shows that everything runs. It is no result.")
    last = "\n".join(f"{name}: {path}" for name, path in places)
    present(what, Group(_title(recipe, found), _table(claims)), notes, last, as_json)


def show_page(page: Path, figures: Sequence[Path], *, as_json: bool) -> None:
    """Where the verdict page is, and its figures."""
    what = {"verdict": str(page), "figures": [str(path) for path in figures]}
    told = Text(f"{len(figures)} pictures drawn")
    present(what, told, (), f"Verdict: {page}", as_json)


def _title(recipe: Recipe, found: RecipeResults) -> Text:
    count = len(found.seeds)
    trial = "" if found.steps is None else f", a trial of {found.steps} steps"
    seeds = f"{count} seed{'' if count == 1 else 's'}"
    return Text(f"{recipe.name}: {', '.join(recipe.figures)}; scale {found.scale}, {seeds}{trial}", style="italic")


def _table(claims: Sequence[Claim]) -> Table:
    table = Table()
    for name in ("where", "measured", "value", "asked", "verdict"):
        table.add_column(name, no_wrap=name != "measured", justify="right" if name == "value" else "left")
    for one in claims:
        verdict = Text(one.verdict, style=_STYLES[one.verdict])
        table.add_row(one.where, one.measured, one.describe(), f"{one.sense} {one.bound:g}", verdict)
    return table


def _plain(claim: Claim) -> dict[str, object]:
    low, high = claim.interval
    found = {"about": claim.about, "where": claim.where, "paper": claim.paper, "measured": claim.measured}
    numbers = {"values": claim.values, "mean": claim.mean, "low": low, "high": high, "bound": claim.bound}
    return plain({**found, **numbers, "sense": claim.sense, "certain": claim.certain, "verdict": claim.verdict})  # type: ignore[no-any-return]
