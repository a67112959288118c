"""Figs. 4, 6 and 7: standard training, one aligned classifier, one head for each depth."""

from __future__ import annotations

from functools import partial

import numpy as np

from anydepth.reproduce.claims import Claim
from anydepth.reproduce.curves import accuracy_at
from anydepth.reproduce.experiment import Experiment
from anydepth.reproduce.recipe import Panel, Plan, Recipe, for_each_subject, usual_panels
from anydepth.reproduce.recipes.vision import FULL, IMAGENET, SMALL
from anydepth.reproduce.results import RecipeResults, Values

OBJECTIVES = ("standard", "aligned", "heads")
SHARES = (0.25, 0.5, 0.75)
"""Of the blocks, on average: where exits are held against each other. The paper's is 1 / 1.36 = 0.74."""
fig_4 = partial(Claim, where="Fig. 4")
fig_6 = partial(Claim, where="Fig. 6")


def measure(bench: Experiment) -> Values:
    """Both subjects, trained each way, traced on the same images."""
    return {f"{name} {objective}": bench.curves(name, objective) for name in bench.subjects for objective in OBJECTIVES}


@for_each_subject
def claims(results: RecipeResults, name: str) -> list[Claim]:
    """Saturation, similarity, accuracy and exits."""
    standard, aligned, heads = (f"{name} {objective}" for objective in OBJECTIVES)
    exits = _at_shares(results, aligned) - _at_shares(results, heads)
    return [
        fig_4(
            paper="aligned training raises the share of samples whose answer saturates before the last layer",
            measured=f"{name}: share of answers that saturate before depth L, aligned minus standard",
            values=results.each(aligned, "early") - results.each(standard, "early"),
            about="saturation",
        ),
        fig_4(
            paper="aligned training raises the similarity of shallow layers to the last",
            measured=f"{name}: mean cosine of depths 1 to L - 1 with L, aligned minus standard",
            values=results.shallow(aligned, "cosine") - results.shallow(standard, "cosine"),
        ),
        fig_6(
            paper="aligned training raises the accuracy at shallow layers",
            measured=f"{name}: mean accuracy of depths 1 to L - 1, aligned minus standard",
            values=results.shallow(aligned, "accuracy") - results.shallow(standard, "accuracy"),
        ),
        fig_6(
            paper="the last layer keeps its accuracy (ImageNet, off the plot: .80 and .79)",
            measured=f"{name}: accuracy at depth L, aligned minus standard",
            values=results.each(aligned, "accuracy")[:, -1] - results.each(standard, "accuracy")[:, -1],
            about="last-layer",
            above=-0.005,
        ),
        *(
            Claim(
                where="Fig. 7",
                paper="as a multi-exit model, one classifier is on a par with one for each layer; its own bars say "
                "otherwise: 77.96 % at 1.36 x against 78.32 % at 1.42 x",
                measured=f"{name}: accuracy when {share:.0%} of the blocks run on average, aligned less heads",
                values=exits[:, place],
                about="one-classifier",
                above=-0.005,
            )
            for place, share in enumerate(SHARES)
        ),
    ]


def _at_shares(results: RecipeResults, variant: str) -> np.ndarray:
    """The accuracy of a variant's exits at each of `SHARES`, a row a seed."""
    curves = zip(results.each(variant, "exit_blocks"), results.each(variant, "exit_accuracy"), strict=True)
    return np.array([[accuracy_at(*curve, share) for share in SHARES] for curve in curves])


def panels(results: RecipeResults) -> tuple[Panel, ...]:
    """Each subject's similarity, accuracy, saturation and exits, and one of the paper's own."""
    drawn: list[Panel] = []
    for name in results.settings["subjects"]:
        variants = tuple(f"{name} {objective}" for objective in OBJECTIVES)
        accuracy, cosine, saturated = usual_panels(variants, of=f", {name}")
        exits = Panel("exit_accuracy", f"Exits, {name}", "share", variants, "exit_blocks", "share of the blocks run")
        drawn += (cosine, accuracy, saturated, exits)
    return (*drawn, Panel("accuracy", "Accuracy, as printed (ImageNet)", "share", start=1, printed=PRINTED))


PRINTED = {
    "standard": (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.03, 0.53, 0.80),
    "aligned": (0.08, 0.20, 0.31, 0.38, 0.46, 0.53, 0.60, 0.63, 0.68, 0.73, 0.775, 0.79),
    "heads": (0.05, 0.18, 0.29, 0.39, 0.47, 0.56, 0.63, 0.67, 0.71, 0.76, 0.78, 0.79),
}

RECIPE = Recipe(
    name="objectives",
    title="Standard, aligned, one head for each depth: similarity, accuracy, saturation, exits",
    figures=("Fig. 4", "Fig. 6", "Fig. 7"),
    shows="One classifier trained at all layers makes shallow layers like the last one and accurate, lets more samples "
    "saturate early, and serves as a multi-exit model as well as a classifier for each layer does.",
    cpu=Plan(SMALL, cost=10, unit="CPU minutes"),
    full=Plan({**FULL, "imagenet": IMAGENET}, 125, "GPU hours"),
    measure=measure,
    claims=claims,
    panels=panels,
    notes=(
        "The bars of samples per exit on ImageNet add up to a third of the validation set.",
        "The published heads of the multi-exit baseline are never handed to the optimizer; here they are trained.",
        "The exit threshold is not stated: here it is swept.",
    ),
)
