"""`anydepth predict`."""

from __future__ import annotations

from anydepth.cli import options, terminal
from anydepth.cli.parsing import default_folder


def predict(
    model: options.Calibrated,
    data: options.Data,
    out: options.PredictOut = None,
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
    """Predict DATA with the calibrated model in DIR; predictions.csv has the exit depth of each sample."""
    from anydepth.cli.render import show_predicted
    from anydepth.data.loading import DataSelection
    from anydepth.jobs.predict import PredictSettings, run_predict

    terminal.quiet_libraries()
    settings = PredictSettings(
        model=model,
        data=data,
        split=split,
        wanted=DataSelection(limit=limit, text=text_column, image=image_column, seed=seed),
        batch_size=batch_size,
        max_length=max_length,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    with terminal.bars(enabled=not as_json) as progress:
        result = run_predict(settings, out or default_folder(model, data, suffix="-predictions"), progress=progress)
    show_predicted(result, as_json=as_json)
