"""`anydepth truncate`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from anydepth.cli import options, terminal
from anydepth.cli.parsing import default_folder


def truncate(
    model: options.Model,
    depth: Annotated[str, typer.Option(metavar="K|auto", help="How many blocks to keep; auto certifies it by DATA.")],
    data: options.DataToCheck = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where to write; default runs/MODEL-depth-K.")
    ] = None,
    split: options.ReadSplit = None,
    limit: options.Limit = None,
    batch_size: options.BatchSize = 32,
    tolerance: options.Tolerance = 0.01,
    confidence: options.Confidence = 0.95,
    against: options.Against = "model",
    text_column: options.TextColumn = None,
    label_column: options.LabelColumn = None,
    image_column: options.ImageColumn = None,
    blocks: options.Blocks = None,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
    seed: options.Seed = 0,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Cut MODEL after depth K; the result is a plain model of the same class with fewer blocks."""
    from anydepth.cli.render import show_cut
    from anydepth.data.loading import DataSelection
    from anydepth.errors import TruncationError
    from anydepth.jobs.truncate import DepthChoice, cut

    terminal.quiet_libraries()
    if depth != "auto" and not re.fullmatch(r"-?\d+", depth):
        raise TruncationError(f"depth is {depth!r}, expected a number of blocks, or auto")
    wanted = DataSelection(limit=limit, text=text_column, label=label_column, image=image_column, seed=seed)
    choice = None
    if data is not None:
        choice = DepthChoice(data, split, wanted, batch_size, tolerance, confidence, against)
    with terminal.bars(enabled=not as_json) as progress:
        found = cut(
            model,
            None if depth == "auto" else int(depth),
            out or default_folder(model, suffix=f"-depth-{depth}"),
            choice=choice,
            blocks=blocks,
            device=device,
            trust_remote_code=trust_remote_code,
            progress=progress,
        )
    show_cut(found, as_json=as_json)
