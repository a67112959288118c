"""Predict with a calibrated model, which exits early: the job of `anydepth predict`."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from anydepth.core.model_io import Batch, device_of, to_device
from anydepth.data.loading import LoadedData, load_split
from anydepth.early_exit.classifier import EarlyExit
from anydepth.errors import ModelError
from anydepth.exits.policies import as_plain
from anydepth.exits.saving import ExitFile
from anydepth.jobs.inputs import Collate, Inputs, JobInputs
from anydepth.jobs.keywords import takes
from anydepth.jobs.settings import PredictSettings
from anydepth.models.towers import with_saved_texts
from anydepth.passes.batches import shown_to
from anydepth.passes.loop import run_pass
from anydepth.passes.workspace import Workspace, working_folder
from anydepth.progress import Progress
from anydepth.results.result import Result
from anydepth.results.tables import Column, Table
from anydepth.safe_text import cell
from anydepth.storage.files import replacing_folder, write_json
from anydepth.storage.output_folder import SETTINGS, OutputKind
from anydepth.storage.paths import entry_at, local_path

if TYPE_CHECKING:
    import pandas

PREDICTIONS = "predictions.csv"
SUMMARY = "predict.json"
_OUTPUT = OutputKind(job="predict", mark=SUMMARY, names=(PREDICTIONS, SETTINGS))


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class PredictResult(Result):
    """Exit depths of the predictions, and where these are.

    Attributes:
        folder: with `predictions.csv`, the rows of `to_frame`; None if they were not saved.
        model: name of the model.
        data: name and split of the data.
        policy: when samples exit, as Python would write it.
        promise: its guarantee; None if it was never calibrated, or for other inputs (a note says how they differ).
        leaving: (L,) how many samples exited at each depth, from 1 on.
        blocks: how many blocks were run, of one sample each.
        readouts: how many readouts.
        undecided: how many samples had a score that is NaN at some depth, and so went on.
        notes: what a reader of the result should know, one sentence each.
        columns: id, prediction, probability and depth of each sample.
    """

    folder: Path | None
    model: str
    data: str
    policy: str
    promise: str | None
    leaving: tuple[int, ...]
    blocks: int
    readouts: int
    undecided: int
    notes: tuple[str, ...]
    columns: Mapping[str, Any] = field(default_factory=dict, repr=False)

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
        names = (field.name for field in fields(self) if field.name not in ("folder", "columns"))
        return {name: getattr(self, name) for name in names} | {"depth": self.depth}

    def to_frame(self) -> pandas.DataFrame:
        """The predictions as a pandas frame: id, prediction, probability and depth of each sample."""
        import pandas

        return pandas.DataFrame(dict(self.columns))


@takes(PredictSettings)
def predict(
    model: Any,
    data: Any,
    *,
    processor: Any = None,
    collate_fn: Collate | None = None,
    out: str | Path | None = None,
    progress: Any = None,
    **settings: Any,
) -> PredictResult:
    """Predict the class of each sample with a calibrated model, which exits early: what `anydepth predict` does.

    Args:
        model: a folder that `anydepth.calibrate` or `EarlyExit.save` wrote, or an `EarlyExit`.
        data: as `anydepth.trace` takes them.
        processor: the tokenizer or image processor, for an `EarlyExit` and rows of texts or images.
        collate_fn: makes a batch of a list of rows.
        out: a folder for `predictions.csv`; an interrupted prediction there goes on, a finished one is replaced.
        progress: True for bars, False for none, by default bars in a notebook and at a terminal; or a function that is
            called with what is done, how much there is, and what it is.
        **settings: as `PredictSettings` has them.

    Raises:
        TraceFileError: `exit.json` is missing, of another format, or was changed.
        PolicyError: the model is another than the one the policy was calibrated for.
        DataError: the data cannot be read, or do not fit the model.

    Example:
        >>> import torch
        >>> from transformers import ViTConfig, ViTForImageClassification
        >>> from anydepth import Confidence, EarlyExit
        >>> config = ViTConfig(image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
        ...                    intermediate_size=32, num_channels=1, num_labels=5)
        >>> exits = EarlyExit(ViTForImageClassification(config), Confidence(0.0))
        >>> result = predict(exits, [{"pixel_values": torch.rand(6, 1, 8, 8)}])
        >>> result.depth, list(result.to_frame().columns)
        (1.0, ['id', 'prediction', 'probability', 'depth'])
    """
    wanted = PredictSettings(model=model, data=data, **settings)
    given = JobInputs(settings=wanted, processor=processor, collate_fn=collate_fn)
    if given.model_name is None:
        if not isinstance(model, EarlyExit):
            raise ModelError(f"model is {type(model).__name__}, expected an EarlyExit, or the folder of one")
        saved, source = model.exit_file, None
    else:
        entry_at(wanted.model, ModelError)  # before anything is read of it
        saved = ExitFile.read(local_path(wanted.model))
        source = saved.source(local_path(wanted.model))
    with given.output(out, _OUTPUT):
        loaded = given.model(source, device=wanted.device)
        loaded = with_saved_texts(loaded, saved.model["config"], trust_remote_code=wanted.trust_remote_code)
        rows, max_length = _rows_of(given, saved), wanted.max_length
        if max_length is None and saved.inputs is not None:
            max_length = saved.inputs.max_length
        inputs = given.read(loaded, rows, blocks=saved.model["blocks"], max_length=max_length, labels=False)
        return _predict(given, saved, inputs, None if out is None else Path(out), progress)


def _predict(
    given: JobInputs, saved: ExitFile, inputs: Inputs, folder: Path | None, progress: Progress | None
) -> PredictResult:
    exits, settings = EarlyExit(inputs.stack, saved.policy), given.settings
    batches = shown_to(inputs.stack, inputs.batches)
    saved.require_same(inputs.stack)
    guarantee, notes = _guarantee(saved, inputs)
    with (
        working_folder(folder, _OUTPUT, resume=True) as begun,
        closing(Workspace(begun / "predict", f"{saved.model['fingerprint']} {as_plain(saved.policy)}")) as workspace,
    ):
        model = inputs.stack.model
        run_pass(batches, workspace, partial(_predicted, exits), labels=False, progress=progress, model=model)
        order, ids = workspace.order, workspace.ids()
        names = ("prediction", "probability", "depth", "digest")
        columns = {name: values[order] for name in names if (values := workspace.read(name)) is not None}
        counts = workspace.read("counts")
        assert counts is not None
        blocks, readouts, undecided = (int(count) for count in counts.sum(0))
        ids = [ids[index] for index in order]
    classes = inputs.model.classes or tuple(str(number) for number in range(int(columns["prediction"].max()) + 1))
    again = 0 if given.model_name is None else saved.calibrated_on(local_path(given.model_name), columns["digest"])
    result = PredictResult(
        folder=folder,
        model=given.model_name or inputs.model.name,
        data=inputs.data,
        policy=repr(saved.policy),
        promise=guarantee,
        leaving=tuple(np.bincount(columns["depth"], minlength=exits.stack.depth + 1)[1:].tolist()),
        blocks=blocks,
        readouts=readouts,
        undecided=undecided,
        notes=(*_repeated(again, len(ids)), *notes, *inputs.notes),
        columns={
            "id": ids,
            "prediction": [classes[number] for number in columns["prediction"]],
            "probability": columns["probability"],
            "depth": columns["depth"],
        },
    )
    if folder is not None:
        with replacing_folder(folder, _OUTPUT) as beside:
            _write(beside / PREDICTIONS, result.columns)
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


def _rows_of(given: JobInputs, saved: ExitFile) -> LoadedData | None:
    """The rows, read from the columns of the calibration if the data have them and the settings name no others."""
    rows, settings = given.rows(), given.settings
    wanted, columns = settings.selection, () if saved.inputs is None else saved.inputs.columns
    if rows is None or not columns or wanted.text is not None or wanted.image is not None:
        return rows
    if not {*columns} <= {*rows.dataset.features}:
        return rows
    assert saved.inputs is not None
    text = saved.inputs.kind == "text"
    wanted = replace(wanted, text=",".join(columns)) if text else replace(wanted, image=columns[0])
    return load_split(settings.data, settings.split, wanted)


def _guarantee(saved: ExitFile, inputs: Inputs) -> tuple[str | None, tuple[str, ...]]:
    """The guarantee for such inputs, in words; None, and a note that says why, if it does not hold for them."""
    now = inputs.settings
    calibration = saved.calibration_for(inputs.stack, now)
    if calibration is None:
        return None, ()
    if calibration.withheld is not None:
        return None, (calibration.withheld,)
    before = None if saved.inputs is None else saved.inputs.device
    if now is None or before in (None, now.device):
        return calibration.guarantee, ()
    return calibration.guarantee, (f"calibrated on {before}, run on {now.device}, which rounds otherwise",)


def _predicted(
    exits: EarlyExit, index: int, batch: Batch, labels: Tensor | None, numbers: np.ndarray
) -> Iterator[tuple[str, np.ndarray, Any]]:
    """Prediction, top probability and exit depth of each sample; counts of the batch in one row."""
    out = exits(to_device(batch, device_of(exits.stack.model)))
    top = out.logits.float().softmax(1).max(1)
    yield "prediction", top.indices.cpu().numpy(), np.int64
    yield "probability", top.values.cpu().numpy(), np.float32
    yield "depth", out.depth.cpu().numpy(), np.int64
    yield "counts", np.array([[int(count.sum()) for count in (out.blocks, out.readouts, out.undecided)]]), np.int64


def _write(path: Path, columns: Mapping[str, Any]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for id_, prediction, probability, depth in zip(*columns.values(), strict=True):
            writer.writerow([cell(id_), cell(prediction), f"{probability:.6g}", depth])
