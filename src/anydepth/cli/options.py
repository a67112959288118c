"""The options of the command line, each with its help: one name for each kind, however many commands have it."""

from pathlib import Path
from typing import Annotated

import typer

from anydepth.exits.policy_names import CALIBRATED_POLICIES
from anydepth.storage.file_kinds import COMPRESSIONS, KINDS

# Names only: a test holds them against `anydepth.training.objectives.OBJECTIVES`, which would bring torch with it.
OBJECTIVES = "standard, aligned, uniform, additive, alternating, mixture, sampled, distilled, cosine, heads"

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A hub id, a local folder, or timm:NAME.")]
Data = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="DATA",
        help=f"Hub data set id, file ({' '.join(KINDS)}; text also {' '.join(COMPRESSIONS)}), folder, or 'digits'.",
    ),
]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where to write; default runs/MODEL-DATA.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of tables.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]
ReadSplit = Annotated[str | None, typer.Option(help="Which split; default test, else validation.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Samples per forward pass; no result depends on it.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, mps; default the best there is.")]
Limit = Annotated[int | None, typer.Option(min=1, help="At most so many samples, drawn by --seed.")]
MaxLength = Annotated[int | None, typer.Option(min=2, help="Most tokens of a text.")]
Stride = Annotated[
    int | None, typer.Option(metavar="S", help="Read longer texts in windows that advance by S tokens, none cut off.")
]
Pack = Annotated[bool, typer.Option("--pack", help="Join texts, and read them in full windows.")]
TextColumn = Annotated[str | None, typer.Option(help="Column of the text; guessed if not given.")]
LabelColumn = Annotated[
    str | None, typer.Option(help="Column of the label; guessed if not given. NAME:number takes it by number.")
]
ImageColumn = Annotated[str | None, typer.Option(help="Column of the image; guessed if not given.")]
Blocks = Annotated[str | None, typer.Option(help="Dotted path of the blocks, if there are several lists.")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with a checkpoint.")]

# --- truncate -------------------------------------------------------------------------------------------------------

DataToCheck = Annotated[
    str | None,
    typer.Option("--data", metavar="DATA", help="To certify the depth by, and to see that the cut is right."),
]
Tolerance = Annotated[float, typer.Option(help="Share of answers that may fail.")]
Confidence = Annotated[float, typer.Option(help="Of that promise, over the draw of the data.")]
Against = Annotated[
    str, typer.Option(help="A failure: model, another answer than the full model's; labels, wrong where it is right.")
]

# --- exit -----------------------------------------------------------------------------------------------------------

POLICIES = ", ".join(CALIBRATED_POLICIES)

ExitPolicy = Annotated[str, typer.Option("--policy", metavar="NAME", help=f"One of {POLICIES}.")]
TestedDepths = Annotated[
    str | None,
    typer.Option("--depths", metavar="2,4,...", help="Where to test; default where it pays, as measured here."),
]
Tune = Annotated[bool, typer.Option("--tune/--no-tune", help="Choose temperatures, and where to test.")]
Calibrated = Annotated[str, typer.Argument(metavar="DIR", help="A folder that `anydepth exit` wrote.")]

PromptTokens = Annotated[int, typer.Option(min=1, help="Of a language model's texts, the start that is the prompt.")]
NewTokens = Annotated[int, typer.Option(min=1, help="That a language model writes after each.")]
Share = Annotated[float, typer.Option(help="Of these, what may differ before a sequence has failed.")]

# --- compare --------------------------------------------------------------------------------------------------------

Traces = Annotated[list[Path], typer.Argument(metavar="A B ...", help="Folders that `anydepth trace` wrote.")]
Despite = Annotated[str | None, typer.Option(metavar="data,tokens", help="In what the traces may differ all the same.")]

# --- align ----------------------------------------------------------------------------------------------------------

AlignedOut = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Where to write; default runs/MODEL-DATA-OBJECTIVE.")
]
Objective = Annotated[
    str, typer.Option("--objective", metavar="NAME", help=f"One of {OBJECTIVES}; --list-objectives says what for.")
]
Weights = Annotated[
    str | None, typer.Option(help="What each depth weighs: linear, uniform, final, additive, or numbers: 1,2,3.")
]
Exits = Annotated[str | None, typer.Option(help="Depths to train: all, sampled, or some: 4,8,12.")]
Distillation = Annotated[
    float | None, typer.Option(min=0, max=1, help="Share of the shallow depths' loss that imitates the last.")
]
Task = Annotated[
    str | None,
    typer.Option(help="text-classification, token-classification, image-classification, causal-lm; else guessed."),
]
FromScratch = Annotated[bool, typer.Option("--from-scratch", help="Random weights instead of the model's.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the newest checkpoint in DIR, if there is one.")]
Restart = Annotated[bool, typer.Option("--restart", help="Train anew in the place of what is in DIR.")]
KeepCheckpoints = Annotated[bool, typer.Option("--keep-checkpoints", help="Leave them when the model is finished.")]
Split = Annotated[str | None, typer.Option(help="To train on; default train, or the only one.")]
EvalData = Annotated[str | None, typer.Option(metavar="DATA", help="Other data to evaluate on.")]
EvalSplit = Annotated[
    str | None, typer.Option(help="To evaluate on; default validation, else test, else a tenth of the rows.")
]
TrainLimit = Annotated[int | None, typer.Option(min=1, help="At most so many samples of each split, drawn by --seed.")]
BlockLength = Annotated[
    int | None, typer.Option(min=2, help="Most tokens of a text; a language model's are packed in blocks of it.")
]

Augment = Annotated[bool, typer.Option("--augment", help="Train on random views of images: turned, shifted, mirrored.")]

# Ranges are checked by `anydepth.jobs.align_settings`: in the help they would leave no room for the names.
_TRAINING = "Training, by the names that transformers has for it"

Epochs = Annotated[
    float, typer.Option("--num-train-epochs", metavar="N", help="Passes over the data.", rich_help_panel=_TRAINING)
]
MaxSteps = Annotated[
    int, typer.Option(metavar="N", help="Optimizer steps, instead of epochs.", rich_help_panel=_TRAINING)
]
LearningRate = Annotated[float, typer.Option(metavar="N", help="The highest.", rich_help_panel=_TRAINING)]
Scheduler = Annotated[
    str,
    typer.Option(
        "--lr-scheduler-type", metavar="NAME", help="linear, cosine, constant, ...", rich_help_panel=_TRAINING
    ),
]
WarmupSteps = Annotated[
    float, typer.Option(metavar="N", help="Until the highest rate; below 1, a share of all.", rich_help_panel=_TRAINING)
]
WeightDecay = Annotated[float, typer.Option(metavar="N", help="AdamW's.", rich_help_panel=_TRAINING)]
MaxGradNorm = Annotated[float, typer.Option(metavar="N", help="Clip gradients to it.", rich_help_panel=_TRAINING)]
Optimizer = Annotated[str, typer.Option("--optim", metavar="NAME", help="The optimizer.", rich_help_panel=_TRAINING)]
TrainBatch = Annotated[
    int,
    typer.Option("--per-device-train-batch-size", metavar="N", help="Samples of a forward.", rich_help_panel=_TRAINING),
]
EvalBatch = Annotated[
    int, typer.Option("--per-device-eval-batch-size", metavar="N", help="When evaluating.", rich_help_panel=_TRAINING)
]
Accumulation = Annotated[
    int,
    typer.Option("--gradient-accumulation-steps", metavar="N", help="Forwards of a step.", rich_help_panel=_TRAINING),
]
Smoothing = Annotated[
    float,
    typer.Option("--label-smoothing-factor", metavar="N", help="Share of a label spread.", rich_help_panel=_TRAINING),
]
Bf16 = Annotated[bool, typer.Option("--bf16", help="Mixed precision.", rich_help_panel=_TRAINING)]
Fp16 = Annotated[bool, typer.Option("--fp16", help="The same, in float16.", rich_help_panel=_TRAINING)]
Checkpointing = Annotated[
    bool, typer.Option("--gradient-checkpointing", help="Less memory, more time.", rich_help_panel=_TRAINING)
]
Compile = Annotated[bool, typer.Option("--torch-compile", help="Compile the blocks.", rich_help_panel=_TRAINING)]
UseCpu = Annotated[bool, typer.Option("--use-cpu", help="Even where there is a GPU.", rich_help_panel=_TRAINING)]
Workers = Annotated[
    int,
    typer.Option("--dataloader-num-workers", metavar="N", help="Processes that read data.", rich_help_panel=_TRAINING),
]
EvalSteps = Annotated[
    float | None, typer.Option(metavar="N", help="Between evaluations; default an epoch.", rich_help_panel=_TRAINING)
]
SaveSteps = Annotated[float, typer.Option(metavar="N", help="Between checkpoints.", rich_help_panel=_TRAINING)]
SaveLimit = Annotated[
    int, typer.Option("--save-total-limit", metavar="N", help="Checkpoints to keep.", rich_help_panel=_TRAINING)
]
LoggingSteps = Annotated[
    float, typer.Option(metavar="N", help="Between logs; below 1, a share of all.", rich_help_panel=_TRAINING)
]
ReportTo = Annotated[
    str, typer.Option(metavar="NAME", help="tensorboard, wandb, ...: where logs go besides.", rich_help_panel=_TRAINING)
]

# --- export ---------------------------------------------------------------------------------------------------------

ExportExits = Annotated[
    str | None,
    typer.Option("--exits", metavar="3,6,9", help="Where samples may leave; default those of a calibrated model."),
]
ExportDepth = Annotated[int | None, typer.Option("--depth", metavar="K", help="One graph, all leave at depth K.")]
ExportPolicy = Annotated[
    str | None, typer.Option("--policy", metavar="NAME", help=f"Of a plain model: {POLICIES}; default confidence.")
]
ExportThreshold = Annotated[
    float | None, typer.Option("--threshold", metavar="X", help="Of that policy; default a confidence of 0.9.")
]
