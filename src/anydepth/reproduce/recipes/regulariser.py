"""Fig. 14: drawing states towards the last one, without a classifier at shallow layers."""

from __future__ import annotations

from functools import partial

from anydepth.reproduce.claims import Claim
from anydepth.reproduce.experiment import Experiment
from anydepth.reproduce.recipe import Panel, Plan, Recipe
from anydepth.reproduce.recipes.vision import SCRATCH, SMALL_SCRATCH
from anydepth.reproduce.results import RecipeResults, Values

SUBJECT = "from scratch"
claim = partial(Claim, where="Fig. 14")
OBJECTIVES = ("standard", "cosine", "aligned")


def measure(bench: Experiment) -> Values:
    """The usual way, with the regulariser, and aligned."""
    return {objective: bench.curves(SUBJECT, objective) for objective in OBJECTIVES}


def claims(results: RecipeResults) -> list[Claim]:
    """Whether likeness alone makes shallow layers accurate."""
    shallow = {name: results.shallow(name, "accuracy") for name in OBJECTIVES}
    alike = {name: results.shallow(name, "cosine_raw") for name in OBJECTIVES}
    return [
        claim(
            paper="the regulariser makes shallow layers more like the last",
            measured="mean cosine (not centred, as it is trained) of depths 1 to L - 1 with L, regularised minus "
            "standard",
            values=alike["cosine"] - alike["standard"],
        ),
        claim(
            paper="and barely makes them more accurate: by less than half of what alignment does, let us say",
            measured="its gain in mean accuracy of depths 1 to L - 1, minus half of alignment's gain",
            values=shallow["cosine"] - (shallow["standard"] + shallow["aligned"]) / 2,
            below=0.0,
        ),
        claim(
            paper="aligned training beats it at shallow layers",
            measured="mean accuracy of depths 1 to L - 1, aligned minus regularised",
            values=shallow["aligned"] - shallow["cosine"],
        ),
        claim(
            paper="does it cost the last layer?",
            measured="accuracy at depth L, regularised minus standard",
            values=results.each("cosine", "accuracy")[:, -1] - results.each("standard", "accuracy")[:, -1],
            above=-0.005,
        ),
    ]


def panels(results: RecipeResults) -> tuple[Panel, ...]:
    """Both similarities, and accuracy."""
    return (
        Panel("cosine_raw", "Cosine to the last, not centred", "similarity", OBJECTIVES, start=1),
        Panel("cosine", "Cosine to the last, centred", "similarity", OBJECTIVES, start=1),
        Panel("accuracy", "Accuracy", "share", OBJECTIVES, start=1),
    )


RECIPE = Recipe(
    name="regulariser",
    title="The cosine regulariser",
    figures=("Fig. 14",),
    shows="Adding β Σ λ_l (1 − cos(h_l, h_L)) to the loss of the last layer raises similarity and barely the accuracy "
    "of shallow layers.",
    cpu=Plan({SUBJECT: SMALL_SCRATCH}, 6, "CPU minutes"),
    full=Plan({SUBJECT: SCRATCH}, 5, "GPU hours"),
    measure=measure,
    claims=claims,
    panels=panels,
    notes=("β is not stated; here it is 1.",),
)
