"""The pass behind a theory: for each answer its state, what enters the classifier, and how probable its class is.

A trace keeps one short row for each answer and a state for each selected position. Here the two must belong together,
and the probability of the final class is wanted at every depth, so the data are read once more.
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

from anydepth.core.model_io import Batch, device_of, first_samples, sample_count, samples_of, to_device
from anydepth.core.patching import evaluating
from anydepth.core.stack import Stack
from anydepth.core.targets import Targets, predicts_next_token, require_one_class
from anydepth.core.tokens import IGNORED, Policy, check_policy, default_policy, select, valid_positions
from anydepth.errors import DataError, LabelError, NonFiniteStates, UnsupportedHead
from anydepth.passes.batches import as_batch, as_batches, digest
from anydepth.progress import Progress
from anydepth.storage.files import require_space
from anydepth.storage.rows import RowFile, StoredStates
from anydepth.theory.closeness import log_probability

# Logits taken at a time: those of one depth of a piece of a batch, and those turned into float64.
_PIECE, _EXACT = 2**26, 2**22
_NEED_ANSWERS = "Theorem 2.2, neural collapse and what blocks write"


@dataclass(frozen=True)
class Observed:
    """What a pass saw, row by row: a row is an answer, or, where the model gives none, a selected position.

    Attributes:
        states: of the rows at all depths.
        tokens: which positions stand for a sample.
        digests: 64 bits of each sample's content.
        labels: the true class of each row; None without labels.
        final: the top class at the last depth; None without a classifier.
        log_probability: nats of the "true" and the "final" class at each depth, as far as there are such classes.
        features: what enters the classifier at each depth; None where that says too little, and `notes` why.
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
    """Run a model over data once, and leave in `folder` what its theory is examined on.

    Args:
        stack: the model.
        data: batches as `anydepth.trace` takes them.
        folder: for what is read back piece by piece; it must outlive what is returned.
        tokens: which positions stand for a sample; None for where the model's own readout looks.
        readout: False to look at states alone.
        labels: False to leave labels alone.
        progress: called with the batches done.
        what: they are done for.

    Raises:
        DataError: there is no batch, or one that is no dict of tensors, pair, or tensor.
        LabelError: labels are out of range or of the wrong kind, or some batches have them and others don't.
        UnsupportedHead: the model's answer is not a choice among classes.
        NonFiniteStates: a state holds NaN or infinity.
    """
    data, device = as_batches(data), device_of(stack.model)
    total = len(data) if isinstance(data, Sized) else None
    look: _Look | None = None
    digests, first = [], 0
    with closing(_Rows(folder)) as rows, evaluating(stack.model), torch.no_grad():
        for index, item in enumerate(data):
            given, truth, ids = as_batch(item, first, stack.model)
            batch, truth = to_device(given, device), truth if labels else None
            look = look or _settle(stack, batch, truth, tokens, readout)
            if look.labelled and truth is None and not predicts_next_token(stack.model):
                raise LabelError(f"batch {index} has no 'labels', as those before it have: add them, or leave all out")
            for piece in look.pieces(batch):
                found = look.rows(samples_of(batch, piece), None if truth is None else truth[piece])
                found["sample"] += first + piece.start
                rows.append(found)
            if not index and total:
                require_space(folder, (total - 1) * rows.bytes, f"what {total} batches show")
            digests.append(digest(given))
            first += len(ids)
            if progress:
                progress(index + 1, total, f"{what} batches")
    if look is None:
        raise DataError("the data set is empty: expected at least one batch (each pass reads the data anew)")
    return _read_back(rows, look, np.concatenate(digests))


@dataclass(frozen=True)
class _Look:
    """How to look at a batch: settled by the first one.

    Attributes:
        stack: the model.
        tokens: which positions stand for a sample.
        per_position: whether the model answers for each position.
        classes: 0 where there are no answers that go with the states.
        labelled: whether there is a true class.
        linear: the classifier, where logits are its map of what enters it, and nothing more.
        notes: what is missing, and why.
    """

    stack: Stack
    tokens: Policy
    per_position: bool
    classes: int = 0
    labelled: bool = False
    linear: nn.Linear | None = None
    notes: tuple[str, ...] = ()

    def pieces(self, batch: Batch) -> Iterator[slice]:
        """Samples to take at a time."""
        count, positions = sample_count(batch), 1
        if self.per_position and not isinstance(batch, Tensor):
            positions = max(one.shape[1] for one in batch.values() if isinstance(one, Tensor) and one.ndim > 1)
        size = max(1, _PIECE // max(1, self.classes * positions))
        for start in range(0, count, size):
            yield slice(start, min(start + size, count))

    def rows(self, batch: Batch, truth: Tensor | None) -> dict[str, NDArray[Any]]:
        """The rows of some samples; `sample` counts from the first of them."""
        states, answer = self.stack.forward(batch)
        valid, labels = valid_positions(batch, states[0]), None
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
        found = {"sample": sample.cpu().numpy(), "states": rows.cpu().numpy()}
        if not self.classes:
            return found
        where = valid.nonzero(as_tuple=True) if self.per_position else (sample,)
        classes = {"final": answer[where].argmax(1)} | ({} if labels is None else {"true": labels[where]})
        return found | self._answers(states, batch, where, classes)

    def _answers(
        self, states: list[Tensor], batch: Batch, where: tuple[Tensor, ...], classes: dict[str, Tensor]
    ) -> dict[str, NDArray[Any]]:
        """How probable each class is at every depth, the classes themselves, and the features."""
        features, nats = [], dict[str, list[Tensor]]({name: [] for name in classes})
        for depth, state in enumerate(states):
            if self.linear is None:
                logits = self.stack.readout(state, batch, depth=depth or None)[where]
            else:
                features.append(self.stack.classifier_input(state, batch)[where])
                logits = functional.linear(features[-1], self.linear.weight, self.linear.bias)
            for name, asked in classes.items():
                nats[name].append(_exactly(logits, asked.to(logits.device)))
        found = {f"{name} class": asked.cpu().numpy() for name, asked in classes.items()}
        found |= {name: torch.stack(columns, 1).numpy() for name, columns in nats.items()}
        return found | ({"features": torch.cat(features, 1).float().cpu().numpy()} if features else {})


def _settle(stack: Stack, batch: Batch, truth: Tensor | None, tokens: str | None, readout: bool) -> _Look:
    stack.verify(batch)
    few = first_samples(batch, 2)
    answer = stack.forward(few)[1]
    has_classes, per_position = stack.answers_with_logits(labelled=truth is not None), answer.ndim == 3
    policy = default_policy(stack, batch, labels_each=has_classes and per_position) if tokens is None else None
    look = _Look(stack, policy or check_policy(str(tokens)), per_position)
    if not has_classes or not readout:
        why = "readouts were left out" if has_classes else "the model has no classifier"
        return replace(look, notes=(f"{why}: {_NEED_ANSWERS} are missing",))
    require_one_class(stack.model, answer, None if truth is None else truth[:2], "examine its states (readout=False)")
    if per_position != (look.tokens == "each"):
        each = "position" if per_position else "sample"
        why = f"the model answers for each {each}, which the states of {look.tokens!r} are not"
        return replace(look, notes=(f"{why}: {_NEED_ANSWERS} are missing",))
    labelled = truth is not None or predicts_next_token(stack.model)
    linear, why = _linear(stack, few)
    notes = [f"what blocks write, and NC3, are missing: {why}"] if why else []
    notes += [] if labelled else ["neural collapse and the true class are missing: there are no labels"]
    return replace(look, classes=answer.shape[-1], labelled=labelled, linear=linear, notes=tuple(notes))


def _linear(stack: Stack, batch: Batch) -> tuple[nn.Linear | None, str]:
    """The classifier, if logits are a linear map of what enters it, and nothing more; else why not."""
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


def _exactly(logits: Float[Tensor, "n c"], classes: Int64[Tensor, " n"]) -> Float32[Tensor, " n"]:
    """Nats in float64, a few rows at a time and on the CPU: MPS has no such numbers."""
    size = max(1, _EXACT // logits.shape[1])
    pieces = [slice(start, start + size) for start in range(0, max(len(logits), 1), size)]
    return torch.cat([log_probability(logits[piece].cpu(), classes[piece].cpu()).float() for piece in pieces])


class _Rows:
    """What a pass leaves: matrices in files that grow by rows, and in memory a few numbers for each row."""

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


def _read_back(rows: _Rows, look: _Look, digests: NDArray[np.uint64]) -> Observed:
    samples, depths = rows.column("sample"), look.stack.depth + 1
    assert samples is not None
    groups = None if len(np.unique(samples)) == len(samples) else samples

    def stored(name: str) -> StoredStates | None:
        if name not in rows.files:
            return None
        width = (rows.files[name].columns or 0) // depths
        return StoredStates([rows.files[name].path], (width,) * depths, groups)

    states = stored("states")
    assert states is not None
    return Observed(
        states=states,
        tokens=look.tokens,
        digests=digests,
        labels=rows.column("true class"),
        final=rows.column("final class"),
        log_probability={
            name: np.load(rows.files[name].path, mmap_mode="r") for name in ("true", "final") if name in rows.files
        },
        features=stored("features"),
        weight=None if look.linear is None else look.linear.weight.detach().double().cpu().numpy(),
        notes=look.notes,
    )
