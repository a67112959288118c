"""Predict with a calibrated model, which exits early: the job of `anydepth predict`."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from anydepth.core.model_io import Batch, device_of, to_device
from anydepth.core.stack import Stack
from anydepth.data.batching import batches
from anydepth.data.loading import LoadedData, load_split
from anydepth.data.settings import InputSettings, settings_of
from anydepth.errors import ModelError
from anydepth.exits.early_exit import EarlyExit
from anydepth.exits.policies import as_plain
from anydepth.exits.saving import ExitFile
from anydepth.jobs.settings import PredictSettings
from anydepth.models import loading as models
from anydepth.models.towers import with_saved_texts
from anydepth.passes.loop import run_pass
from anydepth.passes.workspace import Workspace, working_folder
from anydepth.progress import Progress
from anydepth.results.result import Result
from anydepth.results.tables import Column, Table
from anydepth.safe_text import cell
from anydepth.storage.files import replacing_folder, write_json
from anydepth.storage.output_folder import SETTINGS, OutputKind, output
from anydepth.storage.paths import entry_at, local_path

PREDICTIONS = "predictions.csv"
SUMMARY = "predict.json"
_OUTPUT = OutputKind(job="predict", mark=SUMMARY, names=(PREDICTIONS, SETTINGS))


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class PredictResult(Result):
    """Exit depths of the predictions, and where these are.

    Attributes:
        folder: with `predictions.csv`: id, prediction, probability and depth of each sample.
        model: name of the model.
        data: name and split of the data.
        policy: when samples exit, as Python would write it.
        promise: its guarantee; None if it was never calibrated, or for other inputs (a note says how they differ).
        leaving: (L,) how many samples exited at each depth, from 1 on.
        blocks: how many blocks were run, of one sample each.
        readouts: how many readouts.
        undecided: how many samples had a score that is NaN at some depth, and so went on.
        notes: what a reader of the result should know, one sentence each.
    """

    folder: Path
    model: str
    data: str
    policy: str
    promise: str | None
    leaving: tuple[int, ...]
    blocks: int
    readouts: int
    undecided: int
    notes: tuple[str, ...]

    @property
    def depth(self) -> float:
        """Mean depth at which samples exited."""
        return float(np.average(np.arange(1, len(self.leaving) + 1), weights=self.leaving))

    def line(self) -> str:
        """The model, the data, and the mean exit depth."""
        return f"{self.model} on {self.data}: {sum(self.leaving):,} samples, mean depth {self.depth:.2f}"

    def tables(self) -> tuple[Table, ...]:
        """How many samples exit at each depth."""
        total = sum(self.leaving)
        columns = (
            Column(head="depth", cells=tuple(str(depth) for depth in range(1, len(self.leaving) + 1))),
            Column(head="samples", cells=tuple(f"{count:,}" for count in self.leaving)),
            Column(head="share", cells=tuple(f"{count / total:.3f}" for count in self.leaving)),
        )
        return (Table(title=f"{self.model} on {self.data}", columns=columns),)

    def sentences(self) -> tuple[str, ...]:
        """What was computed, and the guarantee."""
        total, full = sum(self.leaving), sum(self.leaving) * len(self.leaving)
        sentences = [f"{total:,} samples, mean depth {self.depth:.2f}: {self.blocks:,} blocks run of {full:,}"]
        sentences += [] if self.promise is None else [self.promise]
        if self.undecided:
            sentences.append(f"scores that are NaN: {self.undecided:,}; those samples went on to the next tested depth")
        return tuple(sentences)

    def as_plain(self) -> dict[str, Any]:
        """Everything but the folder, which may move, as values that JSON holds."""
        return {name: value for name, value in asdict(self).items() if name != "folder"} | {"depth": self.depth}


def run_predict(settings: PredictSettings, out: str | Path, *, progress: Progress | None = None) -> PredictResult:
    """Predict the class of each sample with a calibrated model, and write `predictions.csv`.

    Args:
        settings: the model and the data.
        out: the folder; an interrupted prediction there goes on, a finished one is replaced.
        progress: see `anydepth.jobs`.

    Raises:
        TraceFileError: `exit.json` is missing, of another format, or was changed.
        PolicyError: the model is another than the one the policy was calibrated for.
        DataError: the data cannot be read, or do not fit the model.
    """
    entry_at(settings.model, ModelError)  # before anything is read of it
    saved = ExitFile.read(local_path(settings.model))
    with output(out, _OUTPUT, inputs={"model": settings.model, "data": settings.data}):
        return _predict(settings, saved, Path(out), progress)


def _predict(settings: PredictSettings, saved: ExitFile, folder: Path, progress: Progress | None) -> PredictResult:
    source = saved.source(local_path(settings.model))
    loaded = models.load(source, device=settings.device, trust_remote_code=settings.trust_remote_code)
    loaded = with_saved_texts(loaded, saved.model["config"], trust_remote_code=settings.trust_remote_code)
    rows, max_length = _rows_of(settings, saved), settings.max_length
    if max_length is None and saved.inputs is not None:
        max_length = saved.inputs.max_length
    inputs = batches(rows, loaded, batch_size=settings.batch_size, max_length=max_length, labels=False)
    stack = models.stack_of(loaded, inputs, blocks=saved.model["blocks"])
    saved.require_same(stack)
    guarantee, notes = _guarantee(saved, stack, settings_of(inputs))
    exits = EarlyExit(stack, saved.policy)
    with (
        working_folder(folder, _OUTPUT, resume=True) as begun,
        closing(Workspace(begun / "predict", f"{saved.model['fingerprint']} {as_plain(saved.policy)}")) as workspace,
    ):
        run_pass(inputs, workspace, partial(_predicted, exits), labels=False, progress=progress)
        ids = workspace.ids()
        answers = {name: workspace.read(name) for name in ("prediction", "probability", "depth", "counts", "digest")}
        columns = {name: np.array(values) for name, values in answers.items() if values is not None}
    classes = loaded.classes or tuple(str(number) for number in range(int(columns["prediction"].max()) + 1))
    again = saved.calibrated_on(local_path(settings.model), columns.pop("digest"))
    blocks, readouts, undecided = (int(count) for count in columns["counts"].sum(0))
    result = PredictResult(
        folder=folder,
        model=settings.model,
        data=f"{settings.data} ({rows.split})",
        policy=repr(saved.policy),
        promise=guarantee,
        leaving=tuple(np.bincount(columns["depth"], minlength=stack.depth + 1)[1:].tolist()),
        blocks=blocks,
        readouts=readouts,
        undecided=undecided,
        notes=(*_repeated(again, len(ids)), *notes, *loaded.notes, *rows.notes, *inputs.notes),
    )
    with replacing_folder(folder, _OUTPUT) as beside:
        _write(beside / PREDICTIONS, ids, [classes[number] for number in columns["prediction"]], columns)
        write_json(beside / SUMMARY, result.as_plain())
        settings.save(beside)
    return result


def _repeated(again: int, total: int) -> tuple[str, ...]:
    """A note on samples that calibrated the model themselves."""
    if not again:
        return ()
    return (
        f"{again:,} of {total:,} samples also calibrated the model: how often their answers differ from the full "
        "model's says nothing of new samples",
    )


def _rows_of(settings: PredictSettings, saved: ExitFile) -> LoadedData:
    """The rows, read from the columns of the calibration if the data have them and the settings name no others."""
    rows, wanted = load_split(settings.data, settings.split, settings.selection), settings.selection
    columns = () if saved.inputs is None else saved.inputs.columns
    if not columns or wanted.text is not None or wanted.image is not None:
        return rows
    if not {*columns} <= {*rows.dataset.features}:
        return rows
    assert saved.inputs is not None
    text = saved.inputs.kind == "text"
    wanted = replace(wanted, text=",".join(columns)) if text else replace(wanted, image=columns[0])
    return load_split(settings.data, settings.split, wanted)


def _guarantee(saved: ExitFile, stack: Stack, now: InputSettings) -> tuple[str | None, tuple[str, ...]]:
    """The guarantee for such inputs, in words; None, and a note that says why, if it does not hold for them."""
    calibration = saved.calibration_for(stack, now)
    if calibration is None:
        return None, ()
    if calibration.withheld is not None:
        return None, (calibration.withheld,)
    before = None if saved.inputs is None else saved.inputs.device
    if before in (None, now.device):
        return calibration.promise, ()
    return calibration.promise, (f"calibrated on {before}, run on {now.device}, which rounds otherwise",)


def _predicted(
    exits: EarlyExit, index: int, batch: Batch, labels: Tensor | None, first: int
) -> Iterator[tuple[str, np.ndarray, Any]]:
    """Prediction, top probability and exit depth of each sample; counts of the batch in one row."""
    out = exits(to_device(batch, device_of(exits.stack.model)))
    top = out.logits.float().softmax(1).max(1)
    yield "prediction", top.indices.cpu().numpy(), np.int64
    yield "probability", top.values.cpu().numpy(), np.float32
    yield "depth", out.depth.cpu().numpy(), np.int64
    yield "counts", np.array([[int(count.sum()) for count in (out.blocks, out.readouts, out.undecided)]]), np.int64


def _write(path: Path, ids: list[Any], predictions: list[str], columns: dict[str, np.ndarray]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "prediction", "probability", "depth"])
        for id_, prediction, probability, depth in zip(
            ids, predictions, columns["probability"], columns["depth"], strict=True
        ):
            writer.writerow([cell(id_), cell(prediction), f"{probability:.6g}", depth])
