"""Figs. 1 to 3, 10 and 11: similarity between layers and accuracy by layer, from scratch and fine-tuned."""

from __future__ import annotations

from functools import partial

import numpy as np

from anydepth.reproduce.claims import Claim
from anydepth.reproduce.curves import by_depth
from anydepth.reproduce.experiment import Experiment
from anydepth.reproduce.recipe import Panel, Plan, Recipe, for_each_subject
from anydepth.reproduce.recipes import glue
from anydepth.reproduce.recipes.vision import FULL, SMALL
from anydepth.reproduce.results import RecipeResults, Values
from anydepth.reproduce.theory_values import NULLS, theory_of
from anydepth.stats.ranks import mid_ranks

RANDOM = "random weights"
SHOWN = {
    "random walk": "that of a random walk",
    "shuffled": "that of its own steps in random order",
    RANDOM: "that of random weights",
}
"""Nulls in words."""
fig_3 = partial(Claim, where="Fig. 3")


def measure(bench: Experiment) -> Values:
    """Each subject trained the usual way, its path through the depths beside every null, and random weights."""
    values = {}
    for name in bench.subjects:
        model = bench.trained(name)
        values[name] = {**by_depth(bench.traced(name, model)), **theory_of(bench, name, model)}
        values[f"{name}, {RANDOM}"] = by_depth(bench.traced(name, bench.untrained(name)))
    return values


@for_each_subject
def claims(results: RecipeResults, name: str) -> list[Claim]:
    """Agreement of the measures, similarity beyond the nulls, and accuracy along with it."""
    violations = results.each(name, "violations")
    curves = (results.each(name, "cosine")[:, 1:], results.each(name, "accuracy")[:, 1:])
    return [
        Claim(
            where="Fig. 2",
            paper="cosine and CKA look alike; no coefficient is given",
            measured=f"{name}: rank correlation of cosine and CKA over pairs of depths",
            values=results.each(name, "cosine_spearman"),
            about="cosine-cka",
            above=0.8,
            correlation=True,
        ),
        *(
            Claim(
                where="Fig. 1",
                paper="the closer two layers, the more alike; no null is drawn beside it",
                measured=f"{name}: share of triples of depths whose far pair is the more alike, minus {SHOWN[null]}",
                values=violations - results.each(name, f"violations, {null}"),
                about="closeness",
                below=0.0,
            )
            for null in NULLS
        ),
        fig_3(
            paper="accuracy by layer rises along with the similarity to the last layer",
            measured=f"{name}: rank correlation of accuracy and cosine to the last over depths 1 to L",
            values=[_rank_correlation(*seed) for seed in zip(*curves, strict=True)],
            above=0.8,
            correlation=True,
        ),
        fig_3(
            paper="accuracy rises with every layer",
            measured=f"{name}: largest fall from one depth to the next",
            values=results.each(name, "largest_fall"),
            about="minimal-depth",
            below=0.01,
        ),
    ]


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's; NaN where one of the two does not vary."""
    if np.isnan(a).any() or not np.ptp(a) or not np.ptp(b):
        return float("nan")
    return float(np.corrcoef(mid_ranks(a), mid_ranks(b))[0, 1])


def panels(results: RecipeResults) -> tuple[Panel, ...]:
    """Two measures of similarity beside random weights, accuracy, and the paper's own."""
    subjects = tuple(results.settings["subjects"])
    beside = tuple(variant for name in subjects for variant in (name, f"{name}, {RANDOM}"))
    return (
        Panel("cosine", "Cosine to the last", "similarity", beside, start=1),
        Panel("cka", "CKA with the last", "similarity", beside, start=1),
        Panel("accuracy", "Accuracy", "share", subjects, start=1),
        Panel(
            "accuracy",
            "Accuracy, as printed (DeiT-S fine-tuned, CIFAR-10)",
            "share",
            start=1,
            printed={
                "standard": (0.10, 0.10, 0.10, 0.10, 0.10, 0.11, 0.16, 0.23, 0.39, 0.53, 0.88, 0.98),
                "aligned": (0.22, 0.45, 0.51, 0.60, 0.76, 0.87, 0.92, 0.95, 0.97, 0.98, 0.98, 0.98),
            },
        ),
    )


RECIPE = Recipe(
    name="progression",
    title="Similarity between layers and accuracy by layer",
    figures=("Fig. 1", "Fig. 2", "Fig. 3", "Fig. 10", "Fig. 11"),
    shows="States of a sample grow more alike as layers get closer, cosine shows it as CKA does, and the last layer's "
    "classifier grows more accurate along with it, layer by layer.",
    cpu=Plan({**SMALL, "sentiment": glue.SMALL["sentiment"]}, 7, "CPU minutes"),
    full=Plan({**FULL, "sst2": glue.FULL["sst2"]}, 3, "GPU hours"),
    measure=measure,
    claims=claims,
    panels=panels,
    notes=(
        "That cosine aligns with CKA is judged by eye; here it has a coefficient.",
        "Similarity that rises with closeness needs no geodesic: a random walk has it, and so have random weights.",
        "The recipe for fine-tuning on CIFAR-10 is not stated; AdamW at 0.1, printed for training from scratch, is not "
        "plausible, and its weight decay is 1e-4 in one place and 0.05 in another.",
    ),
    ours=(
        "In wide states a random walk of 12 steps leaves next to no triple in which the far pair is the more alike: to "
        "have fewer is a hard test. Random weights and shuffled blocks are the other nulls.",
        "Steps down at epochs 100 and 150 are printed for training from scratch; here the rate falls by a cosine.",
    ),
)
