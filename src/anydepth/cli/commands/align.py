"""`anydepth align`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from anydepth.cli import options, terminal
from anydepth.cli.parsing import default_folder


def _list_objectives(asked: bool) -> bool:
    if asked:
        from anydepth.training.objectives import OBJECTIVES

        table = Table("objective", "what it is for", box=None)
        for objective in OBJECTIVES.values():
            table.add_row(objective.name, objective.purpose)
        terminal.output().print(table)
        raise typer.Exit
    return asked


def align(
    model: options.Model,
    data: options.Data,
    objective: options.Objective = "aligned",
    out: options.AlignOut = None,
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
    augment: options.Augment = False,
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
    from anydepth.cli.render import show_aligned
    from anydepth.data.loading import DataSelection
    from anydepth.distributed import check_launcher, leave, rank_and_count
    from anydepth.jobs.align import run_align
    from anydepth.jobs.align_settings import AlignSettings, check_exits, check_weights

    terminal.quiet_libraries()
    check_launcher()
    settings = AlignSettings(
        model=model,
        data=data,
        objective=objective,
        weights=None if weights is None else check_weights(weights),
        exits=None if exits is None else check_exits(exits),
        distillation=distillation,
        task=task,
        from_scratch=from_scratch,
        split=split,
        eval_data=eval_data,
        eval_split=eval_split,
        wanted=DataSelection(limit=limit, text=text_column, label=label_column, image=image_column, seed=seed),
        max_length=max_length,
        augment=augment,
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
        summary = run_align(
            settings,
            out or default_folder(model, data, suffix=f"-{objective}"),
            resume=resume,
            restart=restart,
            keep_checkpoints=keep_checkpoints,
            progress=progress,
            say=terminal.say,
        )
    if rank_and_count()[0] == 0:
        show_aligned(summary, as_json=as_json)
    leave()
