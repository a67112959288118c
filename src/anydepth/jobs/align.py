"""Train a model at every depth by name: the job of `anydepth align`."""

from __future__ import annotations

import multiprocessing
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PrinterCallback, TrainingArguments, set_seed

from anydepth.core.model_io import split_batch
from anydepth.core.provenance import versions
from anydepth.core.stack import Stack
from anydepth.data.columns import is_words
from anydepth.data.examples import Examples, class_names, examples, load_to_train
from anydepth.data.loading import LoadedData
from anydepth.distributed import rank_and_count, wait_for_all
from anydepth.errors import ModelError, TrainingError, one_line
from anydepth.jobs.align_settings import objective_of, record_of, starts_from_scratch, training_arguments
from anydepth.jobs.inputs import JobInputs
from anydepth.jobs.keywords import takes
from anydepth.jobs.options import is_object
from anydepth.jobs.run_folder import RunFolder
from anydepth.jobs.settings import AlignSettings
from anydepth.models import loading as models
from anydepth.models.companion_files import carry
from anydepth.models.loaded import LoadedModel, Task
from anydepth.models.tasks import check_task, fills_masks, trainable_task
from anydepth.progress import Progress
from anydepth.stats.intervals import wilson
from anydepth.storage.disk import write_errors
from anydepth.storage.paths import local_path, real_path
from anydepth.training.callbacks import InterruptCallback, ProgressCallback
from anydepth.training.checkpoints import last_checkpoint
from anydepth.training.model_card import card, short_name
from anydepth.training.objectives import NamedObjective
from anydepth.training.summary import TrainingSummary
from anydepth.training.trainer import AlignedTrainer


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What the settings say, checked before anything is loaded."""

    objective: NamedObjective
    arguments: TrainingArguments
    scratch: bool


@dataclass(frozen=True, kw_only=True)
class _Inputs:
    """The model, and the rows and examples to train on and to evaluate on."""

    model: LoadedModel
    depth: int
    first: int
    """The first depth that is trained: 1, or that after the first block of a model's last stage."""
    rows: tuple[LoadedData, LoadedData]
    examples: tuple[Examples, Examples]

    @property
    def notes(self) -> tuple[str, ...]:
        train, held_out = self.rows
        first = f"trained on {len(train):,} rows ({train.split}), evaluated on {len(held_out):,} ({held_out.split})"
        sources = (self.model, train, held_out, *self.examples)
        return tuple(dict.fromkeys([first, *(note for source in sources for note in source.notes)]))


@takes(AlignSettings)
def align(
    model: Any,
    data: Any,
    *,
    out: str | Path,
    processor: Any = None,
    resume: bool = False,
    restart: bool = False,
    keep_checkpoints: bool = False,
    progress: Any = None,
    say: Callable[[str], None] | None = None,
    **settings: Any,
) -> TrainingSummary:
    """Train a model at every depth, and save it as a folder that transformers loads: what `anydepth align` does.

    What can be checked is checked before anything is downloaded, and all data before training begins. Started by
    `torchrun` or `accelerate launch`, each process trains on its share of every batch.

    Args:
        model: a name, or a model of transformers, which is trained in place.
        data: a name, or rows, as `anydepth.trace` takes them; a `datasets.DatasetDict` has splits.
        out: the folder; see `anydepth.jobs.run_folder`.
        processor: the tokenizer or image processor, where the model comes without one.
        resume: go on with the newest whole checkpoint there, of the same settings; without one, begin.
        restart: train in the place of what is there.
        keep_checkpoints: leave them there when the model is finished.
        progress: True for bars, False for none, by default bars in a notebook and at a terminal; or a function that is
            called with what is done, how much there is, and what it is.
        say: called with a line for the user. If it is given, Ctrl-C ends the training after a step, with a checkpoint.
        **settings: as `AlignSettings` has them.

    Raises:
        AnydepthError: in one of its kinds, with one line that says what to do.
        KeyboardInterrupt: it was ended.

    Example:
        >>> align("./nowhere", "digits", out="runs/aligned", use_cpu=True)
        Traceback (most recent call last):
        anydepth.errors.ModelError: no folder './nowhere'
    """
    wanted = AlignSettings(model=model, data=data, **settings)
    given = JobInputs(settings=wanted, processor=processor)
    run = RunFolder(Path(out), resume=resume, restart=restart, keep_checkpoints=keep_checkpoints)
    plan = _Plan(
        objective=objective_of(wanted),
        arguments=training_arguments(wanted, run.checkpoints),
        scratch=given.model_name is not None and starts_from_scratch(wanted),
    )
    _check(given, run)
    decisive = record_of(wanted, plan.arguments)
    run.standing(decisive)
    with run.opened(given.paths, rank=rank_and_count()[0]):
        if (result := run.standing(decisive)) is not None:
            if rank_and_count()[0] == 0:
                run.clear()
            return TrainingSummary.of(run.path, result)
        return _align(given, plan, decisive, run, progress=progress, say=say)


def _check(given: JobInputs, run: RunFolder) -> None:
    """Refuse a model that would be overwritten, or that Trainer does not train, and data that are no rows."""
    model = given.settings.model
    if not given.has_rows:
        raise TrainingError(
            f"data are batches ({given.data_name}), expected rows of texts or images: train on batches with "
            "AlignedTrainer"
        )
    if given.model_name is None:
        inner = getattr(model, "model", model) if not hasattr(model, "save_pretrained") else model
        if not isinstance(inner, PreTrainedModel) or inner.dtype != torch.float32:
            what = f"a {type(inner).__name__}" + (f" of {inner.dtype}" if isinstance(inner, PreTrainedModel) else "")
            raise ModelError(
                f"model is {what}, expected a model of transformers in float32: train others with AlignedLoss in a "
                "loop of your own"
            )
    elif real_path(local_path(model)) == real_path(run.path):
        raise TrainingError(
            f"'{run.path}' is the model to begin with, and would be overwritten: give another folder (out)"
        )


def _align(
    given: JobInputs,
    plan: _Plan,
    decisive: dict[str, Any],
    run: RunFolder,
    *,
    progress: Progress | None,
    say: Callable[[str], None] | None,
) -> TrainingSummary:
    if progress is not None:
        progress(0, None, "loading")
    settings: AlignSettings = given.settings
    inputs = _load(given, plan)
    if progress is not None:
        progress(1, 1, "loading")
    decisive |= {"rows": [len(rows) for rows in inputs.rows], "processes": rank_and_count()[1]}
    run.standing(decisive)
    wait_for_all()  # every process has looked at the folder as it was
    with run.begun(decisive) if plan.arguments.should_save else nullcontext():
        wait_for_all()
        trainer = _trainer(settings, plan, inputs)
        if progress is not None and plan.arguments.should_save:
            language_model = inputs.model.task == "causal-lm"
            trainer.add_callback(
                ProgressCallback(progress, inputs.depth, language_model=language_model, first=inputs.first)
            )
        with _interruptible(trainer, say):
            checkpoint = last_checkpoint(run.checkpoints, thorough=True) if run.resume else None
            seconds = trainer.train(resume_from_checkpoint=checkpoint).metrics["train_runtime"]
        summary = _summary(settings, plan, inputs, trainer, decisive, folder=run.path, seconds=round(seconds, 1))
        return _finish(run, trainer, summary, decisive, settings, plan)


def _load(given: JobInputs, plan: _Plan) -> _Inputs:
    settings: AlignSettings = given.settings
    own = given.model() if given.model_name is None else None
    if own is None:  # before data are downloaded
        config = models.config_of(settings.model, trust_remote_code=settings.trust_remote_code)
    train, held_out = load_to_train(
        settings.data,
        settings.selection,
        split=settings.split,
        eval_source=settings.eval_data,
        eval_split=settings.eval_split,
        eval_limit=settings.eval_limit,
    )
    if own is not None:
        _require_trainable(own.task, own.name, own.model.config)
        set_seed(settings.seed)
        model = own
    else:
        task = _task(settings, config, train)
        classes = class_names(train, held_out) if task.endswith("classification") else None
        set_seed(settings.seed)
        model = models.load(
            settings.model,
            task=task,
            classes=classes,
            device="cpu",  # Trainer moves it
            dtype="float32",  # mixed precision casts; weights in 16 bits would not feel small steps
            trust_remote_code=settings.trust_remote_code,
            pretrained=not plan.scratch,
        )
    stack = Stack(model.model, blocks=settings.blocks)
    to_train = examples(train, model, max_length=settings.max_length, augment=settings.augment)
    to_evaluate = examples(held_out, model, max_length=settings.max_length)
    if not stack.is_known:
        few = to_evaluate.collate([to_evaluate.dataset[index] for index in range(min(2, len(to_evaluate)))])
        stack.verify(split_batch(few, model.model).inputs)
    first = stack.entry + 1
    plan.objective.loss.expected(stack.depth, first)  # refuses weights and exits that do not fit the model
    return _Inputs(
        model=model, depth=stack.depth, first=first, rows=(train, held_out), examples=(to_train, to_evaluate)
    )


def _task(settings: AlignSettings, config: Any, data: LoadedData) -> Task:
    text = data.columns.text
    words = text is not None and is_words(data.dataset.features[text])
    labelled = data.columns.label is not None
    task = check_task(settings.task) if settings.task else trainable_task(config, labelled=labelled, words=words)
    _require_trainable(task, settings.model, config)
    return task


def _require_trainable(task: Task, name: str, config: Any) -> None:
    if task == "features":
        raise ModelError(f"'{name}' has no head to train: give a model with a classifier, or a language model")
    if task == "object-detection":
        raise ModelError(
            f"'{name}' is a detector, which learns from boxes, and data here have classes, tags or texts: "
            "train it from Python, by AlignedLoss"
        )
    if task == "causal-lm" and fills_masks(config):
        raise ModelError(
            f"'{name}' is a {config.model_type}, which sees the token it is to predict: take a model that reads one way"
        )


def _trainer(settings: AlignSettings, plan: _Plan, inputs: _Inputs) -> AlignedTrainer:
    train, held_out = inputs.examples
    processor = inputs.model.processor
    try:
        trainer = AlignedTrainer(
            inputs.model.model,
            plan.arguments,
            objective=plan.objective,
            blocks=settings.blocks,
            train_dataset=train.dataset,
            eval_dataset=held_out.sorted_by_length(),
            data_collator=train.collate,
            processing_class=processor.processor if inputs.model.kind == "image" else processor,
        )
    except (ValueError, ImportError, RuntimeError) as error:
        raise TrainingError(f"these settings of the training do not work: {one_line(error)}") from error
    trainer.remove_callback(PrinterCallback)
    return trainer


def _interruptible(trainer: AlignedTrainer, say: Callable[[str], None] | None) -> AbstractContextManager[None]:
    """Context manager: Ctrl-C ends the training after a step, where no process that only loads data gets it, too.

    Data workers that are forked leave it to this process; those that are spawned do not.
    """
    forked = multiprocessing.get_start_method(allow_none=True) in (None, "fork") and sys.platform == "linux"
    alone = trainer.args.dataloader_num_workers == 0 or forked
    if say is None or not alone or threading.current_thread() is not threading.main_thread():
        return nullcontext()
    interrupt = InterruptCallback(say, trainer.args.device)
    trainer.add_callback(interrupt)
    return interrupt.awaited()


def _evaluation(trainer: AlignedTrainer) -> Mapping[str, float]:
    """Metrics of the model as it is now: those logged at the last step, or else evaluated anew."""
    metrics: Mapping[str, float] | None = next(
        (entry for entry in trainer.state.log_history[::-1] if "eval_loss" in entry), None
    )
    if metrics is None or metrics["step"] != trainer.state.global_step:
        metrics = dict(trainer.evaluate())
    return metrics


def _summary(
    settings: AlignSettings,
    plan: _Plan,
    inputs: _Inputs,
    trainer: AlignedTrainer,
    decisive: Mapping[str, Any],
    *,
    folder: Path,
    seconds: float,
) -> TrainingSummary:
    task, (train, held_out) = inputs.model.task, inputs.rows
    measure = "perplexity" if task == "causal-lm" else "accuracy"
    metrics = _evaluation(trainer)
    trained = [metrics[f"eval_{measure}_depth_{depth}"] for depth in range(inputs.first, inputs.depth + 1)]
    values = np.array([np.nan] * (inputs.first - 1) + trained)
    bounds: tuple[tuple[float, float] | None, ...] = ()
    if task in ("text-classification", "image-classification"):
        pairs = wilson(np.round(values * len(held_out)), len(held_out)).T
        bounds = tuple(None if np.isnan(low) else (float(low), float(high)) for low, high in pairs)
    other = settings.eval_data is not None
    where = f"of {short_name(held_out.name)}, {held_out.split}" if other else held_out.split
    if not other and not settings.eval_split and held_out.split == train.split:
        where += ", kept apart"
    return TrainingSummary(
        folder=folder,
        model=inputs.model.name,
        data=train.name,
        task=task,
        objective=plan.objective.name,
        purpose=plan.objective.purpose,
        separate_heads=plan.objective.separate_heads,
        measure=measure,
        values=tuple(float(value) if np.isfinite(value) else None for value in values),
        bounds=bounds,
        evaluated=f"{len(held_out):,} rows ({where})",
        classes=inputs.model.classes,
        settings=_in_use(decisive),
        steps=trainer.state.global_step,
        seconds=seconds,
        notes=inputs.notes,
        versions=versions(),
    )


def _in_use(decisive: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in use, which a reader wants to know."""
    own = ("from_scratch", "weights", "exits", "distillation", "max_length", "augment", "split", "eval_split")
    settings = dict(decisive["training"]) | {name: decisive[name] for name in (*own, "processes")}
    del settings["num_train_epochs" if settings["max_steps"] > 0 else "max_steps"]
    return {name: value for name, value in settings.items() if value is not None and value is not False}


def _finish(
    run: RunFolder,
    trainer: AlignedTrainer,
    summary: TrainingSummary,
    decisive: Mapping[str, Any],
    settings: AlignSettings,
    plan: _Plan,
) -> TrainingSummary:
    """Save the model, its tokenizer or image processor, its heads, the licence of its base and its card."""
    if not trainer.args.should_save:
        trainer.save_model(str(run.path))  # a sharded model is put together by all
        return summary
    with run.finishing() as beside:
        trainer.save_model(str(beside))
        base = None if is_object(settings.model) else local_path(settings.model)
        if base is not None and not plan.scratch and base.is_dir():
            companions = carry(base, beside, card="README-base.md", only_legal=True)
            summary = replace(summary, notes=(*summary.notes, *companions.notes))
        with write_errors(run.path):
            (beside / "training_args.bin").unlink(missing_ok=True)  # a pickle of what align.json says
            (beside / "README.md").write_text(card(summary), encoding="utf-8", errors="backslashreplace")
        settings.save(beside)
        files = sorted(file.name for file in beside.iterdir())
        run.finish(beside, decisive, {**summary.as_plain(), "files": files})
    run.clear()
    return summary
