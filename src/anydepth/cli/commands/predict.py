"""`anydepth predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anydepth.cli import options, terminal
from anydepth.cli.parsing import default_folder


def predict(
    model: options.Calibrated,
    data: options.Data,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where to write; default runs/DIR-DATA-predictions.")
    ] = None,
    split: options.ReadSplit = None,
    limit: options.Limit = None,
    batch_size: options.BatchSize = 32,
    max_length: options.MaxLength = None,
    text_column: options.TextColumn = None,
    image_column: options.ImageColumn = None,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
    seed: options.Seed = 0,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Answer DATA by the calibrated model in DIR; predictions.csv tells the depth of each answer."""
    from anydepth.cli.render import show_predicted
    from anydepth.data.loading import DataSelection
    from anydepth.jobs.predict import PredictSettings
    from anydepth.jobs.predict import predict as run_predict

    terminal.quiet_libraries()
    request = PredictSettings(
        model,
        data,
        split=split,
        wanted=DataSelection(limit=limit, text=text_column, image=image_column, seed=seed),
        batch_size=batch_size,
        max_length=max_length,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    with terminal.bars(enabled=not as_json) as progress:
        found = run_predict(request, out or default_folder(model, data, suffix="-predictions"), progress=progress)
    show_predicted(found, as_json=as_json)
