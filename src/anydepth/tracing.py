"""Tracing: one pass over the data, then every measure of what it left."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from anydepth.collect import Pass, Progress, Readout
from anydepth.errors import DataError, MeasureError
from anydepth.measures.similarity import MEASURES, similarities
from anydepth.measures.states import ArrayStates
from anydepth.provenance import data_fingerprint, describe_model, now, versions
from anydepth.result import Rows, Trace, by_field
from anydepth.stack import Stack
from anydepth.store import StoredStates
from anydepth.tokens import check_policy
from anydepth.workspace import Workspace

DEFAULT_MEASURES = ("cosine", "cosine_raw", "cka", "cka_biased")
_PARTIAL = ".partial"


def trace(
    model: nn.Module | Stack,
    data: Iterable[Any],
    *,
    measures: Sequence[str] = DEFAULT_MEASURES,
    tokens: str | None = None,
    readout: Readout = "tail",
    labels: bool = True,
    blocks: str | None = None,
    out: str | Path | None = None,
    keep_states: bool = False,
    resume: bool = True,
    seed: int = 0,
    describe: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Trace:
    """Show what every depth of a model knows about some data.

    Args:
        model: any transformer, or a `Stack` of it. It runs where its weights are, in eval mode, and is left as it was.
        data: a DataLoader, a `datasets.Dataset`, or any iterable of batches: dicts of what the model takes with
            "labels" (and, if samples have names, "id"), or pairs (x, y), or tensors.
        measures: which similarities between depths; see `anydepth.measures`.
        tokens: which positions stand for a sample: "first", "last", "each" or "mean". None: where the model's own
            readout looks.
        readout: "tail" reads every depth out through the model's own final norm and head; "raw" leaves out the final
            norm below depth L, as published code has done; None measures similarity alone.
        labels: False for data without labels: no accuracy, but confidence, agreement and saturation.
        blocks: the dotted name of the list of blocks, for a model that has several.
        out: a folder to save the trace to. With it, an interrupted trace goes on where it stopped.
        keep_states: keep the states in `out`: merging the centred cosine and comparing across models need them.
        resume: False to start over what an interrupted trace left in `out`.
        seed: of the resampling behind intervals.
        describe: what the result should say of its origin, beside what is found out: {"model": name,
            "data": {"name": ..., "split": ...}, "notes": [...]}.
        progress: called with what is done, how much there is, and what it is.

    Returns:
        The trace; with `out`, saved there with its report.

    Raises:
        AnydepthError: in one of its kinds, with one line that says what to do.

    Example:
        >>> import torch
        >>> from transformers import ViTConfig, ViTForImageClassification
        >>> config = ViTConfig(image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
        ...                    intermediate_size=32, num_channels=1, num_labels=5)
        >>> model = ViTForImageClassification(config)
        >>> batches = [{"pixel_values": torch.rand(8, 1, 8, 8), "labels": torch.arange(8) % 5} for _ in range(3)]
        >>> found = trace(model, batches)
        >>> found.accuracy.shape, found.similarity["cka"].shape, int(found.saturation.sum())
        ((4,), (4, 4), 24)
    """
    _check_measures(measures)
    if keep_states and out is None:
        raise DataError("keep_states needs a folder to keep them in: give out='DIR'")
    if readout not in ("tail", "raw", None):
        raise DataError(f"unknown readout {readout!r}, expected 'tail', 'raw' or None")
    stack = model if isinstance(model, Stack) else Stack(model, blocks=blocks)
    told = dict(describe or {})
    origin = {"model": describe_model(stack, told.get("model")), "data": told.get("data", {})}
    what = Pass(
        stack,
        tokens=None if tokens is None else check_policy(tokens),
        readout=readout,
        labels=labels,
        keep_states=bool(measures) or keep_states,
    )
    key = _key(origin["model"]["fingerprint"], what, keep_states)
    with _workspace(out, key, resume=resume) as workspace:
        what.run(as_batches(data), workspace, progress)
        found = _assemble(stack, workspace, tuple(measures), origin, keep_states, seed, progress)
        found = replace(found, notes=(*told.get("notes", ()), *found.notes))
        if out is None:
            return found
        found.save(out)
    return Trace.load(out)


def trace_states(
    states: Mapping[str, NDArray[Any] | Tensor],
    *,
    measures: Sequence[str] = DEFAULT_MEASURES,
    groups: NDArray[np.int64] | None = None,
    progress: Progress | None = None,
) -> Trace:
    """Measure arrays one already has, without a model.

    Args:
        states: arrays of shape (n, D), one per depth, in order; row i is the same sample in all. Widths may differ.
            A memory-mapped array is read piece by piece.
        measures: which similarities.
        groups: (n,) the sample each row belongs to, if several rows share one.
        progress: called with what is done, how much there is, and what it is.

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(50, 8))
        >>> found = trace_states({"a": x, "b": 2 * x + 1})
        >>> found.similarity["cka"].round(6).tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """
    _check_measures(measures)
    arrays = ArrayStates(states, groups=groups)
    return Trace(
        names=arrays.names,
        **by_field(similarities(arrays, tuple(measures), progress=progress)),
        provenance={
            "data": {"samples": arrays.count},
            "samples": arrays.count,
            "positions": arrays.count,
            "measures": list(measures),
            "versions": versions(),
            "created": now(),
        },
    )


def _check_measures(measures: Sequence[str]) -> None:
    if isinstance(measures, str):
        raise MeasureError(f"measures is the text {measures!r}, expected a list: measures=[{measures!r}]")
    for name in measures:
        if name not in MEASURES:
            raise MeasureError(f"unknown measure {name!r}, expected some of {', '.join(MEASURES)}")


def as_batches(data: Iterable[Any]) -> Iterable[Any]:
    """A `datasets.Dataset` is read in batches of tensors; everything else yields batches already."""
    if hasattr(data, "with_format") and hasattr(data, "iter"):
        return _DatasetBatches(data)
    if not isinstance(data, Iterable):
        raise DataError(f"data is {type(data).__name__}, expected an iterable of batches")
    return data


class _DatasetBatches:
    def __init__(self, dataset: Any, size: int = 32) -> None:
        self._dataset, self._size = dataset.with_format("torch"), size

    def __len__(self) -> int:
        return -(-len(self._dataset) // self._size)

    def __iter__(self) -> Iterator[Any]:
        for batch in self._dataset.iter(batch_size=self._size):
            ragged = next((name for name, column in batch.items() if not isinstance(column, Tensor)), None)
            if ragged is not None:
                raise DataError(
                    f"column {ragged!r} does not stack into a tensor: tokenise and pad it, or remove it, "
                    "or give batches of your own (a DataLoader)"
                )
            yield batch


@contextmanager
def _workspace(out: str | Path | None, key: str, *, resume: bool) -> Iterator[Workspace]:
    """A folder for the pass: of its own and for this call only, or in `out` until the trace there is complete."""
    if out is None:
        with tempfile.TemporaryDirectory(prefix="anydepth-") as folder:
            workspace = Workspace(Path(folder), key)
            try:
                yield workspace
            finally:
                workspace.close()
        return
    partial = Path(out) / _PARTIAL
    if not resume:
        shutil.rmtree(partial, ignore_errors=True)
    workspace = Workspace(partial, key)
    try:
        yield workspace
    finally:
        workspace.close()
    shutil.rmtree(partial)


def _key(fingerprint: str, what: Pass, keep_states: bool) -> str:
    settings = [fingerprint, what.tokens, what.readout, what.labels, what.keep_states, keep_states, what.stack.path]
    return hashlib.blake2b(json.dumps(settings).encode(), digest_size=16).hexdigest()


def _assemble(
    stack: Stack,
    workspace: Workspace,
    measures: tuple[str, ...],
    origin: dict[str, Any],
    keep_states: bool,
    seed: int,
    progress: Progress | None,
) -> Trace:
    facts = workspace.facts
    states = None
    fields: dict[str, Any] = {"similarity": {}}
    widths = (facts["width"],) * (stack.depth + 1)
    groups = workspace.read("states_sample")
    if groups is not None:
        for_all = len(np.unique(groups)) == len(groups)
        states = StoredStates([workspace.path("states")], widths, None if for_all else np.array(groups))
        if measures:
            fields = by_field(similarities(states, measures, progress=progress))
    digests = workspace.read("digest")
    assert digests is not None
    parameter = next(stack.model.parameters())
    samples = workspace.samples
    rows = _rows(workspace)
    provenance = {
        "model": origin["model"],
        "data": {**origin["data"], "fingerprint": data_fingerprint(digests), "samples": samples},
        "samples": samples,
        "positions": samples if states is None else states.count,
        "answers": 0 if rows is None else len(rows),
        "tokens": facts["tokens"],
        "measures": list(measures),
        "readout": facts["readout"],
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "device": str(parameter.device.type),
        "seed": seed,
        "versions": versions(),
        "created": now(),
    }
    return Trace(
        names=tuple(map(str, range(stack.depth + 1))),
        **{**fields, "notes": (*_notes(facts, stack), *_explained(fields.get("notes", ()), facts))},
        rows=rows,
        ids=tuple(workspace.ids()),
        digests=np.array(digests),
        provenance=provenance,
        states=states if keep_states else None,
    )


def _rows(workspace: Workspace) -> Rows | None:
    if workspace.read("prediction") is None:
        return None
    names = ("sample", "position", "label", "prediction", "cross_entropy", "confidence")
    return Rows(**{name: np.array(workspace.read(name)) for name in names})


def _notes(facts: Mapping[str, Any], stack: Stack) -> Iterator[str]:
    if facts["tokens_chosen"]:
        why = {
            "first": "what the model's readout looks at",
            "last": "what the model's readout looks at",
            "mean": "the model's readout looks at all positions",
            "each": "the model answers at each position",
        }[facts["tokens"]]
        yield f"Token policy {facts['tokens']!r} was chosen: {why}."
    if not facts["has_classes"]:
        yield (
            f"{type(stack.model).__name__} has no classifier: accuracy, confidence and saturation are missing; "
            "similarity needs none."
        )
    elif facts["readout"] and not facts["labelled"]:
        yield "Traced without labels: accuracy, cross-entropy and the stays-correct rate are missing."
    if facts["readout"] == "raw":
        yield "Readout 'raw': the final norm is left out below the last depth, to reproduce code that forgot it."


def _explained(notes: Sequence[str], facts: Mapping[str, Any]) -> Iterator[str]:
    """Depth 0 under `first` is a class token that no sample has changed yet: expected, and said as such."""
    for note in notes:
        if facts["tokens"] == "first" and note.startswith("depth 0 "):
            note = (
                "Similarity at depth 0 is blank by construction: before the first block, the first position is the "
                "same vector for every sample."
            )
        yield note
