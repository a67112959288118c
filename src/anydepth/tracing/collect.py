"""One pass over the data: what every sample shows at every depth, written to disk as it goes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool
from numpy.typing import NDArray
from torch import Tensor

from anydepth.core.model_io import (
    Batch,
    call_model,
    device_of,
    fields_of,
    first_samples,
    sample_count,
    samples_of,
    to_device,
)
from anydepth.core.padding import require_tokens, warn_of_padding
from anydepth.core.patching import evaluating
from anydepth.core.stack import Stack
from anydepth.core.targets import predicts_next_token, require_one_class
from anydepth.core.tokens import IGNORED, Policy, default_policy, next_token_labels, select, some_of, valid_positions
from anydepth.errors import LabelError, NonFiniteStates, UnsupportedHead
from anydepth.measures.readout import readout_rows
from anydepth.passes.batches import digest
from anydepth.passes.disk_budget import DiskBudget
from anydepth.passes.loop import batches_per_rank, run_pass
from anydepth.passes.workspace import Workspace
from anydepth.progress import Progress

Readout = Literal["tail", "raw"] | None

# A batch is taken in pieces so that the logits of one depth stay below this many numbers (256 MB in float32).
_LOGITS_AT_ONCE = 2**26


@dataclass(frozen=True)
class TracePass:
    """What a pass is to collect."""

    stack: Stack
    tokens: Policy | None
    """Which positions stand for a sample in the states kept; None to choose by what the readout looks at."""
    readout: Readout
    labels: bool
    """Whether the data must carry labels."""
    keep_states: bool
    positions: int | None = None
    """Under the policy "each", how many positions of a sample stand for it in the states kept; None for all."""
    seed: int = 0
    """Of the draw of these positions."""
    states_limit: int | None = None
    """Most bytes that states may take on disk; None for as many as the disk holds."""

    def run(
        self,
        data: Iterable[Any],
        workspace: Workspace,
        progress: Progress | None = None,
        *,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        """Collect from all batches; what `workspace` has of an interrupted pass is not computed again.

        Args:
            data: batches; every rank is given all of them and takes each `ranks`-th, so no sample is seen twice.
            workspace: this rank's own.
            progress: called with the batches done.
            rank: of this process.
            ranks: how many processes share the work.

        Raises:
            DataError: there is no batch, or one that is no dict of tensors, pair, or tensor.
            LabelError: labels are missing or not among the model's classes.
            UnsupportedHead: the model's answer is not a choice among classes.
            NonFiniteStates: the model's own answer is NaN, or no depth has a state that is finite. (One depth that is
                not is kept as it is, and noted.)
            TraceFileError: the disk, or `states_limit`, has no room for what is to be kept.
        """
        batches = len(data) if isinstance(data, Sized) else None
        room = DiskBudget(workspace, self.states_limit, batches_per_rank(batches, ranks), ranks)

        def report(done: int, total: int | None, what: str) -> None:
            if progress:
                progress(done, total, room.told(what))

        with evaluating(self.stack.model), torch.no_grad():
            run_pass(
                data,
                workspace,
                partial(self._rows, workspace, room),
                labels=self.labels,
                progress=report,
                rank=rank,
                ranks=ranks,
                model=self.stack.model,
            )

    def _rows(
        self, workspace: Workspace, room: DiskBudget, index: int, batch: Batch, labels: Tensor | None, first: int
    ) -> list[tuple[str, NDArray[Any], Any]]:
        """What a batch shows; the first one settles how it is looked at."""
        device = device_of(self.stack.model)
        if not workspace.facts:
            workspace.facts = self._decide(batch, labels, device)
        if workspace.facts.get("counts_padding") is None:
            workspace.facts["counts_padding"] = warn_of_padding(self.stack, to_device(batch, device))
        if workspace.facts["readout"] and not workspace.facts["per_position"]:
            require_tokens(batch, f"batch {index}")
        found = self._collect(index, to_device(batch, device), labels, workspace.facts, first)
        if self.keep_states:
            states = next(rows for name, rows, _ in found if name == "states")
            room.take(states.nbytes, each=workspace.facts["tokens"] == "each")
        return found

    def _decide(self, batch: Batch, labels: Tensor | None, device: torch.device) -> dict[str, Any]:
        """What kind of answer the model gives, and which positions stand for a sample: settled by the first batch."""
        model, batch = self.stack.model, to_device(batch, device)
        self.stack.verify(batch)
        few = first_samples(batch, 1)
        state = self.stack.states(few)[-1]
        answer = self.stack.readout(state, few)
        per_position, next_token = answer.ndim == 3, predicts_next_token(model)
        has_classes = self.stack.answers_with_logits(labelled=labels is not None)
        if self.readout and labels is not None and self.labels and self.stack.unnamed_answers:
            names = [name for name, value in fields_of(call_model(model, few)).items() if isinstance(value, Tensor)]
            raise UnsupportedHead(
                f"{type(model).__name__} answers with {', '.join(map(repr, names))}, expected one answer for each "
                "sample, or one that is called 'logits': rename it, or trace its similarity alone (readout=None, "
                "--readout none)"
            )
        if has_classes and self.readout:
            require_one_class(model, answer, labels, "trace its similarity alone (readout=None, --readout none)")
        if has_classes and self.readout and self.labels and labels is None and not next_token:
            raise LabelError(
                "the batches have no 'labels', expected one class per sample; add them, or trace without (labels=False)"
            )
        tokens = self.tokens or default_policy(self.stack, batch, labels_each=has_classes and per_position)
        return {
            "tokens": tokens,
            "tokens_chosen": self.tokens is None,
            "drawn": self.positions if tokens == "each" else None,
            "readout": self.readout if has_classes else None,
            "has_classes": has_classes,
            "labelled": self.labels and has_classes and (labels is not None or next_token),
            "next_token": next_token,
            "per_position": per_position,
            "final_norm": self.stack.has_final_norm,
            "classes": answer.shape[-1] if has_classes else None,
            "width": state.shape[-1],
        }

    def _collect(
        self, index: int, batch: Batch, labels: Tensor | None, facts: Mapping[str, Any], first: int
    ) -> list[tuple[str, NDArray[Any], Any]]:
        if facts["labelled"] and labels is None and not facts["next_token"]:
            raise LabelError(
                f"batch {index} has no 'labels', as those before it have; add them, or trace without (labels=False)"
            )
        tables: list[dict[str, NDArray[Any]]] = []
        for piece in _pieces(batch, facts):
            part = samples_of(batch, piece)
            states = self.stack.states(part)
            valid = valid_positions(part, states[0])
            rows = self._state_rows(states, self._drawn(part, valid, facts), facts["tokens"], first + piece.start)
            broken = _broken_states(rows, len(states), index, states[0])
            table = rows if self.keep_states else {}
            if facts["readout"]:
                own = labels[piece] if labels is not None and facts["labelled"] else None
                answers = self._readout_rows(part, states, valid, own, facts, index, first + piece.start)
                broken += _broken_readouts(answers, index, states[0], [depth for _, depth, _, _ in broken])
                table |= answers
            table["broken"] = np.array(broken, dtype=np.int64).reshape(-1, 4)
            tables.append(table)
        return [(name, np.concatenate([table[name] for table in tables]), tables[0][name].dtype) for name in tables[0]]

    def _drawn(self, batch: Batch, valid: Bool[Tensor, "b t"], facts: Mapping[str, Any]) -> Bool[Tensor, "b t"]:
        """The positions whose states are kept; a sample's draw goes by what it holds, not by its place in the data."""
        if facts["drawn"] is None:
            return valid
        return some_of(valid, facts["drawn"], [(self.seed, int(content)) for content in digest(batch)])

    def _state_rows(
        self, states: list[Tensor], valid: Bool[Tensor, "b t"], tokens: Policy, first: int
    ) -> dict[str, NDArray[Any]]:
        selected = []
        for state in states:
            rows, sample = select(state, valid, tokens)
            selected.append(rows.float())
        return {
            "states": torch.cat(selected, dim=1).cpu().numpy(),
            "states_sample": sample.cpu().numpy() + first,
        }

    def _readout_rows(
        self,
        batch: Batch,
        states: list[Tensor],
        valid: Bool[Tensor, "b t"],
        labels: Tensor | None,
        facts: Mapping[str, Any],
        index: int,
        first: int,
    ) -> dict[str, NDArray[Any]]:
        sample, position = torch.arange(len(valid), device=valid.device), None
        if labels is not None:
            labels = labels.to(valid.device)
        if facts["per_position"]:
            if labels is not None:
                _require_each(labels, valid, index)
            if facts["next_token"] and facts["labelled"]:
                labels = next_token_labels(batch, labels, valid)
            sample, position = (valid if labels is None else valid & (labels != IGNORED)).nonzero(as_tuple=True)
            labels = labels[sample, position] if labels is not None else None
        if labels is not None:
            labels = _checked(labels, facts["classes"], index)
        found = []
        for depth, state in enumerate(states):
            final_norm = facts["readout"] == "tail" or depth == self.stack.depth
            # nothing was trained to read h[0] with: it takes the model's own classifier
            logits = self.stack.readout(state, batch, depth=depth or None, final_norm=final_norm)
            found.append(readout_rows(logits if position is None else logits[sample, position], labels))
        absent = torch.full_like(sample, IGNORED)
        # counted without padding, which may stand before a text, and is as long as the other texts of the batch make it
        place = absent if position is None else (valid.cumsum(dim=1) - 1)[sample, position]
        unknown = torch.full(found[0].confidence.shape, float("nan"), dtype=torch.float32, device="cpu")
        entropies = [unknown if one.cross_entropy is None else one.cross_entropy.cpu() for one in found]
        return {
            "sample": sample.cpu().numpy() + first,
            "position": place.cpu().numpy().astype(np.int32),
            "label": (absent if labels is None else labels).cpu().numpy(),
            "prediction": torch.stack([one.prediction for one in found], 1).cpu().numpy().astype(np.int32),
            "cross_entropy": torch.stack(entropies, 1).float().numpy(),
            "confidence": torch.stack([one.confidence for one in found], 1).cpu().float().numpy(),
            "entropy": torch.stack([one.entropy for one in found], 1).float().numpy(),
        }


def _pieces(batch: Batch, facts: Mapping[str, Any]) -> Iterator[slice]:
    count = sample_count(batch)
    each = facts["classes"] or 1
    if facts["per_position"] and isinstance(batch, Mapping) and isinstance(batch.get("input_ids"), Tensor):
        each *= batch["input_ids"].shape[-1]
    size = max(1, _LOGITS_AT_ONCE // each)
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def _broken_states(
    rows: Mapping[str, NDArray[Any]], depths: int, index: int, state: Tensor
) -> list[tuple[int, int, int, int]]:
    """Which depths hold NaN or infinity: kind 0, depth, batch, and the first sample; see `assembly`.

    Raises:
        NonFiniteStates: all depths do.
    """
    kept = rows["states"]
    finite = np.isfinite(kept.reshape(len(kept), depths, kept.shape[1] // depths)).all(2)
    broken = np.flatnonzero(~finite.all(0))
    if len(broken) == depths:
        raise NonFiniteStates(
            f"the states at all depths hold NaN or infinity in batch {index}; {_expected_finite(state)}"
        )
    return [(0, int(depth), index, int(rows["states_sample"][~finite[:, depth]][0])) for depth in broken]


def _broken_readouts(
    answers: Mapping[str, NDArray[Any]], index: int, state: Tensor, depths: list[int]
) -> list[tuple[int, int, int, int]]:
    """At which depths the readout gives NaN: kind 1, depth, batch, and the first sample.

    Raises:
        NonFiniteStates: at the last depth, which is the model's own answer.
    """
    undefined = np.isnan(answers["confidence"])
    if undefined.shape[1] and undefined[:, -1].any():
        since = f", and the state not finite from depth {depths[0]} on" if depths else ""
        raise NonFiniteStates(f"the model's own answer is NaN in batch {index}{since}; {_expected_finite(state)}")
    broken = np.flatnonzero(undefined.any(0))
    return [(1, int(depth), index, int(answers["sample"][undefined[:, depth]][0])) for depth in broken]


def _expected_finite(state: Tensor) -> str:
    dtype = str(state.dtype).removeprefix("torch.")
    return f"expected finite numbers: try another dtype (this one is {dtype}), or look at that batch"


def _require_each(labels: Tensor, valid: Bool[Tensor, "b t"], index: int) -> None:
    if labels.is_floating_point() or labels.shape != valid.shape:
        raise LabelError(
            f"labels are {str(labels.dtype).removeprefix('torch.')} of shape {tuple(labels.shape)} in batch {index}, "
            f"expected one whole number for each position: {tuple(valid.shape)}"
        )


def _checked(labels: Tensor, classes: int, index: int) -> Tensor:
    if labels.is_floating_point() or labels.ndim != 1:
        raise LabelError(
            f"labels are {str(labels.dtype).removeprefix('torch.')} of shape {tuple(labels.shape)} in batch {index}, "
            "expected one whole number per sample"
        )
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        raise LabelError(
            f"label {labels[wrong][0].item()} in batch {index} is out of range, expected 0..{classes - 1} "
            f"for this classifier of {classes} classes"
        )
    return labels.long()
