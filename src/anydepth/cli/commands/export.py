"""`anydepth export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anydepth.cli import options, terminal
from anydepth.cli.parsing import default_folder, depths_of


def export(
    model: options.Model,
    exits: options.ExportExits = None,
    depth: options.ExportDepth = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where to write; default runs/MODEL-onnx.")
    ] = None,
    policy: options.ExportPolicy = None,
    threshold: options.ExportThreshold = None,
    blocks: options.Blocks = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Write MODEL as ONNX graphs between which samples may leave; anydepth.onnx.router runs them without torch."""
    from anydepth.cli.render import show_exported
    from anydepth.jobs.export import ExportSettings, ship

    terminal.quiet_libraries()
    wish = ExportSettings(
        model,
        exits=None if exits is None else depths_of(exits),
        depth=depth,
        policy=policy,
        threshold=threshold,
        blocks=blocks,
        trust_remote_code=trust_remote_code,
    )
    with terminal.bars(enabled=not as_json) as progress:
        found = ship(wish, out or default_folder(model, suffix="-onnx"), progress=progress)
    show_exported(found, as_json=as_json)
