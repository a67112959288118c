"""Fig. 16: neural collapse by layer, of standard and aligned training."""

from __future__ import annotations

from functools import partial

import numpy as np

from anydepth.reproduce.claims import Claim
from anydepth.reproduce.experiment import Experiment
from anydepth.reproduce.recipe import Panel, Plan, Recipe, for_each_subject
from anydepth.reproduce.recipes.vision import FULL, SMALL
from anydepth.reproduce.results import RecipeResults, Values
from anydepth.reproduce.theory_values import theory_of

OBJECTIVES = ("standard", "aligned")
claim = partial(Claim, where="Fig. 16")


def measure(bench: Experiment) -> Values:
    """The theory of both subjects, trained both ways."""
    return {
        f"{name} {objective}": theory_of(bench, name, bench.trained(name, objective))
        for name in bench.subjects
        for objective in OBJECTIVES
    }


@for_each_subject
def claims(results: RecipeResults, name: str) -> list[Claim]:
    """Whether classes draw together with depth, and earlier after alignment."""
    spread = {objective: np.log10(results.each(f"{name} {objective}", "nc1")[:, 1:]) for objective in OBJECTIVES}
    shuffled = np.log10(results.each(f"{name} standard", "nc1, shuffled labels")[:, 1:])
    return [
        claim(
            paper="do classes draw together layer by layer?",
            measured=f"{name}, standard: log10 of NC1 at depth L less that at depth 1",
            values=spread["standard"][:, -1] - spread["standard"][:, 0],
            below=0.0,
        ),
        claim(
            paper="and more than labels that have nothing to do with the samples would?",
            measured=f"{name}, standard: log10 of NC1 at depth L, minus the same with shuffled labels",
            values=spread["standard"][:, -1] - shuffled[:, -1],
            below=0.0,
        ),
        claim(
            paper="have they drawn together at shallower layers after alignment?",
            measured=f"{name}: mean log10 of NC1 over depths 1 to L - 1, aligned minus standard",
            values=spread["aligned"][:, :-1].mean(1) - spread["standard"][:, :-1].mean(1),
            below=0.0,
        ),
        claim(
            paper="and do they sit closer to the weights of their classes?",
            measured=f"{name}: mean NC3 over depths 1 to L - 1, aligned minus standard",
            values=results.shallow(f"{name} aligned", "nc3") - results.shallow(f"{name} standard", "nc3"),
            below=0.0,
        ),
    ]


def panels(results: RecipeResults) -> tuple[Panel, ...]:
    """All three parts of neural collapse."""
    return (
        Panel("nc1", "NC1, the spread within classes over that between", start=1, log=True),
        Panel("nc2_angle", "NC2, how far the class means are from a simplex", start=1),
        Panel("nc3", "NC3, how far the class means are from the weights", start=1),
    )


RECIPE = Recipe(
    name="collapse",
    title="Neural collapse by layer",
    figures=("Fig. 16",),
    shows="Neural collapse by layer. What the figure shows was not at hand when this was written: the claims are "
    "questions of ours.",
    cpu=Plan(SMALL, 8, "CPU minutes"),
    full=Plan(FULL, 4, "GPU hours"),
    measure=measure,
    claims=claims,
    panels=panels,
    ours=(
        "Theorem 2.2 needs collapse, equal norms, and updates that leave all other classes alone; `anydepth trace "
        "--theory` checks each.",
    ),
)
