"""What a job runs on: a model and data, each by name or as objects, made into a stack and batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch

from anydepth.core.model_io import call_model, device_of, model_output, split_batch, to_device
from anydepth.core.patching import evaluating
from anydepth.core.provenance import class_names
from anydepth.core.stack import Stack
from anydepth.data.batching import Batches, batches
from anydepth.data.given import batches_of, form_of, name_of
from anydepth.data.loading import LoadedData, load_split
from anydepth.data.sources import TO_EVALUATE
from anydepth.errors import DataError, OptionError
from anydepth.jobs.options import Settings, is_object
from anydepth.models.given import open_model
from anydepth.models.loaded import LoadedModel, Task
from anydepth.models.loading import stack_of
from anydepth.passes.batches import as_batches

Collate = Callable[[list[Any]], Any]
_OF_NAMED_MODELS = ("trust_remote_code", "dtype", "device")
_OF_ROWS = (
    *("split", "limit", "text_column", "label_column", "image_column", "id_column"),
    *("max_length", "stride", "pack", "labels_as_texts"),
)


@dataclass(frozen=True, kw_only=True)
class JobInputs:
    """The model and data of a job, as they were given.

    Attributes:
        settings: with `model` and `data`.
        processor: tokenizer or image processor, where the model comes without one; else in the place of its own.
        collate_fn: makes batches of rows.

    Raises:
        OptionError: a setting for a model by name came with an object, or one for rows with batches.
    """

    settings: Any
    processor: Any = None
    collate_fn: Collate | None = None

    def __post_init__(self) -> None:
        settings = self.settings
        if is_object(settings.model):
            what = type(settings.model).__name__
            _refuse(settings, _OF_NAMED_MODELS, f"is for a model by name, and model is a {what} as it is")
        if not self.has_rows and settings.data is not None:
            sizes = () if self._is_collated else ("batch_size",)
            _refuse(settings, (*_OF_ROWS, *sizes), f"is for rows of data, and data are batches ({self.data_name})")

    @property
    def has_rows(self) -> bool:
        """Whether the data are rows to be read, and no batches."""
        return self.collate_fn is None and form_of(self.settings.data) in ("name", "rows")

    @property
    def _is_collated(self) -> bool:
        return self.collate_fn is not None or form_of(self.settings.data) == "tokens"

    @property
    def model_name(self) -> str | None:
        """The name of the model; None of an object."""
        return None if is_object(self.settings.model) else self.settings.model

    @property
    def data_name(self) -> str:
        """The name of the data, or what kind of object they are."""
        return name_of(self.settings.data)

    @property
    def paths(self) -> dict[str, str | None]:
        """The names of model and data, for an output folder that must not be one of them."""
        given = {name: getattr(self.settings, name) for name in ("model", "data")}
        return {name: None if is_object(value) else value for name, value in given.items()}

    def model(self, *, device: str | None = None) -> LoadedModel:
        """The model, loaded if it was given by name."""
        settings = self.settings
        return open_model(
            settings.model,
            processor=self.processor,
            device=device,
            dtype=getattr(settings, "dtype", "auto"),
            trust_remote_code=settings.trust_remote_code,
        )

    def rows(self, held_out: tuple[str, ...] = TO_EVALUATE) -> LoadedData | None:
        """The rows of the data; None for batches."""
        settings = self.settings
        return load_split(settings.data, settings.split, settings.selection, held_out) if self.has_rows else None

    def batches(self, loaded: LoadedModel) -> Iterable[Any]:
        """The batches that were given, or that are made by `collate_fn` or of rows of tokens."""
        return as_batches(
            batches_of(
                self.settings.data,
                processor=self.processor or loaded.processor,
                collate_fn=self.collate_fn,
                batch_size=self.settings.batch_size,
            )
        )

    def batches_of_rows(self, loaded: LoadedModel, rows: LoadedData, **how: Any) -> Batches:
        """Batches of rows; see `anydepth.data.batches`."""
        if loaded.kind == "tensor":
            raise DataError(
                f"data are {rows.name}, and {loaded.name} comes without a tokenizer or image processor: give it "
                "(processor), or give batches"
            )
        if is_object(self.settings.model):
            loaded = _with_classes(loaded, self.stack(loaded, ()), rows)
        return batches(rows, loaded, batch_size=self.settings.batch_size, **how)

    def stack(self, loaded: LoadedModel, inputs: Iterable[Any]) -> Stack:
        """The model as a stack: the one that was given, or a new one, which has seen a batch if the data are rows."""
        if isinstance(self.settings.model, Stack):
            return self.settings.model
        if isinstance(inputs, Batches):
            return stack_of(loaded, inputs, blocks=self.settings.blocks)
        return Stack(loaded.model, blocks=self.settings.blocks)


def _refuse(settings: Settings, names: tuple[str, ...], why: str) -> None:
    """Raise an `OptionError` if one of these settings was given."""
    for name in names:
        if name in settings.changed():
            raise OptionError(f"{name} {why}: leave it out")


def _with_classes(loaded: LoadedModel, stack: Stack, rows: LoadedData) -> LoadedModel:
    """A model of the user's own with names for its classes, of which there are as many as it answers with logits."""
    if loaded.task != "features" or rows.columns.label is None:
        return loaded
    few = next(iter(batches(rows.select(range(min(2, len(rows)))), loaded, batch_size=2, labels=False)))
    inputs = to_device(split_batch(few, loaded.model).inputs, device_of(loaded.model))
    stack.learn(inputs)
    with evaluating(loaded.model), torch.no_grad():
        answer = model_output(call_model(loaded.model, inputs))[1]
    if not stack.answers_with_logits(labelled=True) or answer.ndim != 2:
        return loaded
    names = tuple(class_names(loaded.model).values())
    names = names if len(names) == answer.shape[1] else tuple(f"LABEL_{index}" for index in range(answer.shape[1]))
    task: Task = "text-classification" if loaded.kind == "text" else "image-classification"
    return replace(loaded, task=task, classes=names)
