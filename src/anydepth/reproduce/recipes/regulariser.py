"""Fig. 14: drawing states towards the last one, without a classifier at shallow layers."""

from __future__ import annotations

from collections.abc import Sequence

from anydepth.reproduce.claims import Claim, claim
from anydepth.reproduce.curves import by_depth
from anydepth.reproduce.experiment import Experiment
from anydepth.reproduce.recipe import Panel, Plan, Recipe
from anydepth.reproduce.recipes.vision import SCRATCH, SMALL_SCRATCH
from anydepth.reproduce.results import RecipeResults, Values

SUBJECT = "from scratch"
OBJECTIVES = ("standard", "cosine", "aligned")


def measure(bench: Experiment) -> Values:
    """The usual way, with the regulariser, and aligned."""
    return {name: by_depth(bench.traced(SUBJECT, bench.trained(SUBJECT, name))) for name in OBJECTIVES}


def claims(found: RecipeResults) -> Sequence[Claim]:
    """Whether likeness alone makes shallow layers accurate."""
    shallow = {name: found.shallow(name, "accuracy") for name in OBJECTIVES}
    alike = {name: found.shallow(name, "cosine_raw") for name in OBJECTIVES}
    return [
        claim(
            "",
            "Fig. 14",
            "the regulariser makes shallow layers more like the last",
            "mean cosine (not centred, as it is trained) of depths 1 to L - 1 with L, regularised less standard",
            alike["cosine"] - alike["standard"],
        ),
        claim(
            "",
            "Fig. 14",
            "and barely makes them more accurate: by less than half of what alignment does, let us say",
            "its gain in mean accuracy of depths 1 to L - 1, less half of alignment's gain",
            shallow["cosine"] - (shallow["standard"] + shallow["aligned"]) / 2,
            below=0.0,
        ),
        claim(
            "",
            "Fig. 14",
            "aligned training beats it at shallow layers",
            "mean accuracy of depths 1 to L - 1, aligned less regularised",
            shallow["aligned"] - shallow["cosine"],
        ),
        claim(
            "",
            "Fig. 14",
            "does it cost the last layer?",
            "accuracy at depth L, regularised less standard",
            found.each("cosine", "accuracy")[:, -1] - found.each("standard", "accuracy")[:, -1],
            above=-0.005,
        ),
    ]


def panels(found: RecipeResults) -> Sequence[Panel]:
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
    plans={
        "cpu": Plan({SUBJECT: SMALL_SCRATCH}, 6, "CPU minutes"),
        "full": Plan({SUBJECT: SCRATCH}, 5, "GPU hours"),
    },
    measure=measure,
    claims=claims,
    panels=panels,
    notes=("β is not stated; here it is 1.",),
)
