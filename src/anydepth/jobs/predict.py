"""Predictions of a calibrated model, with the depth of each: what `anydepth predict` does."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from anydepth.core.model_io import Batch, device_of, to_device
from anydepth.core.stack import Stack
from anydepth.data.batching import batches
from anydepth.data.input_settings import InputSettings
from anydepth.data.loading import DataSelection, LoadedData, load_split
from anydepth.data.settings import settings_of
from anydepth.errors import ModelError
from anydepth.exits.early_exit import EarlyExit
from anydepth.exits.policies import as_plain
from anydepth.exits.saving import ExitFile
from anydepth.models import loading as models
from anydepth.passes.loop import run_pass
from anydepth.passes.workspace import Workspace, working_folder
from anydepth.progress import Progress
from anydepth.safe_text import cell
from anydepth.storage.files import replacing_folder, write_json
from anydepth.storage.output_folder import OutputKind, output
from anydepth.storage.paths import entry_at, local_path

PREDICTIONS = "predictions.csv"
SUMMARY = "predict.json"
_OUTPUT = OutputKind(job="predict", mark=SUMMARY, names=(PREDICTIONS,))


@dataclass(frozen=True)
class PredictSettings:
    """What is to be predicted, by which calibrated model.

    Attributes:
        model: a folder that `anydepth exit` wrote.
        data: see `anydepth.data.sources.splits`.
        split: which; by default test, else validation, else the only one.
        wanted: columns, a limit, and the seed of what is drawn.
        batch_size: samples of a forward.
        max_length: tokens at which texts are cut; None for as many as when the model was calibrated. By another number,
            other columns or another tokenizer nothing is promised.
        device: as torch names it; if None the first there is.
        trust_remote_code: run the Python code that comes with the checkpoint.
    """

    model: str
    data: str
    split: str | None = None
    wanted: DataSelection = field(default_factory=DataSelection)
    batch_size: int = 32
    max_length: int | None = None
    device: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class PredictResult:
    """What was predicted.

    Attributes:
        folder: with `predictions.csv`: id, prediction, probability and depth of each sample.
        model: by what.
        data: of what, with the split.
        policy: when samples left.
        promise: what is promised of it; None if it was never calibrated, or on inputs made otherwise (a note says how).
        leaving: (L,) how many left at each depth, from 1 on.
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
        """Mean depth at which samples left."""
        return float(np.average(np.arange(1, len(self.leaving) + 1), weights=self.leaving))

    def as_plain(self) -> dict[str, Any]:
        """Everything but the folder, which may move, as values that JSON holds."""
        return {name: value for name, value in asdict(self).items() if name != "folder"} | {"depth": self.depth}


def predict(request: PredictSettings, out: str | Path, *, progress: Progress | None = None) -> PredictResult:
    """Answer data by a calibrated model.

    Args:
        request: what, and by which model.
        out: the folder; an interrupted prediction there goes on, a finished one is replaced.
        progress: called with what is done, how much there is, and what it is.

    Raises:
        TraceFileError: `exit.json` is missing, of another format, or was changed.
        PolicyError: the model is another than the one the policy was calibrated for.
        DataError: the data cannot be read, or do not fit the model.
    """
    entry_at(request.model, ModelError)  # before anything is read of it
    saved = ExitFile.read(local_path(request.model))
    with output(out, _OUTPUT, inputs={"model": request.model, "data": request.data}):
        return _predict(request, saved, Path(out), progress)


def _predict(request: PredictSettings, saved: ExitFile, folder: Path, progress: Progress | None) -> PredictResult:
    loaded = models.load(
        saved.source(local_path(request.model)), device=request.device, trust_remote_code=request.trust_remote_code
    )
    rows = _rows_of(request, saved)
    found = batches(rows, loaded, batch_size=request.batch_size, max_length=_max_length(request, saved), labels=False)
    stack = models.stack_of(loaded, found, blocks=saved.model["blocks"])
    saved.require_same(stack)
    promise, why = _promise(saved, stack, settings_of(found))
    exits = EarlyExit(stack, saved.policy)
    with (
        working_folder(folder, _OUTPUT, resume=True) as begun,
        closing(Workspace(begun / "predict", f"{saved.model['fingerprint']} {as_plain(saved.policy)}")) as workspace,
    ):
        run_pass(found, workspace, partial(_rows, exits), labels=False, progress=progress)
        ids = workspace.ids()
        answers = {name: workspace.read(name) for name in ("prediction", "probability", "depth", "counts")}
        kept = {name: np.array(values) for name, values in answers.items() if values is not None}
    names = loaded.classes or tuple(str(one) for one in range(int(kept["prediction"].max()) + 1))
    run, read, undecided = (int(one) for one in kept["counts"].sum(0))
    result = PredictResult(
        folder,
        request.model,
        f"{request.data} ({rows.split})",
        repr(saved.policy),
        promise,
        tuple(np.bincount(kept["depth"], minlength=stack.depth + 1)[1:].tolist()),
        run,
        read,
        undecided,
        (*why, *loaded.notes, *rows.notes, *found.notes),
    )
    with replacing_folder(folder, _OUTPUT) as beside:
        _write(beside / PREDICTIONS, ids, [names[one] for one in kept["prediction"]], kept)
        write_json(beside / SUMMARY, result.as_plain())
    return result


def _rows_of(request: PredictSettings, saved: ExitFile) -> LoadedData:
    """The rows, read from the columns that the model was calibrated on, if these are there and none are asked for."""
    rows, wanted = load_split(request.data, request.split, request.wanted), request.wanted
    columns = () if saved.inputs is None else saved.inputs.columns
    if not columns or wanted.text is not None or wanted.image is not None:
        return rows
    if not {*columns} <= {*rows.dataset.features}:
        return rows
    assert saved.inputs is not None
    text = saved.inputs.kind == "text"
    wanted = replace(wanted, text=",".join(columns)) if text else replace(wanted, image=columns[0])
    return load_split(request.data, request.split, wanted)


def _max_length(request: PredictSettings, saved: ExitFile) -> int | None:
    return request.max_length if request.max_length is not None or saved.inputs is None else saved.inputs.max_length


def _promise(saved: ExitFile, stack: Stack, now: InputSettings) -> tuple[str | None, tuple[str, ...]]:
    """What is promised of inputs made like this; and why nothing is, or what else to know."""
    found = saved.calibration_for(stack, now)
    if found is None:
        return None, ()
    if found.withheld is not None:
        return None, (found.withheld,)
    before = None if saved.inputs is None else saved.inputs.device
    other = (
        ()
        if before in (None, now.device)
        else (f"calibrated on {before}, run on {now.device}, which rounds otherwise",)
    )
    return found.promise, other


def _rows(
    exits: EarlyExit, index: int, batch: Batch, labels: Tensor | None, first: int
) -> Iterator[tuple[str, np.ndarray, Any]]:
    """The answer to each sample, and in one row what the batch cost."""
    out = exits(to_device(batch, device_of(exits.stack.model)))
    top = out.logits.float().softmax(1).max(1)
    yield "prediction", top.indices.cpu().numpy(), np.int64
    yield "probability", top.values.cpu().numpy(), np.float32
    yield "depth", out.depth.cpu().numpy(), np.int64
    yield "counts", np.array([[int(one.sum()) for one in (out.blocks, out.readouts, out.undecided)]]), np.int64


def _write(path: Path, ids: list[Any], names: list[str], kept: dict[str, np.ndarray]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "prediction", "probability", "depth"])
        for row in zip(ids, names, kept["probability"], kept["depth"], strict=True):
            writer.writerow([cell(row[0]), cell(row[1]), f"{row[2]:.6g}", row[3]])
