"""App. C.1: a larger language model, traced; and, where it can be trained, aligned."""

from __future__ import annotations

from functools import partial

from anydepth.reproduce.claims import Claim
from anydepth.reproduce.curves import by_depth
from anydepth.reproduce.experiment import Experiment
from anydepth.reproduce.recipe import Panel, Plan, Recipe
from anydepth.reproduce.recipes.language import LLAMA, SMALL_LLAMA
from anydepth.reproduce.results import RecipeResults, Values

claim = partial(Claim, where="App. C.1")


def measure(bench: Experiment) -> Values:
    """As it is (a released model) or trained from scratch, both ways."""
    subject = bench.subjects["llama"]
    if not subject.from_scratch:
        return {"as released": by_depth(bench.traced("llama", bench.source(subject.model)))}
    trained = {objective: bench.curves("llama", objective) for objective in ("standard", "aligned")}
    return {**trained, "random weights": by_depth(bench.traced("llama", bench.untrained("llama")))}


def claims(results: RecipeResults) -> list[Claim]:
    """What the paper says of a larger model, of whichever was traced."""
    first = results.variants[0]
    agreement, cosine = results.each(first, "cosine_spearman"), results.each(first, "cosine")
    released = not results.has("aligned", "early")  # nothing is drawn then: every seed finds the same
    decided = [
        claim(
            paper="does the cosine show what CKA shows in a larger language model?",
            measured=f"{first}: rank correlation of the cosine with CKA over pairs of depths",
            values=agreement,
            about="cosine-cka",
            above=0.8,
            correlation=True,
            certain=released,
        ),
        claim(
            paper="does similarity to the last layer rise with depth?",
            measured=f"{first}: largest fall of the cosine to the last from one depth to the next",
            values=(cosine[:, 1:-1] - cosine[:, 2:]).max(1),
            about="closeness",
            below=0.02,
            certain=released,
        ),
    ]
    if not released:
        decided += [
            claim(
                paper="does alignment raise the share of tokens whose prediction saturates early?",
                measured="share of predictions that saturate before depth L, aligned minus standard",
                values=results.each("aligned", "early") - results.each("standard", "early"),
                about="saturation",
            ),
            claim(
                paper="does the last layer pay?",
                measured="nats at depth L, aligned minus standard",
                values=results.each("aligned", "cross_entropy")[:, -1]
                - results.each("standard", "cross_entropy")[:, -1],
                about="last-layer",
                below=0.01,
            ),
        ]
    return decided


def panels(results: RecipeResults) -> tuple[Panel, ...]:
    """Both measures of similarity, and what is predicted."""
    return (
        Panel("cosine", "Cosine to the last", "similarity"),
        Panel("cka", "CKA with the last", "similarity"),
        Panel("accuracy", "Accuracy, next token", "number", start=1),
        Panel("cross_entropy", "Nats", "number", start=1),
        Panel("saturated", "Predictions saturated by depth", "share", start=1),
    )


RECIPE = Recipe(
    name="larger",
    title="A larger language model, of another architecture",
    figures=("App. C.1",),
    shows="Llama 3. What the appendix shows was not at hand when this was written: the claims are questions of ours.",
    cpu=Plan({"llama": SMALL_LLAMA}, 10, "CPU minutes"),
    full=Plan(
        {"llama": LLAMA}, 1, "GPU hours", notes=("Traced as released: aligning 8 billion weights is no recipe.",)
    ),
    measure=measure,
    claims=claims,
    panels=panels,
)
