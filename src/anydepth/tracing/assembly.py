"""Builds a trace from the rows that a pass wrote to disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anydepth.core.padding import COUNTED
from anydepth.core.provenance import data_fingerprint, now, versions
from anydepth.core.stack import Stack
from anydepth.core.windows import texts_of
from anydepth.errors import IncompatibleTraces, LabelError
from anydepth.measures.similarity import similarities
from anydepth.passes.workspace import PassFacts, Workspace
from anydepth.progress import Progress
from anydepth.results.notes import explain_blank_depth_0, unequal
from anydepth.results.trace_data import ROW_COLUMNS, Rows, by_field
from anydepth.storage.rows import StoredStates
from anydepth.tracing.trace import Trace


class CollectedRows:
    """The rows of a pass, from the workspaces of all its processes, in the order of the data.

    Raises:
        IncompatibleTraces: the processes have models or data of different kinds.
    """

    def __init__(self, workspaces: Sequence[Workspace]) -> None:
        self._workspaces = [workspace for workspace in workspaces if workspace.batches]
        facts = [workspace.facts for workspace in self._workspaces if workspace.facts is not None]
        self.facts = facts[0]
        for other in facts:
            if other != self.facts:
                raise IncompatibleTraces(
                    f"processes disagree on what they trace: {asdict(self.facts)} and {asdict(other)}; "
                    "give all of them the same model, data and settings"
                )
        number = self.read("number")
        assert number is not None
        self._numbers = number
        self._order = np.argsort(number, kind="stable")

    def read(self, name: str) -> NDArray[Any] | None:
        """The rows of that name, one process after the other; None if there are none."""
        parts = [rows for workspace in self._workspaces if (rows := workspace.read(name)) is not None]
        return np.concatenate(parts) if parts else None

    @property
    def ids(self) -> tuple[Any, ...]:
        """The sample ids, in the order of the data."""
        ids = [name for workspace in self._workspaces for name in workspace.ids()]
        return tuple(ids[index] for index in self._order)

    @property
    def digests(self) -> NDArray[np.uint64]:
        """A hash of each sample's content, in the order of the data."""
        digests = self.read("digest")
        assert digests is not None
        return digests[self._order]

    @property
    def rows(self) -> Rows | None:
        """The readout of every answer, in the order of the data; None without a readout."""
        samples = self.read("sample")
        if samples is None:
            return None
        order = np.argsort(samples, kind="stable")
        columns = {name: self.read(name) for name in ROW_COLUMNS} | {"sample": self._ranks(samples)}
        return Rows(**{name: column[order] for name, column in columns.items() if column is not None})

    def _ranks(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The places of samples among those of the pass, which may be a part of the data."""
        return np.searchsorted(self._numbers[self._order], numbers)

    def states(self, depths: int, *, named: bool) -> StoredStates | None:
        """The hidden states on disk; None if none were kept.

        Args:
            depths: K.
            named: whether they are as they lie, and groups are their samples, even where each has a single row.
                Otherwise they are in the order of the data, and groups are texts, of which several windows may be
                samples, and None where each has a single row.
        """
        groups = self.read("states_sample")
        if groups is None:
            return None
        parts = [workspace.path("states") for workspace in self._workspaces]
        widths = tuple(self.facts.widths or [self.facts.width] * depths)
        if named:
            return StoredStates(parts, widths, self._ranks(groups))
        order = np.argsort(groups, kind="stable")
        groups = texts_of(self.ids)[self._ranks(groups)[order]]
        alone = len(np.unique(groups)) == len(groups)
        return StoredStates(parts, widths, None if alone else groups, order=order)


def build_trace(
    collected: CollectedRows,
    stack: Stack,
    *,
    measures: tuple[str, ...],
    origin: Mapping[str, Any],
    keep_states: bool,
    sums: bool,
    seed: int,
    progress: Progress | None = None,
) -> Trace:
    """Measure the similarity of the collected states, and put the numbers together as a trace.

    Args:
        collected: the rows of all processes.
        stack: the model that was run.
        measures: names of similarities.
        origin: "model", "data" and "notes" for the provenance.
        keep_states: whether the trace is to hold the states.
        sums: whether to keep the sums of CKA, so that the trace can be merged.
        seed: of the assignment of samples to parts, for intervals.
        progress: called as measures go through the rows.
    """
    facts, parameter = collected.facts, next(stack.model.parameters())
    states, rows, digests = collected.states(stack.depth + 1, named=False), collected.rows, collected.digests
    if rows is not None and not len(rows):
        raise LabelError("no position of the data has a label: expected one that is not -100, or a text of two tokens")
    fields: dict[str, Any] = {"similarity": {}, "notes": ()}
    if states is not None and measures:
        # products are computed on the model's GPU; MPS has no float64
        device = parameter.device if parameter.device.type == "cuda" else "cpu"
        fields = by_field(similarities(states, measures, mergeable=sums, seed=seed, device=device, progress=progress))
        fields["moments"] = fields["moments"] if sums else None
    provenance = {
        "model": origin["model"],
        "data": {**origin["data"], "fingerprint": data_fingerprint(digests), "samples": len(digests)},
        "samples": len(digests),
        "positions": len(digests) if states is None else states.count,
        "answers": 0 if rows is None else len(rows),
        "next_token": facts.next_token and facts.per_position,
        "tokens": facts.tokens,
        "measures": list(measures),
        "readout": facts.readout,
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "device": str(parameter.device.type),
        "seed": seed,
        "versions": versions(),
        "created": now(),
    }
    notes = (
        *origin["notes"],
        *_notes(facts, type(stack.model).__name__),
        *(["each depth below the last is read out by a classifier of its own"] if stack.heads is not None else []),
        *_broken(collected),
        *unequal(texts_of(collected.ids), rows),
        *explain_blank_depth_0(fields.pop("notes"), facts.tokens),
    )
    return Trace(
        names=tuple(map(str, range(stack.depth + 1))),
        **fields,
        notes=notes,
        rows=rows,
        ids=collected.ids,
        digests=digests,
        provenance=provenance,
        states=collected.states(stack.depth + 1, named=True) if keep_states else None,
    )


def _notes(facts: PassFacts, model: str) -> Iterator[str]:
    """Notes on defaults that were chosen, and on statistics that are missing and why."""
    if facts.tokens_chosen:
        why = {
            "first": "it is what the model's readout looks at",
            "last": "it is what the model's readout looks at",
            "mean": "the model's readout looks at all positions alike",
            "each": "the model answers at each position",
        }[facts.tokens]
        why = "positions of different stages do not correspond" if facts.first_readout else why
        yield f"token policy {facts.tokens!r}: {why}"
    if facts.first_readout and facts.readout:
        yield (
            f"the readout exists from depth {facts.first_readout} on: the model's head accepts the states of its last "
            "stage alone, and what is read out is blank at the depths before"
        )
    if facts.counts_padding:
        yield COUNTED
    if facts.drawn is not None:
        yield f"similarity is over at most {facts.drawn:,} positions of each sample, drawn at random"
    if not facts.has_classes:
        yield f"{model} has no classifier: accuracy, confidence and saturation are missing, similarity needs none"
    elif facts.readout and not facts.labelled:
        matched = "each query is an answer: labels would have to be matched with them, so "
        why = matched if facts.queries else "traced without labels: "
        yield f"{why}accuracy, cross-entropy and the stays-correct rate are missing"
    if facts.readout and facts.one_by_one:
        yield (
            f"{model} scores classes one by one, and has none for no object: confidence and entropy are those of a "
            "softmax over them"
        )
    if facts.readout == "raw":
        if facts.final_norm:
            yield "readout 'raw': the final norm is left out below the last depth, to reproduce code that forgot it"
        else:
            yield "readout 'raw' is the same as 'tail' here: no norm reads the last block's output as it is"


def _broken(collected: CollectedRows) -> Iterator[str]:
    """Notes on depths that are blank because they hold NaN or infinity, with the first batch and sample."""
    broken = collected.read("broken")
    if broken is None or not len(broken):
        return
    ids, broken = collected.ids, broken[np.lexsort(broken.T[::-1])]
    for kind, what in ((0, "the state at depth {} holds NaN or infinity"), (1, "the readout at depth {} gives NaN")):
        for depth in np.unique(broken[broken[:, 0] == kind, 1]).tolist():
            here = broken[(broken[:, 0] == kind) & (broken[:, 1] == depth)]
            batches = f"batch {here[0, 2]}" + (f" and {len(np.unique(here[:, 2])) - 1} more" if len(here) > 1 else "")
            yield f"{what.format(depth)} in {batches}, first in sample {ids[here[0, 3]]!r}: it is blank there"
