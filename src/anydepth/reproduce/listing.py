"""Which recipes there are, what each takes, and how far it has come in a folder."""

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
"""Minutes beyond which a cost is told in hours."""


@dataclass(frozen=True)
class Scaled:
    """A recipe at one scale.

    Attributes:
        cost: of all seeds from nothing, in words.
        state: "not run", "1 of 3 seeds", "done"; or why what lies there is not these results.
    """

    cost: str
    state: str


@dataclass(frozen=True)
class Listed:
    """A recipe, as a list shows it.

    Attributes:
        name: what a user types.
        figures: those of the paper.
        title: what it is about.
        scales: what it takes at each scale, and how far it is.
    """

    name: str
    figures: tuple[str, ...]
    title: str
    scales: Mapping[Scale, Scaled]


def listed(out: Path, seeds: int) -> tuple[Listed, ...]:
    """All recipes, in the order of the paper.

    Args:
        out: the folder where their results would lie.
        seeds: how many are asked for.
    """
    return tuple(
        Listed(
            recipe.name,
            recipe.figures,
            recipe.title,
            {scale: Scaled(cost(recipe, scale, seeds), _state(recipe, scale, out, seeds)) for scale in recipe.plans},
        )
        for recipe in RECIPES.values()
    )


def cost(recipe: Recipe, scale: Scale, seeds: int) -> str:
    """What so many seeds of a recipe take from nothing.

    Example:
        >>> from anydepth.reproduce.recipes import RECIPES
        >>> cost(RECIPES["parameters"], "cpu", 3)
        '0.1 CPU minutes'
    """
    plan = recipe.plans[scale]
    amount, unit = plan.cost * (seeds if recipe.seeded else 1), str(plan.unit)
    if unit == "CPU minutes" and amount > _LONG:
        amount, unit = amount / 60, "CPU hours"
    shown = f"{amount:,.0f}" if amount >= 10 else f"{amount:.2g}"
    return f"{shown} {unit.removesuffix('s') if shown == '1' else unit}"


def kept(out: Path) -> tuple[tuple[Recipe, RecipeResults], ...]:
    """All results in a folder, in the order of the paper, those of the small scale first.

    Raises:
        ReproduceError: one is of no recipe, of another version of it, of a trial, or lies under another name.
        TraceFileError: one is corrupt.
    """
    found = {}
    for path in sorted((out / RESULTS).glob("*.json")):
        one = RecipeResults.load(path)
        _refuse_others(one, path, out)
        found[one.recipe, one.scale] = one
    order = [(recipe, scale) for recipe in RECIPES.values() for scale in recipe.plans]
    return tuple((recipe, found[recipe.name, scale]) for recipe, scale in order if (recipe.name, scale) in found)


def _refuse_others(found: RecipeResults, path: Path, out: Path) -> None:
    if found.recipe not in RECIPES:
        known = ", ".join(RECIPES)
        raise ReproduceError(f"'{path}' holds results of '{found.recipe}', expected one of {known}: move it elsewhere")
    recipe = RECIPES[found.recipe]
    if found.steps is not None:
        raise ReproduceError(
            f"'{path}' is a trial of {found.steps} steps, expected whole trainings: remove it; trials lie in "
            f"'{out / 'trial'}'"
        )
    if found.scale not in recipe.plans:
        raise ReproduceError(
            f"'{path}' is of scale '{found.scale}', expected one of {', '.join(recipe.plans)}: remove it"
        )
    if difference := _difference(recipe, found):
        raise ReproduceError(f"'{path}' {difference}: remove it, and run `anydepth reproduce {recipe.name}` anew")
    expected = results_path(out, recipe, found.scale)
    if path != expected:
        raise ReproduceError(
            f"'{path}' holds results of '{recipe.name}' at scale '{found.scale}', expected in '{expected.name}': "
            "rename or remove it"
        )
    if not found.seeds:
        raise ReproduceError(f"'{path}' holds no seed, expected at least one: remove it")


def _difference(recipe: Recipe, found: RecipeResults) -> str | None:
    """How results differ from what the recipe finds today: with copies of what it reads, if they were made of such."""
    own = found.settings
    asked = recipe.settings(found.scale, as_printed=bool(own.get("as_printed")), use=own.get("use"))
    return recipe.difference(found, asked)


def _state(recipe: Recipe, scale: Scale, out: Path, seeds: int) -> str:
    path = results_path(out, recipe, scale)
    if not path.exists():
        return "not run"
    try:
        found = RecipeResults.load(path)
    except AnydepthError:
        return "unreadable"
    if (found.recipe, found.scale, found.steps) != (recipe.name, scale, None):
        return "of something else"
    if _difference(recipe, found):
        return "other version" if found.version != recipe.version else "other settings"
    asked = set(range(seeds if recipe.seeded else 1))
    have = len(asked & set(found.seeds))
    return "done" if have == len(asked) else f"{have} of {len(asked)} seeds"
