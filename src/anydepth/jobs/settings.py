"""Settings of all jobs: frozen dataclasses, whose fields are the options of the command line.

Fields of the same name mean the same in all of them; each has one line of help here.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal

from anydepth.exits.policy_names import CALIBRATED_POLICIES
from anydepth.jobs.options import Option, Range, Settings
from anydepth.jobs.parsing import depths_of, exits_of, names_of, none_or_names_of, weights_of
from anydepth.models.label_names import TEMPLATE, check_template
from anydepth.storage.file_kinds import COMPRESSIONS, KINDS

if TYPE_CHECKING:
    from anydepth.data.loading import DataSelection

# Names only: a test compares them with `anydepth.training.objectives.OBJECTIVES`, which would import torch.
OBJECTIVES = "standard, aligned, uniform, additive, alternating, mixture, sampled, distilled, cosine, heads"
POLICIES = ", ".join(CALIBRATED_POLICIES)

_COUNT = Option(range=Range(least=1))
_LENGTH = Option(range=Range(least=2))
_NOT_NEGATIVE = Option(range=Range(least=0))
_ABOVE_ZERO = Option(range=Range(least=0, above=True))
_SHARE = Option(range=Range(least=0, most=1))
_KINDS = f"{' '.join(KINDS)}; text also {' '.join(COMPRESSIONS)}"

# --- what several jobs share ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SeedSettings(Settings):
    """The seed of everything random."""

    title = "Run"
    seed: Annotated[int, "Seed of everything random.", Option(range=Range(least=0, most=2**32 - 1))] = 0


@dataclass(frozen=True, kw_only=True)
class DeviceSettings(Settings):
    """Where the model runs."""

    title = "Run"
    device: Annotated[str | None, "cpu, cuda, mps; default the best there is."] = None


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings(Settings):
    """The model."""

    title = "Model"
    model: Annotated[str | Any, "A hub id, a local folder, or timm:NAME.", Option(metavar="MODEL", positional=True)]
    trust_remote_code: Annotated[bool, "Run code that comes with a checkpoint."] = False


@dataclass(frozen=True, kw_only=True)
class ModelSettings(CheckpointSettings):
    """The model, and where its blocks are."""

    title = "Model"
    blocks: Annotated[str | None, "Dotted path of the blocks; or encoder, decoder, image, text."] = None


@dataclass(frozen=True, kw_only=True)
class DataSettings(Settings):
    """The data; see `anydepth.data.sources.splits`."""

    title = "Data"
    data: Annotated[str | Any, f"Hub data set id, file ({_KINDS}), folder, or 'digits'.", Option(metavar="DATA")]


@dataclass(frozen=True, kw_only=True)
class RowSettings(SeedSettings):
    """Rows and columns of data."""

    title = "Data"
    split: Annotated[str | None, "Which split; default test, else validation."] = None
    limit: Annotated[int | None, "Maximum number of samples, drawn by --seed.", _COUNT] = None
    text_column: Annotated[str | None, "Column of the text; guessed if not given."] = None
    image_column: Annotated[str | None, "Column of the image; guessed if not given."] = None

    @property
    def selection(self) -> DataSelection:
        """The rows and columns, as `anydepth.data.loading.load_split` takes them."""
        from anydepth.data.loading import DataSelection

        columns = {kind: getattr(self, f"{kind}_column", None) for kind in ("text", "label", "image", "id")}
        return DataSelection(limit=self.limit, seed=self.seed, **columns)


@dataclass(frozen=True, kw_only=True)
class LabelledRowSettings(RowSettings):
    """Rows and columns of data that may have labels."""

    title = "Data"
    label_column: Annotated[
        str | None, "Column of the label; guessed if not given. NAME:number takes it by number."
    ] = None


@dataclass(frozen=True, kw_only=True)
class ZeroShotSettings(Settings):
    """Classes that are texts; see `anydepth.zero_shot`."""

    title = "Model"
    labels_as_texts: Annotated[
        str | None,
        f"Zero-shot (CLIP): read images out as texts of the data's class names, {TEMPLATE!r} or as in TEMPLATE.",
        Option(metavar="[TEMPLATE]", parse=check_template, bare=TEMPLATE),
    ] = None


@dataclass(frozen=True, kw_only=True)
class BatchSettings(Settings):
    """How many samples at once."""

    title = "Data"
    batch_size: Annotated[int, "Samples per forward pass; no result depends on it.", _COUNT] = 32


@dataclass(frozen=True, kw_only=True)
class TextSettings(Settings):
    """How much of a text is read."""

    title = "Data"
    max_length: Annotated[int | None, "Maximum number of tokens of a text.", _LENGTH] = None


@dataclass(frozen=True, kw_only=True)
class CertificateSettings(Settings):
    """The levels of a certificate; see `anydepth.stats.certificates`."""

    title = "Guarantee"
    split: Annotated[str | None, "Which split to certify on; default validation, else test."] = None
    tolerance: Annotated[float, "Maximum disagreement rate."] = 0.01
    confidence: Annotated[float, "Confidence level of the guarantee, over the draw of the data."] = 0.95
    against: Annotated[
        str, "A failure: model, another answer than the full model's; labels, wrong where it is right."
    ] = "model"


# --- one for each job -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TraceSettings(
    DeviceSettings, TextSettings, BatchSettings, LabelledRowSettings, DataSettings, ZeroShotSettings, ModelSettings
):
    """Model, data, and what to trace; see also `anydepth.trace`."""

    job = "trace"
    title = "Trace"
    id_column: Annotated[str | None, "Column of sample ids; default the row's number."] = None
    stride: Annotated[
        int | None, "Read longer texts in windows that advance by S tokens, none cut off.", Option(metavar="S")
    ] = None
    pack: Annotated[bool, "Join texts, and read them in full windows."] = False
    measures: Annotated[
        tuple[str, ...], "Similarities between depths, separated by commas.", Option(metavar="NAMES", parse=names_of)
    ] = ("cosine", "cosine_raw", "cka", "cka_biased")
    tokens: Annotated[str | None, "Positions that represent a sample: first, last, each, mean."] = None
    positions: Annotated[
        int | None,
        "Maximum number of positions of a sample that go into similarities.",
        _COUNT,
    ] = None
    readout: Annotated[
        Literal["tail", "raw", "none"],
        "tail, raw (no final norm below the last depth), or none.",
    ] = "tail"
    labels: Annotated[bool, "Whether the data have labels."] = True
    keep_states: Annotated[bool, "Keep the hidden states, to merge or compare."] = False
    states_limit: Annotated[
        str | int | None,
        "Maximum size of the hidden states on disk, such as 20GB.",
        Option(metavar="SIZE", range=Range(most=2**62)),
    ] = None
    sums: Annotated[bool, "Keep the sums of CKA, to merge.", Option(negatable=True)] = False
    theory: Annotated[bool, "Test the paper's theory, beside random walks and random weights."] = False
    lens: Annotated[
        tuple[str, ...], "Logit lens: a language model's predictions for TEXT at every depth.", Option(metavar="TEXT")
    ] = ()
    dtype: Annotated[str, "auto, float32, float16 or bfloat16."] = "auto"


@dataclass(frozen=True, kw_only=True)
class CalibrateSettings(
    DeviceSettings,
    CertificateSettings,
    TextSettings,
    BatchSettings,
    LabelledRowSettings,
    DataSettings,
    ZeroShotSettings,
    ModelSettings,
):
    """Model, data, and which exit policy to calibrate; the last three are of language models."""

    job = "exit"
    title = "Exits"
    policy: Annotated[str, f"One of {POLICIES}.", Option(metavar="NAME")] = "confidence"
    depths: Annotated[
        tuple[int, ...] | None,
        "Depths to test; default where it pays, as measured here.",
        Option(metavar="2,4,...", parse=depths_of),
    ] = None
    tune: Annotated[bool, "Choose temperatures and tested depths."] = True
    prompt_tokens: Annotated[int, "Language model: tokens of each text that are the prompt.", _COUNT] = 32
    new_tokens: Annotated[int, "Language model: tokens to generate after each prompt.", _COUNT] = 64
    share: Annotated[float, "Share of them that may differ before a sequence has failed.", _SHARE] = 0.0


@dataclass(frozen=True, kw_only=True)
class PredictSettings(DeviceSettings, TextSettings, BatchSettings, RowSettings, DataSettings, CheckpointSettings):
    """Calibrated model, and data to predict.

    `max_length` is that of the calibration if None. The guarantee does not hold for another length, other columns or
    another tokenizer.
    """

    job = "predict"
    title = "Prediction"
    model: Annotated[str | Any, "A folder that `anydepth exit` wrote.", Option(metavar="DIR", positional=True)]


@dataclass(frozen=True, kw_only=True)
class TruncateSettings(DeviceSettings, CertificateSettings, BatchSettings, LabelledRowSettings, ModelSettings):
    """Model, depth, and the data to certify it on.

    If the depth is given, the first batch of the data verifies the cut model; without data, a made-up batch does.
    """

    job = "truncate"
    title = "Depth"
    depth: Annotated[
        int | Literal["auto"],
        "Number of blocks to keep; auto: the smallest certified on DATA.",
        Option(metavar="K|auto"),
    ]
    data: Annotated[str | Any | None, "Certifies the depth, and verifies the cut model.", Option(metavar="DATA")] = None


@dataclass(frozen=True, kw_only=True)
class ExportSettings(ModelSettings):
    """Model and exits; the model may also be a folder that `anydepth exit` wrote."""

    job = "export"
    title = "Exits"
    exits: Annotated[
        tuple[int, ...] | None,
        "Depths of exits; default those of a calibrated model.",
        Option(metavar="3,6,9", parse=depths_of),
    ] = None
    depth: Annotated[int | None, "One graph, where all exit at depth K.", Option(metavar="K")] = None
    policy: Annotated[str | None, f"Of a plain model: {POLICIES}; default confidence.", Option(metavar="NAME")] = None
    threshold: Annotated[float | None, "Of that policy; default 0.9 for confidence.", Option(metavar="X")] = None


@dataclass(frozen=True, kw_only=True)
class CompareSettings(SeedSettings):
    """Folders of two traces or more, in the order of training for checkpoints of one model; see `anydepth.compare`."""

    job = "compare"
    title = "Comparison"
    traces: Annotated[
        tuple[str | Any, ...], "Folders that `anydepth trace` wrote.", Option(metavar="A B ...", positional=True)
    ]
    measures: Annotated[
        tuple[str, ...] | None,
        "Similarities across models; default cka, and cosine where widths agree; none for none.",
        Option(metavar="NAMES", parse=none_or_names_of),
    ] = None
    despite: Annotated[
        tuple[str, ...], "Differences between the traces to allow.", Option(metavar="data,tokens", parse=names_of)
    ] = ()
    permutations: Annotated[
        int,
        "To test whether CKA across models is more than chance; 999 is usual, 0 for none.",
        Option(range=Range(least=0, most=1_000_000)),
    ] = 0


@dataclass(frozen=True, kw_only=True)
class DemoSettings(SeedSettings):
    """Passes over the training images, and the seed of everything random."""

    job = "demo"
    title = "Training"
    epochs: Annotated[int, "Passes over the training images.", _COUNT] = 20


@dataclass(frozen=True, kw_only=True)
class GenerateSettings(DeviceSettings, SeedSettings, ModelSettings):
    """Model, prompts and method.

    At most one of `depth`, `draft_depth` and `exit`; with none, all blocks run for every token.
    """

    job = "generate"
    title = "Text"
    prompt: Annotated[tuple[str, ...], "A prompt; give it again for another.", Option(metavar="TEXT")] = ()
    prompts: Annotated[str | None, "More prompts, one on each line.", Option(metavar="FILE")] = None
    depth: Annotated[int | None, "Read every token out at depth K; no block above it runs.", Option(metavar="K")] = None
    draft_depth: Annotated[
        int | Literal["auto"] | None,
        "Draft at depth K, verify with the rest: the same text, sooner.",
        Option(metavar="K|auto"),
    ] = None
    draft_length: Annotated[int | None, "Tokens drafted in a round; default by how many are accepted.", _COUNT] = None
    exit: Annotated[str | None, "Exit token by token, as `anydepth exit` calibrated.", Option(metavar="DIR")] = None
    max_new_tokens: Annotated[int, "Maximum number of tokens for each prompt.", _COUNT] = 64
    sample: Annotated[bool, "Draw tokens instead of taking the most probable."] = False
    temperature: Annotated[float, "Only with --sample: logits are divided by it.", _ABOVE_ZERO] = 1.0
    top_k: Annotated[int | None, "Only with --sample: draw among the K most probable tokens.", _COUNT] = None
    top_p: Annotated[
        float | None,
        "Only with --sample: draw among tokens of this total probability.",
        Option(range=Range(least=0, above=True, most=1)),
    ] = None


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(Settings):
    """Fields of `transformers.TrainingArguments`."""

    title = "Training, by the names that transformers has for it"
    num_train_epochs: Annotated[float, "Passes over the data.", _NOT_NEGATIVE] = 3.0
    max_steps: Annotated[int, "Optimizer steps, instead of epochs."] = -1
    learning_rate: Annotated[float, "The highest.", _NOT_NEGATIVE] = 5e-5
    lr_scheduler_type: Annotated[str, "linear, cosine, constant, ...", Option(metavar="NAME")] = "linear"
    warmup_steps: Annotated[float, "Until the highest rate; below 1, a share of all.", _NOT_NEGATIVE] = 0.0
    weight_decay: Annotated[float, "AdamW's.", _NOT_NEGATIVE] = 0.0
    max_grad_norm: Annotated[float, "Clip gradients to it.", _NOT_NEGATIVE] = 1.0
    optim: Annotated[str, "The optimizer.", Option(metavar="NAME")] = "adamw_torch"
    per_device_train_batch_size: Annotated[int, "Samples of a forward pass.", _COUNT] = 8
    per_device_eval_batch_size: Annotated[int, "When evaluating.", _COUNT] = 8
    gradient_accumulation_steps: Annotated[int, "Forward passes of a step.", _COUNT] = 1
    label_smoothing_factor: Annotated[float, "Share of a label spread.", _SHARE] = 0.0
    bf16: Annotated[bool, "Mixed precision."] = False
    fp16: Annotated[bool, "The same, in float16."] = False
    gradient_checkpointing: Annotated[bool, "Less memory, more time."] = False
    torch_compile: Annotated[bool, "Compile the blocks."] = False
    use_cpu: Annotated[bool, "Even where there is a GPU."] = False
    dataloader_num_workers: Annotated[int, "Processes that read data.", _NOT_NEGATIVE] = 0
    eval_steps: Annotated[float | None, "Between evaluations; default an epoch.", _ABOVE_ZERO] = None
    save_steps: Annotated[float, "Between checkpoints.", _ABOVE_ZERO] = 500.0
    save_total_limit: Annotated[int, "Checkpoints to keep.", _COUNT] = 2
    logging_steps: Annotated[float, "Between logs; below 1, a share of all.", _ABOVE_ZERO] = 0.01
    report_to: Annotated[str, "tensorboard, wandb, ...: where logs also go.", Option(metavar="NAME")] = "none"

    @property
    def training(self) -> dict[str, Any]:
        """These fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(TrainingSettings)}


@dataclass(frozen=True, kw_only=True)
class AlignSettings(TrainingSettings, LabelledRowSettings, DataSettings, ModelSettings):
    """Model, data, objective and training; a folder that holds only a config is trained from scratch."""

    job = "align"
    title = "Objective"
    objective: Annotated[
        str,
        f"One of {OBJECTIVES}; --list-objectives says what for.",
        Option(metavar="NAME"),
    ] = "aligned"
    weights: Annotated[
        str | tuple[float, ...] | None,
        "Weight of each depth's loss: linear, uniform, final, additive, or numbers: 1,2,3.",
        Option(parse=weights_of),
    ] = None
    exits: Annotated[
        str | tuple[int, ...] | None, "Depths to train: all, sampled, or some: 4,8,12.", Option(parse=exits_of)
    ] = None
    distillation: Annotated[float | None, "Share of the shallow depths' loss that imitates the last.", _SHARE] = None
    task: Annotated[
        str | None, "text-classification, token-classification, image-classification, causal-lm; else guessed."
    ] = None
    from_scratch: Annotated[bool, "Random weights instead of the model's."] = False
    split: Annotated[str | None, "To train on; default train, or the only one."] = None
    eval_data: Annotated[str | Any | None, "Other data to evaluate on.", Option(metavar="DATA")] = None
    eval_split: Annotated[str | None, "To evaluate on; default validation, else test, else a tenth of the rows."] = None
    limit: Annotated[int | None, "Maximum number of samples of each split, drawn by --seed.", _COUNT] = None
    eval_limit: Annotated[int | None, "Maximum number of samples to evaluate on, instead of --limit.", _COUNT] = None
    max_length: Annotated[
        int | None, "Maximum tokens of a text; a language model's are packed in blocks of it.", _LENGTH
    ] = None
    augment: Annotated[bool, "Train on random views of images: turned, shifted, mirrored."] = False
