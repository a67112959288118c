"""Recipes in the terminal: the list of them, and the results of one."""

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


def show_listed(recipes: Sequence[RecipeStatus], out: Path, seeds: int, *, as_json: bool) -> None:
    """All recipes: one line each, with the cost of so many seeds at each scale, and how many are done in a folder."""
    table = Table(title=f"Recipes, {seeds} seed{'' if seeds == 1 else 's'}", title_justify="left", show_lines=True)
    for name in ("recipe", "figures", "about", *(f"--scale {scale}" for scale in SCALES)):
        table.add_column(name, no_wrap=name == "recipe")
    for recipe in recipes:
        scales = [
            Text.assemble(at.cost, "\n", (at.state, "dim")) if (at := recipe.scales.get(scale)) is not None else ""
            for scale in SCALES
        ]
        table.add_row(recipe.name, "\n".join(recipe.figures), recipe.title, *scales)
    values = {"out": str(out), "seeds": seeds, "recipes": plain(list(recipes))}
    last = f"How many are done is counted in --out {out}. GPU hours are estimates, for one large GPU."
    present(values, table, (), last, as_json)


def show_found(
    recipe: Recipe,
    result: RecipeResults,
    claims: Sequence[Claim],
    *,
    results: Path,
    figures: Sequence[Path],
    page: Path | None,
    as_json: bool,
) -> None:
    """The verdict on each claim of a recipe, and where results, figures and verdict page (none of a trial) are."""
    values = {
        "recipe": recipe.name,
        "scale": result.scale,
        "seeds": sorted(result.seeds),
        "trial": result.steps is not None,
        "steps": result.steps,
        "claims": [_plain(claim) for claim in claims],
        "results": str(results),
        "figures": [str(path) for path in figures],
        "verdict": None if page is None else str(page),
    }
    places = [("Results", results), *(("Figure", path) for path in figures[:1])]
    places += [("Verdict", page)] if page is not None else []
    notes = []
    if result.steps is not None:
        notes.append(f"A trial of {result.steps} steps: it shows that everything runs. It is no result.")
    last = "\n".join(f"{name}: {path}" for name, path in places)
    present(values, Group(_title(recipe, result), _table(claims)), notes, last, as_json)


def show_page(page: Path, figures: Sequence[Path], *, as_json: bool) -> None:
    """The number of figures drawn, and where the verdict page is."""
    values = {"verdict": str(page), "figures": [str(path) for path in figures]}
    present(values, Text(f"{len(figures)} pictures drawn"), (), f"Verdict: {page}", as_json)


def _title(recipe: Recipe, result: RecipeResults) -> Text:
    count = len(result.seeds)
    trial = "" if result.steps is None else f", a trial of {result.steps} steps"
    seeds = f"{count} seed{'' if count == 1 else 's'}"
    return Text(f"{recipe.name}: {', '.join(recipe.figures)}; scale {result.scale}, {seeds}{trial}", style="italic")


def _table(claims: Sequence[Claim]) -> Table:
    table = Table()
    for name in ("where", "measured", "value", "asked", "verdict"):
        table.add_column(name, no_wrap=name != "measured", justify="right" if name == "value" else "left")
    for claim in claims:
        verdict = Text(claim.verdict, style=_STYLES[claim.verdict])
        table.add_row(claim.where, claim.measured, claim.describe(), f"{claim.sense} {claim.bound:g}", verdict)
    return table


def _plain(claim: Claim) -> dict[str, object]:
    low, high = claim.interval
    texts = {"about": claim.about, "where": claim.where, "paper": claim.paper, "measured": claim.measured}
    numbers = {"values": claim.values, "mean": claim.mean, "low": low, "high": high, "bound": claim.bound}
    return plain({**texts, **numbers, "sense": claim.sense, "certain": claim.certain, "verdict": claim.verdict})  # type: ignore[no-any-return]
