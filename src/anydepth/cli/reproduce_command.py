"""`anydepth reproduce`: a recipe, the list of all, or the verdict on what there is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from anydepth.cli import terminal
from anydepth.cli.command import Call
from anydepth.errors import ReproduceError
from anydepth.reproduce.settings import ReproduceSettings


@dataclass(frozen=True, kw_only=True)
class ReproduceCall(Call):
    """A call of `anydepth reproduce`."""

    list: Annotated[bool, "Show all recipes, what each takes, and how far it is in --out."] = False
    verdict: Annotated[bool, "Only write the verdict page and figures, of what is in --out."] = False


def reproduce(settings: ReproduceSettings, call: ReproduceCall) -> None:
    """Run an experiment of the paper by its NAME, and say which of the paper's claims hold."""
    from anydepth.cli.render_reproduce import show_listed
    from anydepth.reproduce.listing import list_recipes

    _check_arguments(settings.recipe, list_all=call.list, verdict=call.verdict)
    if call.list:
        recipes = list_recipes(settings.out, settings.seeds)
        show_listed(recipes, settings.out, settings.seeds, as_json=call.json)
    elif call.verdict:
        _write_verdict(settings, as_json=call.json)
    else:
        _run(settings, as_json=call.json)


def _write_verdict(settings: ReproduceSettings, *, as_json: bool) -> None:
    from anydepth.cli.render_reproduce import show_page
    from anydepth.reproduce.figures import draw
    from anydepth.reproduce.listing import load_results
    from anydepth.reproduce.runner import REPRODUCE_OUTPUT
    from anydepth.reproduce.verdict import require_own, write
    from anydepth.storage.output_folder import output

    out = settings.out
    with output(out, REPRODUCE_OUTPUT):
        every = load_results(out)
        if not every:
            raise ReproduceError(f"'{out}' holds no results, expected some: run a recipe with this --out first")
        for each, results in every:
            require_own(out, each, results.scale)
        pictures = [path for each, results in every for path in draw(each, results, out)]
        show_page(write(out), pictures, as_json=as_json)


def _run(settings: ReproduceSettings, *, as_json: bool) -> None:
    from anydepth.cli.render_reproduce import show_found
    from anydepth.distributed import join, leave, rank_and_count
    from anydepth.reproduce.figures import draw
    from anydepth.reproduce.listing import load_results
    from anydepth.reproduce.runner import REPRODUCE_OUTPUT, recipe_named, results_path
    from anydepth.reproduce.runner import reproduce as run_recipe
    from anydepth.reproduce.verdict import require_own, write
    from anydepth.storage.output_folder import output

    device, out, steps = join(), settings.out, settings.steps
    recipe, scale = recipe_named(settings.recipe), settings.scale
    require_own(out, recipe, scale, steps)
    if steps is None:
        load_results(out)  # results that the verdict page cannot show are refused now, not after hours of training
    rank, ranks = rank_and_count()
    with (
        output(out, REPRODUCE_OUTPUT, rank=rank, ranks=ranks, resumable=True),
        terminal.bars(enabled=not as_json, lines=True) as progress,
    ):
        results = run_recipe(settings, device=device, progress=progress, say=terminal.say)
        figures = draw(recipe, results, out) if rank == 0 else ()
        page = write(out) if rank == 0 and steps is None else None
    if rank == 0:
        show_found(
            recipe,
            results,
            recipe.claims(results),
            results=results_path(out, recipe, scale, steps),
            figures=figures,
            page=page,
            as_json=as_json,
        )
    leave()


def _check_arguments(name: str, *, list_all: bool, verdict: bool) -> None:
    if list_all and verdict:
        raise ReproduceError("--list and --verdict came together: give one of them")
    if name and (list_all or verdict):
        flag = "--list" if list_all else "--verdict"
        raise ReproduceError(f"{flag} is about all recipes, and {name!r} came with it: leave one of them out")
    if not name and not list_all and not verdict:
        raise ReproduceError("no recipe was named, expected one: `anydepth reproduce --list` shows them all")
