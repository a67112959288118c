"""Trace a model by name on data by name: the job of `anydepth trace`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from anydepth.core.stack import Stack
from anydepth.core.tokens import check_policy
from anydepth.data.batching import Batches, batches
from anydepth.data.loading import DataSelection, load_split
from anydepth.distributed import rank_and_count
from anydepth.errors import DataError
from anydepth.jobs.theory import with_random_weights
from anydepth.lens.lens import Lens
from anydepth.measures.similarity import check_measures
from anydepth.models import loading as models
from anydepth.progress import Progress
from anydepth.report.pages.trace import write
from anydepth.results.trace_data import REPORT, TRACE_OUTPUT
from anydepth.results.trace_files import adding
from anydepth.storage.output_folder import output
from anydepth.storage.sizes import as_bytes
from anydepth.theory.examine import examine
from anydepth.theory.findings import Theory
from anydepth.tracing.run import trace
from anydepth.tracing.trace import Trace


@dataclass(frozen=True, kw_only=True)
class TraceSettings:
    """Model, data, and what to trace; see `anydepth.jobs` and `anydepth.trace` for the fields that are not here.

    Attributes:
        stride: tokens by which windows of longer texts advance; see `anydepth.data.batches`, as for `pack`.
        theory: whether to test the paper's theory, too; see `anydepth.theory`.
        lens: texts whose logit lens, at every depth and position, goes into the report.
        dtype: of the weights; "auto" for that of the checkpoint.
    """

    model: str
    data: str
    split: str | None = None
    wanted: DataSelection = field(default_factory=DataSelection)
    batch_size: int = 32
    max_length: int | None = None
    stride: int | None = None
    pack: bool = False
    measures: tuple[str, ...] = ("cosine", "cosine_raw", "cka", "cka_biased")
    tokens: str | None = None
    positions: int | None = None
    readout: Literal["tail", "raw"] | None = "tail"
    labels: bool = True
    keep_states: bool = False
    states_limit: str | None = None
    sums: bool = True
    theory: bool = False
    lens: tuple[str, ...] = ()
    blocks: str | None = None
    device: str | None = None
    dtype: str = "auto"
    trust_remote_code: bool = False

    def check(self) -> None:
        """Refuse what can be refused before a model is downloaded.

        Raises:
            AnydepthError: in one of its kinds.
        """
        if self.theory and (count := rank_and_count()[1]) > 1:
            raise DataError(f"theory=True is for one process, and there are {count}: run it without torchrun")
        check_measures(self.measures)
        if self.tokens is not None:
            check_policy(self.tokens)
        if self.states_limit is not None:
            as_bytes(self.states_limit, "states_limit")


@dataclass(frozen=True, kw_only=True)
class TraceResult:
    """A trace, the folder where it was saved, and the findings on the theory if these were wanted."""

    folder: Path
    trace: Trace
    theory: Theory | None


def run_trace(
    settings: TraceSettings, out: str | Path, *, resume: bool = True, progress: Progress | None = None
) -> TraceResult:
    """Trace a model and save the trace with a report.

    Args:
        settings: the model, the data, and what to trace.
        out: the folder.
        resume: go on with an interrupted trace there; False to start over.
        progress: see `anydepth.jobs`.

    Raises:
        AnydepthError: in one of its kinds, with one line that says what to do.
    """
    settings.check()
    folder, (rank, ranks) = Path(out), rank_and_count()
    inputs = {"model": settings.model, "data": settings.data}
    again = "the same command" if resume else "the same command without resume=False"
    with output(folder, TRACE_OUTPUT, inputs=inputs, rank=rank, ranks=ranks, again=again):
        return _trace(settings, folder, resume=resume, progress=progress)


def _trace(settings: TraceSettings, folder: Path, *, resume: bool, progress: Progress | None) -> TraceResult:
    loaded = models.load(
        settings.model,
        device=settings.device,
        dtype=settings.dtype,
        trust_remote_code=settings.trust_remote_code,
    )
    rows = load_split(settings.data, settings.split, settings.wanted)
    inputs = batches(
        rows,
        loaded,
        batch_size=settings.batch_size,
        max_length=settings.max_length,
        labels=settings.labels,
        stride=settings.stride,
        pack=settings.pack,
    )
    stack = models.stack_of(loaded, inputs, blocks=settings.blocks)
    lenses = [Lens.of(stack, text, loaded.processor) for text in settings.lens]  # first: it may be refused
    traced = trace(
        stack,
        inputs,
        measures=settings.measures,
        tokens=settings.tokens,
        positions=settings.positions,
        readout=settings.readout,
        labels=settings.labels,
        out=folder,
        keep_states=settings.keep_states,
        states_limit=settings.states_limit,
        sums=settings.sums,
        resume=resume,
        seed=settings.wanted.seed,
        describe={
            "model": loaded.name,
            "data": {"name": settings.data, "split": rows.split},
            "notes": [*loaded.notes, *rows.notes, *inputs.notes],
        },
        progress=progress,
    )
    theory = _theory(settings, traced, folder, stack, inputs, progress) if settings.theory else None
    if lenses and rank_and_count()[0] == 0:
        with adding(folder) as beside:
            write([traced], beside / REPORT, theories=[theory] if theory else (), lenses=lenses)
    return TraceResult(folder=folder, trace=traced, theory=theory)


def _theory(
    settings: TraceSettings, traced: Trace, folder: Path, stack: Stack, inputs: Batches, progress: Progress | None
) -> Theory:
    """Test the theory, with a model of random weights as reference, and write `theory.json` and the report anew."""
    seed = settings.wanted.seed
    reference, notes = with_random_weights(
        inputs.model, inputs, blocks=settings.blocks, trust_remote_code=settings.trust_remote_code, seed=seed
    )
    theory = examine(
        stack,
        inputs,
        tokens=traced.provenance["tokens"],
        readout=settings.readout is not None,
        labels=settings.labels,
        reference=reference,
        seed=seed,
        describe={"model": inputs.model.name, "data": {"name": settings.data}, "notes": notes},
        progress=progress,
    )
    theory.save(folder)
    with adding(folder) as beside:
        write([traced], beside / REPORT, theories=[theory])
    return theory
