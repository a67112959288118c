"""`anydepth reproduce`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from anydepth.cli import options, terminal
from anydepth.errors import ReproduceError, choose
from anydepth.storage.paths import entry_at


def reproduce(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A recipe; --list shows them.")] = None,
    list_all: Annotated[
        bool, typer.Option("--list", help="Show all recipes, what each takes, and how far it is in --out.")
    ] = False,
    # names only, as in `anydepth.cli.options`
    scale: Annotated[str, typer.Option(help="cpu, for two cores; full, as in the paper, for a large GPU.")] = "cpu",
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds, from 0 on; finished ones are kept.")] = 3,
    steps: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Trial: stop every training after N steps.")
    ] = None,
    as_printed: Annotated[
        bool, typer.Option("--as-printed", help="Train with the paper's settings where they are not plausible, too.")
    ] = False,
    use: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="A folder or file in the place of a hub id or asset."),
    ] = None,
    verdict: Annotated[
        bool, typer.Option("--verdict", help="Only write the verdict page and figures, of what is in --out.")
    ] = False,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where to write.")] = Path("runs/reproduce"),
    device: options.Device = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Run an experiment of the paper by its NAME, and say which of the paper's claims hold."""
    from anydepth.cli.render_reproduce import show_found, show_listed, show_page
    from anydepth.distributed import join, leave, rank_and_count
    from anydepth.reproduce.listing import list_recipes, load_results
    from anydepth.reproduce.runner import REPRODUCE_OUTPUT, ReproduceSettings, recipe_named, results_path
    from anydepth.reproduce.runner import reproduce as run_recipe
    from anydepth.reproduce.subjects import SCALES
    from anydepth.storage.output_folder import output

    terminal.quiet_libraries()
    _check_arguments(name, list_all=list_all, verdict=verdict)
    if list_all:
        show_listed(list_recipes(out, seeds), out, seeds, as_json=as_json)
        return
    from anydepth.reproduce.figures import draw  # charts take a second to load, and a list has none
    from anydepth.reproduce.verdict import require_own, write

    if verdict:
        with output(out, REPRODUCE_OUTPUT):
            every = load_results(out)
            if not every:
                raise ReproduceError(f"'{out}' holds no results, expected some: run a recipe with this --out first")
            for each, results in every:
                require_own(out, each, results.scale)
            pictures = [path for each, results in every for path in draw(each, results, out)]
            show_page(write(out), pictures, as_json=as_json)
        return
    device = join() or device
    recipe = recipe_named(name or "")
    settings = ReproduceSettings(
        recipe=recipe.name,
        out=out,
        scale=choose(scale, SCALES, "scale", ReproduceError),
        seeds=seeds,
        steps=steps,
        as_printed=as_printed,
        use=_replacements(use or ()),
        device=device,
    )
    require_own(out, recipe, settings.scale, steps)
    if steps is None:
        load_results(out)  # results that the verdict page cannot show are refused now, not after hours of training
    rank, ranks = rank_and_count()
    with (
        output(out, REPRODUCE_OUTPUT, rank=rank, ranks=ranks, resumable=True),
        terminal.bars(enabled=not as_json, lines=True) as progress,
    ):
        results = run_recipe(settings, progress=progress, say=terminal.say)
        figures = draw(recipe, results, out) if rank == 0 else ()
        page = write(out) if rank == 0 and steps is None else None
    if rank == 0:
        show_found(
            recipe,
            results,
            recipe.claims(results),
            results=results_path(out, recipe, settings.scale, steps),
            figures=figures,
            page=page,
            as_json=as_json,
        )
    leave()


def _check_arguments(name: str | None, *, list_all: bool, verdict: bool) -> None:
    if list_all and verdict:
        raise ReproduceError("--list and --verdict came together: give one of them")
    if name is not None and (list_all or verdict):
        flag = "--list" if list_all else "--verdict"
        raise ReproduceError(f"{flag} is about all recipes, and {name!r} came with it: leave one of them out")
    if name is None and not list_all and not verdict:
        raise ReproduceError("no recipe was named, expected one: `anydepth reproduce --list` shows them all")


def _replacements(use: Sequence[str]) -> dict[str, str]:
    """Local folders and files by the name that they replace, out of `--use`."""
    replacements = {}
    for text in use:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise ReproduceError(
                f"--use is {text!r}, expected NAME=PATH, such as google-bert/bert-base-uncased=models/bert"
            )
        if entry_at(path, ReproduceError) is None:
            raise ReproduceError(f"--use {name}: there is no folder or file '{path}'")
        replacements[name] = path
    return replacements
