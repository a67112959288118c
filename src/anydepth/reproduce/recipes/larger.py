"""App. C.1: a larger language model, traced; and, where it can be trained, aligned."""

from __future__ import annotations

from collections.abc import Sequence

from anydepth.reproduce.claims import Claim, claim
from anydepth.reproduce.curves import by_depth
from anydepth.reproduce.experiment import Experiment
from anydepth.reproduce.recipe import Panel, Plan, Recipe
from anydepth.reproduce.recipes.language import LLAMA, SMALL_LLAMA
from anydepth.reproduce.results import RecipeResults, Values


def measure(bench: Experiment) -> Values:
    """As it is (a released model) or trained from scratch, both ways."""
    subject = bench.subjects["llama"]
    if not subject.from_scratch:
        return {"as released": by_depth(bench.traced("llama", bench.source(subject.model)))}
    found = {
        objective: by_depth(bench.traced("llama", bench.trained("llama", objective)))
        for objective in ("standard", "aligned")
    }
    return {**found, "random weights": by_depth(bench.traced("llama", bench.untrained("llama")))}


def claims(found: RecipeResults) -> Sequence[Claim]:
    """What the paper says of a larger model, of whichever was traced."""
    first = found.variants[0]
    agreement, cosine = found.each(first, "cosine_spearman"), found.each(first, "cosine")
    released = not found.has("aligned", "early")  # nothing is drawn then: every seed finds the same
    decided = [
        claim(
            "cosine-cka",
            "App. C.1",
            "does the cosine show what CKA shows in a larger language model?",
            f"{first}: rank correlation of the cosine with CKA over pairs of depths",
            agreement,
            above=0.8,
            correlation=True,
            certain=released,
        ),
        claim(
            "closeness",
            "App. C.1",
            "does similarity to the last layer rise with depth?",
            f"{first}: largest fall of the cosine to the last from one depth to the next",
            (cosine[:, 1:-1] - cosine[:, 2:]).max(1),
            below=0.02,
            certain=released,
        ),
    ]
    if not released:
        decided += [
            claim(
                "saturation",
                "App. C.1",
                "does alignment raise the share of tokens whose prediction settles early?",
                "share of predictions that settle before depth L, aligned less standard",
                found.each("aligned", "early") - found.each("standard", "early"),
            ),
            claim(
                "last-layer",
                "App. C.1",
                "does the last layer pay?",
                "nats at depth L, aligned less standard",
                found.each("aligned", "cross_entropy")[:, -1] - found.each("standard", "cross_entropy")[:, -1],
                below=0.01,
            ),
        ]
    return decided


def panels(found: RecipeResults) -> Sequence[Panel]:
    """Both measures of similarity, and what is predicted."""
    return (
        Panel("cosine", "Cosine to the last", "similarity"),
        Panel("cka", "CKA with the last", "similarity"),
        Panel("accuracy", "Accuracy, next token", "number", start=1),
        Panel("cross_entropy", "Nats", "number", start=1),
        Panel("saturated", "Predictions settled by depth", "share", start=1),
    )


RECIPE = Recipe(
    name="larger",
    title="A larger language model, of another architecture",
    figures=("App. C.1",),
    shows="Llama 3. What the appendix shows was not at hand when this was written: the claims are questions of ours.",
    plans={
        "cpu": Plan({"llama": SMALL_LLAMA}, 10, "CPU minutes"),
        "full": Plan(
            {"llama": LLAMA}, 1, "GPU hours", notes=("Traced as released: aligning 8 billion weights is no recipe.",)
        ),
    },
    measure=measure,
    claims=claims,
    panels=panels,
)
