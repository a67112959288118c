"""A forward that lets samples go: it runs in legs, and who has had enough at the end of one is not on the next."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from anydepth.core.model_io import Batch, device_of, sample_count, samples_of
from anydepth.core.prefix_cache import answering
from anydepth.core.segments import Segments
from anydepth.exits.policy_inputs import PolicyReader
from anydepth.exits.prefix_slicing import PrefixSlicer


@dataclass(frozen=True)
class ExitOutput:
    """What came out, sample by sample, in the order they went in.

    Attributes:
        logits: of each sample, at the depth where it left.
        depth: that depth, 1..L.
        blocks: how many samples each block was really run on; 0 where all had left before.
        readouts: how many samples were really read out at each depth.
        undecided: at each depth, how many samples had a score that is NaN; they stayed.
    """

    logits: Float[Tensor, "b c"]
    depth: Int64[Tensor, " b"]
    blocks: Int64[Tensor, " l"]
    readouts: Int64[Tensor, " l"]
    undecided: Int64[Tensor, " l"]


class ExitForward:
    """One batch on its way through the blocks.

    Args:
        reader: of the model, for the policy that lets samples go.
        lanes: of the model.
        batch: without labels.
    """

    def __init__(self, reader: PolicyReader, lanes: PrefixSlicer, batch: Batch) -> None:
        self._reader, self._lanes, self._batch = reader, lanes, batch
        self._here = batch  # those of it who have not left
        self._rows = torch.arange(sample_count(batch), device=device_of(reader.stack.model))  # their places in it
        self._memory: Tensor | None = None
        self._leaving: Tensor | None = None
        self._logits: Tensor | None = None
        last = reader.stack.depth
        self._depth = torch.full_like(self._rows, last)
        self._blocks, self._readouts = [0] * last, [0] * last
        self._undecided: dict[int, Tensor] = {}

    def run(self) -> ExitOutput:
        """Run the blocks until the last sample has left; call it once, in evaluation mode."""
        stack = self._reader.stack
        with stack.segments(self._batch) as legs:
            with stack.cached_prefix(self._batch) as before:
                logits = legs.run(self._batch, self._stops)
            here = before
            while self._land(legs, logits):
                if len(self._rows) < len(logits):
                    here = self._lanes.cut(before, self._batch, self._rows)
                with answering(here):
                    logits = legs.run(self._here, self._stops)
        assert self._logits is not None
        undecided = [int(self._undecided.get(depth, 0)) for depth in range(1, stack.depth + 1)]
        counts = (torch.tensor(counts) for counts in (self._blocks, self._readouts, undecided))
        return ExitOutput(self._logits, self._depth, *counts)

    def _stops(self, depth: int, state: Tensor) -> bool:
        """Whether these samples, after this block, are to be read out."""
        self._blocks[depth - 1] = len(state)
        if depth not in self._reader.tested:
            return False
        if self._reader.policy.reads == "logits":
            return True
        self._leaving = self._test(depth, self._reader.seen(state, self._here, None))
        return bool(self._leaving.any())

    def _test(self, depth: int, seen: Tensor) -> Bool[Tensor, " n"]:
        """Which of these samples have had enough."""
        score, self._memory = self._reader.policy.scores(depth, seen, self._memory)
        self._undecided[depth] = score.isnan().sum()  # not looked at before the end: a GPU would have to wait for it
        return score >= self._reader.policy.level

    def _land(self, legs: Segments, logits: Tensor) -> bool:
        """Let go who has had enough of those just read out; returns whether anyone is left."""
        logits, depth = self._reader.checked(logits), legs.depth
        self._readouts[depth - 1] = len(logits)
        if self._logits is None:
            self._logits = logits.new_empty(len(self._depth), logits.shape[1])
        leaving = self._leaving_at(depth, logits)
        count = int(leaving.sum())
        if count == len(logits):
            self._logits[self._rows], self._depth[self._rows] = logits, depth
        elif count:
            going, staying = leaving.nonzero()[:, 0], (~leaving).nonzero()[:, 0]
            self._logits[self._rows[going]], self._depth[self._rows[going]] = logits[going], depth
            self._stay(legs, staying)
        return count < len(logits)

    def _leaving_at(self, depth: int, logits: Tensor) -> Bool[Tensor, " n"]:
        if depth == self._reader.stack.depth:
            return torch.ones_like(logits[:, 0], dtype=torch.bool)
        if self._reader.policy.reads == "logits":
            return self._test(depth, logits)
        assert self._leaving is not None
        return self._leaving

    def _stay(self, legs: Segments, staying: Int64[Tensor, " n"]) -> None:
        legs.keep(staying)
        self._rows = self._rows[staying]
        self._here = samples_of(self._batch, self._rows)
        self._memory = None if self._memory is None else self._memory[staying]
