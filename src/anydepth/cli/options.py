"""The options of the command line, each with its help: one name for each kind, however many commands have it."""

from pathlib import Path
from typing import Annotated, Any

import typer

from anydepth.exits.policy_names import CALIBRATED_POLICIES
from anydepth.storage.file_kinds import COMPRESSIONS, KINDS

# Names only: a test compares them with `anydepth.training.objectives.OBJECTIVES`, which would import torch.
OBJECTIVES = "standard, aligned, uniform, additive, alternating, mixture, sampled, distilled, cosine, heads"
POLICIES = "confidence, margin, entropy, patience, convergence"


def _folder(default: str) -> Any:
    return typer.Option("--out", metavar="DIR", help=f"Output folder; default runs/{default}.")


Model = Annotated[str, typer.Argument(metavar="MODEL", help="A hub id, a local folder, or timm:NAME.")]
Data = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="DATA",
        help=f"Hub data set id, file ({' '.join(KINDS)}; text also {' '.join(COMPRESSIONS)}), folder, or 'digits'.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of tables.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]
ReadSplit = Annotated[str | None, typer.Option(help="Which split; default test, else validation.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Samples per forward pass; no result depends on it.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, mps; default the best there is.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Maximum number of samples, drawn by --seed.")]
MaxLength = Annotated[int | None, typer.Option(min=2, help="Maximum number of tokens of a text.")]
TextColumn = Annotated[str | None, typer.Option(help="Column of the text; guessed if not given.")]
LabelColumn = Annotated[
    str | None, typer.Option(help="Column of the label; guessed if not given. NAME:number takes it by number.")
]
ImageColumn = Annotated[str | None, typer.Option(help="Column of the image; guessed if not given.")]
Blocks = Annotated[str | None, typer.Option(help="Dotted path of the blocks, if there are several lists.")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with a checkpoint.")]

# --- trace ----------------------------------------------------------------------------------------------------------

TraceOut = Annotated[Path | None, _folder("MODEL-DATA")]
Stride = Annotated[
    int | None, typer.Option(metavar="S", help="Read longer texts in windows that advance by S tokens, none cut off.")
]
Pack = Annotated[bool, typer.Option("--pack", help="Join texts, and read them in full windows.")]
Measures = Annotated[str, typer.Option(help="Similarities between depths, separated by commas.")]
Tokens = Annotated[str | None, typer.Option(help="Positions that represent a sample: first, last, each, mean.")]
Positions = Annotated[
    int | None, typer.Option(min=1, help="Maximum number of positions of a sample that go into similarities.")
]
Readout = Annotated[str, typer.Option(help="tail, raw (no final norm below the last depth), or none.")]
Labels = Annotated[bool, typer.Option("--labels/--no-labels", help="Whether the data have labels.")]
IdColumn = Annotated[str | None, typer.Option(help="Column of sample ids; default the row's number.")]
KeepStates = Annotated[bool, typer.Option("--keep-states", help="Keep the hidden states, to merge or compare.")]
StatesLimit = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Maximum size of the hidden states on disk, such as 20GB.")
]
Sums = Annotated[bool, typer.Option("--sums/--no-sums", help="Keep the sums of CKA, to merge.")]
TestTheory = Annotated[
    bool, typer.Option("--theory", help="Test the paper's theory, beside random walks and random weights.")
]
LensTexts = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help="Logit lens: a language model's predictions for TEXT at every depth."),
]
RestartTrace = Annotated[bool, typer.Option("--restart", help="Start over instead of resuming an interrupted trace.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")]

# --- truncate and exit ----------------------------------------------------------------------------------------------

TruncateOut = Annotated[Path | None, _folder("MODEL-depth-K")]
BlocksToKeep = Annotated[
    str, typer.Option(metavar="K|auto", help="Number of blocks to keep; auto: the smallest certified on DATA.")
]
DataToCheck = Annotated[
    str | None, typer.Option("--data", metavar="DATA", help="Certifies the depth, and verifies the cut model.")
]
Tolerance = Annotated[float, typer.Option(help="Maximum disagreement rate.")]
Confidence = Annotated[float, typer.Option(help="Confidence level of the guarantee, over the draw of the data.")]
Against = Annotated[
    str, typer.Option(help="A failure: model, another answer than the full model's; labels, wrong where it is right.")
]
POLICIES = ", ".join(CALIBRATED_POLICIES)
ExitOut = Annotated[Path | None, _folder("MODEL-DATA-exit")]
ExitPolicy = Annotated[str, typer.Option("--policy", metavar="NAME", help=f"One of {POLICIES}.")]
TestedDepths = Annotated[
    str | None,
    typer.Option("--depths", metavar="2,4,...", help="Depths to test; default where it pays, as measured here."),
]
Tune = Annotated[bool, typer.Option("--tune/--no-tune", help="Choose temperatures and tested depths.")]
PromptTokens = Annotated[int, typer.Option(min=1, help="Language model: tokens of each text that are the prompt.")]
NewTokens = Annotated[int, typer.Option(min=1, help="Language model: tokens to generate after each prompt.")]
Share = Annotated[float, typer.Option(help="Share of them that may differ before a sequence has failed.")]

# --- predict, compare and demo --------------------------------------------------------------------------------------

Calibrated = Annotated[str, typer.Argument(metavar="DIR", help="A folder that `anydepth exit` wrote.")]
PredictOut = Annotated[Path | None, _folder("DIR-DATA-predictions")]
Traces = Annotated[list[Path], typer.Argument(metavar="A B ...", help="Folders that `anydepth trace` wrote.")]
CompareOut = Annotated[Path | None, _folder("A-B-compare")]
CrossMeasures = Annotated[
    str | None,
    typer.Option(help="Similarities across models; default cka, and cosine where widths agree; none for none."),
]
Despite = Annotated[str | None, typer.Option(metavar="data,tokens", help="Differences between the traces to allow.")]
Permutations = Annotated[
    int, typer.Option(min=0, help="To test whether CKA across models is more than chance; 999 is usual, 0 for none.")
]
DemoOut = Annotated[Path, typer.Option("--out", metavar="DIR", help="Output folder.")]
DemoEpochs = Annotated[int, typer.Option(min=1, help="Passes over the training images.")]

# --- generate -------------------------------------------------------------------------------------------------------

Prompt = Annotated[list[str] | None, typer.Option(help="A prompt; give it again for another.")]
PromptFile = Annotated[Path | None, typer.Option(metavar="FILE", help="More prompts, one on each line.")]
GenerateDepth = Annotated[
    int | None, typer.Option(metavar="K", help="Read every token out at depth K; no block above it runs.")
]
DraftDepth = Annotated[
    str | None, typer.Option(metavar="K|auto", help="Draft at depth K, verify with the rest: the same text, sooner.")
]
DraftLength = Annotated[
    int | None, typer.Option(min=1, help="Tokens drafted in a round; default by how many are accepted.")
]
ExitFolder = Annotated[
    str | None, typer.Option("--exit", metavar="DIR", help="Exit token by token, as `anydepth exit` calibrated.")
]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Maximum number of tokens for each prompt.")]
Sample = Annotated[bool, typer.Option("--sample", help="Draw tokens instead of taking the most probable.")]
Temperature = Annotated[float, typer.Option(help="Only with --sample: logits are divided by it.")]
TopK = Annotated[int | None, typer.Option(min=1, help="Only with --sample: draw among the K most probable tokens.")]
TopP = Annotated[float | None, typer.Option(help="Only with --sample: draw among tokens of this total probability.")]
Stats = Annotated[bool, typer.Option("--stats", help="Print statistics: time, blocks, accepted drafts.")]

# --- export ---------------------------------------------------------------------------------------------------------

ExportOut = Annotated[Path | None, _folder("MODEL-onnx")]
ExportExits = Annotated[
    str | None,
    typer.Option("--exits", metavar="3,6,9", help="Depths of exits; default those of a calibrated model."),
]
ExportDepth = Annotated[int | None, typer.Option("--depth", metavar="K", help="One graph, where all exit at depth K.")]
ExportPolicy = Annotated[
    str | None, typer.Option("--policy", metavar="NAME", help=f"Of a plain model: {POLICIES}; default confidence.")
]
ExportThreshold = Annotated[
    float | None, typer.Option("--threshold", metavar="X", help="Of that policy; default 0.9 for confidence.")
]

# --- align ----------------------------------------------------------------------------------------------------------

AlignOut = Annotated[Path | None, _folder("MODEL-DATA-OBJECTIVE")]
Objective = Annotated[
    str, typer.Option("--objective", metavar="NAME", help=f"One of {OBJECTIVES}; --list-objectives says what for.")
]
Weights = Annotated[
    str | None, typer.Option(help="Weight of each depth's loss: linear, uniform, final, additive, or numbers: 1,2,3.")
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
TrainLimit = Annotated[
    int | None, typer.Option(min=1, help="Maximum number of samples of each split, drawn by --seed.")
]
BlockLength = Annotated[
    int | None, typer.Option(min=2, help="Maximum tokens of a text; a language model's are packed in blocks of it.")
]
Augment = Annotated[bool, typer.Option("--augment", help="Train on random views of images: turned, shifted, mirrored.")]


def _training(*names: str, help: str, metavar: str | None = "N") -> Any:
    # ranges are checked by `anydepth.jobs.align_settings`: in the help they would leave no room for the names
    panel = "Training, by the names that transformers has for it"
    return typer.Option(*names, metavar=metavar, help=help, rich_help_panel=panel)


Epochs = Annotated[float, _training("--num-train-epochs", help="Passes over the data.")]
MaxSteps = Annotated[int, _training(help="Optimizer steps, instead of epochs.")]
LearningRate = Annotated[float, _training(help="The highest.")]
Scheduler = Annotated[str, _training("--lr-scheduler-type", metavar="NAME", help="linear, cosine, constant, ...")]
WarmupSteps = Annotated[float, _training(help="Until the highest rate; below 1, a share of all.")]
WeightDecay = Annotated[float, _training(help="AdamW's.")]
MaxGradNorm = Annotated[float, _training(help="Clip gradients to it.")]
Optimizer = Annotated[str, _training("--optim", metavar="NAME", help="The optimizer.")]
TrainBatch = Annotated[int, _training("--per-device-train-batch-size", help="Samples of a forward pass.")]
EvalBatch = Annotated[int, _training("--per-device-eval-batch-size", help="When evaluating.")]
Accumulation = Annotated[int, _training("--gradient-accumulation-steps", help="Forward passes of a step.")]
Smoothing = Annotated[float, _training("--label-smoothing-factor", help="Share of a label spread.")]
Bf16 = Annotated[bool, _training("--bf16", metavar=None, help="Mixed precision.")]
Fp16 = Annotated[bool, _training("--fp16", metavar=None, help="The same, in float16.")]
Checkpointing = Annotated[bool, _training("--gradient-checkpointing", metavar=None, help="Less memory, more time.")]
Compile = Annotated[bool, _training("--torch-compile", metavar=None, help="Compile the blocks.")]
UseCpu = Annotated[bool, _training("--use-cpu", metavar=None, help="Even where there is a GPU.")]
Workers = Annotated[int, _training("--dataloader-num-workers", help="Processes that read data.")]
EvalSteps = Annotated[float | None, _training(help="Between evaluations; default an epoch.")]
SaveSteps = Annotated[float, _training(help="Between checkpoints.")]
SaveLimit = Annotated[int, _training("--save-total-limit", help="Checkpoints to keep.")]
LoggingSteps = Annotated[float, _training(help="Between logs; below 1, a share of all.")]
ReportTo = Annotated[str, _training(metavar="NAME", help="tensorboard, wandb, ...: where logs also go.")]
