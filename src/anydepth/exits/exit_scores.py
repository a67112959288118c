"""What every depth that may be tested shows of every sample, in one pass that lets nobody go.

From that, what any threshold would do follows without the model: calibration, tuning and curves look at it only.
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
from anydepth.passes.batches import as_batches
from anydepth.passes.loop import run_pass
from anydepth.passes.workspace import Workspace, working_folder
from anydepth.progress import Progress
from anydepth.stats.certificates import fails, one_of_each
from anydepth.storage.output_folder import OutputKind
from anydepth.storage.sizes import in_words

_LOOK = OutputKind(job="exit", mark="exit.json")


@dataclass(frozen=True)
class ExitScores:
    """The scores and answers of a policy, whatever its threshold: enough to tell what any level would do.

    Attributes:
        depths: those tested, ascending, and L.
        scores: (N, tested).
        predictions: (N, tested + 1) top class at each of `depths`.
        labels: the true classes; None if there are none.
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
        return ExitScores(self.depths, self.scores[which], self.predictions[which], labels)

    def leaving(self, level: float) -> Int64[np.ndarray, " n"]:
        """Where each sample leaves at a level, as an index of `depths`."""
        reached = np.hstack([self.scores >= level, np.ones((len(self), 1), dtype=bool)])
        return np.asarray(reached.argmax(axis=1))

    def depth_of(self, level: float) -> Int64[np.ndarray, " n"]:
        """The depth at which each sample leaves at a level."""
        return np.asarray(np.array(self.depths, dtype=np.int64)[self.leaving(level)])

    def answers(self, level: float) -> Int64[np.ndarray, " n"]:
        """What each sample is answered at a level."""
        return np.asarray(self.predictions[np.arange(len(self)), self.leaving(level)])

    def failed(self, level: float, against: str) -> Bool[np.ndarray, " n"]:
        """Which samples fail at a level; see `anydepth.stats.certificates.fails`."""
        return fails(self.answers(level), self.predictions[:, -1], self.labels, against)

    def failures(self, level: float, against: str) -> int:
        """How many samples fail at a level."""
        return int(self.failed(level, against).sum())

    def failures_along(self, path: Sequence[float], against: str) -> Int64[np.ndarray, " p"]:
        """How many samples fail at each level of a path."""
        final = self.predictions[:, -1]
        failed = [fails(early, final, self.labels, against) for early in self.predictions.T]
        return self._added_up(path, np.stack(failed, 1).astype(np.int64))

    def mean_depth_along(self, path: Sequence[float]) -> Float64[np.ndarray, " p"]:
        """Blocks that a sample goes through at each level of a path, on the mean."""
        depths = np.array(self.depths, dtype=np.int64)
        return self._added_up(path, np.broadcast_to(depths, self.predictions.shape)) / len(self)

    def _added_up(self, path: Sequence[float], values: Int64[np.ndarray, "n s"]) -> Int64[np.ndarray, " p"]:
        """The sum over samples of the value at the depth where each leaves, at each of some levels above -inf.

        A sample has left by a depth if the highest of its scores so far reaches the level; then the value there takes
        the place of the next depth's. So all levels follow from one sort of these scores.
        """
        highest = np.maximum.accumulate(np.where(np.isnan(self.scores), -np.inf, self.scores), axis=1).ravel()
        order = np.argsort(highest)
        changes = (values[:, :-1] - values[:, 1:]).ravel()[order][::-1]
        sums = np.concatenate([[0], np.cumsum(changes)])
        reached = len(order) - np.searchsorted(highest[order], np.asarray(path, dtype=np.float64), side="left")
        return np.asarray(values[:, -1].sum() + sums[reached])

    def mean_depth(self, level: float) -> float:
        """Blocks that a sample goes through at a level, on the mean."""
        return float(self.depth_of(level).mean())


@dataclass(frozen=True)
class PolicyInputs:
    """What was seen of every sample at the depths that may be tested.

    Attributes:
        depths: those, ascending, and L.
        seen: (N, tested, M) what the policy looks at: logits, states, or nothing (M = 0).
        predictions: (N, tested + 1) top class at each of `depths`.
        labels: the true classes; None if there are none.
        digests: 64 bits of each sample's content, to tell repeated samples by; None to take all for distinct.
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
        """The scores of a policy that looks at the same, at the depths it tests: all that were looked at, or some."""
        tested = policy.tested(self.depths[-1])
        places = [self.depths.index(depth) for depth in tested]
        scores, memory = np.empty((len(self), len(tested))), None
        for column, (depth, place) in enumerate(zip(tested, places, strict=True)):
            score, memory = policy.scores(depth, torch.from_numpy(self.seen[:, place]), memory)
            scores[:, column] = score.double().numpy()
        return ExitScores((*tested, self.depths[-1]), scores, self.predictions[:, [*places, -1]], self.labels)


def look(
    reader: PolicyReader,
    data: Iterable[Any],
    *,
    labels: bool,
    out: Path | None = None,
    progress: Progress | None = None,
) -> PolicyInputs:
    """Keep what a policy would look at of every sample at every tested depth.

    Args:
        reader: of the model, for the policy.
        data: batches as `anydepth.trace` takes them.
        labels: whether they must carry labels; without, labels are left alone.
        out: a folder in which an interrupted pass leaves what it has, for the next one to go on from.
        progress: called with what is done, how much there is, and what it is.

    Raises:
        DataError: there is no batch, or what is to be kept does not fit in memory.
        LabelError: labels are missing or not among the classes.
        IncompatibleTraces: an interrupted pass in `out` has seen other data.
    """
    data = as_batches(data)
    total = len(data) if isinstance(data, Sized) else None
    key = f"look {model_fingerprint(reader.stack.model)} {reader.policy.reads} {reader.tested} {labels}"
    with working_folder(out, _LOOK, resume=True) as folder, closing(Workspace(folder / "look", key)) as workspace:
        with evaluating(reader.stack.model):
            rows_of, model = partial(_rows, reader, labels, total), reader.stack.model
            run_pass(data, workspace, rows_of, labels=labels, progress=progress, model=model)
        names = ("seen", "prediction", "label", "digest")
        seen, predictions, known, digests = (workspace.read(name) for name in names)
        assert predictions is not None
        assert digests is not None
        count, tested = len(predictions), len(reader.tested)
        return PolicyInputs(
            (*reader.tested, reader.stack.depth),
            np.zeros((count, tested, 0), np.float32) if seen is None else np.array(seen).reshape(count, tested, -1),
            np.array(predictions),
            None if known is None else np.array(known),
            np.array(digests),
        )


def _rows(
    reader: PolicyReader, labels: bool, total: int | None, index: int, batch: Batch, truth: Tensor | None, first: int
) -> Iterator[tuple[str, np.ndarray, Any]]:
    """What the policy looks at, and the top class, at each tested depth; one row for each sample."""
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
    # twice: the whole, and the parts it is split into
    if 2 * needed > (free := available_memory()):
        raise DataError(
            f"what {batches:,} batches show at the tested depths takes {in_words(2 * needed)}, and {in_words(free)} of "
            "memory are free: test fewer depths (depths=), or give fewer samples"
        )
