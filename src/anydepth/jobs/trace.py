"""Trace a model on data: the job of `anydepth trace`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from anydepth.core.tokens import check_policy
from anydepth.distributed import join, rank_and_count
from anydepth.errors import DataError
from anydepth.jobs.inputs import Collate, Inputs, JobInputs
from anydepth.jobs.keywords import takes
from anydepth.jobs.settings import TraceSettings
from anydepth.jobs.theory import with_random_weights
from anydepth.jobs.towers import as_asked
from anydepth.lens.lens import Lens
from anydepth.measures.similarity import check_measures
from anydepth.models.loaded import LoadedModel
from anydepth.progress import Progress
from anydepth.results.trace_data import REPORT, TRACE_OUTPUT
from anydepth.results.trace_files import adding
from anydepth.storage.sizes import as_bytes
from anydepth.theory.examine import examine
from anydepth.theory.findings import Theory
from anydepth.tracing.run import trace as run_pass
from anydepth.tracing.trace import Trace


@takes(TraceSettings)
def trace(
    model: Any,
    data: Any,
    *,
    processor: Any = None,
    collate_fn: Collate | None = None,
    out: str | Path | None = None,
    resume: bool = True,
    describe: Mapping[str, Any] | None = None,
    progress: Any = None,
    **settings: Any,
) -> Trace:
    """Measure what every depth of a model knows about some data: logit lens, similarity between depths, saturation.

    What `anydepth trace` does. The pass itself is described at `anydepth.tracing.run.trace`.

    Args:
        model: a module, any transformer, or a `Stack` of it, which runs where its weights are and is left as it was; a
            hub id, a local folder or `timm:NAME`; or a pipeline of transformers.
        data: batches (a DataLoader, or any iterable of dicts of what the model takes with "labels" and, if samples have
            names, "id"; of pairs (x, y); or of tensors); a name or path as the command line takes it; texts, images,
            pairs of one with its label, or dicts of columns; a frame of pandas; a `datasets.Dataset`, of texts, images,
            or tokens, which need no padding.
        processor: the tokenizer or image processor, where the model comes without one.
        collate_fn: makes a batch of a list of rows.
        out: a folder to save the trace to, with its report. With it, an interrupted trace goes on where it stopped.
        resume: False to discard what an interrupted trace left in `out`.
        describe: added to the provenance and notes of the trace: {"model": name, "data": {"name": ..., "split": ...},
            "notes": [...]}.
        progress: True for bars, False for none, by default bars in a notebook and at a terminal; or a function that is
            called with what is done, how much there is, and what it is.
        **settings: as `TraceSettings` has them.

    Started by `torchrun` or `accelerate launch`, every process is given all of the data, takes its share of the
    batches, and gets the trace of all; `out` must be a folder that all of them see.

    Returns:
        The trace; with `out`, saved there with its report and settings.

    Raises:
        AnydepthError: in one of its kinds, with one line that says what to do.

    Example:
        >>> import torch
        >>> from transformers import ViTConfig, ViTForImageClassification
        >>> config = ViTConfig(image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
        ...                    intermediate_size=32, num_channels=1, num_labels=5)
        >>> model = ViTForImageClassification(config)
        >>> batches = [{"pixel_values": torch.rand(8, 1, 8, 8), "labels": torch.arange(8) % 5} for _ in range(3)]
        >>> result = trace(model, batches)
        >>> result.accuracy.shape, result.similarity["cka"].shape, int(result.saturation.sum())
        ((4,), (4, 4), 24)
    """
    if settings.get("readout", "") is None:
        settings["readout"] = "none"
    wanted = TraceSettings(model=model, data=data, **settings)
    given = JobInputs(settings=wanted, processor=processor, collate_fn=collate_fn)
    device = None if given.model_name is None else join() or wanted.device
    _check(wanted, out)
    rank, ranks = rank_and_count()
    again = "the same command" if resume else "the same command without resume=False"
    with given.output(out, TRACE_OUTPUT, rank=rank, ranks=ranks, again=again):
        folder = None if out is None else Path(out)
        return _trace(given, folder, device=device, resume=resume, describe=describe or {}, progress=progress)


def _trace(
    given: JobInputs,
    folder: Path | None,
    *,
    device: str | None,
    resume: bool,
    describe: Mapping[str, Any],
    progress: Progress | None,
) -> Trace:
    settings: TraceSettings = given.settings
    inputs = _inputs(given, given.model(device=device))
    lenses = [Lens.of(inputs.stack, text, inputs.model.processor) for text in settings.lens]  # first: may be refused
    traced = run_pass(
        inputs.stack,
        inputs.batches,
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
            "model": given.model_name,
            "data": {} if inputs.of_rows is None else inputs.of_rows.data.origin,
            **describe,
            "notes": [*inputs.notes, *describe.get("notes", ())],
        },
        progress=progress,
    )
    theory = _theory(given, traced, inputs, progress) if settings.theory else None
    if folder is not None and rank_and_count()[0] == 0:
        _add(folder, settings, traced, theory, lenses)
    return replace(traced, folder=folder, theory=theory)


def _check(settings: TraceSettings, out: str | Path | None) -> None:
    """Refuse what can be refused before a model is downloaded."""
    if settings.theory and (count := rank_and_count()[1]) > 1:
        raise DataError(f"theory=True is for one process, and there are {count}: run it without torchrun")
    if settings.theory and isinstance(settings.data, Iterator):
        raise DataError("theory=True reads the data several times, and an iterator can be read once: give a list")
    if settings.lens and out is None:
        raise DataError("lens is shown in the report, which needs a folder: give one (out)")
    check_measures(settings.measures)
    if settings.tokens is not None:
        check_policy(settings.tokens)
    if settings.states_limit is not None:
        as_bytes(settings.states_limit, "states_limit")


def _inputs(given: JobInputs, loaded: LoadedModel) -> Inputs:
    settings, rows = given.settings, given.rows()
    if rows is not None:
        loaded = as_asked(loaded, rows, settings)
    return given.read(loaded, rows, blocks=settings.blocks, max_length=settings.max_length, labels=settings.labels)


def _theory(given: JobInputs, traced: Trace, inputs: Inputs, progress: Progress | None) -> Theory:
    """Test the theory, with a model of random weights as reference."""
    settings = given.settings
    reference, notes = with_random_weights(
        inputs.model,
        inputs.batches,
        blocks=settings.blocks,
        trust_remote_code=settings.trust_remote_code,
        seed=settings.seed,
        named=given.model_name is not None,
    )
    return examine(
        inputs.stack,
        inputs.batches,
        tokens=traced.provenance["tokens"],
        readout=settings.readout != "none",
        labels=settings.labels,
        reference=reference,
        seed=settings.seed,
        describe={"model": given.model_name, "data": {"name": given.data_name}, "notes": notes},
        progress=progress,
    )


def _add(folder: Path, settings: TraceSettings, traced: Trace, theory: Theory | None, lenses: Sequence[Lens]) -> None:
    """Add the settings to a trace's folder, and what was found beside the trace, which its report shows, too."""
    from anydepth.report.pages.trace import write

    if theory is not None:
        theory.save(folder)
    with adding(folder) as beside:
        settings.save(beside)
        if lenses or theory is not None:
            write([traced], beside / REPORT, theories=[theory] if theory else (), lenses=lenses)
