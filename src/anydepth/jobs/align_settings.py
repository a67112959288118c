"""Settings of a training, and what can be checked of them before anything is loaded."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations

from anydepth.data.loading import DataSelection
from anydepth.errors import ModelError, ObjectiveError, TrainingError, choose, one_line
from anydepth.models.loaded import has_weights
from anydepth.models.loading import check_name
from anydepth.models.tasks import check_task
from anydepth.models.timm import PREFIX as TIMM
from anydepth.storage.paths import entry_at, local_path
from anydepth.training.depth_weights import WEIGHTS
from anydepth.training.objectives import DEFAULT, NamedObjective, objective_named

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
# The least that makes sense: Trainer checks few of them itself.
_LEAST: dict[str, int | float] = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "learning_rate": 0,
    "weight_decay": 0,
    "warmup_steps": 0,
    "max_grad_norm": 0,
    "num_train_epochs": 0,
    "label_smoothing_factor": 0,
    "dataloader_num_workers": 0,
    "save_total_limit": 1,
}
_INTERVALS = ("logging_steps", "eval_steps", "save_steps")


@dataclass(frozen=True, kw_only=True)
class AlignSettings:
    """Model, data, objective and training; see `anydepth.jobs` for the fields that are not here.

    Attributes:
        model: a folder that holds only a config is trained from scratch.
        objective: a name of `anydepth.training.objectives.OBJECTIVES`.
        weights: in place of the objective's own, as for `exits` and `distillation`; see `anydepth.AlignedLoss`.
        task: what to train for; by default what the model was saved for, else what the data hold.
        from_scratch: random weights instead of the model's.
        split: to train on; see `anydepth.data.examples.load_to_train`, as for `eval_data`, `eval_split`, `eval_limit`.
        max_length: tokens at which texts are cut; for a language model, the length of the blocks they are packed in.
        augment: train on random views of images; see `anydepth.data.augment`.
        training: fields of `transformers.TrainingArguments`.

    Example:
        >>> AlignSettings(model="./vit", data="digits", objective="sampled").resolved().loss.exits
        'sampled'
    """

    model: str
    data: str
    objective: str = DEFAULT
    weights: str | tuple[float, ...] | None = None
    exits: str | tuple[int, ...] | None = None
    distillation: int | float | None = None
    task: str | None = None
    from_scratch: bool = False
    split: str | None = None
    eval_data: str | None = None
    eval_split: str | None = None
    wanted: DataSelection = field(default_factory=DataSelection)
    eval_limit: int | None = None
    max_length: int | None = None
    augment: bool = False
    blocks: str | None = None
    trust_remote_code: bool = False
    training: Mapping[str, Any] = field(default_factory=dict)

    def resolved(self) -> NamedObjective:
        """The objective, with weights, exits and distillation of these settings in place of its own.

        Raises:
            ObjectiveError: there is none of that name, or a setting is out of range.
        """
        objective = objective_named(self.objective)
        settings = {name: getattr(self, name) for name in ("weights", "exits", "distillation")}
        changes = {name: value for name, value in settings.items() if value is not None}
        return replace(objective, loss=replace(objective.loss, seed=self.wanted.seed, **changes))

    def starts_from_scratch(self) -> bool:
        """Whether training starts from random weights, as far as can be seen without loading.

        Raises:
            ModelError: the name leads nowhere, to pickles, or to a model that Trainer does not train.
        """
        if self.task is not None and check_task(self.task) == "features":
            raise ModelError("'features' is nothing to train for: name a classification, or causal-lm")
        if self.model.startswith(TIMM):
            raise ModelError(
                f"'{self.model}' is no model of transformers, which Trainer takes: train it with anydepth.AlignedLoss "
                "in a loop of your own"
            )
        folder = local_path(self.model)
        entry_at(self.model, ModelError)  # before anything is read of it
        scratch = self.from_scratch or ((folder / "config.json").is_file() and not has_weights(folder))
        check_name(self.model, pretrained=not scratch)
        return scratch

    def arguments(self, folder: Path) -> TrainingArguments:
        """Trainer's arguments, with a folder for its checkpoints.

        Raises:
            TrainingError: one makes no sense, or is not available here.
        """
        training = {"seed": self.wanted.seed, **self.training}
        for name, value in training.items():
            _check(name, value)
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

    def settings(self, arguments: TrainingArguments) -> dict[str, Any]:
        """All settings that decide the result, as plain values."""
        training = {name: getattr(arguments, name) for name in _DECISIVE}
        return asdict(self) | {"training": {name: getattr(value, "value", value) for name, value in training.items()}}


def _check(name: str, value: Any) -> None:
    if name == "seed" and not 0 <= value < 2**32:
        raise TrainingError(f"seed is {value}, expected a number from 0 to {2**32 - 1}")
    least = _LEAST.get(name)
    if least is not None and not value >= least:
        raise TrainingError(f"{name} is {value}, expected at least {least}")
    if isinstance(value, float) and not math.isfinite(value):
        raise TrainingError(f"{name} is {value}, expected a finite number")
    if name == "label_smoothing_factor" and value > 1:
        raise TrainingError(f"label_smoothing_factor is {value}, expected a share from 0 to 1")
    if name in _INTERVALS and value is not None and not value > 0:
        raise TrainingError(f"{name} is {value}, expected a number of steps, or a share of all below 1")
    if name == "max_steps" and value == 0:
        raise TrainingError("max_steps is 0, expected at least 1, or -1 to count epochs")
    if name == "report_to" and value not in ("none", "all"):
        available = get_available_reporting_integrations()
        for name in [value] if isinstance(value, str) else value:
            if name not in available:
                raise TrainingError(
                    f"cannot report to {name!r} here, only to {', '.join(available) or 'none'}: install it"
                )


def _renamed(training: Mapping[str, Any]) -> dict[str, Any]:
    """The same, with `gradient_checkpointing` under the name that newer releases of transformers have for it."""
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    new = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    return {new if name == "gradient_checkpointing" else name: value for name, value in training.items()}


def check_weights(weights: str) -> str | tuple[float, ...]:
    """Weights out of the text of an option: a name, or numbers separated by commas.

    Raises:
        ObjectiveError: neither.

    Example:
        >>> check_weights("uniform"), check_weights("1,2.5")
        ('uniform', (1.0, 2.5))
    """
    try:
        return weights if weights in WEIGHTS else tuple(float(weight) for weight in weights.split(","))
    except ValueError:
        return choose(weights, WEIGHTS, "weights", ObjectiveError, otherwise="numbers such as 1,2,3")


def check_exits(exits: str) -> str | tuple[int, ...]:
    """Exits out of the text of an option: "all", "sampled", or depths separated by commas.

    Raises:
        ObjectiveError: neither.

    Example:
        >>> check_exits("all"), check_exits("4,8,12")
        ('all', (4, 8, 12))
    """
    try:
        return exits if exits in ("all", "sampled") else tuple(int(depth) for depth in exits.split(","))
    except ValueError:
        raise ObjectiveError(f"exits are {exits!r}, expected all, sampled, or depths: 4,8,12") from None
