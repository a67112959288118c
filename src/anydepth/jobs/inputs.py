"""What a job runs on: a model and data, each by name or as objects, made into a stack and batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from anydepth.core.model_io import call_model, device_of, model_output, split_batch, to_device
from anydepth.core.patching import evaluating
from anydepth.core.provenance import class_names
from anydepth.core.stack import Stack
from anydepth.data.batching import Batches, batches
from anydepth.data.loading import LoadedData, load_split
from anydepth.data.objects import batches_of, form_of, name_of
from anydepth.data.settings import InputSettings, settings_of
from anydepth.data.sources import TO_EVALUATE
from anydepth.errors import DataError, OptionError
from anydepth.jobs.options import Settings, is_object
from anydepth.models.loaded import LoadedModel, Task
from anydepth.models.loading import stack_of
from anydepth.models.objects import open_model, stack_in
from anydepth.passes.batches import as_batch, as_batches
from anydepth.storage.output_folder import OutputKind, output

Collate = Callable[[list[Any]], Any]
_OF_NAMED_MODELS = ("trust_remote_code", "dtype", "device", "from_scratch", "task")
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
        if getattr(settings, "data", None) is not None and not self.has_rows:
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
        given = {name: getattr(self.settings, name, None) for name in ("model", "data", "eval_data")}
        return {name: None if is_object(value) else value for name, value in given.items()}

    def model(self, source: str | None = None, *, device: str | None = None, dtype: str = "auto") -> LoadedModel:
        """The model, loaded if it was given by name: from there, or from another `source`."""
        settings: Any = self.settings
        return open_model(
            source or settings.model,
            processor=self.processor,
            device=device,
            dtype=getattr(settings, "dtype", dtype),
            trust_remote_code=settings.trust_remote_code,
        )

    def rows(self, held_out: tuple[str, ...] = TO_EVALUATE) -> LoadedData | None:
        """The rows of the data; None for batches."""
        settings = self.settings
        return load_split(settings.data, settings.split, settings.selection, held_out) if self.has_rows else None

    def read(
        self,
        loaded: LoadedModel,
        rows: LoadedData | None,
        *,
        blocks: str | None = None,
        max_length: int | None = None,
        labels: bool = True,
    ) -> Inputs:
        """The stack and batches: of rows, made as `anydepth.data.batches` makes them, else as they were given."""
        size, notes, stack = self.settings.batch_size, loaded.notes, stack_in(self.settings.model)
        if rows is None:
            processor = self.processor or loaded.processor
            given = batches_of(self.settings.data, processor=processor, collate_fn=self.collate_fn, batch_size=size)
            inputs = Inputs(
                model=loaded,
                stack=stack or Stack(loaded.model, blocks=blocks),
                batches=as_batches(given),
                data=self.data_name,
                notes=notes,
            )
            if stack is not None or loaded.heads is None:
                return inputs
            inputs = inputs.kept()  # a batch shows where the classifiers of each depth go
            return replace(inputs, stack=stack_of(loaded, inputs.batches, blocks=blocks))
        if loaded.kind == "tensor":
            raise DataError(
                f"data are {rows.name}, and {loaded.name} comes without a tokenizer or image processor: give it "
                "(processor), or give batches"
            )
        if self.model_name is None:
            loaded = _with_classes(loaded, stack or Stack(loaded.model, blocks=blocks), rows)
        windows = {name: getattr(self.settings, name) for name in ("stride", "pack") if hasattr(self.settings, name)}
        made = batches(rows, loaded, batch_size=size, max_length=max_length, labels=labels, **windows)
        return Inputs(
            model=loaded,
            stack=stack or stack_of(loaded, made, blocks=blocks),
            batches=made,
            data=f"{rows.name} ({rows.split})",
            notes=(*notes, *rows.notes, *made.notes),
        )

    def output(
        self,
        out: str | Path | None,
        kind: OutputKind,
        *,
        rank: int = 0,
        ranks: int = 1,
        again: str = "the same command",
    ) -> AbstractContextManager[Any]:
        """Context manager: the output folder of the job, if there is one; see `anydepth.storage.output_folder`."""
        if out is None:
            return nullcontext()
        return output(out, kind, inputs=self.paths, rank=rank, ranks=ranks, again=again)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """A model and data that are ready to run.

    Attributes:
        model: as it reads the data.
        stack: of it.
        batches: for it.
        data: name of the data with the split, or what kind of object they are.
        notes: on how they were read, one sentence each.
    """

    model: LoadedModel
    stack: Stack
    batches: Any
    data: str
    notes: tuple[str, ...]

    @property
    def of_rows(self) -> Batches | None:
        """The batches, if they were made of rows here."""
        return self.batches if isinstance(self.batches, Batches) else None

    @property
    def settings(self) -> InputSettings | None:
        """How the inputs were made of rows; None if that was done elsewhere."""
        return None if self.of_rows is None else settings_of(self.of_rows)

    def kept(self) -> Inputs:
        """The same, with batches that have a length and can be read again."""
        again = isinstance(self.batches, Sized) and not isinstance(self.batches, Iterator)
        return self if again else replace(self, batches=list(self.batches))

    def labelled(self) -> bool:
        """Whether there are labels; the first batch of data that can be read again is looked at."""
        if self.of_rows is not None:
            return self.of_rows.labels is not None
        return as_batch(next(iter(self.batches)), 0, self.model.model).labels is not None


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
