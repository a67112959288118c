"""Fig. 15: the same weight for every layer, or more for deeper ones."""

from __future__ import annotations

from collections.abc import Sequence

from anydepth.reproduce.claims import Claim, claim
from anydepth.reproduce.curves import by_depth
from anydepth.reproduce.experiment import Experiment
from anydepth.reproduce.recipe import Panel, Plan, Recipe
from anydepth.reproduce.recipes.vision import SCRATCH, SMALL_SCRATCH
from anydepth.reproduce.results import RecipeResults, Values

SUBJECT = "from scratch"
OBJECTIVES = ("standard", "uniform", "aligned")
"""`aligned` has the paper's weights, proportional to depth."""


def measure(bench: Experiment) -> Values:
    """Both weights, and the usual way."""
    return {name: by_depth(bench.traced(SUBJECT, bench.trained(SUBJECT, name))) for name in OBJECTIVES}


def claims(found: RecipeResults) -> Sequence[Claim]:
    """What linear weights give, and what they take."""
    uniform, linear = (found.each(name, "accuracy") for name in OBJECTIVES[1:])
    half = slice(1, (uniform.shape[1] - 1) // 2 + 1)
    return [
        claim(
            "",
            "Fig. 15",
            "are linear weights better at the last layer than uniform ones?",
            "accuracy at depth L, linear less uniform",
            linear[:, -1] - uniform[:, -1],
        ),
        claim(
            "",
            "Fig. 15",
            "are uniform weights better at shallow layers?",
            "mean accuracy of the shallow half of the depths, uniform less linear",
            (uniform - linear)[:, half].mean(1),
        ),
        claim(
            "",
            "Fig. 15",
            "do uniform weights cost the last layer?",
            "accuracy at depth L, uniform less standard",
            uniform[:, -1] - found.each("standard", "accuracy")[:, -1],
            below=0.0,
        ),
    ]


def panels(found: RecipeResults) -> Sequence[Panel]:
    """Accuracy, similarity and saturation."""
    return (
        Panel("accuracy", "Accuracy", "share", OBJECTIVES, start=1),
        Panel("cosine", "Cosine to the last", "similarity", OBJECTIVES, start=1),
        Panel("saturated", "Answers settled by depth", "share", OBJECTIVES, start=1),
    )


RECIPE = Recipe(
    name="weights",
    title="Uniform and linear weights",
    figures=("Fig. 15",),
    shows="Weights proportional to depth, the paper's choice, against the same weight for every layer. What the figure "
    "shows was not at hand when this was written: the claims are questions of ours.",
    plans={
        "cpu": Plan({SUBJECT: SMALL_SCRATCH}, 6, "CPU minutes"),
        "full": Plan({SUBJECT: SCRATCH}, 5, "GPU hours"),
    },
    measure=measure,
    claims=claims,
    panels=panels,
)
