"""`anydepth truncate`."""

from __future__ import annotations

import re

from anydepth.cli import options, terminal
from anydepth.cli.parsing import default_folder


def truncate(
    model: options.Model,
    depth: options.BlocksToKeep,
    data: options.DataToCheck = None,
    out: options.TruncateOut = None,
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
    from anydepth.jobs.truncate import TruncateSettings, run_truncate

    terminal.quiet_libraries()
    if depth != "auto" and not re.fullmatch(r"-?\d+", depth):
        raise TruncationError(f"depth is {depth!r}, expected a number of blocks, or auto")
    settings = TruncateSettings(
        model=model,
        depth=None if depth == "auto" else int(depth),
        data=data,
        split=split,
        wanted=DataSelection(limit=limit, text=text_column, label=label_column, image=image_column, seed=seed),
        batch_size=batch_size,
        tolerance=tolerance,
        confidence=confidence,
        against=against,
        blocks=blocks,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    with terminal.bars(enabled=not as_json) as progress:
        result = run_truncate(settings, out or default_folder(model, suffix=f"-depth-{depth}"), progress=progress)
    show_cut(result, as_json=as_json)
