"""Fig. 5: models of half, three quarters and all of the depth, against one aligned model cut there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from anydepth.reproduce.claims import Claim, claim
from anydepth.reproduce.curves import by_depth
from anydepth.reproduce.experiment import Experiment
from anydepth.reproduce.recipe import Panel, Plan, Recipe
from anydepth.reproduce.recipes.vision import SCRATCH, SMALL_SCRATCH
from anydepth.reproduce.results import RecipeResults, Values

WHOLE = "from scratch"
CUTS = {"6 blocks": 6, "9 blocks": 9}


def measure(bench: Experiment) -> Values:
    """Three depths trained the usual way, and the deepest aligned."""
    found = {name: by_depth(bench.traced(name, bench.trained(name))) for name in CUTS}
    found["12 blocks"] = by_depth(bench.traced(WHOLE, bench.trained(WHOLE)))
    found["12 blocks, aligned"] = by_depth(bench.traced(WHOLE, bench.trained(WHOLE, "aligned")))
    return found


def claims(found: RecipeResults) -> Sequence[Claim]:
    """What a cut aligned model is worth, and how deep is enough."""
    aligned, standard = (found.each(name, "accuracy") for name in ("12 blocks, aligned", "12 blocks"))
    return [
        *(
            claim(
                "minimal-depth",
                "Fig. 5",
                "one aligned model is held against models made so shallow: does it do as well, read out there?",
                f"accuracy at depth {depth} of the aligned model, less that of {name} trained by themselves",
                aligned[:, depth] - found.each(name, "accuracy")[:, -1],
                above=-0.005,
            )
            for name, depth in CUTS.items()
        ),
        claim(
            "minimal-depth",
            "Fig. 5",
            "the effective depth falls from 12 to about 7",
            "share of the depths that brings the accuracy within 3 points of the last, aligned less standard",
            found.each("12 blocks, aligned", "enough") - found.each("12 blocks", "enough"),
            below=0.0,
        ),
        claim(
            "",
            "Fig. 5",
            "from scratch on CIFAR-10, aligned training is better at the last layer: .916 against .886",
            "accuracy at depth L, aligned less standard",
            aligned[:, -1] - standard[:, -1],
        ),
        claim(
            "minimal-depth",
            "Fig. 5",
            "accuracy rises with every layer",
            "aligned: largest fall from one depth to the next",
            found.each("12 blocks, aligned", "largest_fall"),
            below=0.01,
        ),
    ]


_ALL = (*CUTS, "12 blocks", "12 blocks, aligned")


def panels(found: RecipeResults) -> Sequence[Panel]:
    """Accuracy, similarity and saturation."""
    return (
        Panel("accuracy", "Accuracy", "share", _ALL, start=1),
        Panel("cosine", "Cosine to the last", "similarity", _ALL, start=1),
        Panel("saturated", "Answers settled by depth", "share", _ALL, start=1),
    )


RECIPE = Recipe(
    name="depths",
    title="How deep is enough: 6, 9 and 12 blocks against one aligned model",
    figures=("Fig. 5",),
    shows="From scratch on CIFAR-10 an aligned DeiT-S needs about 7 of its 12 layers, and beats a standard one at the "
    "last (.916 against .886).",
    plans={
        "cpu": Plan(
            {
                "6 blocks": replace(SMALL_SCRATCH, title="ViT of 6 blocks", model="made:vit-6"),
                "9 blocks": replace(SMALL_SCRATCH, title="ViT of 9 blocks", model="made:vit-9"),
                WHOLE: SMALL_SCRATCH,
            },
            7,
            "CPU minutes",
        ),
        "full": Plan(
            {
                "6 blocks": replace(SCRATCH, title="DeiT-S of 6 blocks", model="made:deit-s-6"),
                "9 blocks": replace(SCRATCH, title="DeiT-S of 9 blocks", model="made:deit-s-9"),
                WHOLE: SCRATCH,
            },
            6,
            "GPU hours",
        ),
    },
    measure=measure,
    claims=claims,
    panels=panels,
    ours=(
        "The paper's effective depth is the first layer with a *training* accuracy of 1 - ε, else L. Here it is the "
        "first depth whose accuracy on held-out images is within 3 points of the last depth's, as a share of L.",
    ),
)
