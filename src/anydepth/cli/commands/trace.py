"""`anydepth trace`."""

from __future__ import annotations

from typing import Literal

from anydepth.cli import options, terminal
from anydepth.cli.parsing import default_folder, names_of
from anydepth.errors import DataError, choose

_READOUTS: dict[str, Literal["tail", "raw"] | None] = {"tail": "tail", "raw": "raw", "none": None}


def trace(
    model: options.Model,
    data: options.Data,
    out: options.TraceOut = None,
    split: options.ReadSplit = None,
    limit: options.Limit = None,
    batch_size: options.BatchSize = 32,
    max_length: options.MaxLength = None,
    stride: options.Stride = None,
    pack: options.Pack = False,
    measures: options.Measures = "cosine,cosine_raw,cka,cka_biased",
    tokens: options.Tokens = None,
    positions: options.Positions = None,
    readout: options.Readout = "tail",
    labels: options.Labels = True,
    text_column: options.TextColumn = None,
    label_column: options.LabelColumn = None,
    image_column: options.ImageColumn = None,
    id_column: options.IdColumn = None,
    blocks: options.Blocks = None,
    keep_states: options.KeepStates = False,
    states_limit: options.StatesLimit = None,
    sums: options.Sums = True,
    theory: options.TestTheory = False,
    lens: options.LensTexts = None,
    restart: options.RestartTrace = False,
    device: options.Device = None,
    dtype: options.Dtype = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
    seed: options.Seed = 0,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Trace MODEL on DATA: similarity between depths, and the accuracy of the model's own readout at each."""
    from anydepth.cli.render import show_trace
    from anydepth.data.loading import DataSelection
    from anydepth.distributed import join, leave, rank_and_count
    from anydepth.jobs.trace import TraceSettings, run_trace

    terminal.quiet_libraries()
    device = join() or device
    choose(readout, _READOUTS, "readout", DataError)
    settings = TraceSettings(
        model=model,
        data=data,
        split=split,
        wanted=DataSelection(
            limit=limit, text=text_column, label=label_column, image=image_column, id=id_column, seed=seed
        ),
        batch_size=batch_size,
        max_length=max_length,
        stride=stride,
        pack=pack,
        measures=names_of(measures),
        tokens=tokens,
        positions=positions,
        readout=_READOUTS[readout],
        labels=labels,
        keep_states=keep_states,
        states_limit=states_limit,
        sums=sums,
        theory=theory,
        lens=tuple(lens or ()),
        blocks=blocks,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
    )
    with terminal.bars(enabled=not as_json, lines=keep_states) as progress:
        result = run_trace(settings, out or default_folder(model, data), resume=not restart, progress=progress)
    if rank_and_count()[0] == 0:
        show_trace(result, as_json=as_json)
    leave()
