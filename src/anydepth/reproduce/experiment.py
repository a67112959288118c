"""One seed of a recipe: it trains and traces models, and finished parts are never made twice.

A part (a trained model, a trace, some numbers) lies in a folder named after a hash of all that decides it. Recipes that
need the same part share it; one that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from anydepth import data
from anydepth.assets import registry as assets
from anydepth.core.provenance import now
from anydepth.data.examples import class_names
from anydepth.distributed import rank_and_count, wait_for_all
from anydepth.errors import AnydepthError, ReproduceError
from anydepth.jobs.align import align
from anydepth.jobs.settings import AlignSettings
from anydepth.models import loading as models
from anydepth.models.loaded import LoadedModel
from anydepth.passes.workspace import Readout
from anydepth.progress import Progress
from anydepth.reproduce.curves import by_depth
from anydepth.reproduce.small_models import MADE
from anydepth.reproduce.subjects import TRIAL_ROWS, Scale, Subject
from anydepth.storage.disk import write_errors
from anydepth.storage.files import is_filled, plain, read_json, replacing_folder, write_json
from anydepth.storage.paths import local_path
from anydepth.tracing.run import trace
from anydepth.tracing.trace import Trace

MEASURES = ("cosine", "cosine_raw", "cka")
PARTS = "parts"
_DONE, _SPENT = "part.json", "spent.json"  # of an interrupted part, the CPU seconds so far
_MODEL, _TRACE, _VALUES = "model", "trace", "values.json"


Say = Callable[[str], None]
"""Takes a line for the user."""


@dataclass(kw_only=True)
class Experiment:
    """One seed of a recipe, at one scale.

    Attributes:
        out: the folder of all recipes' parts.
        scale: "cpu" or "full".
        subjects: of the recipe at this scale, by name.
        seed: of weights, order and draws.
        steps: stop every training after so many, and read few rows: a trial.
        version: of the recipe; what it remembers is of this version only.
        as_printed: train with the paper's settings where they are not plausible, too.
        use: local folders and files in the place of hub ids and assets, by name.
        device: as torch names it; None for the best there is. Training takes it for "cpu" only: else Trainer decides.
        progress: called with steps done, steps in all, and what is being done.
        say: called with a line for the user; Ctrl-C then ends a training after a step, with a checkpoint.
        cpu_seconds: that the parts took that were asked for, when they were made.
        traces: fingerprints of the model and the data of each trace that was asked for, by the name of the part.
    """

    out: Path
    scale: Scale
    subjects: Mapping[str, Subject]
    seed: int = 0
    steps: int | None = None
    version: int = 1
    as_printed: bool = False
    use: Mapping[str, str] = field(default_factory=dict)
    device: str | None = None
    progress: Progress | None = None
    say: Say | None = None
    cpu_seconds: float = 0.0
    traces: dict[str, Any] = field(default_factory=dict)

    def source(self, name: str) -> str:
        """Hub id, folder or file of a model or data set of a subject.

        Raises:
            AssetError: an asset has not been fetched; the message says how.
        """
        if name in self.use:
            return str(local_path(self.use[name]))
        kind, _, rest = name.partition(":")
        if kind == "asset":
            return str(assets.path(rest))
        if kind != "made":
            return name
        folder = self.out / PARTS / f"made-{rest}"
        if rank_and_count()[0] == 0 and not is_filled(folder):
            with replacing_folder(folder) as temporary:
                MADE[rest](temporary)
        wait_for_all()
        return str(folder)

    def announce(self, training: str) -> None:
        """Tell the user which training begins, and of which seed."""
        if self.say is not None:
            self.say(f"seed {self.seed}: {training}")

    # --- parts -----------------------------------------------------------------------------------------------------

    def trained(self, name: str, objective: str = "standard") -> Path:
        """The folder of a subject's model, trained by an objective of `anydepth.training.objectives.OBJECTIVES`."""
        subject = self.subjects[name]
        what = {"train": subject.decisive(), "objective": objective}
        with self._part(f"{name}-{objective}", what) as (folder, done):
            if not done:
                self.announce(f"{subject.title}, {objective}")
                job, model = self.job(subject, objective), folder / _MODEL
                align(**vars(job), out=model, resume=True, progress=self.progress, say=self.say)
        return folder / _MODEL

    def untrained(self, name: str) -> Path:
        """The folder of a subject's model with random weights, to compare a trained one with."""
        import torch

        subject = self.subjects[name]
        what = {"random": subject.model, "task": subject.task, "data": subject.data}
        with self._part(f"{name}-random", what) as (folder, done):
            if not done and rank_and_count()[0] == 0:
                classes = class_names(self.samples(subject)) if subject.task.endswith("classification") else None
                torch.manual_seed(self.seed)
                source = self.source(subject.model)
                loaded = models.load(source, task=subject.task, classes=classes, device="cpu", pretrained=False)
                with replacing_folder(folder / _MODEL) as temporary:
                    loaded.model.save_pretrained(temporary)  # type: ignore[operator]  # transformers'
                    if loaded.to_save is not None:
                        loaded.to_save.save_pretrained(temporary)
            wait_for_all()
        return folder / _MODEL

    def traced(
        self,
        name: str,
        model: Path | str,
        *,
        source: str | None = None,
        split: str | None = None,
        measures: tuple[str, ...] = MEASURES,
        readout: Readout = "tail",
        labels: bool = True,
        keep_states: bool = False,
    ) -> Trace:
        """A trace of a model on what a subject holds out.

        Args:
            name: of the subject.
            model: a folder of `trained` or `untrained`, or a hub id.
            source: other data than the subject's, named as its are.
            split: another than the subject's.
            measures: similarities.
            readout: see `anydepth.trace`.
            labels: False for data whose labels are not the model's classes.
            keep_states: keep the states.
        """
        subject = self.subjects[name]
        model_name = model.parent.name if isinstance(model, Path) else model
        what: dict[str, Any] = {"trace": subject.decisive(), "model": model_name, "source": source}
        what |= {"measures": measures, "readout": readout}
        if split is not None or keep_states or not labels:
            what |= {"split": split, "labels": labels, "states": keep_states}
        with self._part(f"{name}-trace", what) as (folder, done):
            if done:
                result = Trace.load(folder / _TRACE)
            else:
                loaded = models.load(str(model), device=self.device)
                batches = self.batches(subject, loaded, source=source, split=split, labels=labels)
                result = trace(
                    models.stack_of(loaded, batches),
                    batches,
                    measures=measures,
                    positions=subject.positions,
                    readout=readout,
                    labels=labels,
                    out=folder / _TRACE,
                    keep_states=keep_states,
                    sums=False,
                    describe={"model": model_name, "data": {"name": source or subject.data}, "notes": batches.notes},
                    progress=self.progress,
                )
        self.traces[folder.name] = {of: result.provenance[of]["fingerprint"] for of in ("model", "data")}
        return result

    def curves(self, name: str, objective: str = "standard") -> dict[str, Any]:
        """Curves by depth of a subject's model, trained by an objective; see `anydepth.reproduce.curves.by_depth`."""
        return by_depth(self.traced(name, self.trained(name, objective)))

    def remembered(self, what: str, settings: Mapping[str, Any], compute: Callable[[Path], Any]) -> Any:
        """Numbers that are computed once, by this version of the recipe, as JSON holds them.

        Args:
            what: name of the numbers.
            settings: all that decides them, beside the seed and the version.
            compute: returns them, from a folder of its own that several processes share.
        """
        with self._part(what, {"values": what, "version": self.version, **settings}) as (folder, done):
            if not done:
                values = plain(compute(folder))
                if rank_and_count()[0] == 0:
                    write_json(folder / _VALUES, values)
                wait_for_all()
        return read_json(folder / _VALUES)

    @contextmanager
    def _part(self, name: str, what: Mapping[str, Any]) -> Iterator[tuple[Path, bool]]:
        """The folder of a part, and whether it is finished; it is, once the block ends without an error.

        Parts are not made within parts: each would count the other's time.
        """
        settings = plain({**what, "seed": self.seed, "steps": self.steps, "as_printed": self.as_printed})
        if self.use:
            settings["use"] = {name: str(local_path(path).absolute()) for name, path in self.use.items()}
        key = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=6).hexdigest()
        folder = self.out / PARTS / f"{name}-{self.seed}-{key}"
        done, spent = (folder / _DONE).is_file(), folder / _SPENT
        before = float(read_json(spent)) if spent.is_file() else 0.0
        started = time.process_time()
        with write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        wait_for_all()
        try:
            yield folder, done
        except BaseException:
            if rank_and_count()[0] == 0:
                with suppress(AnydepthError):  # a full disk is reported by the first error, not by this one
                    # The time so far counts when the part is resumed.
                    write_json(spent, before + time.process_time() - started)
            raise
        if not done and rank_and_count()[0] == 0:
            seconds = before + time.process_time() - started
            write_json(folder / _DONE, {"settings": settings, "cpu_seconds": round(seconds, 1), "created": now()})
            spent.unlink(missing_ok=True)
        wait_for_all()
        self.cpu_seconds += read_json(folder / _DONE)["cpu_seconds"]

    # --- what parts are made of ------------------------------------------------------------------------------------

    def job(self, subject: Subject, objective: str) -> AlignSettings:
        """Settings of `anydepth align` for a subject and an objective."""
        training: dict[str, Any] = {
            "per_device_train_batch_size": 32,
            "per_device_eval_batch_size": subject.batch_size,
            "report_to": "none",
            "logging_steps": 0.05,
            "eval_steps": 10**9,  # once, at the end
            "save_steps": 500,
            "save_total_limit": 1,
            "optim": "adamw_torch_fused",
            "use_cpu": self.device == "cpu",
            **subject.training,
            **(subject.printed if self.as_printed else {}),
        }
        if self.steps is not None:
            training |= {"max_steps": self.steps, "gradient_accumulation_steps": 1, "bf16": False, "use_cpu": True}
            training["dataloader_num_workers"] = 0
        columns: dict[str, Any] = {f"{kind}_column": name for kind, name in subject.columns.items()}
        return AlignSettings(
            model=self.source(subject.model),
            data=self.source(subject.data),
            objective=objective,
            task=subject.task,
            from_scratch=subject.from_scratch,
            split=subject.split,
            eval_split=subject.eval_split,
            limit=self.rows(subject.train),
            seed=self.seed,
            **columns,
            eval_limit=self.rows(subject.held_out),
            max_length=subject.length,
            augment=subject.augment,
            **shared(training, rank_and_count()[1]),
        )

    def rows(self, count: int | None) -> int | None:
        """`count` rows, or the few of a trial."""
        return count if self.steps is None else min(count or TRIAL_ROWS, TRIAL_ROWS)

    def samples(
        self,
        subject: Subject,
        *,
        source: str | None = None,
        split: str | None = None,
        limit: int | None = None,
        training: bool = False,
    ) -> data.LoadedData:
        """The rows a subject holds out, the same for every seed; or as many of other data, or of another split.

        Args:
            subject: whose rows.
            source: other data than the subject's.
            split: another split.
            limit: how many, in the place of as many as are held out.
            training: those to train on instead, drawn by the seed: of the split "train", if the subject names none.
        """
        return data.load(
            self.source(source or subject.data),
            split=split or (None if source else (subject.split or "train") if training else subject.eval_split),
            limit=self.rows(subject.train if training else limit or subject.held_out),
            **(subject.columns if source is None else {}),
            seed=self.seed if training else 0,
        )

    def batches(
        self,
        subject: Subject,
        loaded: LoadedModel,
        *,
        source: str | None = None,
        split: str | None = None,
        labels: bool = True,
    ) -> data.Batches:
        """Batches of the rows a subject holds out, or of other data, for its model."""
        return data.batches(
            self.samples(subject, source=source, split=split),
            loaded,
            batch_size=subject.batch_size,
            max_length=subject.length,
            labels=labels,
            pack=subject.task == "causal-lm",  # language models read windows
        )

    def at(self, seed: int) -> Experiment:
        """The same experiment for another seed, with nothing counted yet."""
        return replace(self, seed=seed, cpu_seconds=0.0, traces={})


def shared(training: Mapping[str, Any], processes: int) -> dict[str, Any]:
    """Training arguments for the same batches over several processes: first less accumulation, then fewer samples.

    Args:
        training: fields of `transformers.TrainingArguments`, for one process.
        processes: how many there are.

    Raises:
        ReproduceError: so many cannot share a batch evenly.

    Example:
        >>> batch = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4}
        >>> shared(batch, 8)
        {'per_device_train_batch_size': 4, 'gradient_accumulation_steps': 1}
    """
    steps, size = training.get("gradient_accumulation_steps", 1), training["per_device_train_batch_size"]
    fewer = math.gcd(steps, processes)
    if size % (processes // fewer):
        raise ReproduceError(
            f"{processes} processes cannot share batches of {size * steps} samples evenly: start as many as divide it"
        )
    own = {"per_device_train_batch_size": size // (processes // fewer), "gradient_accumulation_steps": steps // fewer}
    return {**training, **own}
