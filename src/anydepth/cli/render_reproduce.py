"""Recipes in the terminal: the list of them, and the results of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from anydepth.cli.render import print_parts
from anydepth.cli.terminal import write_json
from anydepth.reproduce.claims import Claim
from anydepth.reproduce.listing import RecipeStatus
from anydepth.reproduce.recipe import Recipe
from anydepth.reproduce.results import RecipeResults
from anydepth.reproduce.subjects import SCALES
from anydepth.results.tables import Column, Style, Table
from anydepth.storage.files import plain

_STYLES: dict[str, Style] = {"holds": "good", "does not hold": "bad", "undecided": "open"}


def show_listed(recipes: Sequence[RecipeStatus], out: Path, seeds: int, *, as_json: bool) -> None:
    """All recipes: one line each, with the cost of so many seeds at each scale, and how many are done in a folder."""
    if as_json:
        write_json({"out": str(out), "seeds": seeds, "recipes": plain(list(recipes))})
        return
    columns = [
        Column(head="recipe", cells=tuple(recipe.name for recipe in recipes), kind="text"),
        Column(head="figures", cells=tuple(", ".join(recipe.figures) for recipe in recipes), kind="sentence", rank=4),
        Column(head="about", cells=tuple(recipe.title for recipe in recipes), kind="sentence", rank=2),
    ]
    for scale in SCALES:
        at = [recipe.scales.get(scale) for recipe in recipes]
        cells = tuple("" if status is None else status.cost for status in at)
        details = tuple("" if status is None else f"({status.state})" for status in at)
        done = Column(head=f"--scale {scale}", cells=cells, details=details, kind="text")
        columns.append(replace(done, details_rank=3, details_head="how many are done"))
    table = Table(title=f"Recipes, {seeds} seed{'' if seeds == 1 else 's'}", columns=tuple(columns))
    sentences = ("GPU hours are estimates, for one large GPU.",)
    print_parts((table,), sentences, (), f"How many are done is counted in --out {out}.")


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
    if as_json:
        write_json(values)
    else:
        print_parts((_table(claims, _title(recipe, result)),), (), notes, last)


def show_page(page: Path, figures: Sequence[Path], *, as_json: bool) -> None:
    """The number of figures drawn, and where the verdict page is."""
    if as_json:
        write_json({"verdict": str(page), "figures": [str(path) for path in figures]})
    else:
        print_parts((), (f"{len(figures)} pictures drawn",), (), f"Verdict: {page}")


def _title(recipe: Recipe, result: RecipeResults) -> str:
    count = len(result.seeds)
    trial = "" if result.steps is None else f", a trial of {result.steps} steps"
    seeds = f"{count} seed{'' if count == 1 else 's'}"
    return f"{recipe.name}: {', '.join(recipe.figures)}; scale {result.scale}, {seeds}{trial}"


def _table(claims: Sequence[Claim], title: str) -> Table:
    values = [claim.describe().partition(" ") for claim in claims]  # the number, a space, its interval
    columns = (
        Column(head="where", cells=tuple(claim.where for claim in claims), kind="sentence", rank=2),
        Column(head="measured", cells=tuple(claim.measured for claim in claims), kind="sentence"),
        Column(
            head="value",
            cells=tuple(number for number, _, _ in values),
            details=tuple(interval for _, _, interval in values),
            details_rank=3,
        ),
        Column(head="asked", cells=tuple(f"{claim.sense} {claim.bound:g}" for claim in claims), kind="text", rank=1),
        Column(
            head="verdict",
            cells=tuple(claim.verdict for claim in claims),
            kind="text",
            styles=tuple(_STYLES[claim.verdict] for claim in claims),
        ),
    )
    return Table(title=title, columns=columns)


def _plain(claim: Claim) -> dict[str, object]:
    low, high = claim.interval
    texts = {"about": claim.about, "where": claim.where, "paper": claim.paper, "measured": claim.measured}
    numbers = {"values": claim.values, "mean": claim.mean, "low": low, "high": high, "bound": claim.bound}
    return plain({**texts, **numbers, "sense": claim.sense, "certain": claim.certain, "verdict": claim.verdict})  # type: ignore[no-any-return]
