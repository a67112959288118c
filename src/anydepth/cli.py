"""The command line. Each verb reads its arguments, calls the library, and shows what came out.

User errors are one line on standard error and exit status 2; `--debug` shows where they came from. An interrupt ends
with status 130 and leaves what was done so far where the same command takes it up again.
"""

from __future__ import annotations

import json
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from anydepth import options, terminal
from anydepth.errors import AnydepthError, DataError

app = typer.Typer(
    name="anydepth",
    help="Show what every depth of a transformer knows, and train one classifier to work at all of them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_INTERRUPTED = 130
_READOUTS: dict[str, Literal["tail", "raw"] | None] = {"tail": "tail", "raw": "raw", "none": None}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit status."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run the command line.

    Returns:
        The exit status: 0, 2 for an error of the user's, 130 for an interrupt.
    """
    try:
        status = int(app(args=list(arguments), standalone_mode=False, prog_name="anydepth") or 0)
    except (AnydepthError, typer.TyperException) as error:
        if "--debug" in arguments:
            traceback.print_exc()
        message = error.format_message() if isinstance(error, typer.TyperException) else str(error)
        if message:  # there is none where the help was shown for want of arguments
            print(f"anydepth: {' '.join(message.split())}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, typer.Abort):
        status = _INTERRUPTED
    if status == _INTERRUPTED:  # typer, too, makes this of Ctrl-C
        again = "the same command with --resume" if "align" in arguments[:1] else "the same command"
        print(f"anydepth: interrupted; {again} goes on where this one stopped", file=sys.stderr)
    return status


def _show_version(asked: bool) -> bool:
    if asked:
        from importlib.metadata import version

        print(f"anydepth {version('anydepth')}")
        raise typer.Exit
    return asked


@app.callback()
def _anydepth(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """What stands before the verb."""


@app.command()
def trace(
    model: options.Model,
    data: options.Data,
    out: options.Out = None,
    split: options.ReadSplit = None,
    limit: options.Limit = None,
    batch_size: options.BatchSize = 32,
    max_length: options.MaxLength = None,
    measures: Annotated[
        str, typer.Option(help="Similarities between depths, separated by commas.")
    ] = "cosine,cosine_raw,cka,cka_biased",
    tokens: Annotated[
        str | None, typer.Option(help="Positions that stand for a sample: first, last, each, mean.")
    ] = None,
    readout: Annotated[str, typer.Option(help="tail, raw (no final norm below the last depth), or none.")] = "tail",
    labels: Annotated[bool, typer.Option("--labels/--no-labels", help="Whether the data have labels.")] = True,
    text_column: options.TextColumn = None,
    label_column: options.LabelColumn = None,
    image_column: options.ImageColumn = None,
    id_column: Annotated[str | None, typer.Option(help="Column of sample ids; default the row's number.")] = None,
    blocks: options.Blocks = None,
    keep_states: Annotated[bool, typer.Option("--keep-states", help="Keep the states, to merge or compare.")] = False,
    sums: Annotated[bool, typer.Option("--sums/--no-sums", help="Keep the sums of CKA, to merge.")] = True,
    theory: Annotated[
        bool, typer.Option("--theory", help="Test the paper's theory, beside random walks and random weights.")
    ] = False,
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
    from anydepth import models
    from anydepth.ranks import join, leave, rank_and_count
    from anydepth.show import show_trace
    from anydepth.tokens import check_policy
    from anydepth.tracing import check_measures
    from anydepth.tracing import trace as run_trace

    terminal.quiet_libraries()
    device = join() or device
    folder = out or Path("runs") / f"{_slug(model)}-{_slug(data)}"
    names = _measures(measures)
    if readout not in _READOUTS:
        raise DataError(f"unknown readout {readout!r}, expected one of {', '.join(_READOUTS)}")
    if theory and rank_and_count()[1] > 1:
        raise DataError(f"--theory is for one process, and there are {rank_and_count()[1]}: run it without torchrun")
    check_measures(names)  # now, not after a model was downloaded
    if tokens is not None:
        check_policy(tokens)
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
    batches = datasets.batches(samples, loaded, batch_size=batch_size, max_length=max_length, labels=labels)
    with terminal.bars(enabled=not as_json) as progress:
        stack = models.stack_of(loaded, batches, blocks=blocks)
        found = run_trace(
            stack,
            batches,
            measures=names,
            tokens=tokens,
            readout=_READOUTS[readout],
            labels=labels,
            out=folder,
            keep_states=keep_states,
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
            from anydepth.theory.beside import add_theory

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
    if rank_and_count()[0] == 0:
        show_trace(found, folder, theory=tested, as_json=as_json)
    leave()


def _list_objectives(asked: bool) -> bool:
    if asked:
        from anydepth.objectives import OBJECTIVES

        table = Table("objective", "what it is for", box=None)
        for objective in OBJECTIVES.values():
            table.add_row(objective.name, objective.purpose)
        terminal.output().print(table)
        raise typer.Exit
    return asked


@app.command()
def align(
    model: options.Model,
    data: options.Data,
    objective: options.Objective = "aligned",
    out: options.AlignedOut = None,
    list_objectives: Annotated[
        bool,
        typer.Option(
            "--list-objectives",
            help="Show them and exit.",
            is_eager=True,
            callback=_list_objectives,
            show_default=False,
        ),
    ] = False,
    weights: options.Weights = None,
    exits: options.Exits = None,
    distillation: options.Distillation = None,
    task: options.Task = None,
    from_scratch: options.FromScratch = False,
    split: options.Split = None,
    eval_data: options.EvalData = None,
    eval_split: options.EvalSplit = None,
    limit: options.TrainLimit = None,
    max_length: options.BlockLength = None,
    text_column: options.TextColumn = None,
    label_column: options.LabelColumn = None,
    image_column: options.ImageColumn = None,
    blocks: options.Blocks = None,
    trust_remote_code: options.TrustRemoteCode = False,
    num_train_epochs: options.Epochs = 3.0,
    max_steps: options.MaxSteps = -1,
    learning_rate: options.LearningRate = 5e-5,
    lr_scheduler_type: options.Scheduler = "linear",
    warmup_steps: options.WarmupSteps = 0.0,
    weight_decay: options.WeightDecay = 0.0,
    max_grad_norm: options.MaxGradNorm = 1.0,
    optim: options.Optimizer = "adamw_torch",
    train_batch_size: options.TrainBatch = 8,
    eval_batch_size: options.EvalBatch = 8,
    gradient_accumulation_steps: options.Accumulation = 1,
    label_smoothing_factor: options.Smoothing = 0.0,
    bf16: options.Bf16 = False,
    fp16: options.Fp16 = False,
    gradient_checkpointing: options.Checkpointing = False,
    torch_compile: options.Compile = False,
    use_cpu: options.UseCpu = False,
    dataloader_num_workers: options.Workers = 0,
    eval_steps: options.EvalSteps = None,
    save_steps: options.SaveSteps = 500.0,
    save_total_limit: options.SaveLimit = 2,
    logging_steps: options.LoggingSteps = 0.01,
    report_to: options.ReportTo = "none",
    resume: options.Resume = False,
    restart: options.Restart = False,
    keep_checkpoints: options.KeepCheckpoints = False,
    seed: options.Seed = 0,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Train MODEL on DATA so that its classifier works at every depth; the result is a plain model."""
    from anydepth.aligning import align as run_align
    from anydepth.data.loading import Wanted
    from anydepth.jobs import Job, check_exits, check_weights
    from anydepth.ranks import leave, rank_and_count
    from anydepth.show import show_aligned

    terminal.quiet_libraries()
    job = Job(
        model,
        data,
        objective=objective,
        weights=None if weights is None else check_weights(weights),
        exits=None if exits is None else check_exits(exits),
        distillation=distillation,
        task=task,
        from_scratch=from_scratch,
        split=split,
        eval_data=eval_data,
        eval_split=eval_split,
        wanted=Wanted(limit=limit, text=text_column, label=label_column, image=image_column, seed=seed),
        max_length=max_length,
        blocks=blocks,
        trust_remote_code=trust_remote_code,
        training={
            "num_train_epochs": num_train_epochs,
            "max_steps": max_steps,
            "learning_rate": learning_rate,
            "lr_scheduler_type": lr_scheduler_type,
            "warmup_steps": warmup_steps,
            "weight_decay": weight_decay,
            "max_grad_norm": max_grad_norm,
            "optim": optim,
            "per_device_train_batch_size": train_batch_size,
            "per_device_eval_batch_size": eval_batch_size,
            "gradient_accumulation_steps": gradient_accumulation_steps,
            "label_smoothing_factor": label_smoothing_factor,
            "bf16": bf16,
            "fp16": fp16,
            "gradient_checkpointing": gradient_checkpointing,
            "torch_compile": torch_compile,
            "use_cpu": use_cpu,
            "dataloader_num_workers": dataloader_num_workers,
            "eval_steps": eval_steps,
            "save_steps": save_steps,
            "save_total_limit": save_total_limit,
            "logging_steps": logging_steps,
            "report_to": report_to,
        },
    )
    with terminal.bars(enabled=not as_json, lines=True) as progress:
        found = run_align(
            job,
            out or Path("runs") / f"{_slug(model)}-{_slug(data)}-{objective}",
            resume=resume,
            restart=restart,
            keep_checkpoints=keep_checkpoints,
            progress=progress,
            say=terminal.say,
        )
    if rank_and_count()[0] == 0:
        show_aligned(found, as_json=as_json)
    leave()


@app.command()
def compare(
    traces: options.Traces,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where to write.")] = Path("runs/compare"),
    measures: Annotated[
        str | None,
        typer.Option(help="Similarities across models; default cka, and cosine where widths agree; none for none."),
    ] = None,
    despite: options.Despite = None,
    seed: options.Seed = 0,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Compare traces of the same data: what differs by depth, and which depths of two models are alike."""
    from anydepth.matching import compare_folders
    from anydepth.show import show_compared

    terminal.quiet_libraries()
    wanted = None if measures is None else () if measures == "none" else _measures(measures)
    with terminal.bars(enabled=not as_json) as progress:
        found = compare_folders(
            traces,
            out,
            measures=wanted,
            despite=() if despite is None else _measures(despite),
            seed=seed,
            progress=progress,
        )
    show_compared(found, out, as_json=as_json)


@app.command("exit")
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
    from anydepth.show import show_exited

    terminal.quiet_libraries()
    job = Job(
        model,
        data,
        split=split,
        wanted=Wanted(limit=limit, text=text_column, label=label_column, image=image_column, seed=seed),
        batch_size=batch_size,
        max_length=max_length,
        policy=policy,
        depths=None if depths is None else _depths(depths),
        tolerance=tolerance,
        confidence=confidence,
        against=against,
        tune=tune,
        blocks=blocks,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    with terminal.bars(enabled=not as_json) as progress:
        found = calibrate_named(job, out or Path("runs") / f"{_slug(model)}-{_slug(data)}-exit", progress=progress)
    show_exited(found, as_json=as_json)


@app.command()
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
        found = run_predict(
            request, out or Path("runs") / f"{_slug(model)}-{_slug(data)}-predictions", progress=progress
        )
    show_predicted(found, as_json=as_json)


@app.command()
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
            out or Path("runs") / f"{_slug(model)}-depth-{depth}",
            choice=choice,
            blocks=blocks,
            device=device,
            trust_remote_code=trust_remote_code,
            progress=progress,
        )
    show_cut(found, as_json=as_json)


@app.command()
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
        exits=None if exits is None else _depths(exits),
        depth=depth,
        policy=policy,
        threshold=threshold,
        blocks=blocks,
        trust_remote_code=trust_remote_code,
    )
    with terminal.bars(enabled=not as_json) as progress:
        found = ship(wish, out or Path("runs") / f"{_slug(model)}-onnx", progress=progress)
    show_exported(found, as_json=as_json)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where to write.")] = Path("runs/demo"),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 20,
    seed: options.Seed = 0,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Train a small vision transformer on real digits in two ways, and trace both. Needs no download."""
    from anydepth.demo import show_digits
    from anydepth.show import as_comparison, as_plain

    terminal.quiet_libraries()
    with terminal.bars(enabled=not as_json) as progress:
        found = show_digits(out, epochs=epochs, seed=seed, progress=progress)
    if as_json:
        plain = {name: as_plain(trace, out / name) for name, trace in found.items()}
        print(json.dumps({"out": str(out), "report": str(out / "report.html"), **plain}, allow_nan=False))
        return
    terminal.output().print(as_comparison(found))
    terminal.output().print(f"Report: {out / 'report.html'}", highlight=False, soft_wrap=True)


def _depths(text: str) -> tuple[int, ...]:
    from anydepth.errors import PolicyError

    try:
        return tuple(int(one) for one in text.split(","))
    except ValueError:
        raise PolicyError(f"the tested depths are {text!r}, expected whole numbers with commas: 2,4,6") from None


def _measures(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", Path(name).name if Path(name).exists() else name).strip("-.") or "trace"
