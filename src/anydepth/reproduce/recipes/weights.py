"""Fig. 15: the same weight for every layer, or more for deeper ones."""

from __future__ import annotations

from functools import partial

from anydepth.reproduce.claims import Claim
from anydepth.reproduce.experiment import Experiment
from anydepth.reproduce.recipe import Panel, Plan, Recipe, usual_panels
from anydepth.reproduce.recipes.vision import SCRATCH, SMALL_SCRATCH
from anydepth.reproduce.results import RecipeResults, Values

SUBJECT = "from scratch"
claim = partial(Claim, where="Fig. 15")
OBJECTIVES = ("standard", "uniform", "aligned")
"""`aligned` has the paper's weights, proportional to depth."""


def measure(bench: Experiment) -> Values:
    """Both weights, and the usual way."""
    return {objective: bench.curves(SUBJECT, objective) for objective in OBJECTIVES}


def claims(results: RecipeResults) -> list[Claim]:
    """What linear weights give, and what they take."""
    uniform, linear = (results.each(name, "accuracy") for name in OBJECTIVES[1:])
    half = slice(1, (uniform.shape[1] - 1) // 2 + 1)
    return [
        claim(
            paper="are linear weights better at the last layer than uniform ones?",
            measured="accuracy at depth L, linear less uniform",
            values=linear[:, -1] - uniform[:, -1],
        ),
        claim(
            paper="are uniform weights better at shallow layers?",
            measured="mean accuracy of the shallow half of the depths, uniform less linear",
            values=(uniform - linear)[:, half].mean(1),
        ),
        claim(
            paper="do uniform weights cost the last layer?",
            measured="accuracy at depth L, uniform minus standard",
            values=uniform[:, -1] - results.each("standard", "accuracy")[:, -1],
            below=0.0,
        ),
    ]


def panels(results: RecipeResults) -> tuple[Panel, ...]:
    """Accuracy, similarity and saturation."""
    return usual_panels(OBJECTIVES)


RECIPE = Recipe(
    name="weights",
    title="Uniform and linear weights",
    figures=("Fig. 15",),
    shows="Weights proportional to depth, the paper's choice, against the same weight for every layer. What the figure "
    "shows was not at hand when this was written: the claims are questions of ours.",
    cpu=Plan({SUBJECT: SMALL_SCRATCH}, 6, "CPU minutes"),
    full=Plan({SUBJECT: SCRATCH}, 5, "GPU hours"),
    measure=measure,
    claims=claims,
    panels=panels,
)
