"""`anydepth exit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anydepth.cli import options, terminal
from anydepth.cli.parsing import default_folder, depths_of


def exit_early(
    model: options.Model,
    data: options.Data,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where to write; default runs/MODEL-DATA-exit.")
    ] = None,
    policy: options.ExitPolicy = "confidence",
    depths: options.TestedDepths = None,
    tolerance: options.Tolerance = 0.01,
    confidence: options.Confidence = 0.95,
    against: options.Against = "model",
    tune: options.Tune = True,
    prompt_tokens: options.PromptTokens = 32,
    new_tokens: options.NewTokens = 64,
    share: options.Share = 0.0,
    split: options.ReadSplit = None,
    limit: options.Limit = None,
    batch_size: options.BatchSize = 32,
    max_length: options.MaxLength = None,
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
    """Calibrate MODEL on DATA to stop early with a guarantee; DIR then holds the model, its policy and a report."""
    from anydepth.cli.render import show_exited, show_promised
    from anydepth.data.loading import DataSelection
    from anydepth.jobs.calibrate import CalibrateSettings, calibrate_named
    from anydepth.jobs.calibrate_lm import LmCalibrateResult, SequenceSettings

    terminal.quiet_libraries()
    job = CalibrateSettings(
        model,
        data,
        split=split,
        wanted=DataSelection(limit=limit, text=text_column, label=label_column, image=image_column, seed=seed),
        batch_size=batch_size,
        max_length=max_length,
        policy=policy,
        depths=None if depths is None else depths_of(depths),
        tolerance=tolerance,
        confidence=confidence,
        against=against,
        tune=tune,
        writing=SequenceSettings(prompt_tokens, new_tokens, share),
        blocks=blocks,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    with terminal.bars(enabled=not as_json) as progress:
        found = calibrate_named(job, out or default_folder(model, data, suffix="-exit"), progress=progress)
    if isinstance(found, LmCalibrateResult):
        show_promised(found, as_json=as_json)
    elif (prompt_tokens, new_tokens, share) != (32, 64, 0.0):
        terminal.say("anydepth: --prompt-tokens, --new-tokens and --share had no effect: the model writes no text")
        show_exited(found, as_json=as_json)
    else:
        show_exited(found, as_json=as_json)
