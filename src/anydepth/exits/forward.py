"""The forward of early exit: blocks run in segments, and samples that exit at the end of one are not on the next."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from anydepth.core.model_io import Batch, device_of, sample_count, samples_of
from anydepth.core.prefix_cache import answering
from anydepth.core.segments import Segments
from anydepth.exits.exit_output import ExitOutput
from anydepth.exits.policies import Reads
from anydepth.exits.policy_inputs import PolicyReader
from anydepth.exits.prefix_slicing import PrefixSlicer


class ExitForward:
    """One forward of one batch, without labels, with early exit."""

    def __init__(self, reader: PolicyReader, prefix_slicer: PrefixSlicer, batch: Batch) -> None:
        self._reader, self._prefix_slicer, self._batch = reader, prefix_slicer, batch
        self._remaining = batch  # the samples that have not exited
        self._rows = torch.arange(sample_count(batch), device=device_of(reader.stack.model))  # their places in `batch`
        self._memory: Tensor | None = None
        self._exiting: Tensor | None = None
        self._logits: Tensor | None = None
        last = reader.stack.depth
        self._depth = torch.full_like(self._rows, last)
        entry = reader.stack.entry  # blocks of earlier stages run on all samples
        self._blocks, self._readouts = [len(self._rows)] * entry + [0] * (last - entry), [0] * last
        self._undecided: dict[int, Tensor] = {}

    def run(self) -> ExitOutput[Tensor]:
        """Run the blocks until the last sample has exited; call it once, in evaluation mode."""
        stack = self._reader.stack
        with stack.segments(self._batch) as segments:
            with stack.recorded_prefix(self._batch) as prefix:
                logits = segments.run(self._batch, self._stops)
            remaining_prefix = prefix
            while self._take_readout(segments, logits):
                if len(self._rows) < len(logits):
                    remaining_prefix = self._prefix_slicer.cut(prefix, self._batch, self._rows)
                with answering(remaining_prefix):
                    logits = segments.run(self._remaining, self._stops)
        assert self._logits is not None
        undecided = [int(self._undecided.get(depth, 0)) for depth in range(1, stack.depth + 1)]
        return ExitOutput(
            logits=self._logits,
            depth=self._depth,
            blocks=torch.tensor(self._blocks),
            readouts=torch.tensor(self._readouts),
            undecided=torch.tensor(undecided),
        )

    def _stops(self, depth: int, state: Tensor) -> bool:
        """Whether the remaining samples are to be read out after this block."""
        self._blocks[depth - 1] = len(state)
        if depth not in self._reader.tested:
            return False
        if self._reader.policy.reads == Reads.LOGITS:
            return True
        self._exiting = self._test(depth, self._reader.seen(state, self._remaining, None))
        return bool(self._exiting.any())

    def _test(self, depth: int, seen: Tensor) -> Bool[Tensor, " n"]:
        """Which of the remaining samples exit."""
        score, self._memory = self._reader.policy.scores(depth, seen, self._memory)
        self._undecided[depth] = score.isnan().sum()  # not read before the end: a GPU would have to wait for it
        return score >= self._reader.policy.level

    def _take_readout(self, segments: Segments, logits: Tensor) -> bool:
        """Store the logits of the samples that exit here; returns whether any remain."""
        logits, depth = self._reader.checked(logits), segments.depth
        self._readouts[depth - 1] = len(logits)
        if self._logits is None:
            self._logits = logits.new_empty(len(self._depth), logits.shape[1])
        exiting = self._exiting_at(depth, logits)
        count = int(exiting.sum())
        if count == len(logits):
            self._logits[self._rows], self._depth[self._rows] = logits, depth
        elif count:
            exits, stays = exiting.nonzero()[:, 0], (~exiting).nonzero()[:, 0]
            self._logits[self._rows[exits]], self._depth[self._rows[exits]] = logits[exits], depth
            self._keep(segments, stays)
        return count < len(logits)

    def _exiting_at(self, depth: int, logits: Tensor) -> Bool[Tensor, " n"]:
        if depth == self._reader.stack.depth:
            return torch.ones_like(logits[:, 0], dtype=torch.bool)
        if self._reader.policy.reads == Reads.LOGITS:
            return self._test(depth, logits)
        assert self._exiting is not None
        return self._exiting

    def _keep(self, segments: Segments, rows: Int64[Tensor, " n"]) -> None:
        segments.keep(rows)
        self._rows = self._rows[rows]
        self._remaining = samples_of(self._batch, self._rows)
        self._memory = None if self._memory is None else self._memory[rows]
