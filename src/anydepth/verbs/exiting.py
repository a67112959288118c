"""`anydepth exit`, `predict`, `truncate` and `export`: what becomes of a model that is done early."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from anydepth import options, terminal
from anydepth.verbs.words import default_folder, depths_of


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
    from anydepth.data.loading import Wanted
    from anydepth.exiting import Job, calibrate_named
    from anydepth.promising import Promised, Writing
    from anydepth.show import show_exited, show_promised

    terminal.quiet_libraries()
    job = Job(
        model,
        data,
        split=split,
        wanted=Wanted(limit=limit, text=text_column, label=label_column, image=image_column, seed=seed),
        batch_size=batch_size,
        max_length=max_length,
        policy=policy,
        depths=None if depths is None else depths_of(depths),
        tolerance=tolerance,
        confidence=confidence,
        against=against,
        tune=tune,
        writing=Writing(prompt_tokens, new_tokens, share),
        blocks=blocks,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    with terminal.bars(enabled=not as_json) as progress:
        found = calibrate_named(job, out or default_folder(model, data, suffix="-exit"), progress=progress)
    if isinstance(found, Promised):
        show_promised(found, as_json=as_json)
    elif (prompt_tokens, new_tokens, share) != (32, 64, 0.0):
        terminal.say("anydepth: --prompt-tokens, --new-tokens and --share had no effect: the model writes no text")
        show_exited(found, as_json=as_json)
    else:
        show_exited(found, as_json=as_json)


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
    from anydepth.data.loading import Wanted
    from anydepth.predicting import Request
    from anydepth.predicting import predict as run_predict
    from anydepth.show import show_predicted

    terminal.quiet_libraries()
    request = Request(
        model,
        data,
        split=split,
        wanted=Wanted(limit=limit, text=text_column, image=image_column, seed=seed),
        batch_size=batch_size,
        max_length=max_length,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    with terminal.bars(enabled=not as_json) as progress:
        found = run_predict(request, out or default_folder(model, data, suffix="-predictions"), progress=progress)
    show_predicted(found, as_json=as_json)


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
    from anydepth.cutting import Choice, cut
    from anydepth.data.loading import Wanted
    from anydepth.errors import TruncationError
    from anydepth.show import show_cut

    terminal.quiet_libraries()
    if depth != "auto" and not re.fullmatch(r"-?\d+", depth):
        raise TruncationError(f"depth is {depth!r}, expected a number of blocks, or auto")
    wanted = Wanted(limit=limit, text=text_column, label=label_column, image=image_column, seed=seed)
    choice = None
    if data is not None:
        choice = Choice(data, split, wanted, batch_size, tolerance, confidence, against)
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
    """Write MODEL as ONNX graphs between which samples may leave; anydepth.exits.router runs them without torch."""
    from anydepth.shipping import Wish, ship
    from anydepth.show import show_exported

    terminal.quiet_libraries()
    wish = Wish(
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
