"""Trace a model by name on data by name: the job of `anydepth trace`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from anydepth.core.stack import Stack
from anydepth.core.tokens import check_policy
from anydepth.data.batching import Batches, batches
from anydepth.data.loading import load_split
from anydepth.distributed import join, rank_and_count
from anydepth.errors import DataError
from anydepth.jobs.settings import TraceSettings
from anydepth.jobs.theory import with_random_weights
from anydepth.jobs.towers import as_asked
from anydepth.lens.lens import Lens
from anydepth.measures.similarity import check_measures
from anydepth.models import loading as models
from anydepth.progress import Progress
from anydepth.report.pages.trace import write
from anydepth.results.result import Result
from anydepth.results.tables import Table
from anydepth.results.trace_data import REPORT, TRACE_OUTPUT
from anydepth.results.trace_files import adding
from anydepth.storage.output_folder import output
from anydepth.storage.sizes import as_bytes
from anydepth.theory.examine import examine
from anydepth.theory.findings import Theory
from anydepth.tracing.run import trace
from anydepth.tracing.trace import Trace


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class TraceResult(Result):
    """A trace, the folder where it was saved, and the findings on the theory if these were wanted."""

    folder: Path
    trace: Trace
    theory: Theory | None

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes of the trace and of the findings."""
        return self.trace.notes if self.theory is None else (*self.trace.notes, *self.theory.notes)

    def line(self) -> str:
        """The line of the trace."""
        return self.trace.line()

    def tables(self) -> tuple[Table, ...]:
        """The table of the trace."""
        return self.trace.tables()

    def sentences(self) -> tuple[str, ...]:
        """The findings on the theory, if it was tested."""
        from anydepth.report.theory_sentences import sentences

        return () if self.theory is None else tuple(f"• {sentence}" for sentence in sentences(self.theory))

    def chart(self) -> str:
        """The chart of the trace."""
        return self.trace.chart()


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
    device = join() or settings.device
    _check(settings)
    folder, (rank, ranks) = Path(out), rank_and_count()
    inputs = {"model": settings.model, "data": settings.data}
    again = "the same command" if resume else "the same command without resume=False"
    with output(folder, TRACE_OUTPUT, inputs=inputs, rank=rank, ranks=ranks, again=again):
        return _trace(settings, folder, device=device, resume=resume, progress=progress)


def _check(settings: TraceSettings) -> None:
    """Refuse what can be refused before a model is downloaded."""
    if settings.theory and (count := rank_and_count()[1]) > 1:
        raise DataError(f"theory=True is for one process, and there are {count}: run it without torchrun")
    check_measures(settings.measures)
    if settings.tokens is not None:
        check_policy(settings.tokens)
    if settings.states_limit is not None:
        as_bytes(settings.states_limit, "states_limit")


def _trace(
    settings: TraceSettings, folder: Path, *, device: str | None, resume: bool, progress: Progress | None
) -> TraceResult:
    loaded = models.load(
        settings.model,
        device=device,
        dtype=settings.dtype,
        trust_remote_code=settings.trust_remote_code,
    )
    rows = load_split(settings.data, settings.split, settings.selection)
    loaded = as_asked(loaded, rows, settings)
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
        readout=None if settings.readout == "none" else settings.readout,
        labels=settings.labels,
        out=folder,
        keep_states=settings.keep_states,
        states_limit=settings.states_limit,
        sums=settings.sums,
        resume=resume,
        seed=settings.seed,
        describe={
            "model": loaded.name,
            "data": {"name": settings.data, "split": rows.split},
            "notes": [*loaded.notes, *rows.notes, *inputs.notes],
        },
        progress=progress,
    )
    theory = _theory(settings, traced, folder, stack, inputs, progress) if settings.theory else None
    if rank_and_count()[0] == 0:
        with adding(folder) as beside:
            settings.save(beside)
            if lenses:
                write([traced], beside / REPORT, theories=[theory] if theory else (), lenses=lenses)
    return TraceResult(folder=folder, trace=traced, theory=theory)


def _theory(
    settings: TraceSettings, traced: Trace, folder: Path, stack: Stack, inputs: Batches, progress: Progress | None
) -> Theory:
    """Test the theory, with a model of random weights as reference, and write `theory.json` and the report anew."""
    seed = settings.seed
    reference, notes = with_random_weights(
        inputs.model, inputs, blocks=settings.blocks, trust_remote_code=settings.trust_remote_code, seed=seed
    )
    theory = examine(
        stack,
        inputs,
        tokens=traced.provenance["tokens"],
        readout=settings.readout != "none",
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
