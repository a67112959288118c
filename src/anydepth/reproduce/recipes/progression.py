"""Figs. 1 to 3, 10 and 11: similarity between layers and accuracy by layer, from scratch and fine-tuned."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from anydepth.reproduce.claims import Claim, claim
from anydepth.reproduce.curves import by_depth
from anydepth.reproduce.experiment import Experiment
from anydepth.reproduce.recipe import Panel, Plan, Recipe
from anydepth.reproduce.recipes import glue
from anydepth.reproduce.recipes.vision import PRETRAINED, SCRATCH, SMALL_PRETRAINED, SMALL_SCRATCH
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


def measure(bench: Experiment) -> Values:
    """Each subject trained the usual way, its path through the depths beside every null, and random weights."""
    found = {}
    for name in bench.subjects:
        model = bench.trained(name)
        found[name] = {**by_depth(bench.traced(name, model)), **theory_of(bench, name, model)}
        found[f"{name}, {RANDOM}"] = by_depth(bench.traced(name, bench.untrained(name)))
    return found


def claims(found: RecipeResults) -> Sequence[Claim]:
    """Agreement of the measures, similarity beyond the nulls, and accuracy along with it, for each subject."""
    return [one for name in found.settings["subjects"] for one in _of(found, name)]


def _of(found: RecipeResults, name: str) -> list[Claim]:
    violations = found.each(name, "violations")
    curves = (found.each(name, "cosine")[:, 1:], found.each(name, "accuracy")[:, 1:])
    return [
        claim(
            "cosine-cka",
            "Fig. 2",
            "cosine and CKA look alike; no coefficient is given",
            f"{name}: rank correlation of cosine and CKA over pairs of depths",
            found.each(name, "cosine_spearman"),
            above=0.8,
            correlation=True,
        ),
        *(
            claim(
                "closeness",
                "Fig. 1",
                "the closer two layers, the more alike; no null is drawn beside it",
                f"{name}: share of triples of depths whose far pair is the more alike, less {SHOWN[null]}",
                violations - found.each(name, f"violations, {null}"),
                below=0.0,
            )
            for null in NULLS
        ),
        claim(
            "",
            "Fig. 3",
            "accuracy by layer rises along with the similarity to the last layer",
            f"{name}: rank correlation of accuracy and cosine to the last over depths 1 to L",
            [_rank_correlation(*seed) for seed in zip(*curves, strict=True)],
            above=0.8,
            correlation=True,
        ),
        claim(
            "minimal-depth",
            "Fig. 3",
            "accuracy rises with every layer",
            f"{name}: largest fall from one depth to the next",
            found.each(name, "largest_fall"),
            below=0.01,
        ),
    ]


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's; NaN where one of the two does not vary."""
    if np.isnan(a).any() or not np.ptp(a) or not np.ptp(b):
        return float("nan")
    return float(np.corrcoef(mid_ranks(a), mid_ranks(b))[0, 1])


SMALL = {
    "from scratch": SMALL_SCRATCH,
    "fine-tuned": SMALL_PRETRAINED,
    "sentiment": glue.SMALL["sentiment"],
}


def panels(found: RecipeResults) -> Sequence[Panel]:
    """Two measures of similarity beside random weights, accuracy, and the paper's own."""
    subjects = tuple(found.settings["subjects"])
    beside = tuple(one for name in subjects for one in (name, f"{name}, {RANDOM}"))
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
    plans={
        "cpu": Plan(SMALL, 7, "CPU minutes"),
        "full": Plan({"from scratch": SCRATCH, "fine-tuned": PRETRAINED, "sst2": glue.FULL["sst2"]}, 3, "GPU hours"),
    },
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
