"""What is to be trained, on what, and how: all that can be checked of it before anything is loaded."""

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


@dataclass(frozen=True)
class AlignSettings:
    """What is to be trained, on what, and how.

    Attributes:
        model: see `anydepth.models.loading.load`; a folder that holds only a config is trained from scratch.
        data: see `anydepth.data.sources.splits`.
        objective: a name of `anydepth.training.objectives.OBJECTIVES`.
        weights: in place of the objective's own; see `AlignedLoss`, as are the next two.
        exits: likewise.
        distillation: likewise.
        task: what to train it for; by default what the model was saved for, else what the data hold.
        from_scratch: random weights instead of the model's.
        split: to train on; see `anydepth.data.examples.load_to_train`, as are the next two.
        eval_data: other data to evaluate on.
        eval_split: to evaluate on.
        wanted: columns, a limit for each split, and the seed of everything random.
        eval_limit: of the rows to evaluate on, in place of that limit; drawn alike for every seed.
        max_length: cut texts at so many tokens; of a language model, the length of the blocks its texts are packed in.
        augment: train on random views of images; see `anydepth.data.augment`.
        blocks: the dotted name of the list of blocks, for a model that has several.
        trust_remote_code: run the Python code that comes with the checkpoint.
        training: fields of `transformers.TrainingArguments`.

    Example:
        >>> AlignSettings("./vit", "digits", objective="sampled", training={"max_steps": 100}).resolved().loss.exits
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
        """The objective, with what was asked for in place of its own.

        Raises:
            ObjectiveError: there is none of that name, or a setting is out of range.
        """
        found = objective_named(self.objective)
        asked = {name: getattr(self, name) for name in ("weights", "exits", "distillation")}
        given = {name: value for name, value in asked.items() if value is not None}
        return replace(found, loss=replace(found.loss, seed=self.wanted.seed, **given))

    def starts_from_scratch(self) -> bool:
        """Whether the weights are to be random, as far as can be seen without loading.

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
        """Trainer's arguments.

        Args:
            folder: for its checkpoints.

        Raises:
            TrainingError: one makes no sense, or cannot be had here.
        """
        given = {"seed": self.wanted.seed, **self.training}
        for name, value in given.items():
            _check(name, value)
        ours = {
            "output_dir": str(folder),
            "eval_strategy": "steps" if given.get("eval_steps") else "epoch",
            "disable_tqdm": True,
            "remove_unused_columns": False,
            "dataloader_pin_memory": torch.cuda.is_available(),
        }
        try:
            found = TrainingArguments(**ours | _renamed(given))
            _ = found.device  # starts the process group, where there is one
        except (ValueError, TypeError, ImportError, RuntimeError) as error:
            raise TrainingError(f"these settings of the training do not work: {one_line(error)}") from error
        return found

    def settings(self, arguments: TrainingArguments) -> dict[str, Any]:
        """Everything that decides what comes out, as plain values."""
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
        there = get_available_reporting_integrations()
        for one in [value] if isinstance(value, str) else value:
            if one not in there:
                raise TrainingError(f"cannot report to {one!r} here, only to {', '.join(there) or 'none'}: install it")


def _renamed(given: Mapping[str, Any]) -> dict[str, Any]:
    """`gradient_checkpointing` under the name that newer releases of transformers have for it."""
    new = {one.name for one in dataclasses.fields(TrainingArguments)} & {"activation_checkpointing"}
    return {
        next(iter(new)) if name == "gradient_checkpointing" and new else name: value for name, value in given.items()
    }


def check_weights(weights: str) -> str | tuple[float, ...]:
    """Weights as they are written on the command line: a name, or numbers separated by commas.

    Raises:
        ObjectiveError: neither.

    Example:
        >>> check_weights("uniform"), check_weights("1,2.5")
        ('uniform', (1.0, 2.5))
    """
    try:
        return weights if weights in WEIGHTS else tuple(float(one) for one in weights.split(","))
    except ValueError:
        return choose(weights, WEIGHTS, "weights", ObjectiveError, otherwise="numbers such as 1,2,3")


def check_exits(exits: str) -> str | tuple[int, ...]:
    """Exits as they are written on the command line: "all", "sampled", or depths separated by commas.

    Raises:
        ObjectiveError: neither.

    Example:
        >>> check_exits("all"), check_exits("4,8,12")
        ('all', (4, 8, 12))
    """
    try:
        return exits if exits in ("all", "sampled") else tuple(int(one) for one in exits.split(","))
    except ValueError:
        raise ObjectiveError(f"exits are {exits!r}, expected all, sampled, or depths: 4,8,12") from None
