"""Cut a model after a depth, given or certified on data: the job of `anydepth truncate`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from anydepth.core.model_io import device_of, to_device
from anydepth.core.stack import Stack
from anydepth.core.truncation import truncate
from anydepth.data.batching import Batches, batches
from anydepth.data.loading import load_split
from anydepth.data.sources import TO_CALIBRATE
from anydepth.errors import TruncationError
from anydepth.jobs.export import sample_batch
from anydepth.jobs.settings import TruncateSettings
from anydepth.models import loading as models
from anydepth.models.companion_files import carry
from anydepth.models.loaded import LoadedModel
from anydepth.models.timm import PREFIX as TIMM
from anydepth.models.towers import as_tower
from anydepth.models.zero_shot import compares
from anydepth.passes.batches import as_batch
from anydepth.progress import Progress
from anydepth.results.result import Result
from anydepth.stats.certificates import MinimalDepth, check_against, least_samples
from anydepth.storage.disk import write_errors
from anydepth.storage.files import replacing_folder, write_json
from anydepth.storage.output_folder import OutputKind, output
from anydepth.storage.paths import local_path
from anydepth.tracing.run import trace
from anydepth.training.model_card import code, front, licence_in, plain, short_name

FILE = "truncate.json"
_OUTPUT = OutputKind(job="truncate", mark=FILE, alone="holds something already", error=TruncationError)
OLD_CARD = "README-uncut.md"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class TruncateResult(Result):
    """The depth of a cut, its certificate, and where the model is.

    Attributes:
        folder: where the model is; None if nothing below L could be certified, and nothing was written.
        model: name of the model that was cut.
        depth: 1..L, how many blocks it has now.
        last: L, how many it had.
        minimal: what the depth was chosen by; None if it was given.
        notes: what a reader of the result should know, one sentence each.
    """

    folder: Path | None
    model: str
    depth: int
    last: int
    minimal: MinimalDepth | None
    notes: tuple[str, ...]

    def line(self) -> str:
        """The model and the depth it was cut at."""
        return f"{self.model}: {self.minimal or f'depth {self.depth} of {self.last}'}"

    def sentences(self) -> tuple[str, ...]:
        """The depth of the cut and its certificate."""
        return (self.line(),)

    def as_plain(self) -> dict[str, Any]:
        """Everything but the folder, which may move, as values that JSON holds."""
        certificate = self.minimal.certificate if self.minimal else None
        plain = {name: getattr(self, name) for name in ("model", "depth", "last", "notes")}
        return plain | {"certificate": asdict(certificate) if certificate else None}


def run_truncate(settings: TruncateSettings, out: str | Path, *, progress: Progress | None = None) -> TruncateResult:
    """Cut a model after a depth that is given, or the smallest that can be certified, and save it.

    Other files of the model's folder are copied, or named in the notes; see `anydepth.models.companion_files`.

    Args:
        settings: the model, the depth, and the data to certify it on.
        out: the folder. An earlier cut there is replaced; of a folder that holds anything else, nothing is.
        progress: see `anydepth.jobs`.

    Raises:
        TruncationError: no such depth, no data to choose it, a folder that holds something else, or a timm model.
        CertificateError: levels outside (0, 1), or too few samples.
    """
    if settings.model.startswith(TIMM):
        raise TruncationError(
            f"'{settings.model}' has no folder that timm reads k blocks from: use anydepth.truncate in Python"
        )
    if settings.depth == "auto":
        if settings.data is None:
            raise TruncationError("to choose a depth takes data: give them (data), or a number of blocks (depth)")
        check_against(settings.against)
        least_samples(settings.tolerance, settings.confidence)
    with output(out, _OUTPUT, inputs={"model": settings.model, "data": settings.data}):
        return _truncate(settings, Path(out), progress)


def _truncate(settings: TruncateSettings, out: Path, progress: Progress | None) -> TruncateResult:
    loaded = models.load(settings.model, device=settings.device, trust_remote_code=settings.trust_remote_code)
    inputs = _inputs(loaded, settings)
    batch = _made_batch(loaded, settings) if inputs is None else as_batch(next(iter(inputs)), 0)[0]
    batch = to_device(batch, device_of(loaded.model))
    stack = models.stack_of(loaded, [batch], blocks=settings.blocks)
    minimal = None
    if settings.depth == "auto" and inputs is not None:
        minimal = _minimal_depth(stack, inputs, settings, progress)
    depth = minimal.depth if minimal else settings.depth
    assert depth != "auto"
    result = TruncateResult(
        folder=out,
        model=loaded.name,
        depth=depth,
        last=stack.depth,
        minimal=minimal,
        notes=(*loaded.notes, *(inputs.notes if inputs else ()), *(minimal.notes if minimal else ())),
    )
    if minimal and depth == stack.depth:
        return replace(result, folder=None)
    small = truncate(stack, depth, batch=batch)
    with replacing_folder(out, _OUTPUT) as beside:
        small.save_pretrained(beside)  # type: ignore[operator]  # a model of transformers: no other is loaded here
        if loaded.to_save is not None:
            loaded.to_save.save_pretrained(beside)
        settings.save(beside)
        result = _with_companions(result, beside)
        write_json(beside / FILE, result.as_plain())
    return result


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


def _made_batch(loaded: LoadedModel, settings: TruncateSettings) -> dict[str, Any]:
    """A made-up batch; of a model that compares images with texts, of both."""
    if not compares(loaded.model):
        return sample_batch(loaded)
    towers = (as_tower(loaded, kind, trust_remote_code=settings.trust_remote_code) for kind in ("text", "image"))
    return {name: values for tower in towers for name, values in sample_batch(tower).items()}


def _inputs(loaded: LoadedModel, settings: TruncateSettings) -> Batches | None:
    if settings.data is None:
        return None
    if compares(loaded.model):
        raise TruncationError(
            f"{type(loaded.model).__name__} compares images with texts, and data hold one of them for a sample: leave "
            "them out (data), and give the number of blocks (depth) and the tower (blocks='image', blocks='text')"
        )
    rows = load_split(settings.data, settings.split, settings.selection, TO_CALIBRATE)
    inputs = batches(rows, loaded, batch_size=settings.batch_size, labels=settings.against == "labels")
    return replace(inputs, notes=(*rows.notes, *inputs.notes))


def _minimal_depth(
    stack: Stack, inputs: Batches, settings: TruncateSettings, progress: Progress | None
) -> MinimalDepth:
    traced = trace(stack, inputs, measures=(), labels=settings.against == "labels", progress=progress)
    return traced.minimal_depth(settings.tolerance, settings.confidence, against=settings.against)
