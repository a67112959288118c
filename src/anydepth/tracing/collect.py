"""The pass of a trace: hidden states and readouts of every sample at every depth, written to disk batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from numpy.typing import NDArray
from torch import Tensor

from anydepth.core.model_io import (
    Batch,
    answer_fields,
    call_model,
    device_of,
    fields_of,
    predicts_next_token,
    to_device,
)
from anydepth.core.padding import require_tokens, warn_of_padding
from anydepth.core.patching import evaluating
from anydepth.core.readouts import Readouts
from anydepth.core.stack import Stack
from anydepth.core.targets import require_classes, require_one_class, whole_labels
from anydepth.core.tokens import IGNORED, Policy, default_policy, next_token_labels, select, some_of
from anydepth.errors import DataError, LabelError, NonFiniteStates, UnsupportedHead
from anydepth.measures.readout import readout_rows_in_pieces
from anydepth.passes.batches import digest
from anydepth.passes.disk_budget import DiskBudget
from anydepth.passes.loop import batches_per_rank, run_pass
from anydepth.passes.workspace import PassFacts, Readout, Workspace
from anydepth.progress import Progress

Numbers = NDArray[np.int64]
_INSTEAD = "trace its similarity alone (readout=None, --readout none)"


@dataclass(frozen=True, kw_only=True)
class TracePass:
    """Settings of the pass of a trace."""

    stack: Stack
    tokens: Policy | None
    """Which positions stand for a sample in the states kept; None to choose by where the readout looks."""
    readout: Readout
    labels: bool
    """Whether the data must carry labels."""
    keep_states: bool
    positions: int | None = None
    """Under the policy "each", how many positions of a sample stand for it in the states kept; None for all."""
    seed: int = 0
    """Of the draw of these positions."""
    states_limit: int | None = None
    """Most bytes that states may take on disk; None for as many as the disk has."""

    def run(
        self,
        data: Iterable[Any],
        workspace: Workspace,
        progress: Progress | None = None,
        *,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        """Write the rows of all batches to the workspace, see `anydepth.passes.loop.run_pass`.

        Raises:
            DataError: there is no batch, or one that is no dict of tensors, pair, or tensor.
            LabelError: labels are missing or not among the model's classes.
            UnsupportedHead: the model's answer is not a choice among classes.
            NonFiniteStates: the model's own answer is NaN, or no depth has a state that is finite. (One depth that is
                not is kept as it is, and noted.)
            TraceFileError: the disk, or `states_limit`, has no room for the rows.
        """
        batches = len(data) if isinstance(data, Sized) else None
        budget = DiskBudget(workspace, self.states_limit, batches_per_rank(batches, ranks), ranks)

        def report(done: int, total: int | None, what: str) -> None:
            if progress:
                progress(done, total, budget.describe(what))

        with evaluating(self.stack.model), torch.no_grad():
            run_pass(
                data,
                workspace,
                partial(self._collect, workspace, budget),
                labels=self.labels,
                progress=report,
                rank=rank,
                ranks=ranks,
                model=self.stack.model,
            )

    def _collect(
        self,
        workspace: Workspace,
        budget: DiskBudget,
        index: int,
        batch: Batch,
        labels: Tensor | None,
        numbers: Numbers,
    ) -> list[tuple[str, NDArray[Any], Any]]:
        """The rows of a batch, whose samples have these places in the data: file name, rows, dtype."""
        on_device = to_device(batch, device_of(self.stack.model))
        facts = workspace.facts or self._facts(on_device, labels)
        if facts.counts_padding is None:
            facts = replace(facts, counts_padding=warn_of_padding(self.stack, on_device))
        workspace.facts = facts
        if facts.readout and not facts.per_position:
            require_tokens(batch, f"batch {index}")
        if facts.labelled and labels is None and not facts.next_token:
            raise LabelError(
                f"batch {index} has no 'labels', as those before it have; add them, or trace without (labels=False)"
            )
        rows = self._tables(index, on_device, labels, facts, numbers)
        if self.keep_states:
            budget.reserve(rows["states"].nbytes, each=facts.tokens == "each")
        return [(name, values, values.dtype) for name, values in rows.items()]

    def _facts(self, batch: Batch, labels: Tensor | None) -> PassFacts:
        """The kind of the model's answer, and which positions stand for a sample, by the first batch."""
        model = self.stack.model
        self.stack.verify(batch)
        few = self.stack.few(batch)
        states, answer = self.stack.forward(few)
        per_position, next_token = answer.ndim == 3, predicts_next_token(model)
        has_classes = self.stack.answers_with_logits(labelled=labels is not None)
        if self.readout and labels is not None and self.labels and self.stack.unnamed_answers:
            names = [name for name, value in fields_of(call_model(model, few)).items() if isinstance(value, Tensor)]
            raise UnsupportedHead(
                f"{type(model).__name__} answers with {', '.join(map(repr, names))}, expected one answer for each "
                f"sample, or one that is called 'logits': rename it, or {_INSTEAD}"
            )
        queries = has_classes and self._answers_queries(few, answer)
        if has_classes and self.readout:
            require_one_class(model, answer, labels, _INSTEAD)
        if has_classes and self.readout and self.labels and labels is None and not (next_token or queries):
            raise LabelError(
                "the batches have no 'labels', expected one class per sample; add them, or trace without (labels=False)"
            )
        tokens = self._policy(batch, labels_each=has_classes and per_position)
        return PassFacts(
            tokens=tokens,
            tokens_chosen=self.tokens is None,
            drawn=self.positions if tokens == "each" else None,
            readout=self.readout if has_classes else None,
            has_classes=has_classes,
            labelled=self.labels and has_classes and not queries and (labels is not None or next_token),
            next_token=next_token,
            per_position=per_position,
            final_norm=self.stack.has_final_norm,
            classes=answer.shape[-1] if has_classes else None,
            width=states[-1].shape[-1],
            widths=[state.shape[-1] for state in states] if self.stack.entry else None,
            first_readout=self.stack.first_readout,
            queries=queries,
            one_by_one=queries and answer.shape[-1] == getattr(getattr(model, "config", None), "num_labels", None),
        )

    def _answers_queries(self, batch: Batch, answer: Tensor) -> bool:
        """Whether answers are for positions that no input has, and say more of each than its class (a box)."""
        if answer.ndim != 3 or not isinstance(batch, Mapping):
            return False
        inputs = (value for value in batch.values() if isinstance(value, Tensor) and value.ndim in (2, 3))
        if any(value.shape[:2] == answer.shape[:2] for value in inputs):
            return False
        states = self.stack.states(batch)
        beside = answer_fields(self.stack.readout_output(states, batch, depth=self.stack.depth))
        return any(value.shape[-1] not in (answer.shape[-1], states[-1].shape[-1]) for value in beside.values())

    def _policy(self, batch: Batch, *, labels_each: bool) -> Policy:
        """The policy given, or by where the readout looks; across stages the mean, unless another is given.

        Raises:
            DataError: "each" across stages, whose positions do not correspond.
        """
        if self.stack.entry and self.tokens == "each":
            raise DataError(
                f"tokens is 'each', and {type(self.stack.model).__name__} runs in stages, whose positions do not "
                "correspond: expected 'mean', 'first' or 'last'"
            )
        default: Policy | None = "mean" if self.stack.entry else None
        return self.tokens or default or default_policy(self.stack, batch, labels_each=labels_each)

    def _tables(
        self, index: int, batch: Batch, labels: Tensor | None, facts: PassFacts, numbers: Numbers
    ) -> dict[str, NDArray[Any]]:
        """The rows of batch `index`, whose samples have these places in the data."""
        readouts = Readouts(self.stack, batch)
        states = readouts.states
        valid = self.stack.valid_at_depths(batch, states)
        kept = _of_common_samples(valid)
        if facts.drawn is not None:  # a sample's draw depends on its content, not on its place in the data
            seeds = [(self.seed, int(content)) for content in digest(batch)]
            kept = [some_of(valid[-1], facts.drawn, seeds)] * len(states)
        rows = _state_rows(states, kept, facts.tokens, numbers)
        broken = _broken_states(rows, [state.shape[-1] for state in states], index, states[0])
        table = rows if self.keep_states else {}
        if facts.readout:
            answered = self.stack.valid_answers(batch, readouts.answer) if facts.per_position else valid[-1]
            labels = labels if facts.labelled else None
            answers = self._readout_rows(batch, readouts, answered, labels, facts, index, numbers)
            broken += _broken_readouts(answers, facts, index, states[0], [depth for _, depth, _, _ in broken])
            table |= answers
        return table | {"broken": np.array(broken, dtype=np.int64).reshape(-1, 4)}

    def _readout_rows(
        self,
        batch: Batch,
        readouts: Readouts,
        valid: Bool[Tensor, "b t"],
        labels: Tensor | None,
        facts: PassFacts,
        index: int,
        numbers: Numbers,
    ) -> dict[str, NDArray[Any]]:
        sample, position, where = torch.arange(len(valid), device=valid.device), None, f" in batch {index}"
        if labels is not None:
            shape = tuple(valid.shape) if facts.per_position else (len(valid),)
            labels = whole_labels(labels.to(valid.device), shape, where)
        if facts.per_position:
            if facts.next_token and facts.labelled:
                labels = next_token_labels(batch, labels, valid).long()
            sample, position = (valid if labels is None else valid & (labels != IGNORED)).nonzero(as_tuple=True)
            labels = labels[sample, position] if labels is not None else None
        assert facts.classes is not None
        if labels is not None:
            require_classes(labels, facts.classes, where)
        answered = None if position is None else (sample, position)
        columns = []
        for depth in range(facts.first_readout, self.stack.depth + 1):
            final_norm = facts.readout == "tail" or depth == self.stack.depth
            # no head was trained on h[0]: it is read out by the model's own classifier
            pieces = readouts.pieces(depth, classes=facts.classes, where=answered, final_norm=final_norm)
            columns.append(readout_rows_in_pieces(pieces, labels))
        absent = torch.full_like(sample, IGNORED)
        # counted without padding, which may stand before a text, and is as long as the other texts of the batch make it
        place = absent if position is None else (valid.cumsum(dim=1) - 1)[sample, position]
        unknown = torch.full(columns[0].confidence.shape, float("nan"), dtype=torch.float32, device="cpu")
        entropies = [unknown if rows.cross_entropy is None else rows.cross_entropy.cpu() for rows in columns]
        return {
            "sample": numbers[sample.cpu().numpy()],
            "position": place.cpu().numpy().astype(np.int32),
            "label": (absent if labels is None else labels).cpu().numpy(),
            "prediction": _all_depths([rows.prediction for rows in columns], facts, -1).astype(np.int32),
            "cross_entropy": _all_depths(entropies, facts, np.nan).astype(np.float32),
            "confidence": _all_depths([rows.confidence for rows in columns], facts, np.nan).astype(np.float32),
            "entropy": _all_depths([rows.entropy for rows in columns], facts, np.nan).astype(np.float32),
        }


def _all_depths(columns: list[Tensor], facts: PassFacts, blank: int | float) -> NDArray[Any]:
    """(n, K): a column for each depth that can be read out, after blank ones for those that cannot."""
    rows = torch.stack(columns, 1).cpu().numpy()
    return np.pad(rows, ((0, 0), (facts.first_readout, 0)), constant_values=blank)


def _of_common_samples(valid: list[Bool[Tensor, "b _"]]) -> list[Bool[Tensor, "b _"]]:
    """The valid positions at each depth, of the samples that have some at every depth."""
    common = torch.stack([positions.any(1).to(valid[-1].device) for positions in valid]).all(0)
    return [positions & common[:, None].to(positions.device) for positions in valid]


def _state_rows(
    states: list[Tensor], valid: list[Bool[Tensor, "b _"]], tokens: Policy, numbers: Numbers
) -> dict[str, NDArray[Any]]:
    selected = [select(state, positions, tokens) for state, positions in zip(states, valid, strict=True)]
    return {
        "states": torch.cat([rows.float() for rows, _ in selected], dim=1).cpu().numpy(),
        "states_sample": numbers[selected[0][1].cpu().numpy()],
    }


def _broken_states(
    rows: Mapping[str, NDArray[Any]], widths: Sequence[int], index: int, state: Tensor
) -> list[tuple[int, int, int, int]]:
    """Depths whose states hold NaN or infinity, as rows (0, depth, batch, first sample).

    Raises:
        NonFiniteStates: all depths do.
    """
    parts = np.split(np.isfinite(rows["states"]), np.cumsum(widths)[:-1], axis=1)
    finite = np.stack([part.all(1) for part in parts], axis=1)
    broken = np.flatnonzero(~finite.all(0))
    if len(broken) == len(widths):
        raise NonFiniteStates(
            f"the states at all depths hold NaN or infinity in batch {index}; {_expected_finite(state)}"
        )
    return [(0, int(depth), index, int(rows["states_sample"][~finite[:, depth]][0])) for depth in broken]


def _broken_readouts(
    answers: Mapping[str, NDArray[Any]], facts: PassFacts, index: int, state: Tensor, depths: list[int]
) -> list[tuple[int, int, int, int]]:
    """Depths whose readout is NaN, as rows (1, depth, batch, first sample).

    Raises:
        NonFiniteStates: at the last depth, which is the model's own answer.
    """
    undefined = np.isnan(answers["confidence"])
    undefined[:, : facts.first_readout] = False  # blank by construction, and said once
    if undefined.shape[1] and undefined[:, -1].any():
        since = f", and the state not finite from depth {depths[0]} on" if depths else ""
        raise NonFiniteStates(f"the model's own answer is NaN in batch {index}{since}; {_expected_finite(state)}")
    broken = np.flatnonzero(undefined.any(0))
    return [(1, int(depth), index, int(answers["sample"][undefined[:, depth]][0])) for depth in broken]


def _expected_finite(state: Tensor) -> str:
    dtype = str(state.dtype).removeprefix("torch.")
    return f"expected finite numbers: try another dtype (this one is {dtype}), or look at that batch"
