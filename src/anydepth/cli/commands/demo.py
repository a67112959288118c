"""`anydepth demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anydepth.cli import options, terminal


def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where to write.")] = Path("runs/demo"),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 20,
    seed: options.Seed = 0,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Train a small vision transformer on real digits in two ways, and trace both. Needs no download."""
    from anydepth.cli.render import as_comparison, as_plain
    from anydepth.jobs.demo import show_digits

    terminal.quiet_libraries()
    with terminal.bars(enabled=not as_json) as progress:
        found = show_digits(out, epochs=epochs, seed=seed, progress=progress)
    if as_json:
        plain = {name: as_plain(trace, out / name) for name, trace in found.items()}
        terminal.write_json({"out": str(out), "report": str(out / "report.html"), **plain})
        return
    terminal.output().print(as_comparison(found))
    terminal.output().print(f"Report: {out / 'report.html'}", soft_wrap=True)
