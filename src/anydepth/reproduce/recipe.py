"""A recipe: one experiment of the paper, at two scales, with what the paper shows and what decides whether it holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Literal

from anydepth.jobs.run_folder import first_difference
from anydepth.reproduce.claims import Claim
from anydepth.reproduce.experiment import Experiment
from anydepth.reproduce.results import RecipeResults, Values
from anydepth.reproduce.subjects import Scale, Subject
from anydepth.storage.files import plain

Unit = Literal["share", "number", "similarity"]


@dataclass(frozen=True)
class Panel:
    """One panel of a recipe's figure: a quantity of several variants by depth.

    Attributes:
        quantity: a key of the recipe's values.
        title: over the panel.
        unit: of the axis: a share is in percent from 0 to 1, a similarity goes up to 1.
        variants: which, in this order; all that have it if empty.
        against: the quantity along the x axis, if not depth.
        x_title: what the x axis is called.
        start: the first depth drawn.
        log: a logarithmic axis.
        printed: curves as the paper prints them, by variant; drawn instead of what was measured.
    """

    quantity: str
    title: str
    unit: Unit = "number"
    variants: tuple[str, ...] = ()
    against: str | None = None
    x_title: str = "depth"
    start: int = 0
    log: bool = False
    printed: Mapping[str, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A recipe at one scale.

    Attributes:
        subjects: by name.
        cost: of one seed from nothing, in `unit`.
        unit: "CPU minutes" where it was measured, "GPU hours" where it is an estimate for one large GPU.
        notes: what is different at this scale.
        besides: other models and data than the subjects', named as theirs are.
    """

    subjects: Mapping[str, Subject]
    cost: int | float
    unit: Literal["CPU minutes", "GPU hours"]
    notes: tuple[str, ...] = ()
    besides: tuple[str, ...] = ()

    def sources(self) -> tuple[str, ...]:
        """Names of all models and data it reads, as `use` takes them."""
        named = (name for subject in self.subjects.values() for name in subject.sources())
        return tuple(dict.fromkeys((*named, *self.besides)))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One experiment of the paper.

    Attributes:
        name: what a user types.
        title: what it is about.
        figures: those of the paper: "Fig. 4".
        shows: what the paper shows there, in a sentence or two.
        cpu: the plan at the small scale.
        full: that of the paper's scale.
        measure: all numbers of one seed.
        claims: what decides, from the numbers of all seeds.
        panels: of its figure; none for no figure.
        notes: what the paper gets wrong or leaves open here.
        ours: what is decided here where the paper does not say, and what else a reader should know.
        version: raised when it measures something else.
        seeded: False where nothing is drawn, so that one seed is all.
    """

    name: str
    title: str
    figures: tuple[str, ...]
    shows: str
    cpu: Plan
    full: Plan
    measure: Callable[[Experiment], Values]
    claims: Callable[[RecipeResults], Sequence[Claim]]
    panels: Callable[[RecipeResults], Sequence[Panel]]
    notes: tuple[str, ...] = ()
    ours: tuple[str, ...] = ()
    version: int = 1
    seeded: bool = True

    @property
    def plans(self) -> Mapping[Scale, Plan]:
        """The plans by scale."""
        return {"cpu": self.cpu, "full": self.full}

    def settings(
        self, scale: Scale, *, as_printed: bool = False, use: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """All that decides what its results are, beside the seed, as JSON holds it."""
        subjects = {name: subject.as_plain() for name, subject in self.plans[scale].subjects.items()}
        own: dict[str, Any] = plain({"subjects": subjects, "as_printed": as_printed})
        return own | ({"use": dict(use)} if use else {})

    def difference(self, results: RecipeResults, settings: Mapping[str, Any]) -> str | None:
        """How results differ from what this recipe would find with these settings, in words; None if they do not."""
        if results.recipe != self.name:
            return f"is of '{results.recipe}', and was looked for as '{self.name}'"
        if results.version != self.version:
            return f"is of version {results.version} of '{self.name}', and this anydepth runs {self.version}"
        kept, own = _untitled(results.settings), _untitled(settings)
        return first_difference(kept, own) or first_difference(own, kept)


def for_each_subject(of_subject: Callable[[RecipeResults, str], list[Claim]]) -> Callable[[RecipeResults], list[Claim]]:
    """Decorator: all subjects' claims, from a function of results and the name of one subject."""

    @wraps(of_subject)
    def claims(results: RecipeResults) -> list[Claim]:
        return [claim for name in results.settings["subjects"] for claim in of_subject(results, name)]

    return claims


def usual_panels(variants: tuple[str, ...], of: str = "") -> tuple[Panel, Panel, Panel]:
    """Panels of variants that were trained differently: accuracy, similarity to the last depth, and saturation.

    Args:
        variants: which, in this order.
        of: what is added to the titles: ", from scratch".
    """
    return (
        Panel("accuracy", f"Accuracy{of}", "share", variants, start=1),
        Panel("cosine", f"Cosine to the last{of}", "similarity", variants, start=1),
        Panel("saturated", f"Answers saturated by depth{of}", "share", variants, start=1),
    )


def _untitled(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without the titles of their subjects: those may be reworded."""
    subjects = {
        name: {key: value for key, value in subject.items() if key != "title"}
        for name, subject in settings["subjects"].items()
    }
    return {**settings, "subjects": subjects}
