"""Cut a model after a depth, given or certified on data: the job of `anydepth truncate`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from anydepth.core.model_io import call_model, device_of, sample_count, to_device
from anydepth.core.patching import evaluating
from anydepth.core.stack import Stack
from anydepth.core.timing import relative_seconds
from anydepth.core.truncation import truncate as cut
from anydepth.data.sources import TO_CALIBRATE
from anydepth.errors import LabelError, TruncationError
from anydepth.jobs.export import sample_batch
from anydepth.jobs.inputs import Collate, Inputs, JobInputs
from anydepth.jobs.keywords import takes
from anydepth.jobs.settings import TruncateSettings
from anydepth.models import loading as models
from anydepth.models.companion_files import carry
from anydepth.models.loaded import LoadedModel
from anydepth.models.objects import stack_in
from anydepth.models.timm import PREFIX as TIMM
from anydepth.models.towers import as_tower
from anydepth.models.zero_shot import compares
from anydepth.passes.batches import as_batch
from anydepth.progress import Progress
from anydepth.results.result import Result
from anydepth.results.tables import Column, Table, bounds, number
from anydepth.stats.certificates import MinimalDepth, check_against, least_samples
from anydepth.storage.disk import write_errors
from anydepth.storage.files import replacing_folder, write_json
from anydepth.storage.output_folder import OutputKind
from anydepth.storage.paths import local_path
from anydepth.storage.sizes import in_words
from anydepth.tracing.run import trace
from anydepth.tracing.trace import Trace
from anydepth.training.model_card import code, front, licence_in, plain, short_name

FILE = "truncate.json"
_OUTPUT = OutputKind(job="truncate", mark=FILE, alone="holds something already", error=TruncationError)
_TIMED, _ROUNDS = 3, 5  # batches that time is measured on, and how often
OLD_CARD = "README-uncut.md"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class TruncateResult(Result):
    """The depth of a cut, its certificate, and where the model is.

    Attributes:
        folder: where the model is; None if nothing was written, since nothing below L could be certified or no folder
            was given.
        model: name of the model that was cut.
        depth: 1..L, how many blocks it has now.
        last: L, how many it had.
        minimal: what the depth was chosen by; None if it was given.
        parameters: of the model before and after the cut.
        bytes: of their weights in memory.
        accuracy: (2,) on the data, before and after, as value, low and high of the 95 % interval; None without labels.
        time: of the cut model over the whole one's, measured; None where nothing was cut.
        timed: what the time was measured on.
        notes: what a reader of the result should know, one sentence each.
        module: the cut model; None if nothing below L could be certified.
    """

    folder: Path | None
    model: str
    depth: int
    last: int
    minimal: MinimalDepth | None
    notes: tuple[str, ...]
    parameters: tuple[int, int] = (0, 0)
    bytes: tuple[int, int] = (0, 0)
    accuracy: tuple[tuple[float, float, float], tuple[float, float, float]] | None = None
    time: float | None = field(default=None, compare=False)
    timed: str = ""
    module: nn.Module | None = field(default=None, compare=False)

    def line(self) -> str:
        """The model and the depth it was cut at."""
        return f"{self.model}: {self.minimal or f'depth {self.depth} of {self.last}'}"

    def tables(self) -> tuple[Table, ...]:
        """The model before and after the cut: accuracy, parameters, size, speed; none where nothing was cut."""
        if self.time is None:
            return ()
        columns = [
            Column(head="", cells=("before", "after"), kind="text"),
            Column(head="blocks", cells=(str(self.last), str(self.depth))),
            Column(head="parameters", cells=tuple(f"{count:,}" for count in self.parameters), rank=1),
            Column(head="size", cells=tuple(map(in_words, self.bytes)), rank=2),
            Column(head="speed", cells=("1.00 ×", f"{1 / self.time:.2f} ×")),
        ]
        if self.accuracy is not None:
            cells = tuple(number(value) for value, *_ in self.accuracy)
            details = tuple(bounds(low, high) for _, low, high in self.accuracy)
            columns.insert(2, Column(head="accuracy", cells=cells, details=details))
        return (Table(title=self.model, columns=tuple(columns)),)

    def sentences(self) -> tuple[str, ...]:
        """The depth of the cut and its certificate, and how the speed was measured."""
        return (self.line(), *([] if self.time is None else [f"Speed: {self.timed}"]))

    def as_plain(self) -> dict[str, Any]:
        """Everything but the folder, which may move, as values that JSON holds."""
        certificate = self.minimal.certificate if self.minimal else None
        kept = ("model", "depth", "last", "notes", "parameters", "bytes", "accuracy", "time", "timed")
        plain = {name: getattr(self, name) for name in kept}
        return plain | {"certificate": asdict(certificate) if certificate else None}


@takes(TruncateSettings)
def truncate(
    model: Any,
    depth: int | Literal["auto"],
    *,
    blocks: str | None = None,
    batch: Any = None,
    data: Any = None,
    processor: Any = None,
    collate_fn: Collate | None = None,
    out: str | Path | None = None,
    progress: Any = None,
    **settings: Any,
) -> Any:
    """Copy a model with its first blocks, as many as are given, or as few as can be certified on data.

    What `anydepth truncate` does; how it is cut is described at `anydepth.core.truncation.truncate`.

    Args:
        model: as `anydepth.trace` takes it. One in memory is not changed.
        depth: k, how many blocks to keep, 1..L; or "auto" for the smallest number that can be certified on `data`.
        blocks: the dotted name of the list of blocks, for a model that has several.
        batch: if given, the answers of the copy are compared with `readout(h[k])` on two samples; needed for a model
            with heads of each depth. By default a batch of the data, or a made-up one where that is possible.
        data: as `anydepth.trace` takes them, to certify the depth on.
        processor: the tokenizer or image processor, where the model comes without one.
        collate_fn: makes a batch of a list of rows.
        out: a folder to save the copy to. An earlier cut there is replaced; of a folder that holds anything else,
            nothing is. Other files of the model's folder are copied, or named in the notes.
        progress: True for bars, False for none, by default bars in a notebook and at a terminal; or a function that is
            called with what is done, how much there is, and what it is.
        **settings: as `TruncateSettings` has them.

    Returns:
        The copy, a module of the same class with k blocks; with `out` or depth="auto" a `TruncateResult`, which holds
        it as `module` beside the depth and its certificate.

    Raises:
        TruncationError: no such depth, no data to choose it, a folder that holds something else, a model that cannot be
            saved with fewer blocks; see also `anydepth.core.truncation.truncate`.
        CertificateError: levels outside (0, 1), or too few samples.
        UnknownArchitecture: see `Stack`.

    Example:
        >>> import torch
        >>> from transformers import ViTConfig, ViTForImageClassification
        >>> config = ViTConfig(image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=4, num_attention_heads=2,
        ...                    intermediate_size=32, num_channels=1, num_labels=5)
        >>> model, batch = ViTForImageClassification(config), {"pixel_values": torch.rand(30, 1, 8, 8)}
        >>> small = truncate(model, depth=2, batch=batch)
        >>> type(small).__name__, small.config.num_hidden_layers, len(small.vit.layers)
        ('ViTForImageClassification', 2, 2)
        >>> result = truncate(model, depth="auto", data=[batch], tolerance=0.99, confidence=0.5)
        >>> result.depth, len(result.module.vit.layers)
        (1, 1)
    """
    if out is None and data is None and isinstance(depth, int) and isinstance(model, nn.Module | Stack):
        TruncateSettings(model=model, depth=depth, **settings)
        return cut(model, depth, blocks=blocks, batch=batch)
    wanted = TruncateSettings(model=model, depth=depth, blocks=blocks, data=data, **settings)
    given = JobInputs(settings=wanted, processor=processor, collate_fn=collate_fn)
    _check(wanted, out)
    with given.output(out, _OUTPUT):
        result, loaded = _truncate(given, batch, progress)
        if out is not None and result.module is not None:
            result = _save(result, loaded, wanted, Path(out))
    return result.module if out is None and depth != "auto" else result


def _check(settings: TruncateSettings, out: str | Path | None) -> None:
    """Refuse what can be refused before a model is downloaded."""
    if out is not None and isinstance(settings.model, str) and settings.model.startswith(TIMM):
        raise TruncationError(
            f"'{settings.model}' has no folder that timm reads k blocks from: use anydepth.truncate in Python"
        )
    if settings.depth == "auto":
        if settings.data is None:
            raise TruncationError("to choose a depth takes data: give them (data), or a number of blocks (depth)")
        check_against(settings.against)
        least_samples(settings.tolerance, settings.confidence)


def _truncate(given: JobInputs, batch: Any, progress: Progress | None) -> tuple[TruncateResult, LoadedModel]:
    settings: TruncateSettings = given.settings
    loaded = given.model(device=settings.device)
    inputs = None if settings.data is None else _inputs(loaded, given)
    if batch is None:
        batch = _made_batch(loaded, settings) if inputs is None else as_batch(next(iter(inputs.batches)), 0)[0]
    if inputs is None:
        stack, notes = stack_in(settings.model) or _stack(loaded, batch, settings), loaded.notes
    else:
        stack, notes = inputs.stack, inputs.notes
    traced = None
    if inputs is not None and (settings.depth == "auto" or inputs.labelled()):
        traced = trace(stack, inputs.batches, measures=(), labels=inputs.labelled(), progress=progress)
    minimal = None
    if settings.depth == "auto":
        assert traced is not None
        minimal = traced.minimal_depth(settings.tolerance, settings.confidence, against=settings.against)
    depth = minimal.depth if minimal else settings.depth
    assert depth != "auto"
    result = TruncateResult(
        folder=None,
        model=loaded.name,
        depth=depth,
        last=stack.depth,
        minimal=minimal,
        notes=(*notes, *(minimal.notes if minimal else ())),
    )
    if minimal and depth == stack.depth:
        return result, loaded
    batch = None if batch is None else to_device(batch, device_of(loaded.model))
    small = cut(stack, depth, batch=batch)
    timed = [batch] if inputs is None else list(islice(inputs.batches, _TIMED))
    result = replace(
        result,
        parameters=(_parameters(stack.model), _parameters(small)),
        bytes=(_bytes(stack.model), _bytes(small)),
        accuracy=None if traced is None else _accuracies(traced, depth),
        **({} if batch is None else _speed(stack.model, small, timed)),
        module=small,
    )
    return result, loaded


def _stack(loaded: LoadedModel, batch: Any, settings: TruncateSettings) -> Stack:
    if batch is None:
        return Stack(loaded.model, blocks=settings.blocks)
    return models.stack_of(loaded, [batch], blocks=settings.blocks)


def _save(result: TruncateResult, loaded: LoadedModel, settings: TruncateSettings, out: Path) -> TruncateResult:
    module: Any = result.module
    if not hasattr(module, "save_pretrained"):
        raise TruncationError(
            f"a {type(module).__name__} has no folder that says how many blocks it has: leave out the folder (out), "
            "and save its state dict"
        )
    result = replace(result, folder=out)
    with replacing_folder(out, _OUTPUT) as beside:
        module.save_pretrained(beside)
        if loaded.to_save is not None:
            loaded.to_save.save_pretrained(beside)
        settings.save(beside)
        result = _with_companions(result, beside)
        write_json(beside / FILE, result.as_plain())
    return result


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _bytes(model: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _accuracies(traced: Trace, depth: int) -> tuple[tuple[float, float, float], tuple[float, float, float]] | None:
    """Accuracy with its interval at depth L and at the depth of the cut; None without labels."""
    if "accuracy" not in traced.statistics:
        return None
    low, high = traced.interval("accuracy")
    whole, cut = ((float(traced.accuracy[at]), float(low[at]), float(high[at])) for at in (traced.depth, depth))
    return whole, cut


def _speed(model: nn.Module, small: nn.Module, inputs: list[Any]) -> dict[str, Any]:
    """Time of the cut model over the whole one's, and what it was measured on, as fields of the result."""
    moved = [to_device(as_batch(item, 0, model)[0], device_of(model)) for item in inputs]
    with evaluating(model), evaluating(small), torch.inference_mode():
        for each in (model, small):
            call_model(each, moved[0])  # warms up
        time = relative_seconds(partial(call_model, small), partial(call_model, model), moved, rounds=_ROUNDS)
    sizes = ", ".join(str(sample_count(batch)) for batch in moved)
    return {"time": time, "timed": f"median of {_ROUNDS} rounds in turn, batches of {sizes} samples, on this machine"}


def _with_companions(result: TruncateResult, beside: Path) -> TruncateResult:
    """Copy the companion files of the model into the new folder, and write a model card."""
    source = local_path(result.model)
    note = f"'{result.model}' is no folder here: the licence and other files of its repository were not looked for"
    notes = carry(source, beside, card=OLD_CARD).notes if source.is_dir() else (note,)
    result = replace(result, notes=(*result.notes, *notes))
    with write_errors(beside):
        (beside / "README.md").write_text(_card(result, beside / OLD_CARD), encoding="utf-8", errors="backslashreplace")
    return result


def _card(result: TruncateResult, old: Path) -> str:
    """The model card: what was cut, its certificate, and the licence of the uncut model."""
    what = f"{code(short_name(result.model))} cut after block {result.depth} of {result.last}."
    parts = [
        f"# {plain(Path(str(result.folder)).resolve().name)}\n",
        f"{what} It answers what that block's readout does.\n",
    ]
    if result.minimal:
        parts.append(f"{plain(str(result.minimal))}.\n")
    if old.is_file():
        parts.append(f"The card of the uncut model is in [{OLD_CARD}]({OLD_CARD}).\n")
    parts += [f"- {plain(note)}" for note in result.notes]
    return front(result.model, licence_in(old)) + "\n".join(parts) + "\n"


def _made_batch(loaded: LoadedModel, settings: TruncateSettings) -> dict[str, Any] | None:
    """A made-up batch; of a model that compares images with texts, of both; None for a model that takes tensors."""
    if loaded.kind == "tensor":
        return None
    if not compares(loaded.model):
        return sample_batch(loaded)
    towers = (as_tower(loaded, kind, trust_remote_code=settings.trust_remote_code) for kind in ("text", "image"))
    return {name: values for tower in towers for name, values in sample_batch(tower).items()}


def _inputs(loaded: LoadedModel, given: JobInputs) -> Inputs:
    settings: TruncateSettings = given.settings
    rows = given.rows(TO_CALIBRATE)
    if rows is not None and compares(loaded.model):
        raise TruncationError(
            f"{type(loaded.model).__name__} compares images with texts, and data hold one of them for a sample: leave "
            "them out (data), and give the number of blocks (depth) and the tower (blocks='image', blocks='text')"
        )
    read = partial(given.read, loaded, rows, blocks=settings.blocks)
    try:
        return read().kept()
    except LabelError as error:
        if settings.against == "labels":
            raise
        inputs = read(labels=False).kept()
        return replace(inputs, notes=(*inputs.notes, f"no accuracy, labels do not fit: {error}"))
