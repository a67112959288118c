"""A recipe that trains nothing, for the tests of what becomes of results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from anydepth.reproduce import listing, verdict
from anydepth.reproduce import runner as running
from anydepth.reproduce.claims import Claim
from anydepth.reproduce.experiment import Experiment
from anydepth.reproduce.recipe import Panel, Plan, Recipe
from anydepth.reproduce.results import RecipeResults, Seed, Values
from anydepth.reproduce.runner import results_path
from anydepth.reproduce.subjects import Scale, Subject

DEPTH = 6
SUBJECT = Subject(
    title="A model | B data",
    model="org/model",
    data="org/data",
    task="text-classification",
    training={"learning_rate": 1e-3},
    printed={"learning_rate": 0.1, "warmup_steps": 0},
)


def values(seed: int) -> Values:
    """Curves that differ a little between seeds; one depth is undefined."""
    rising = [round(0.1 + 0.14 * depth + 0.002 * seed, 6) for depth in range(DEPTH + 1)]
    falling = [None if depth == 3 else round(0.9 - 0.1 * depth - 0.001 * seed**2, 6) for depth in range(DEPTH + 1)]
    return {
        "plain": {"accuracy": rising, "blocks": rising, "nats": [100.0 * one for one in rising]},
        "aligned": {"accuracy": falling, "blocks": rising},
    }


def measure(bench: Experiment) -> Values:
    """The same, after a word to the user."""
    if bench.say is not None:
        bench.say(f"seed {bench.seed} is measured")
    return values(bench.seed)


def claims(found: RecipeResults) -> Sequence[Claim]:
    """One of each verdict, and one that is certain."""
    first = found.each("plain", "accuracy")[:, 0]
    return [
        Claim(
            where="Fig. 1",
            paper="it rises |x| twice",
            measured="plain: accuracy at 0",
            values=first,
            about="saturation",
        ),
        Claim(
            where="Fig. 1",
            paper="it falls",
            measured="plain: accuracy at 0",
            values=first,
            about="saturation",
            below=0.0,
        ),
        Claim(
            where="Table 2",
            paper="it stays",
            measured="plain: against a tenth",
            values=first,
            about="last-layer",
            above=0.103,
        ),
        Claim(
            where="Table 2",
            paper="it counts",
            measured="how many",
            values=(4.0,),
            above=3.0,
            digits=0,
            certain=True,
        ),
    ]


RECIPE = Recipe(
    name="made-up",
    title="What was made up",
    figures=("Fig. 1", "Table 2"),
    shows="That something rises.",
    cpu=Plan({"one": SUBJECT}, cost=40.0, unit="CPU minutes", notes=("Small.",)),
    full=Plan({"one": SUBJECT}, cost=5.0, unit="GPU hours"),
    measure=measure,
    claims=claims,
    panels=lambda found: (
        Panel("accuracy", "Accuracy, on the data", "share"),
        Panel("accuracy", "Exits", "share", ("plain", "aligned"), "blocks", "share of the blocks run"),
        Panel("nats", "Nats", log=True, start=1),
        Panel("nothing", "Never measured"),
        Panel("accuracy", "Accuracy, as printed", "share", start=1, printed={"plain": (0.1, 0.5, 0.9)}),
    ),
    notes=("It prints a | b.",),
)
OTHER = replace(
    RECIPE, name="other", title="Another", figures=("Fig. 3",), shows="Nothing.", panels=lambda found: (), notes=()
)


RECIPES = {"made-up": RECIPE, "other": OTHER}


def only_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """These two recipes are all there are."""
    for module in (running, listing, verdict):
        monkeypatch.setattr(module, "RECIPES", RECIPES)


def results(count: int = 3, *, scale: Scale = "cpu", version: int = 1, steps: int | None = None) -> RecipeResults:
    """What so many seeds of it found."""
    versions = {"versions": {"anydepth": "0.1.0"}, "created": "2020-01-01"}
    seeds = {number: Seed(values(number), 60.0 * (number + 1), versions) for number in range(count)}
    return RecipeResults(
        recipe=RECIPE.name, version=version, scale=scale, settings=RECIPE.settings(scale), steps=steps, seeds=seeds
    )


def put(out: Path, found: RecipeResults) -> Path:
    """Results where a run would leave them."""
    path = results_path(out, RECIPE, found.scale)
    found.save(path)
    return path
