"""`anydepth compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from anydepth.cli import options, terminal
from anydepth.cli.parsing import default_folder, names_of

_READOUTS: dict[str, Literal["tail", "raw"] | None] = {"tail": "tail", "raw": "raw", "none": None}


def compare(
    traces: options.Traces,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where to write; default runs/A-B-compare.")
    ] = None,
    measures: Annotated[
        str | None,
        typer.Option(help="Similarities across models; default cka, and cosine where widths agree; none for none."),
    ] = None,
    despite: options.Despite = None,
    permutations: Annotated[
        int,
        typer.Option(min=0, help="To test whether CKA across models is more than chance; 999 is usual, 0 for none."),
    ] = 0,
    seed: options.Seed = 0,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Compare traces of the same data: what differs by depth, and which depths of two models are alike."""
    from anydepth.cli.render import show_compared
    from anydepth.jobs.compare import compare_folders

    terminal.quiet_libraries()
    wanted = None if measures is None else () if measures == "none" else names_of(measures)
    folder = out or default_folder(*traces, suffix="-compare")
    with terminal.bars(enabled=not as_json) as progress:
        found = compare_folders(
            traces,
            folder,
            measures=wanted,
            despite=() if despite is None else names_of(despite),
            permutations=permutations,
            seed=seed,
            progress=progress,
        )
    show_compared(found, folder, as_json=as_json)
