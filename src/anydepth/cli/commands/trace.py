"""`anydepth trace`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from anydepth.cli import options, terminal
from anydepth.cli.parsing import default_folder, names_of
from anydepth.errors import DataError, choose

_READOUTS: dict[str, Literal["tail", "raw"] | None] = {"tail": "tail", "raw": "raw", "none": None}


def trace(
    model: options.Model,
    data: options.Data,
    out: options.Out = None,
    split: options.ReadSplit = None,
    limit: options.Limit = None,
    batch_size: options.BatchSize = 32,
    max_length: options.MaxLength = None,
    stride: options.Stride = None,
    pack: options.Pack = False,
    measures: Annotated[
        str, typer.Option(help="Similarities between depths, separated by commas.")
    ] = "cosine,cosine_raw,cka,cka_biased",
    tokens: Annotated[
        str | None, typer.Option(help="Positions that stand for a sample: first, last, each, mean.")
    ] = None,
    positions: Annotated[
        int | None, typer.Option(min=1, help="Of each sample, at most so many positions go into similarities.")
    ] = None,
    readout: Annotated[str, typer.Option(help="tail, raw (no final norm below the last depth), or none.")] = "tail",
    labels: Annotated[bool, typer.Option("--labels/--no-labels", help="Whether the data have labels.")] = True,
    text_column: options.TextColumn = None,
    label_column: options.LabelColumn = None,
    image_column: options.ImageColumn = None,
    id_column: Annotated[str | None, typer.Option(help="Column of sample ids; default the row's number.")] = None,
    blocks: options.Blocks = None,
    keep_states: Annotated[bool, typer.Option("--keep-states", help="Keep the states, to merge or compare.")] = False,
    states_limit: Annotated[
        str | None, typer.Option(metavar="SIZE", help="The most that states may take on disk, such as 20GB.")
    ] = None,
    sums: Annotated[bool, typer.Option("--sums/--no-sums", help="Keep the sums of CKA, to merge.")] = True,
    theory: Annotated[
        bool, typer.Option("--theory", help="Test the paper's theory, beside random walks and random weights.")
    ] = False,
    lens: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Show what a language model would say of TEXT at every depth and position."),
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Start over what an interrupted trace left.")] = False,
    device: options.Device = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")] = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
    seed: options.Seed = 0,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Trace MODEL on DATA: similarity between depths, and what the model's own readout says at each."""
    from anydepth import data as datasets
    from anydepth.cli.render import show_trace
    from anydepth.core.tokens import check_policy
    from anydepth.distributed import join, leave, rank_and_count
    from anydepth.lens.lens import Lens
    from anydepth.measures.similarity import check_measures
    from anydepth.models import loading as models
    from anydepth.report.pages.trace import write
    from anydepth.results.trace_data import REPORT, TRACE_OUTPUT
    from anydepth.results.trace_files import adding
    from anydepth.storage.output_folder import output
    from anydepth.storage.sizes import as_bytes
    from anydepth.tracing.run import trace as run_trace

    terminal.quiet_libraries()
    device = join() or device
    folder = out or default_folder(model, data)
    names = names_of(measures)
    choose(readout, _READOUTS, "readout", DataError)
    if theory and rank_and_count()[1] > 1:
        raise DataError(f"--theory is for one process, and there are {rank_and_count()[1]}: run it without torchrun")
    check_measures(names)  # now, not after a model was downloaded
    if tokens is not None:
        check_policy(tokens)
    if states_limit is not None:
        as_bytes(states_limit, "--states-limit")
    rank, ranks = rank_and_count()
    reads = {"model": model, "data": data}
    again = "the same command without --restart" if restart else "the same command"
    with (
        output(folder, TRACE_OUTPUT, inputs=reads, rank=rank, ranks=ranks, again=again),
        terminal.bars(enabled=not as_json, lines=keep_states) as progress,
    ):
        loaded = models.load(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        samples = datasets.load(
            data,
            split=split,
            limit=limit,
            text=text_column,
            label=label_column,
            image=image_column,
            id=id_column,
            seed=seed,
        )
        batches = datasets.batches(
            samples, loaded, batch_size=batch_size, max_length=max_length, labels=labels, stride=stride, pack=pack
        )
        stack = models.stack_of(loaded, batches, blocks=blocks)
        lenses = [Lens.of(stack, text, loaded.processor) for text in lens or ()]  # first: it may be refused
        found = run_trace(
            stack,
            batches,
            measures=names,
            tokens=tokens,
            positions=positions,
            readout=_READOUTS[readout],
            labels=labels,
            out=folder,
            keep_states=keep_states,
            states_limit=states_limit,
            sums=sums,
            resume=not restart,
            seed=seed,
            describe={
                "model": loaded.name,
                "data": {"name": data, "split": samples.split},
                "notes": [*loaded.notes, *samples.notes, *batches.notes],
            },
            progress=progress,
        )
        tested = None
        if theory:
            from anydepth.jobs.theory import add_theory

            tested = add_theory(
                found,
                folder,
                loaded,
                stack,
                batches,
                labels=labels,
                blocks=blocks,
                trust_remote_code=trust_remote_code,
                seed=seed,
                progress=progress,
            )
        if lenses and rank == 0:
            with adding(folder) as beside:
                write([found], beside / REPORT, theories=[tested] if tested else (), lenses=lenses)
    if rank == 0:
        show_trace(found, folder, theory=tested, as_json=as_json)
    leave()
