"""Fig. 5: models of half, three quarters and all of the depth, against one aligned model cut there."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from anydepth.reproduce.claims import Claim
from anydepth.reproduce.experiment import Experiment
from anydepth.reproduce.recipe import Panel, Plan, Recipe, usual_panels
from anydepth.reproduce.recipes.vision import SCRATCH, SMALL_SCRATCH
from anydepth.reproduce.results import RecipeResults, Values

WHOLE = "from scratch"
CUTS = {"6 blocks": 6, "9 blocks": 9}
_ALL = (*CUTS, "12 blocks", "12 blocks, aligned")
claim = partial(Claim, where="Fig. 5")


def measure(bench: Experiment) -> Values:
    """Three depths trained the usual way, and the deepest aligned."""
    whole = {"12 blocks": bench.curves(WHOLE), "12 blocks, aligned": bench.curves(WHOLE, "aligned")}
    return {name: bench.curves(name) for name in CUTS} | whole


def claims(results: RecipeResults) -> list[Claim]:
    """What a cut aligned model is worth, and how deep is enough."""
    aligned, standard = (results.each(name, "accuracy") for name in ("12 blocks, aligned", "12 blocks"))
    return [
        *(
            claim(
                paper="one aligned model is held against models made so shallow: does it do as well, read out there?",
                measured=f"accuracy at depth {depth} of the aligned model, minus that of {name} trained by themselves",
                values=aligned[:, depth] - results.each(name, "accuracy")[:, -1],
                about="minimal-depth",
                above=-0.005,
            )
            for name, depth in CUTS.items()
        ),
        claim(
            paper="the effective depth falls from 12 to about 7",
            measured="share of the depths that brings the accuracy within 3 points of the last, aligned minus standard",
            values=results.each("12 blocks, aligned", "enough") - results.each("12 blocks", "enough"),
            about="minimal-depth",
            below=0.0,
        ),
        claim(
            paper="from scratch on CIFAR-10, aligned training is better at the last layer: .916 against .886",
            measured="accuracy at depth L, aligned minus standard",
            values=aligned[:, -1] - standard[:, -1],
        ),
        claim(
            paper="accuracy rises with every layer",
            measured="aligned: largest fall from one depth to the next",
            values=results.each("12 blocks, aligned", "largest_fall"),
            about="minimal-depth",
            below=0.01,
        ),
    ]


def panels(results: RecipeResults) -> tuple[Panel, ...]:
    """Accuracy, similarity and saturation."""
    return usual_panels(_ALL)


RECIPE = Recipe(
    name="depths",
    title="How deep is enough: 6, 9 and 12 blocks against one aligned model",
    figures=("Fig. 5",),
    shows="From scratch on CIFAR-10 an aligned DeiT-S needs about 7 of its 12 layers, and beats a standard one at the "
    "last (.916 against .886).",
    cpu=Plan(
        {
            "6 blocks": replace(SMALL_SCRATCH, title="ViT of 6 blocks", model="made:vit-6"),
            "9 blocks": replace(SMALL_SCRATCH, title="ViT of 9 blocks", model="made:vit-9"),
            WHOLE: SMALL_SCRATCH,
        },
        7,
        "CPU minutes",
    ),
    full=Plan(
        {
            "6 blocks": replace(SCRATCH, title="DeiT-S of 6 blocks", model="made:deit-s-6"),
            "9 blocks": replace(SCRATCH, title="DeiT-S of 9 blocks", model="made:deit-s-9"),
            WHOLE: SCRATCH,
        },
        6,
        "GPU hours",
    ),
    measure=measure,
    claims=claims,
    panels=panels,
    ours=(
        "The paper's effective depth is the first layer with a *training* accuracy of 1 - ε, else L. Here it is the "
        "first depth whose accuracy on held-out images is within 3 points of the last depth's, as a share of L.",
    ),
)
