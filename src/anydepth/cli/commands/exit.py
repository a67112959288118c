"""`anydepth exit`."""

from __future__ import annotations

from anydepth.cli import options, terminal
from anydepth.cli.parsing import default_folder, depths_of


def exit_early(
    model: options.Model,
    data: options.Data,
    out: options.ExitOut = None,
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
    from anydepth.cli.render import show_calibrated, show_lm_calibrated
    from anydepth.data.loading import DataSelection
    from anydepth.jobs.calibrate import run_calibrate
    from anydepth.jobs.calibrate_lm import LmCalibrateResult
    from anydepth.jobs.calibrate_settings import CalibrateSettings, SequenceSettings

    terminal.quiet_libraries()
    settings = CalibrateSettings(
        model=model,
        data=data,
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
        writing=SequenceSettings(prompt_tokens=prompt_tokens, new_tokens=new_tokens, share=share),
        blocks=blocks,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    with terminal.bars(enabled=not as_json) as progress:
        result = run_calibrate(settings, out or default_folder(model, data, suffix="-exit"), progress=progress)
    if isinstance(result, LmCalibrateResult):
        show_lm_calibrated(result, as_json=as_json)
        return
    if settings.writing != SequenceSettings():
        terminal.say("anydepth: --prompt-tokens, --new-tokens and --share had no effect: the model generates no text")
    show_calibrated(result, as_json=as_json)
