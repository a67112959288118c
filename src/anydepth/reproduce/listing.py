"""List of the recipes with their cost and progress, and the results in a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from anydepth.errors import AnydepthError, ReproduceError
from anydepth.reproduce.recipe import Recipe
from anydepth.reproduce.recipes import RECIPES
from anydepth.reproduce.results import RecipeResults
from anydepth.reproduce.runner import RESULTS, results_path
from anydepth.reproduce.subjects import Scale

_LONG = 90
"""Minutes beyond which a cost is given in hours."""


@dataclass(frozen=True)
class ScaleStatus:
    """Cost and progress of a recipe at one scale.

    Attributes:
        cost: of all seeds from nothing, in words.
        state: "not run", "1 of 3 seeds", "done"; or why the file there does not hold these results.
    """

    cost: str
    state: str


@dataclass(frozen=True, kw_only=True)
class RecipeStatus:
    """A recipe in a list, with its status at each scale."""

    name: str
    figures: tuple[str, ...]
    title: str
    scales: Mapping[Scale, ScaleStatus]


def list_recipes(out: Path, seeds: int) -> tuple[RecipeStatus, ...]:
    """All recipes, in the order of the paper, with the cost of `seeds` seeds and their progress in the folder `out`."""
    return tuple(
        RecipeStatus(
            name=recipe.name,
            figures=recipe.figures,
            title=recipe.title,
            scales={
                scale: ScaleStatus(cost(recipe, scale, seeds), _state(recipe, scale, out, seeds))
                for scale in recipe.plans
            },
        )
        for recipe in RECIPES.values()
    )


def cost(recipe: Recipe, scale: Scale, seeds: int) -> str:
    """Cost of so many seeds of a recipe from nothing, in words.

    Example:
        >>> from anydepth.reproduce.recipes import RECIPES
        >>> cost(RECIPES["parameters"], "cpu", 3)
        '0.1 CPU minutes'
    """
    plan = recipe.plans[scale]
    amount, unit = plan.cost * (seeds if recipe.seeded else 1), str(plan.unit)
    if unit == "CPU minutes" and amount > _LONG:
        amount, unit = amount / 60, "CPU hours"
    text = f"{amount:,.0f}" if amount >= 10 else f"{amount:.2g}"
    return f"{text} {unit.removesuffix('s') if text == '1' else unit}"


def load_results(out: Path) -> tuple[tuple[Recipe, RecipeResults], ...]:
    """All results in a folder, in the order of the paper, those of the small scale first.

    Raises:
        ReproduceError: one is of no recipe, of another version of it, of a trial, or lies under another name.
        TraceFileError: one is corrupt.
    """
    by_recipe = {}
    for path in sorted((out / RESULTS).glob("*.json")):
        results = RecipeResults.load(path)
        _require_own(results, path, out)
        by_recipe[results.recipe, results.scale] = results
    order = [(recipe, (recipe.name, scale)) for recipe in RECIPES.values() for scale in recipe.plans]
    return tuple((recipe, by_recipe[key]) for recipe, key in order if key in by_recipe)


def _require_own(results: RecipeResults, path: Path, out: Path) -> None:
    if problem := _problem(results, path, out):
        raise ReproduceError(f"'{path}' {problem}")


def _problem(results: RecipeResults, path: Path, out: Path) -> str | None:
    """Why a file does not belong to the results in a folder, and what to do; None if it does."""
    if results.recipe not in RECIPES:
        return f"holds results of '{results.recipe}', expected one of {', '.join(RECIPES)}: move it elsewhere"
    recipe, trials = RECIPES[results.recipe], out / "trial"
    if results.steps is not None:
        return f"is a trial of {results.steps} steps, expected whole trainings: remove it; trials lie in '{trials}'"
    if results.scale not in recipe.plans:
        return f"is of scale '{results.scale}', expected one of {', '.join(recipe.plans)}: remove it"
    if difference := _difference(recipe, results):
        return f"{difference}: remove it, and run `anydepth reproduce {recipe.name}` anew"
    if path != (expected := results_path(out, recipe, results.scale)):
        own = f"holds results of '{recipe.name}' at scale '{results.scale}'"
        return f"{own}, expected in '{expected.name}': rename or remove it"
    return None if results.seeds else "holds no seed, expected at least one: remove it"


def _difference(recipe: Recipe, results: RecipeResults) -> str | None:
    """How results differ from those of today's recipe, with the same local copies of models and data."""
    own = results.settings
    settings = recipe.settings(results.scale, as_printed=bool(own.get("as_printed")), use=own.get("use"))
    return recipe.difference(results, settings)


def _state(recipe: Recipe, scale: Scale, out: Path, seeds: int) -> str:
    path = results_path(out, recipe, scale)
    if not path.exists():
        return "not run"
    try:
        results = RecipeResults.load(path)
    except AnydepthError:
        return "unreadable"
    if (results.recipe, results.scale, results.steps) != (recipe.name, scale, None):
        return "of something else"
    if _difference(recipe, results):
        return "other version" if results.version != recipe.version else "other settings"
    wanted = seeds if recipe.seeded else 1
    have = len(set(range(wanted)) & set(results.seeds))
    return "done" if have == wanted else f"{have} of {wanted} seeds"
