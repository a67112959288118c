"""One cut, from names to a finished folder: what `anydepth truncate` does."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from anydepth import models
from anydepth.certificates import MinimalDepth, check_against, least_samples
from anydepth.collect import Progress, as_batch
from anydepth.data.batching import Batches, batches
from anydepth.data.loading import Wanted, take
from anydepth.errors import TruncationError
from anydepth.loaded import LoadedModel
from anydepth.outputs import OutputKind, output
from anydepth.stack import Stack
from anydepth.store import replacing_folder, write_json
from anydepth.timm_models import PREFIX as TIMM
from anydepth.tracing import trace
from anydepth.truncating import truncate

FILE = "truncate.json"
_OUTPUT = OutputKind(job="truncate", mark=FILE, alone="holds something already", error=TruncationError)


@dataclass(frozen=True)
class Choice:
    """By what the depth is chosen, and the cut seen to be right.

    Attributes:
        data: see `anydepth.data.sources.splits`.
        split: which; by default test, else validation, else the only one.
        wanted: columns, a limit, and the seed of what is drawn.
        batch_size: samples of a forward.
        tolerance: the probability of a failure that must not be exceeded.
        confidence: of that promise.
        against: "model" or "labels"; see `anydepth.certificates.minimal_depth`.
    """

    data: str
    split: str | None = None
    wanted: Wanted = field(default_factory=Wanted)
    batch_size: int = 32
    tolerance: float = 0.01
    confidence: float = 0.95
    against: str = "model"


@dataclass(frozen=True)
class Cut:
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
    choice: Choice | None = None,
    blocks: str | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Cut:
    """Cut a model after a depth that is given, or the shallowest that can be certified, and save what is left.

    Args:
        name: see `anydepth.models.load`.
        depth: k, 1..L; None to choose it.
        out: the folder. An earlier cut there is replaced; of a folder that holds anything else, nothing is.
        choice: by what to choose; if the depth is given, its data are only looked at to see that the cut is right.
        blocks: the dotted name of the list of blocks, for a model that has several.
        device: as torch names it; if None the first there is.
        trust_remote_code: run the Python code that comes with the checkpoint.
        progress: called with what is done, how much there is, and what it is.

    Returns:
        What came of it. If nothing shallower than L could be certified, nothing is written.

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
    choice: Choice | None,
    blocks: str | None,
    progress: Progress | None,
) -> Cut:
    found = None if choice is None else _batches(loaded, choice)
    if loaded.heads is not None and found is None:
        raise TruncationError("the model has a head for each depth, and data show where it goes: give them with --data")
    stack = Stack(loaded.model, blocks=blocks) if found is None else models.stack_of(loaded, found, blocks=blocks)
    minimal = _minimal(stack, found, choice, progress) if depth is None else None
    chosen = minimal.depth if minimal else depth
    assert chosen is not None
    notes = (*loaded.notes, *(found.notes if found else ()))
    result = Cut(out, loaded.name, chosen, stack.depth, minimal, notes)
    if minimal and chosen == stack.depth:
        return Cut(None, loaded.name, chosen, stack.depth, minimal, notes)
    batch = None if found is None else as_batch(next(iter(found)), 0)[0]
    small = truncate(stack, chosen, batch=batch)
    with replacing_folder(out, _OUTPUT) as beside:
        small.save_pretrained(beside)  # type: ignore[operator]  # a model of transformers: no other is loaded here
        if loaded.to_save is not None:
            loaded.to_save.save_pretrained(beside)
        write_json(beside / FILE, result.as_plain())
    return result


def _batches(loaded: LoadedModel, choice: Choice) -> Batches:
    rows = take(choice.data, choice.split, choice.wanted)
    found = batches(rows, loaded, batch_size=choice.batch_size, labels=choice.against == "labels")
    return replace(found, notes=(*rows.notes, *found.notes))


def _minimal(stack: Stack, found: Batches | None, choice: Choice | None, progress: Progress | None) -> MinimalDepth:
    assert found is not None
    assert choice is not None
    traced = trace(stack, found, measures=(), labels=choice.against == "labels", progress=progress)
    return traced.minimal_depth(choice.tolerance, choice.confidence, against=choice.against)
