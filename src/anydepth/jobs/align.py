"""One training, from names to a finished folder: what `anydepth align` does."""

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
from transformers import PrinterCallback, TrainingArguments, set_seed

from anydepth.core.provenance import versions
from anydepth.core.stack import Stack
from anydepth.data.columns import is_words
from anydepth.data.examples import Examples, class_names, examples, load_to_train
from anydepth.data.loading import LoadedData
from anydepth.distributed import rank_and_count, wait_for_all
from anydepth.errors import ModelError, TrainingError, one_line
from anydepth.jobs.align_settings import AlignSettings
from anydepth.jobs.run_folder import RunFolder
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


@dataclass(frozen=True)
class _Ready:
    """All that a training needs, checked."""

    model: LoadedModel
    depth: int
    rows: tuple[LoadedData, LoadedData]
    """To train on, and to evaluate on."""
    examples: tuple[Examples, Examples]

    @property
    def notes(self) -> tuple[str, ...]:
        train, held_out = self.rows
        first = f"trained on {len(train):,} rows ({train.split}), evaluated on {len(held_out):,} ({held_out.split})"
        each = (self.model, train, held_out, *self.examples)
        return tuple(dict.fromkeys([first, *(note for one in each for note in one.notes)]))


def align(
    job: AlignSettings,
    out: str | Path,
    *,
    resume: bool = False,
    restart: bool = False,
    keep_checkpoints: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> TrainingSummary:
    """Train a model at every depth, and leave it in a folder that transformers loads by itself.

    What can be checked is checked before anything is downloaded, and all data before any of it is learnt from.

    Args:
        job: what is to be done.
        out: the folder; see `anydepth.jobs.run_folder`.
        resume: go on with the newest whole checkpoint there, of the same settings; without one, begin.
        restart: train in the place of what is there.
        keep_checkpoints: leave them there when the model is finished.
        progress: called with what is done, how much there is, and what it is.
        say: called with a line for the user. If it is given, Ctrl-C ends the training after a step, with a checkpoint.

    Started by `torchrun` or `accelerate launch`, each process trains on its share of every batch.

    Raises:
        AnydepthError: in one of its kinds, with one line that says what to do.
        KeyboardInterrupt: it was ended.

    Example:
        >>> align(AlignSettings("./nowhere", "digits", objective="sampled", training={"use_cpu": True}), "runs/sampled")
        Traceback (most recent call last):
        anydepth.errors.ModelError: no folder './nowhere'
    """
    run = RunFolder(Path(out))
    objective, arguments, scratch = job.resolved(), job.arguments(run.checkpoints), job.starts_from_scratch()
    if real_path(local_path(job.model)) == real_path(run.path):
        raise TrainingError(f"'{out}' is the model to begin with, and would be overwritten: give another --out")
    settings = job.settings(arguments)
    run.standing(settings, resume=resume, restart=restart)
    with run.opened({"model": job.model, "data": job.data, "eval_data": job.eval_data}, rank=rank_and_count()[0]):
        if (result := run.standing(settings, resume=resume, restart=restart)) is not None:
            if rank_and_count()[0] == 0:
                run.clear()
            return TrainingSummary.of(run.path, result)
        return _align(
            job,
            run,
            (objective, arguments, scratch),
            settings,
            resume=resume,
            restart=restart,
            keep_checkpoints=keep_checkpoints,
            progress=progress,
            say=say,
        )


def _align(
    job: AlignSettings,
    run: RunFolder,
    resolved: tuple[NamedObjective, TrainingArguments, bool],
    settings: dict[str, Any],
    *,
    resume: bool,
    restart: bool,
    keep_checkpoints: bool,
    progress: Progress | None,
    say: Callable[[str], None] | None,
) -> TrainingSummary:
    objective, arguments, scratch = resolved
    if progress is not None:
        progress(0, None, "loading")
    ready = _ready(job, objective, scratch)
    if progress is not None:
        progress(1, 1, "loading")
    settings |= {"rows": [len(one) for one in ready.rows], "processes": rank_and_count()[1]}
    run.standing(settings, resume=resume, restart=restart)
    wait_for_all()  # every process has looked at the folder as it was
    with run.begun(settings, resume=resume) if arguments.should_save else nullcontext():
        wait_for_all()
        trainer = _trainer(job, objective, arguments, ready)
        if progress is not None and arguments.should_save:
            trainer.add_callback(
                ProgressCallback(progress, ready.depth, language_model=ready.model.task == "causal-lm")
            )
        with _stoppable(trainer, say):
            checkpoint = last_checkpoint(run.checkpoints, thorough=True) if resume else None
            seconds = trainer.train(resume_from_checkpoint=checkpoint).metrics["train_runtime"]
        done = replace(_aligned(job, objective, ready, trainer, settings, run.path), seconds=round(seconds, 1))
        base = None if scratch else local_path(job.model)
        return _finish(run, trainer, done, settings, base, keep_checkpoints=keep_checkpoints)


def _ready(job: AlignSettings, objective: NamedObjective, scratch: bool) -> _Ready:
    config = models.config_of(job.model, trust_remote_code=job.trust_remote_code)  # before data are downloaded
    train, held_out = load_to_train(
        job.data,
        job.wanted,
        split=job.split,
        eval_source=job.eval_data,
        eval_split=job.eval_split,
        eval_limit=job.eval_limit,
    )
    task = _task(job, config, train)
    classes = class_names(train, held_out) if task.endswith("classification") else None
    set_seed(job.wanted.seed)
    model = models.load(
        job.model,
        task=task,
        classes=classes,
        device="cpu",  # Trainer moves it
        dtype="float32",  # mixed precision casts; weights in 16 bits would not feel small steps
        trust_remote_code=job.trust_remote_code,
        pretrained=not scratch,
    )
    depth = Stack(model.model, blocks=job.blocks).depth
    objective.loss.expected(depth)  # refuses weights and exits that do not fit the model
    to_learn = examples(train, model, max_length=job.max_length, augment=job.augment)
    to_evaluate = examples(held_out, model, max_length=job.max_length)
    return _Ready(model, depth, (train, held_out), (to_learn, to_evaluate))


def _task(job: AlignSettings, config: Any, data: LoadedData) -> Task:
    text = data.columns.text
    words = text is not None and is_words(data.dataset.features[text])
    labelled = data.columns.label is not None
    task = check_task(job.task) if job.task else trainable_task(config, labelled=labelled, words=words)
    if task == "causal-lm" and fills_masks(config):
        raise ModelError(
            f"'{job.model}' is a {config.model_type}, which sees the token it is to predict: take a model "
            "that reads one way"
        )
    return task


def _trainer(
    job: AlignSettings, objective: NamedObjective, arguments: TrainingArguments, ready: _Ready
) -> AlignedTrainer:
    train, held_out = ready.examples
    processor = ready.model.processor
    try:
        trainer = AlignedTrainer(
            ready.model.model,
            arguments,
            objective=objective,
            blocks=job.blocks,
            train_dataset=train.dataset,
            eval_dataset=held_out.dataset,
            data_collator=train.collate,
            processing_class=processor.processor if ready.model.kind == "image" else processor,
        )
    except (ValueError, ImportError, RuntimeError) as error:
        raise TrainingError(f"these settings of the training do not work: {one_line(error)}") from error
    trainer.remove_callback(PrinterCallback)
    return trainer


def _stoppable(trainer: AlignedTrainer, say: Callable[[str], None] | None) -> AbstractContextManager[None]:
    """Signals wait for the end of a step, where they reach no process that only loads data.

    Forked, these leave Ctrl-C to this one; where they are started anew, they do not.
    """
    forked = multiprocessing.get_start_method(allow_none=True) in (None, "fork") and sys.platform == "linux"
    alone = trainer.args.dataloader_num_workers == 0 or forked
    if say is None or not alone or threading.current_thread() is not threading.main_thread():
        return nullcontext()
    interrupt = InterruptCallback(say, trainer.args.device)
    trainer.add_callback(interrupt)
    return interrupt.awaited()


def _evaluation(trainer: AlignedTrainer) -> Mapping[str, float]:
    """What the model is worth now, if the training has not just found out."""
    found: Mapping[str, float] | None = next(
        (one for one in trainer.state.log_history[::-1] if "eval_loss" in one), None
    )
    if found is None or found["step"] != trainer.state.global_step:
        found = dict(trainer.evaluate())
    return found


def _aligned(
    job: AlignSettings,
    objective: NamedObjective,
    ready: _Ready,
    trainer: AlignedTrainer,
    settings: Mapping[str, Any],
    out: Path,
) -> TrainingSummary:
    task, (train, held_out) = ready.model.task, ready.rows
    measure = "perplexity" if task == "causal-lm" else "accuracy"
    metrics = _evaluation(trainer)
    found = np.array([metrics[f"eval_{measure}_depth_{depth}"] for depth in range(1, ready.depth + 1)])
    bounds: tuple[tuple[float, float], ...] = ()
    if task in ("text-classification", "image-classification"):
        pairs = wilson(np.round(found * len(held_out)), len(held_out)).T
        bounds = tuple((float(low), float(high)) for low, high in pairs)
    where = f"of {short_name(job.eval_data)}, {held_out.split}" if job.eval_data else held_out.split
    if not job.eval_data and not job.eval_split and held_out.split == train.split:
        where += ", kept apart"
    return TrainingSummary(
        folder=out,
        model=job.model,
        data=job.data,
        task=task,
        objective=objective.name,
        purpose=objective.purpose,
        separate_heads=objective.separate_heads,
        measure=measure,
        values=tuple(float(value) if np.isfinite(value) else None for value in found),
        bounds=bounds,
        evaluated=f"{len(held_out):,} rows ({where})",
        classes=ready.model.classes,
        settings=_shown(settings),
        steps=trainer.state.global_step,
        seconds=0.0,
        notes=ready.notes,
        versions=versions(),
    )


def _shown(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings a reader wants to know: those in use."""
    own = ("from_scratch", "weights", "exits", "distillation", "max_length", "augment", "split", "eval_split")
    found = dict(settings["training"]) | {name: settings[name] for name in (*own, "processes")}
    del found["num_train_epochs" if found["max_steps"] > 0 else "max_steps"]
    return {name: value for name, value in found.items() if value is not None and value is not False}


def _finish(
    run: RunFolder,
    trainer: AlignedTrainer,
    done: TrainingSummary,
    settings: Mapping[str, Any],
    base: Path | None,
    *,
    keep_checkpoints: bool,
) -> TrainingSummary:
    """Save the model, its tokenizer or image processor, its heads, its base's licence and its card; it is finished."""
    if not trainer.args.should_save:
        trainer.save_model(str(run.path))  # a sharded model is put together by all
        return done
    with run.finishing() as beside:
        trainer.save_model(str(beside))
        if base is not None and base.is_dir():
            along = carry(base, beside, card="README-base.md", only_legal=True)
            done = replace(done, notes=(*done.notes, *along.notes))
        with write_errors(run.path):
            (beside / "training_args.bin").unlink(missing_ok=True)  # a pickle, of what align.json says
            (beside / "README.md").write_text(card(done), encoding="utf-8", errors="backslashreplace")
        files = sorted(file.name for file in beside.iterdir())
        run.finish(beside, settings, {**done.as_plain(), "files": files}, keep_checkpoints=keep_checkpoints)
    run.clear()
    return done
