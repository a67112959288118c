"""A recipe from its name to its results: seed by seed, each kept as soon as it is there."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from anydepth.core.provenance import now, versions
from anydepth.distributed import rank_and_count, wait_for_all
from anydepth.errors import ReproduceError, choose
from anydepth.progress import Progress
from anydepth.reproduce.experiment import Experiment, Say
from anydepth.reproduce.recipe import Recipe
from anydepth.reproduce.recipes import RECIPES
from anydepth.reproduce.results import RecipeResults, Seed, as_kept
from anydepth.reproduce.subjects import SCALES, Scale
from anydepth.storage.output_folder import OutputKind

RESULTS = "results"
REPRODUCE_OUTPUT = OutputKind(job="reproduce")


@dataclass(frozen=True)
class ReproduceSettings:
    """What is to be run, and how.

    Attributes:
        recipe: its name.
        out: the folder for everything: `results/`, `figures/`, `parts/` and the verdict page.
        scale: "cpu" or "full".
        seeds: how many, from 0 on.
        steps: stop every training after so many, and read few rows: a trial, whose results go to a folder of their own.
        as_printed: train with the paper's settings where they are not plausible, too.
        use: local folders and files in the place of hub ids and assets, by name.
        device: as torch names it.

    Raises:
        ReproduceError: no such scale, or numbers below 1.
    """

    recipe: str
    out: Path
    scale: str = "cpu"
    seeds: int = 3
    steps: int | None = None
    as_printed: bool = False
    use: Mapping[str, str] = field(default_factory=dict)
    device: str | None = None

    def __post_init__(self) -> None:
        choose(self.scale, SCALES, "scale", ReproduceError)
        for name, value in (("seeds", self.seeds), ("steps", self.steps)):
            if value is not None and value < 1:
                raise ReproduceError(f"{name} is {value}, expected at least 1")


def reproduce(order: ReproduceSettings, *, progress: Progress | None = None, say: Say | None = None) -> RecipeResults:
    """Run a recipe, or what is missing of it.

    Args:
        order: what, and how.
        progress: called with what is done, how much there is, and what it is.
        say: called with a line for the user.

    Returns:
        The numbers of all its seeds.

    Raises:
        ReproduceError: no such recipe; or `out` holds results of another version of it, or with other settings.
        AnydepthError: in one of its kinds, such as an asset that is not there.
    """
    recipe = recipe_named(order.recipe)
    scale = plan_of(recipe, order.scale)
    _check_what_it_takes(recipe, scale, order)
    settings = recipe.settings(scale, as_printed=order.as_printed, use=order.use)
    found = RecipeResults(recipe.name, recipe.version, scale, settings, order.steps)
    path = results_path(order.out, recipe, scale, order.steps)
    if path.is_file():
        found = RecipeResults.load(path)
        difference = recipe.difference(found, settings)
        if found.steps != order.steps:
            difference = f"was stopped after {found.steps} steps, and is now asked for {order.steps}"
        if difference:
            raise ReproduceError(f"'{path}' {difference}: give another --out, or remove the file to begin anew")
    bench = Experiment(
        order.out if order.steps is None else order.out / "trial",
        scale,
        recipe.plans[scale].subjects,
        steps=order.steps,
        version=recipe.version,
        as_printed=order.as_printed,
        use=order.use,
        device=order.device or ("cpu" if scale == "cpu" else None),
        progress=progress,
        say=say,
    )
    for name in recipe.plans[scale].sources():
        bench.source(name)  # what is missing is missed now, not after the first training
    for number in range(order.seeds if recipe.seeded else 1):
        if number in found.seeds:
            continue
        one = bench.at(number)
        values = as_kept(recipe.measure(one))
        origin = {
            "created": now(),
            "machine": platform.machine(),
            "device": bench.device or "the best there is",
            "processes": rank_and_count()[1],
            "versions": versions(),
            "traces": one.traces,
        }
        found = found.with_seed(number, Seed(values, round(one.cpu_seconds, 1), origin))
        if rank_and_count()[0] == 0:
            found.save(path)
        wait_for_all()
    return found


def _check_what_it_takes(recipe: Recipe, scale: Scale, order: ReproduceSettings) -> None:
    """That what is to be replaced, or trained as printed, is there to be."""
    known = recipe.plans[scale].sources()
    for name in order.use:
        if name not in known:
            what = f"reads {', '.join(known)}" if known else "reads nothing"
            raise ReproduceError(f"--use names '{name}', and '{recipe.name}' {what} at scale '{scale}'")
    if order.as_printed and not any(subject.printed for subject in recipe.plans[scale].subjects.values()):
        raise ReproduceError(
            f"'{recipe.name}' has no printed settings that are not plausible at scale '{scale}': leave --as-printed out"
        )


def recipe_named(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        ReproduceError: there is none; the message names the nearest.

    Example:
        >>> recipe_named("gleu")
        Traceback (most recent call last):
        anydepth.errors.ReproduceError: unknown recipe 'gleu', expected one of ...: did you mean glue?
    """
    return RECIPES[choose(name, RECIPES, "recipe", ReproduceError)]


def plan_of(recipe: Recipe, scale: str) -> Scale:
    """The scale, if the recipe has it.

    Raises:
        ReproduceError: it does not.
    """
    for known in recipe.plans:
        if known == scale:
            return known
    raise ReproduceError(f"'{recipe.name}' has no scale {scale!r}, only {', '.join(recipe.plans)}")


def results_path(out: Path, recipe: Recipe, scale: Scale, steps: int | None = None) -> Path:
    """Where the results of a recipe lie; those of a trial apart."""
    folder = out if steps is None else out / "trial"
    return folder / RESULTS / f"{recipe.name}{'' if scale == 'cpu' else '-' + scale}.json"
