"""`anydepth trace --theory`: the theory of a model that was just traced, beside its trace and in its report."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from anydepth.core.stack import Stack
from anydepth.errors import AnydepthError
from anydepth.models import loading as models
from anydepth.models.loaded import LoadedModel
from anydepth.progress import Progress
from anydepth.report.pages.trace import write
from anydepth.results.trace_data import REPORT
from anydepth.results.trace_files import adding
from anydepth.theory.examine import examine
from anydepth.theory.findings import Theory
from anydepth.tracing.trace import Trace


def add_theory(
    found: Trace,
    folder: Path,
    loaded: LoadedModel,
    stack: Stack,
    batches: Iterable[Any],
    *,
    labels: bool = True,
    blocks: str | None = None,
    trust_remote_code: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Theory:
    """Examine a model, hold it against one with random weights, and write `theory.json` and the report anew.

    Args:
        found: the trace of the model on these batches.
        folder: where it was saved.
        loaded: the model.
        stack: of it, as it was traced.
        batches: read twice more.
        labels: whether labels count.
        blocks: the dotted name of the list of blocks, for a model that has several.
        trust_remote_code: run the Python code that comes with the checkpoint.
        seed: of the random weights, and of what else chance is asked for.
        progress: called with what is done, how much there is, and what it is.

    Raises:
        AnydepthError: in one of its kinds.
    """
    origin = found.provenance
    reference, why = with_random_weights(loaded, batches, blocks=blocks, trust_remote_code=trust_remote_code, seed=seed)
    theory = examine(
        stack,
        batches,
        tokens=origin["tokens"],
        readout=origin["readout"] is not None,
        labels=labels,
        reference=reference,
        seed=seed,
        describe={"model": origin["model"]["name"], "data": {"name": origin["data"].get("name", "")}, "notes": why},
        progress=progress,
    )
    theory.save(folder)
    with adding(folder) as beside:
        write([found], beside / REPORT, theories=[theory])
    return theory


def with_random_weights(
    loaded: LoadedModel, batches: Iterable[Any], *, blocks: str | None, trust_remote_code: bool, seed: int
) -> tuple[Stack | None, tuple[str, ...]]:
    """A model like a loaded one, its weights freshly drawn; or none, and why."""
    place = next(loaded.model.parameters()).device
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            other = models.load(
                loaded.name,
                task=loaded.task,
                device=str(place),
                trust_remote_code=trust_remote_code,
                pretrained=False,
            )
        return models.stack_of(other, batches, blocks=blocks), ()
    except AnydepthError as problem:
        return None, (f"nothing with random weights to hold the model against: {problem}",)
