"""`trace` and `trace_states`: one pass over the data, then the measures of its hidden states."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from anydepth.core.provenance import describe_model, now, versions
from anydepth.core.stack import Stack
from anydepth.core.tokens import check_policy
from anydepth.distributed import rank_and_count, wait_for_all
from anydepth.errors import DataError, choose
from anydepth.measures.engine.states import ArrayStates, as_numbers
from anydepth.measures.similarity import check_measures, similarities
from anydepth.passes.batches import as_batches, plain_ids, shown_to
from anydepth.passes.workspace import Readout, Workspace, working_folder
from anydepth.progress import Progress
from anydepth.results.trace_data import ROW_COLUMNS, TRACE_OUTPUT, by_field
from anydepth.storage.sizes import as_bytes, in_words
from anydepth.tracing.assembly import CollectedRows, build_trace
from anydepth.tracing.collect import TracePass
from anydepth.tracing.trace import Trace

DEFAULT_MEASURES = ("cosine", "cosine_raw", "cka", "cka_biased")


def trace(
    model: nn.Module | Stack,
    data: Iterable[Any],
    *,
    measures: Sequence[str] = DEFAULT_MEASURES,
    tokens: str | None = None,
    positions: int | None = None,
    readout: Readout = "tail",
    labels: bool = True,
    blocks: str | None = None,
    out: str | Path | None = None,
    keep_states: bool = False,
    states_limit: int | str | None = None,
    sums: bool = False,
    resume: bool = True,
    seed: int = 0,
    describe: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Trace:
    """Trace a model on batches; `anydepth.trace` takes names, texts and more, and says what a trace is.

    Args:
        model: any transformer, or a `Stack` of it. It runs where its weights are, in eval mode, and is left as it was.
        data: a DataLoader, a `datasets.Dataset`, or any iterable of batches: dicts of what the model takes with
            "labels" (and, if samples have names, "id"), or pairs (x, y), or tensors.
        measures: which similarities between depths; see `anydepth.measures`.
        tokens: which positions stand for a sample: "first", "last", "each" or "mean". None: where the model's own
            readout looks.
        positions: with tokens="each", the most positions of a sample that go into similarities, drawn at random; None
            for all. Answers are counted at all positions.
        readout: "tail" reads every depth out through the model's own final norm and head (the logit lens); "raw" leaves
            out the final norm below depth L, as published code has done; None measures similarity alone.
        labels: False for data without labels: no accuracy, but confidence, agreement and saturation.
        blocks: the dotted name of the list of blocks, for a model that has several.
        out: a folder to save the trace to. With it, an interrupted trace goes on where it stopped.
        keep_states: keep the states in `out`: merging the centred cosine and comparing across models need them.
        states_limit: the most they may take on disk, kept or not, as "20GB" or a number of bytes. None for as much as
            there is, with an `AnydepthWarning` where they would take more than half of it.
        sums: keep the sums that CKA is computed from, (K·D)² / 2 numbers, to merge this trace with those of other
            samples, at any cost that fits in memory. Without them the cheaper computation of CKA is used.
        resume: False to discard what an interrupted trace left in `out`.
        seed: of the assignment of samples to parts, for the intervals of CKA, and of the draw of `positions`.
        describe: added to the provenance and notes of the trace: {"model": name, "data": {"name": ..., "split": ...},
            "notes": [...]}.
        progress: called with what is done, how much there is, and what it is.

    Returns:
        The trace; with `out`, saved there with its report.

    Raises:
        AnydepthError: in one of its kinds, with one line that says what to do.
    """
    check_measures(measures)
    if keep_states and out is None:
        raise DataError("keep_states needs a folder to keep them in: give out='DIR'")
    if readout is not None:
        choose(readout, ("tail", "raw"), "readout", DataError, otherwise="None")
    if positions is not None and positions < 1:
        raise DataError(f"positions is {positions}, expected at least 1 for each sample, or None for all")
    stack = model if isinstance(model, Stack) else Stack(model, blocks=blocks)
    batches = shown_to(stack, as_batches(data))
    described = dict(describe or {})
    origin = {
        "model": describe_model(stack, described.get("model")),
        "data": described.get("data", {}),
        "notes": tuple(described.get("notes", ())),
    }
    trace_pass = TracePass(
        stack=stack,
        tokens=None if tokens is None else check_policy(tokens),
        readout=readout,
        labels=labels,
        keep_states=bool(measures) or keep_states,
        positions=positions,
        seed=seed if positions is not None else 0,
        states_limit=None if states_limit is None else as_bytes(states_limit, "states_limit"),
    )
    rank, ranks = rank_and_count()
    if ranks > 1 and out is None:
        raise DataError(f"{ranks} processes need a folder they share: give out='DIR'")
    key = _key(origin["model"]["fingerprint"], trace_pass, keep_states, ranks)
    with working_folder(out, TRACE_OUTPUT, resume=resume) as folder:
        with closing(Workspace(folder / f"rank-{rank}", key)) as workspace:
            trace_pass.run(batches, workspace, progress, rank=rank, ranks=ranks)
        wait_for_all()
        if rank == 0:
            with ExitStack() as opened:
                workspaces = (Workspace(folder / f"rank-{index}", key) for index in range(ranks))
                result = build_trace(
                    CollectedRows([opened.enter_context(closing(workspace)) for workspace in workspaces]),
                    stack,
                    measures=tuple(measures),
                    origin=origin,
                    keep_states=keep_states,
                    sums=sums,
                    seed=seed,
                    progress=progress,
                )
                if out is None:
                    return result
                if progress and result.moments is not None:
                    size = in_words(result.moments.data.nbytes)
                    progress(0, 1, f"writing trace ({size} of CKA sums)")
                result.save(out, sums=sums)
    assert out is not None
    return Trace.load(out)


def trace_states(
    states: Mapping[str, Any] | Sequence[Any] | NDArray[Any] | Tensor,
    *,
    measures: Sequence[str] = DEFAULT_MEASURES,
    groups: Sequence[int] | NDArray[Any] | Tensor | None = None,
    ids: Sequence[int | str] | NDArray[Any] | None = None,
    mask: NDArray[Any] | Tensor | None = None,
    progress: Progress | None = None,
) -> Trace:
    """Measure similarities of hidden states that are already arrays, without a model.

    Args:
        states: one array for each depth, in order: a dict by the depths' names, a list or tuple, or one (K, n, D) array
            of all. Each is (n, D), row i the same sample in all; widths may differ. Or each is (B, T, D), as the
            `hidden_states` of a model: then every position is a row, and those of a sample belong together. Arrays of
            numpy or torch, or objects that convert to one; a memory-mapped array is read piece by piece.
        measures: which similarities.
        groups: (n,) the sample each row belongs to, as whole numbers from 0, if several rows share one.
        ids: the samples' names, one for each row, or for each group; with them the states are kept (by reference), and
            two such traces can be compared and merged.
        mask: (B, T) which positions count, where states are (B, T, D): those that are not padding.
        progress: called with what is done, how much there is, and what it is.

    Raises:
        DataError: what is no array of real numbers, is ragged or empty, or does not fit the rest.

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(50, 8))
        >>> result = trace_states({"a": x, "b": 2 * x + 1})
        >>> result.similarity["cka"].round(6).tolist()
        [[1.0, 1.0], [1.0, 1.0]]
        >>> trace_states([x, x[:, :3]], measures=["cka"]).names
        ('0', '1')
    """
    check_measures(measures)
    depths, notes = _by_depth(states), list[str]()
    if depths and all(array.ndim == 3 for array in depths.values()):
        depths, groups, notes = _row_per_position(depths, groups, mask)
    elif mask is not None:
        raise DataError("a mask came with states of one row a sample: it is for states of shape (B, T, D)")
    arrays = ArrayStates(depths, groups=groups)
    names = () if ids is None else _unique_ids(ids)
    if ids is not None:
        _require_id_per_sample(arrays, len(names))
    fields = by_field(similarities(arrays, tuple(measures), progress=progress))
    return Trace(
        names=arrays.names,
        **{**fields, "notes": (*notes, *fields["notes"])},
        ids=names,
        states=None if ids is None else arrays,
        provenance={
            "data": {"samples": arrays.count},
            "samples": arrays.count,
            "positions": arrays.count,
            "measures": list(measures),
            "versions": versions(),
            "created": now(),
        },
    )


def _by_depth(states: Any) -> dict[str, NDArray[Any] | Tensor]:
    """The array of each depth by its name, from a mapping, a sequence, or one array of all depths."""
    if isinstance(states, Mapping):
        return {str(name): as_numbers(str(name), array) for name, array in states.items()}
    if isinstance(states, list | tuple):
        return {str(depth): as_numbers(str(depth), array) for depth, array in enumerate(states)}
    every = as_numbers("of all depths", states)
    if every.ndim != 3:
        raise DataError(
            f"states are one array of shape {tuple(every.shape)}, expected (K, n, D): K depths, n rows, D features; "
            "of depths one by one, give a list or a dict of (n, D) arrays"
        )
    return {str(depth): every[depth] for depth in range(len(every))}


def _row_per_position(
    depths: Mapping[str, NDArray[Any] | Tensor], groups: Any, mask: Any
) -> tuple[dict[str, NDArray[Any] | Tensor], NDArray[np.int64], list[str]]:
    """States (B, T, D) with a row for each position, the sample of each row, and notes on what was assumed."""
    shapes = {tuple(array.shape[:2]) for array in depths.values()}
    if len(shapes) > 1 or groups is not None:
        what = "groups" if groups is not None else f"samples and positions {sorted(shapes)}"
        raise DataError(
            f"states of shape (B, T, D) came with {what}: expected the same samples and positions at all depths, "
            "which say themselves which rows belong together"
        )
    samples, length = shapes.pop()
    counted = np.ones((samples, length)) if mask is None else np.asarray(as_numbers("mask", mask))
    if counted.shape != (samples, length):
        raise DataError(f"the mask has shape {counted.shape}: expected {(samples, length)}, as the states have")
    chosen = np.flatnonzero(counted)
    rows = {
        name: array.reshape(samples * length, -1)[torch.from_numpy(chosen) if isinstance(array, Tensor) else chosen]
        for name, array in depths.items()
    }
    notes = [f"each of {len(chosen):,} positions of {samples:,} samples is a row"]
    if mask is None:
        notes[0] += "; if some are padding, leave them out with mask="
    return rows, chosen // length, notes


def _unique_ids(ids: Any) -> tuple[int | str, ...]:
    plain = tuple(plain_ids(ids))
    if len(set(plain)) < len(plain):
        twice = next(name for index, name in enumerate(plain) if name in plain[:index])
        raise DataError(f"the id {twice!r} names two samples, expected one id for each")
    return plain


def _require_id_per_sample(arrays: ArrayStates, count: int) -> None:
    groups = arrays.groups
    if groups is None and count != arrays.count:
        raise DataError(f"{count} ids for {arrays.count} rows, expected one for each")
    if groups is not None and not 0 <= groups.min() <= groups.max() < count:
        raise DataError(
            f"{count} ids for groups {groups.min()}..{groups.max()}, expected groups that are "
            f"numbers of ids: 0..{count - 1}"
        )


def _key(fingerprint: str, trace_pass: TracePass, keep_states: bool, ranks: int) -> str:
    # the columns of rows are part of it: a pass of an older version has others
    settings: list[Any] = [fingerprint, trace_pass.tokens, trace_pass.readout, trace_pass.labels]
    settings += [[trace_pass.keep_states, keep_states], trace_pass.stack.path, ranks, ROW_COLUMNS]
    settings += [trace_pass.positions, trace_pass.seed]
    return hashlib.blake2b(json.dumps(settings).encode(), digest_size=16).hexdigest()
