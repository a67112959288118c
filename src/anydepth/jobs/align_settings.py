"""What settings of a training say, checked as far as it can be before anything is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations

from anydepth.errors import ModelError, ObjectiveError, TrainingError, choose, one_line
from anydepth.jobs.options import is_object
from anydepth.jobs.settings import AlignSettings
from anydepth.models.loaded import has_weights
from anydepth.models.loading import check_name
from anydepth.models.tasks import check_task
from anydepth.models.timm import PREFIX as TIMM
from anydepth.storage.paths import entry_at, local_path
from anydepth.training.depth_weights import WEIGHTS
from anydepth.training.objectives import NamedObjective, objective_named

# Settings of a training that change what comes out. (In the others a resumed training may differ.)
_DECISIVE = (
    "num_train_epochs",
    "max_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "optim",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "label_smoothing_factor",
    "bf16",
    "fp16",
    "seed",
)
_RECORDED = (
    *("model", "data", "objective", "weights", "exits", "distillation", "task", "from_scratch", "split", "eval_data"),
    *("eval_split", "eval_limit", "max_length", "augment", "blocks", "trust_remote_code"),
)


def objective_of(settings: AlignSettings) -> NamedObjective:
    """The objective, with weights, exits and distillation of these settings in place of its own.

    Raises:
        ObjectiveError: there is none of that name, or a setting is out of range.
    """
    objective = objective_named(settings.objective)
    if isinstance(settings.weights, str):
        choose(settings.weights, WEIGHTS, "weights", ObjectiveError, otherwise="numbers such as 1,2,3")
    own = {name: getattr(settings, name) for name in ("weights", "exits", "distillation")}
    changes = {name: value for name, value in own.items() if value is not None}
    return replace(objective, loss=replace(objective.loss, seed=settings.seed, **changes))


def starts_from_scratch(settings: AlignSettings) -> bool:
    """Whether training starts from random weights, as far as can be seen without loading.

    Raises:
        ModelError: the name leads nowhere, to pickles, or to a model that Trainer does not train.
    """
    if settings.task is not None and check_task(settings.task) == "features":
        raise ModelError("'features' is nothing to train for: name a classification, or causal-lm")
    if settings.model.startswith(TIMM):
        raise ModelError(
            f"'{settings.model}' is no model of transformers, which Trainer takes: train it with anydepth.AlignedLoss "
            "in a loop of your own"
        )
    folder = local_path(settings.model)
    entry_at(settings.model, ModelError)  # before anything is read of it
    scratch = settings.from_scratch or ((folder / "config.json").is_file() and not has_weights(folder))
    check_name(settings.model, pretrained=not scratch)
    return scratch


def training_arguments(settings: AlignSettings, folder: Path) -> TrainingArguments:
    """Trainer's arguments, with a folder for its checkpoints.

    Raises:
        TrainingError: one makes no sense, or is not available here.
    """
    training = {"seed": settings.seed, **settings.training}
    _check(settings)
    own = {
        "output_dir": str(folder),
        "eval_strategy": "steps" if training.get("eval_steps") else "epoch",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    try:
        arguments = TrainingArguments(**own | _renamed(training))
        _ = arguments.device  # starts the process group, where there is one
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise TrainingError(f"these settings of the training do not work: {one_line(error)}") from error
    return arguments


def record_of(settings: AlignSettings, arguments: TrainingArguments) -> dict[str, Any]:
    """All settings that decide the result, as `align.json` has them."""
    training = {name: getattr(arguments, name) for name in _DECISIVE}
    return {
        **{name: _named(getattr(settings, name)) for name in _RECORDED},
        "wanted": dataclasses.asdict(settings.selection),
        "training": {name: getattr(value, "value", value) for name, value in training.items()},
    }


def _named(value: Any) -> Any:
    """A setting by itself, an object by its kind."""
    return type(value).__name__ if is_object(value) else value


def _check(settings: AlignSettings) -> None:
    if settings.max_steps == 0:
        raise TrainingError("max_steps is 0, expected at least 1, or -1 to count epochs")
    if settings.report_to not in ("none", "all"):
        available = get_available_reporting_integrations()
        if settings.report_to not in available:
            raise TrainingError(
                f"cannot report to {settings.report_to!r} here, only to {', '.join(available) or 'none'}: install it"
            )


def _renamed(training: Mapping[str, Any]) -> dict[str, Any]:
    """The same, with `gradient_checkpointing` under the name that newer releases of transformers have for it."""
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    new = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    return {new if name == "gradient_checkpointing" else name: value for name, value in training.items()}
