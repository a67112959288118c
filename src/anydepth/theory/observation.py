"""The pass over the data for the theory: the states, classifier inputs and class probabilities of each answer.

A trace keeps one short row for each answer and a state for each selected position. Here the two must belong together,
and the probability of the final class is needed at every depth, so the data are read once more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from anydepth.core.model_io import Batch, device_of, predicts_next_token, sample_count, samples_of, to_device
from anydepth.core.patching import evaluating
from anydepth.core.stack import Stack
from anydepth.core.targets import Targets, require_one_class
from anydepth.core.tokens import IGNORED, Policy, check_policy, default_policy, select
from anydepth.errors import DataError, LabelError, NonFiniteStates, UnsupportedHead
from anydepth.passes.batches import Places, as_batch, as_batches, digest
from anydepth.progress import Progress
from anydepth.storage.files import require_space
from anydepth.storage.rows import RowFile, StoredStates
from anydepth.theory.closeness import log_probability

# Logits taken at a time: those of one depth of a piece of a batch, and those turned into float64.
_PIECE, _EXACT = 2**26, 2**22
_NEED_ANSWERS = "Theorem 2.2, neural collapse and what blocks write"


@dataclass(frozen=True, kw_only=True)
class Observed:
    """Data collected by the pass, in the order of the data.

    A row is an answer, or, where the model gives none, a selected position.

    Attributes:
        states: of the rows at all depths.
        tokens: which positions represent a sample.
        digests: 64 bits of each sample's content, in any order.
        labels: the true class of each row; None without labels.
        final: the top class at the last depth; None without a classifier.
        log_probability: nats of the "true" and the "final" class at each depth, as far as there are such classes.
        features: the classifier's input at each depth; None where logits are no linear map of it.
        weight: of the classifier, if there are features.
        notes: what is missing, and why.
    """

    states: StoredStates
    tokens: str
    digests: NDArray[np.uint64]
    labels: Int64[np.ndarray, " n"] | None
    final: Int64[np.ndarray, " n"] | None
    log_probability: dict[str, Float32[np.ndarray, "n k"]]
    features: StoredStates | None
    weight: Float64[np.ndarray, "c d"] | None
    notes: tuple[str, ...]


def observe(
    stack: Stack,
    data: Iterable[Any],
    folder: Path,
    *,
    tokens: str | None = None,
    readout: bool = True,
    labels: bool = True,
    progress: Progress | None = None,
    what: str = "theory",
) -> Observed:
    """Run a model over data once and collect what the tests of the theory need; large arrays lie in `folder`.

    The folder must outlive the result. See `anydepth.theory.examine.examine` for the arguments.

    Raises:
        DataError: there is no batch, or one that is no dict of tensors, pair, or tensor.
        LabelError: labels are out of range or of the wrong kind, or some batches have them and others don't.
        UnsupportedHead: the model's answer is not a choice among classes.
        NonFiniteStates: a state holds NaN or infinity.
    """
    data, device = as_batches(data), device_of(stack.model)
    total = len(data) if isinstance(data, Sized) else None
    reader: _Reader | None = None
    digests, order, places, first = [], [], Places(), 0
    with closing(_Rows(folder)) as rows, evaluating(stack.model), torch.no_grad():
        for index, item in enumerate(data):
            inputs, truth, ids = as_batch(item, first, stack.model)
            numbers = places.of(item, len(ids))
            batch, truth = to_device(inputs, device), truth if labels else None
            reader = reader or _first_reader(stack, batch, truth, tokens, readout)
            if reader.labelled and truth is None and not predicts_next_token(stack.model):
                raise LabelError(f"batch {index} has no 'labels', as those before it have: add them, or leave all out")
            for piece in reader.pieces(batch):
                columns = reader.rows(samples_of(batch, piece), None if truth is None else truth[piece])
                columns["sample"] = numbers[piece][columns["sample"]]
                rows.append(columns)
            if not index and total:
                require_space(folder, (total - 1) * rows.bytes, f"the rows of {total} batches")
            digests.append(digest(inputs))
            order.append(numbers)
            first += len(ids)
            if progress:
                progress(index + 1, total, f"{what} batches")
    if reader is None:
        raise DataError("the data set is empty: expected at least one batch (each pass reads the data anew)")
    in_order = np.argsort(np.concatenate(order), kind="stable")
    return _read_back(rows, reader, np.concatenate(digests)[in_order])


@dataclass(frozen=True, kw_only=True)
class _Reader:
    """Reads rows from batches; its settings follow from the first batch.

    `classes` is 0 where no answers belong to the states; `linear` is the classifier, where logits are a linear map of
    its input; `notes` say what is missing, and why.
    """

    stack: Stack
    tokens: Policy
    per_position: bool
    classes: int = 0
    labelled: bool = False
    linear: nn.Linear | None = None
    notes: tuple[str, ...] = ()

    def pieces(self, batch: Batch) -> Iterator[slice]:
        """Slices of the samples whose logits fit in memory at a time."""
        count, positions = sample_count(batch), 1
        if self.per_position and not isinstance(batch, Tensor):
            positions = max(entry.shape[1] for entry in batch.values() if isinstance(entry, Tensor) and entry.ndim > 1)
        size = max(1, _PIECE // max(1, self.classes * positions))
        for start in range(0, count, size):
            yield slice(start, min(start + size, count))

    def rows(self, batch: Batch, truth: Tensor | None) -> dict[str, NDArray[Any]]:
        """Columns of the rows of some samples; `sample` counts from the first of them."""
        states, answer = self.stack.forward(batch)
        valid, labels = self.stack.valid_positions(batch, states[0]), None
        if self.labelled:
            labels = Targets.of(self.stack, batch, truth, answer).labels.reshape(answer.shape[:-1])
        if labels is not None and self.per_position:
            valid = valid & (labels != IGNORED).to(valid.device)
        elif labels is not None and (labels == IGNORED).any():
            raise LabelError(f"a sample has the label {IGNORED}, which stands for none: expected a class for each")
        sample = select(states[0], valid, self.tokens)[1]
        rows = torch.cat([select(state, valid, self.tokens)[0].float() for state in states], dim=1)
        if not rows.isfinite().all():
            raise NonFiniteStates("a state holds NaN or infinity: expected finite numbers; try another dtype")
        columns = {"sample": sample.cpu().numpy(), "states": rows.cpu().numpy()}
        if not self.classes:
            return columns
        where = valid.nonzero(as_tuple=True) if self.per_position else (sample,)
        classes = {"final": answer[where].argmax(1)} | ({} if labels is None else {"true": labels[where]})
        return columns | self._answers(states, batch, where, classes)

    def _answers(
        self, states: list[Tensor], batch: Batch, where: tuple[Tensor, ...], classes: dict[str, Tensor]
    ) -> dict[str, NDArray[Any]]:
        """Log-probability of each class at every depth, the classes themselves, and the features."""
        features, nats = [], dict[str, list[Tensor]]({name: [] for name in classes})
        for depth, state in enumerate(states):
            if self.linear is None:
                logits = self.stack.readout(state, batch, depth=depth)[where]
            else:
                features.append(self.stack.classifier_input(state, batch)[where])
                logits = functional.linear(features[-1], self.linear.weight, self.linear.bias)
            for name, targets in classes.items():
                nats[name].append(_nats(logits, targets.to(logits.device)))
        columns = {f"{name} class": targets.cpu().numpy() for name, targets in classes.items()}
        columns |= {name: torch.stack(by_depth, 1).numpy() for name, by_depth in nats.items()}
        return columns | ({"features": torch.cat(features, 1).float().cpu().numpy()} if features else {})


def _first_reader(stack: Stack, batch: Batch, truth: Tensor | None, tokens: str | None, readout: bool) -> _Reader:
    """The settings for all batches, and notes on what cannot be collected, from the first batch."""
    stack.verify(batch)
    stack.require_one_stage("its theory")
    few = stack.few(batch)
    answer = stack.forward(few)[1]
    has_classes, per_position = stack.answers_with_logits(labelled=truth is not None), answer.ndim == 3
    policy = default_policy(stack, batch, labels_each=has_classes and per_position) if tokens is None else None
    reader = _Reader(stack=stack, tokens=policy or check_policy(str(tokens)), per_position=per_position)
    if not has_classes or not readout:
        why = "readouts were left out" if has_classes else "the model has no classifier"
        return replace(reader, notes=(f"{why}: {_NEED_ANSWERS} are missing",))
    require_one_class(stack.model, answer, None if truth is None else truth[:2], "examine its states (readout=False)")
    if per_position != (reader.tokens == "each") or (per_position and not stack.answers_at_states):
        each = "position" if per_position else "sample"
        why = f"the model answers for each {each}, which the states of {reader.tokens!r} are not"
        return replace(reader, notes=(f"{why}: {_NEED_ANSWERS} are missing",))
    labelled = truth is not None or predicts_next_token(stack.model)
    linear, why = _linear(stack, few)
    notes = [f"what blocks write, and NC3, are missing: {why}"] if why else []
    notes += [] if labelled else ["neural collapse and the true class are missing: there are no labels"]
    return replace(reader, classes=answer.shape[-1], labelled=labelled, linear=linear, notes=tuple(notes))


def _linear(stack: Stack, batch: Batch) -> tuple[nn.Linear | None, str]:
    """The classifier, if logits are a linear map of its input; else None, with the reason."""
    if stack.heads is not None:
        return None, "each depth has a classifier of its own"
    try:
        classifier = stack.classifier(batch)
    except UnsupportedHead:
        return None, "nothing with weights runs after the blocks"
    if not isinstance(classifier, nn.Linear):
        return None, f"the classifier is a {type(classifier).__name__}, no linear map"
    state = stack.states(batch)[-1]
    if stack.is_linear_head(state, stack.readout(state, batch), batch):
        return classifier, ""
    return None, "more than one linear map lies between what enters the classifier and the logits"


def _nats(logits: Float[Tensor, "n c"], classes: Int64[Tensor, " n"]) -> Float32[Tensor, " n"]:
    """Log-probabilities by float64, a few rows at a time and on the CPU: MPS has no float64."""
    size = max(1, _EXACT // logits.shape[1])
    pieces = [slice(start, start + size) for start in range(0, max(len(logits), 1), size)]
    return torch.cat([log_probability(logits[piece].cpu(), classes[piece].cpu()).float() for piece in pieces])


class _Rows:
    """Columns of rows: matrices in files that grow by rows, and vectors in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, RowFile] = {}
        self._short: dict[str, list[NDArray[np.int64]]] = {}

    def append(self, rows: dict[str, NDArray[Any]]) -> None:
        for name, values in rows.items():
            if values.ndim == 1:
                self._short.setdefault(name, []).append(values)
                continue
            if name not in self.files:
                self.files[name] = RowFile(self.folder / f"{name}.npy", np.float32, values.shape[1])
            self.files[name].append(values)

    def column(self, name: str) -> Int64[np.ndarray, " n"] | None:
        return np.concatenate(self._short[name]) if name in self._short else None

    @property
    def bytes(self) -> int:
        return sum(4 * file.rows * (file.columns or 1) for file in self.files.values())

    def close(self) -> None:
        for file in self.files.values():
            file.close()


def _read_back(rows: _Rows, reader: _Reader, digests: NDArray[np.uint64]) -> Observed:
    samples, depths = rows.column("sample"), reader.stack.depth + 1
    assert samples is not None
    order = np.argsort(samples, kind="stable")
    groups = None if len(np.unique(samples)) == len(samples) else samples[order]

    def stored(name: str) -> StoredStates | None:
        if name not in rows.files:
            return None
        width = (rows.files[name].columns or 0) // depths
        return StoredStates([rows.files[name].path], (width,) * depths, groups, order=order)

    def column(name: str) -> Int64[np.ndarray, " n"] | None:
        values = rows.column(name)
        return None if values is None else values[order]

    states = stored("states")
    assert states is not None
    return Observed(
        states=states,
        tokens=reader.tokens,
        digests=digests,
        labels=column("true class"),
        final=column("final class"),
        log_probability={
            name: np.load(rows.files[name].path, mmap_mode="r")[order]
            for name in ("true", "final")
            if name in rows.files
        },
        features=stored("features"),
        weight=None if reader.linear is None else reader.linear.weight.detach().double().cpu().numpy(),
        notes=reader.notes,
    )
