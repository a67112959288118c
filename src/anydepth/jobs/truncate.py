"""One cut, from names to a finished folder: what `anydepth truncate` does."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from anydepth.core.model_io import device_of, to_device
from anydepth.core.stack import Stack
from anydepth.core.truncation import truncate
from anydepth.data.batching import Batches, batches
from anydepth.data.loading import DataSelection, load_split
from anydepth.errors import TruncationError
from anydepth.jobs.export import sample_batch
from anydepth.models import loading as models
from anydepth.models.companion_files import carry
from anydepth.models.loaded import LoadedModel
from anydepth.models.timm import PREFIX as TIMM
from anydepth.passes.batches import as_batch
from anydepth.progress import Progress
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


@dataclass(frozen=True)
class DepthChoice:
    """By what the depth is chosen, and the cut seen to be right.

    Attributes:
        data: see `anydepth.data.sources.splits`.
        split: which; by default test, else validation, else the only one.
        wanted: columns, a limit, and the seed of what is drawn.
        batch_size: samples of a forward.
        tolerance: the probability of a failure that must not be exceeded.
        confidence: of that promise.
        against: "model" or "labels"; see `anydepth.stats.certificates.minimal_depth`.
    """

    data: str
    split: str | None = None
    wanted: DataSelection = field(default_factory=DataSelection)
    batch_size: int = 32
    tolerance: float = 0.01
    confidence: float = 0.95
    against: str = "model"


@dataclass(frozen=True)
class TruncateResult:
    """What came of a cut.

    Attributes:
        folder: where the model is; None if there was nothing to cut.
        model: what was cut.
        depth: 1..L, how many blocks are left.
        last: L, how many there were.
        minimal: what the depth was chosen by; None if it was given.
        notes: what a reader of the result should know, one sentence each.
    """

    folder: Path | None
    model: str
    depth: int
    last: int
    minimal: MinimalDepth | None
    notes: tuple[str, ...]

    def as_plain(self) -> dict[str, Any]:
        """Everything but the folder, which may move, as values that JSON holds."""
        certificate = self.minimal.certificate if self.minimal else None
        plain = {name: getattr(self, name) for name in ("model", "depth", "last", "notes")}
        return plain | {"certificate": asdict(certificate) if certificate else None}


def cut(
    name: str,
    depth: int | None,
    out: str | Path,
    *,
    choice: DepthChoice | None = None,
    blocks: str | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> TruncateResult:
    """Cut a model after a depth that is given, or the shallowest that can be certified, and save what is left.

    Args:
        name: see `anydepth.models.loading.load`.
        depth: k, 1..L; None to choose it.
        out: the folder. An earlier cut there is replaced; of a folder that holds anything else, nothing is.
        choice: by what to choose; if the depth is given, its data are only looked at to see that the cut is right, as a
            made-up batch is without it.
        blocks: the dotted name of the list of blocks, for a model that has several.
        device: as torch names it; if None the first there is.
        trust_remote_code: run the Python code that comes with the checkpoint.
        progress: called with what is done, how much there is, and what it is.

    Returns:
        What came of it. If nothing shallower than L could be certified, nothing is written. What else the model's
        folder holds goes along, or is named in the notes; see `anydepth.models.companion_files`.

    Raises:
        TruncationError: no such depth, nothing to choose by, a folder that holds something else, or a timm model.
        CertificateError: levels outside (0, 1), or too few samples.
    """
    if name.startswith(TIMM):
        raise TruncationError(f"'{name}' has no folder that timm reads k blocks from: use anydepth.truncate in Python")
    if depth is None:
        if choice is None:
            raise TruncationError("to choose a depth takes data: give them with --data, or a number with --depth")
        check_against(choice.against)
        least_samples(choice.tolerance, choice.confidence)
    inputs = {"model": name, "data": None if choice is None else choice.data}
    with output(out, _OUTPUT, inputs=inputs):
        loaded = models.load(name, device=device, trust_remote_code=trust_remote_code)
        return _cut(loaded, depth, Path(out), choice=choice, blocks=blocks, progress=progress)


def _cut(
    loaded: LoadedModel,
    depth: int | None,
    out: Path,
    *,
    choice: DepthChoice | None,
    blocks: str | None,
    progress: Progress | None,
) -> TruncateResult:
    found = None if choice is None else _batches(loaded, choice)
    batch = sample_batch(loaded) if found is None else as_batch(next(iter(found)), 0)[0]
    batch = to_device(batch, device_of(loaded.model))
    stack = models.stack_of(loaded, [batch], blocks=blocks)
    minimal = None
    if depth is None and choice is not None and found is not None:
        minimal = _minimal(stack, found, choice, progress)
        depth = minimal.depth
    chosen = stack.depth if depth is None else depth
    notes = (*loaded.notes, *(found.notes if found else ()), *(minimal.notes if minimal else ()))
    result = TruncateResult(out, loaded.name, chosen, stack.depth, minimal, notes)
    if minimal and chosen == stack.depth:
        return replace(result, folder=None)
    small = truncate(stack, chosen, batch=batch)
    with replacing_folder(out, _OUTPUT) as beside:
        small.save_pretrained(beside)  # type: ignore[operator]  # a model of transformers: no other is loaded here
        if loaded.to_save is not None:
            loaded.to_save.save_pretrained(beside)
        result = _with_companions(result, beside)
        write_json(beside / FILE, result.as_plain())
    return result


def _with_companions(result: TruncateResult, beside: Path) -> TruncateResult:
    """Put what goes along with the model into its folder, and a card of its own."""
    source = local_path(result.model)
    if not source.is_dir():
        note = f"'{result.model}' is no folder here: the licence and other files of its repository were not looked for"
        result = replace(result, notes=(*result.notes, note))
    else:
        result = replace(result, notes=(*result.notes, *carry(source, beside, card=OLD_CARD).notes))
    with write_errors(beside):
        (beside / "README.md").write_text(_card(result, beside / OLD_CARD), encoding="utf-8", errors="backslashreplace")
    return result


def _card(result: TruncateResult, old: Path) -> str:
    """The model card: what was cut, on what grounds, and under which licence the uncut model stands."""
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


def _batches(loaded: LoadedModel, choice: DepthChoice) -> Batches:
    rows = load_split(choice.data, choice.split, choice.wanted)
    found = batches(rows, loaded, batch_size=choice.batch_size, labels=choice.against == "labels")
    return replace(found, notes=(*rows.notes, *found.notes))


def _minimal(stack: Stack, found: Batches, choice: DepthChoice, progress: Progress | None) -> MinimalDepth:
    traced = trace(stack, found, measures=(), labels=choice.against == "labels", progress=progress)
    return traced.minimal_depth(choice.tolerance, choice.confidence, against=choice.against)
