"""The results that are kept in docs/reproduction: of today's recipes, and the page and figures that go with them."""

from pathlib import Path
from typing import Any

import pytest
import recipe_models
from run_cli import in_folder

from anydepth.reproduce.figures import figure, figure_paths
from anydepth.reproduce.listing import list_recipes
from anydepth.reproduce.recipe import Recipe
from anydepth.reproduce.recipes import RECIPES
from anydepth.reproduce.results import RecipeResults
from anydepth.reproduce.runner import results_path
from anydepth.reproduce.verdict import PAGE, render
from anydepth.storage.files import plain

KEPT = Path(__file__).parents[2] / "docs" / "reproduction"
LEAST = 3

each_recipe = pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))


def kept(recipe: Recipe) -> RecipeResults:
    return RecipeResults.load(results_path(KEPT, recipe, "cpu"))


def test_the_page_is_what_the_results_say() -> None:
    assert render(KEPT) == (KEPT / PAGE).read_text("utf-8"), "run: anydepth reproduce --verdict --out docs/reproduction"


@each_recipe
def test_results_are_of_todays_recipe(recipe: Recipe) -> None:
    found = kept(recipe)
    assert found.version == recipe.version
    assert found.settings == plain(recipe.settings("cpu"))
    assert found.steps is None, "no trial"
    assert list(found.seeds) == list(range(max(len(found.seeds), LEAST if recipe.seeded else 1)))
    assert {seed.provenance["versions"]["anydepth"] for seed in found.seeds.values()} == {"0.1.0"}


@each_recipe
def test_a_seed_took_no_longer_than_is_stated(recipe: Recipe) -> None:
    for seed in kept(recipe).seeds.values():
        assert seed.cpu_seconds / 60 <= recipe.plans["cpu"].cost


@each_recipe
def test_every_claim_is_judged(recipe: Recipe) -> None:
    claims = recipe.claims(kept(recipe))
    assert claims
    for one in claims:
        assert len(one.values) in (len(kept(recipe).seeds), 1)
        assert one.mean == one.mean, f"{one.measured} is undefined"


@each_recipe
def test_the_figure_is_there(recipe: Recipe) -> None:
    found = kept(recipe)
    paths = figure_paths(recipe, found, KEPT)
    assert (figure(recipe, found) is None) == (paths == ())
    for path in paths:
        assert path.stat().st_size > 10_000
        assert f"figures/{path.name}" in render(KEPT) or path.suffix == ".svg"
    for panel in recipe.panels(found):
        assert all(found.has(variant, panel.quantity) for variant in panel.variants)


def test_the_two_fastest_run_a_few_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    command = in_folder(tmp_path, tmp_path / "here", monkeypatch, capsys)
    for recipe in sorted(RECIPES.values(), key=lambda one: one.plans["cpu"].cost)[:2]:
        use = recipe_models.use(tmp_path / "standins", recipe.plans["cpu"].sources())
        replaced = [word for name, path in use.items() for word in ("--use", f"{name}={path}")]
        done = command("reproduce", recipe.name, "--steps", "3", "--seeds", "2", *replaced)
        assert done.status == 0, done.err
        assert "A trial of 3 steps" in done.out
        for claim in recipe.claims(RecipeResults.load(results_path(Path("runs/reproduce"), recipe, "cpu", 3))):
            assert claim.where in done.out


def test_all_are_done() -> None:
    assert {one.scales["cpu"].state for one in list_recipes(KEPT, LEAST)} == {"done"}
