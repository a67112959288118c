"""Policy inputs and scores of all samples at all tested depths, collected in one pass without early exit.

Calibration, tuning and curves compute what any threshold would do from these, without the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64, UInt64
from torch import Tensor

from anydepth.core.model_io import Batch, device_of, to_device
from anydepth.core.patching import evaluating
from anydepth.core.provenance import model_fingerprint
from anydepth.core.targets import Targets
from anydepth.errors import DataError
from anydepth.exits.policies import Policy
from anydepth.exits.policy_inputs import PolicyReader
from anydepth.measures.engine.plan import available_memory
from anydepth.passes.batches import as_batches, shown_to
from anydepth.passes.loop import run_pass
from anydepth.passes.workspace import Workspace, working_folder
from anydepth.progress import Progress
from anydepth.stats.certificates import fails, one_of_each
from anydepth.storage.output_folder import OutputKind
from anydepth.storage.sizes import in_words

_LOOK = OutputKind(job="exit", mark="exit.json")


@dataclass(frozen=True, kw_only=True)
class ExitScores:
    """Scores of a policy and predictions at each tested depth: enough to compute what any level would do.

    Attributes:
        depths: those tested, ascending, and L.
        scores: (N, tested).
        predictions: (N, tested + 1) top class at each of `depths`.
        labels: (N,) the true classes; None without labels.
    """

    depths: tuple[int, ...]
    scores: Float64[np.ndarray, "n t"]
    predictions: Int64[np.ndarray, "n s"]
    labels: Int64[np.ndarray, " n"] | None

    def __len__(self) -> int:
        return len(self.scores)

    def rows(self, which: Int64[np.ndarray, " m"]) -> ExitScores:
        """Some of the samples."""
        labels = None if self.labels is None else self.labels[which]
        return replace(self, scores=self.scores[which], predictions=self.predictions[which], labels=labels)

    def exit_index(self, level: float) -> Int64[np.ndarray, " n"]:
        """Index into `depths` of each sample's exit at a level."""
        reached = np.hstack([self.scores >= level, np.ones((len(self), 1), dtype=bool)])
        return np.asarray(reached.argmax(axis=1))

    def depth_of(self, level: float) -> Int64[np.ndarray, " n"]:
        """Exit depth of each sample at a level."""
        return np.asarray(np.array(self.depths, dtype=np.int64)[self.exit_index(level)])

    def answers(self, level: float) -> Int64[np.ndarray, " n"]:
        """Predicted class of each sample at its exit, at a level."""
        return np.asarray(self.predictions[np.arange(len(self)), self.exit_index(level)])

    def failed(self, level: float, against: str) -> Bool[np.ndarray, " n"]:
        """Which samples fail at a level; see `anydepth.stats.certificates.fails`."""
        return fails(self.answers(level), self.predictions[:, -1], self.labels, against)

    def failures(self, level: float, against: str) -> int:
        """How many samples fail at a level."""
        return int(self.failed(level, against).sum())

    def failures_along(self, path: Sequence[float], against: str) -> Int64[np.ndarray, " p"]:
        """How many samples fail at each level of a path above -inf.

        A sample has exited by a depth if the highest of its scores so far reaches the level; then its failure there
        takes the place of that at the next depth. So all levels follow from one sort of these scores.
        """
        final = self.predictions[:, -1]
        failed = np.stack([fails(early, final, self.labels, against) for early in self.predictions.T], 1)
        highest = np.maximum.accumulate(np.where(np.isnan(self.scores), -np.inf, self.scores), axis=1).ravel()
        order = np.argsort(highest)
        changes = -np.diff(failed.astype(np.int64)).ravel()[order][::-1]
        sums = np.concatenate([[0], np.cumsum(changes)])
        reached = len(order) - np.searchsorted(highest[order], np.asarray(path, dtype=np.float64), side="left")
        return np.asarray(failed[:, -1].sum() + sums[reached])

    def mean_depth(self, level: float) -> float:
        """Mean exit depth at a level."""
        return float(self.depth_of(level).mean())


@dataclass(frozen=True, kw_only=True)
class PolicyInputs:
    """What a policy reads of every sample at the depths that may be tested.

    Attributes:
        depths: those, ascending, and L.
        seen: (N, tested, M) what the policy reads: logits, states, or nothing (M = 0).
        predictions: (N, tested + 1) top class at each of `depths`.
        labels: (N,) the true classes; None without labels.
        digests: (N,) 64 bits of each sample's content, to recognise repeated samples by; None to take all for distinct.
    """

    depths: tuple[int, ...]
    seen: Float32[np.ndarray, "n t m"]
    predictions: Int64[np.ndarray, "n s"]
    labels: Int64[np.ndarray, " n"] | None
    digests: UInt64[np.ndarray, " n"] | None = None

    def __len__(self) -> int:
        return len(self.predictions)

    def rows(self, which: Int64[np.ndarray, " m"]) -> PolicyInputs:
        """Some of the samples."""
        labels, digests = (None if values is None else values[which] for values in (self.labels, self.digests))
        return replace(self, seen=self.seen[which], predictions=self.predictions[which], labels=labels, digests=digests)

    def distinct(self, seed: int) -> PolicyInputs:
        """One sample of each content; which of several copies stays is drawn by a seed."""
        return self if self.digests is None else self.rows(one_of_each(self.digests, seed))

    def under(self, policy: Policy) -> ExitScores:
        """The scores of a policy that reads the same, at all of the depths collected, or those of them it tests."""
        tested = policy.tested(self.depths[-1], self.depths[0])
        places = [self.depths.index(depth) for depth in tested]
        scores, memory = np.empty((len(self), len(tested))), None
        for column, (depth, place) in enumerate(zip(tested, places, strict=True)):
            score, memory = policy.scores(depth, torch.from_numpy(self.seen[:, place]), memory)
            scores[:, column] = score.double().numpy()
        return ExitScores(
            depths=(*tested, self.depths[-1]),
            scores=scores,
            predictions=self.predictions[:, [*places, -1]],
            labels=self.labels,
        )


def look(
    reader: PolicyReader,
    data: Iterable[Any],
    *,
    labels: bool,
    out: Path | None = None,
    progress: Progress | None = None,
) -> PolicyInputs:
    """Collect the policy inputs of every sample at every tested depth; see `EarlyExit.look`.

    Raises:
        DataError: there is no batch, or the inputs do not fit in memory.
        LabelError: labels are missing or not among the classes.
        IncompatibleTraces: an interrupted pass in `out` has seen other data.
    """
    data = shown_to(reader.stack, as_batches(data))
    total = len(data) if isinstance(data, Sized) else None
    key = f"look {model_fingerprint(reader.stack.model)} {reader.policy.reads} {reader.tested} {labels}"
    with working_folder(out, _LOOK, resume=True) as folder, closing(Workspace(folder / "look", key)) as workspace:
        with evaluating(reader.stack.model):
            inputs_of = partial(_batch_inputs, reader, labels, total)
            run_pass(data, workspace, inputs_of, labels=labels, progress=progress, model=reader.stack.model)
        order, names = workspace.order, ("seen", "prediction", "label", "digest")
        seen, predictions, truth, digests = (
            None if (rows := workspace.read(name)) is None else rows[order] for name in names
        )
        assert predictions is not None
        assert digests is not None
        count, tested = len(predictions), len(reader.tested)
        return PolicyInputs(
            depths=(*reader.tested, reader.stack.depth),
            seen=np.zeros((count, tested, 0), np.float32) if seen is None else seen.reshape(count, tested, -1),
            predictions=predictions,
            labels=truth,
            digests=digests,
        )


def _batch_inputs(
    reader: PolicyReader,
    labels: bool,
    total: int | None,
    index: int,
    batch: Batch,
    truth: Tensor | None,
    numbers: np.ndarray,
) -> Iterator[tuple[str, np.ndarray, Any]]:
    """What the policy reads, and the top class, at each tested depth; one row for each sample."""
    batch = to_device(batch, device_of(reader.stack.model))
    reader.prepare(batch)
    seen, tops = [], []
    with torch.no_grad():
        states, answer = reader.stack.forward(batch)
        for depth in reader.tested:
            logits = reader.logits(states[depth], batch, depth)
            seen.append(reader.seen(states[depth], batch, logits).float().cpu())
            tops.append(logits.argmax(1).cpu())
    yield "prediction", torch.stack([*tops, answer.argmax(1).cpu()], 1).numpy(), np.int64
    if seen and seen[0].numel():
        rows = torch.cat(seen, 1).numpy()
        if not index and total:
            _require_memory(total * rows.nbytes, total)
        yield "seen", rows, np.float32
    if labels:
        yield "label", Targets.of(reader.stack, batch, truth, answer).labels.cpu().numpy(), np.int64


def _require_memory(needed: int, batches: int) -> None:
    # Needed twice: as a whole, and as the parts it is split into.
    if 2 * needed > (free := available_memory()):
        raise DataError(
            f"the policy inputs of {batches:,} batches take {in_words(2 * needed)}, and {in_words(free)} of memory are "
            "free: test fewer depths (depths=), or give fewer samples"
        )
