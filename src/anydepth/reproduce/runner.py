"""Run a recipe seed by seed; each seed's results are saved as soon as they are there."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path

from anydepth.core.provenance import now, versions
from anydepth.distributed import rank_and_count, wait_for_all
from anydepth.errors import ReproduceError, choose
from anydepth.progress import Progress
from anydepth.reproduce.experiment import Experiment, Say
from anydepth.reproduce.recipe import Recipe
from anydepth.reproduce.recipes import RECIPES
from anydepth.reproduce.results import RecipeResults, Seed, as_kept
from anydepth.reproduce.settings import ReproduceSettings
from anydepth.reproduce.subjects import Scale
from anydepth.storage.output_folder import SETTINGS, OutputKind

RESULTS = "results"
REPRODUCE_OUTPUT = OutputKind(job="reproduce")


def reproduce(
    order: ReproduceSettings,
    *,
    device: str | None = None,
    progress: Progress | None = None,
    say: Say | None = None,
) -> RecipeResults:
    """Run the missing seeds of a recipe, and return the numbers of all of them.

    Args:
        order: the recipe and its settings.
        device: in the place of that of the settings, in one of several processes.
        progress: called with steps done, steps in all, and what is being done.
        say: called with a line for the user.

    Raises:
        ReproduceError: no such recipe; or `out` holds results of another version of it, or with other settings.
        AnydepthError: in one of its kinds, such as an asset that is not there.
    """
    recipe, scale = recipe_named(order.recipe), order.scale
    use = order.replacements
    _check_replacements(recipe, scale, order, use)
    settings = recipe.settings(scale, as_printed=order.as_printed, use=use)
    results = RecipeResults(
        recipe=recipe.name, version=recipe.version, scale=scale, settings=settings, steps=order.steps
    )
    path = results_path(order.out, recipe, scale, order.steps)
    if path.is_file():
        results = RecipeResults.load(path)
        difference = recipe.difference(results, settings)
        if results.steps != order.steps:
            difference = f"was stopped after {results.steps} steps, and is now asked for {order.steps}"
        if difference:
            raise ReproduceError(f"'{path}' {difference}: give another --out, or remove the file to begin anew")
    experiment = Experiment(
        out=order.out if order.steps is None else order.out / "trial",
        scale=scale,
        subjects=recipe.plans[scale].subjects,
        steps=order.steps,
        version=recipe.version,
        as_printed=order.as_printed,
        use=use,
        device=device or order.device or ("cpu" if scale == "cpu" else None),
        progress=progress,
        say=say,
    )
    if (experiment.out / SETTINGS).is_file():
        order.read(experiment.out / SETTINGS)  # refuses one of something else, which would be replaced
    for name in recipe.plans[scale].sources():
        experiment.source(name)  # missing sources fail now, not after the first training
    for number in range(order.seeds if recipe.seeded else 1):
        if number in results.seeds:
            continue
        of_seed = experiment.at(number)
        values = as_kept(recipe.measure(of_seed))
        origin = {
            "created": now(),
            "machine": platform.machine(),
            "device": experiment.device or "the best there is",
            "processes": rank_and_count()[1],
            "versions": versions(),
            "traces": of_seed.traces,
        }
        results = results.with_seed(number, Seed(values, round(of_seed.cpu_seconds, 1), origin))
        if rank_and_count()[0] == 0:
            results.save(path)
            order.save(experiment.out)
        wait_for_all()
    return results


def _check_replacements(recipe: Recipe, scale: Scale, order: ReproduceSettings, use: Mapping[str, str]) -> None:
    """Refuse replacements of what the recipe does not read, and printed settings that it lacks."""
    sources = recipe.plans[scale].sources()
    for name in use:
        if name not in sources:
            what = ", ".join(sources) or "nothing"
            raise ReproduceError(f"--use names '{name}', and '{recipe.name}' reads {what} at scale '{scale}'")
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


def results_path(out: Path, recipe: Recipe, scale: Scale, steps: int | None = None) -> Path:
    """Path of the results of a recipe; those of a trial lie apart."""
    folder = out if steps is None else out / "trial"
    return folder / RESULTS / f"{recipe.name}{'' if scale == 'cpu' else '-' + scale}.json"
