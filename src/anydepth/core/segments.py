"""A forward in segments, between which samples may exit: each runs some of the blocks and reads out their output.

A segment from depth j to k is the model's own forward. Stubs return h[j] in place of the first j blocks, the blocks up
to k run on the model's own arguments, stubs return h[k] in place of the others: the output is the readout of h[k]. The
next segment runs on the batch of the remaining samples, so that the model itself makes their masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from anydepth.core.model_io import input_state, output_state
from anydepth.core.recording import BlockOutput
from anydepth.errors import UnknownArchitecture

Stops = Callable[[int, Tensor], bool]
"""Whether a segment ends at this depth, with this hidden state. At L it ends in any case."""


class Segments:
    """A forward that runs in segments.

    Args:
        shapes: the form of each block's output.
        forward: the model's, with the stubs in it.

    Attributes:
        depth: up to which the blocks have run.
        passed: number → (block, args, kwargs) of the blocks that did not run in the last segment, if `notes` is True.
        notes: whether to fill `passed`.
        frozen: (B,) bool, rows whose hidden state stays as it is through all further blocks; None for no row.
    """

    def __init__(self, shapes: list[BlockOutput], forward: Callable[[Any], Any]) -> None:
        self._shapes, self._forward = shapes, forward
        self.depth = 0
        self.passed: dict[int, tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = {}
        self.notes = False
        self.frozen: Tensor | None = None
        self._state: Tensor | None = None
        self._ended = True
        self._stops: Stops = lambda depth, state: True

    @property
    def state(self) -> Tensor:
        """The hidden state where the last segment ended."""
        assert self._state is not None
        return self._state

    # A list kept here would form a reference cycle, and keep tensors alive until the next garbage collection.
    def stubs(self, blocks: Iterable[nn.Module]) -> list[Callable[..., Any]]:
        """Functions to run in place of the blocks."""
        pairs = zip(blocks, self._shapes, strict=True)
        return [self._stub(number, block, shape) for number, (block, shape) in enumerate(pairs, start=1)]

    def _stub(self, number: int, block: nn.Module, shape: BlockOutput) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if number <= self.depth or self._ended:
                if self.notes and number > self.depth:
                    self.passed[number] = (block, args, kwargs)
                return shape(self.state)
            output = block(*args, **kwargs)
            after = output_state(output)
            if self.frozen is not None:
                after = torch.where(self.frozen.view(-1, *[1] * (after.ndim - 1)), input_state(args, kwargs), after)
                output = shape(after)
            self.depth, self._state = number, after
            self._ended = self._stops(number, after)
            return output

        return call

    def run(self, batch: Any, stops: Stops) -> Any:
        """Run the next segment on the remaining samples; returns the readout of the hidden state where `stops` ends it.

        Raises:
            UnknownArchitecture: the forward ended before: blocks did not run.
        """
        before, last = self.depth, len(self._shapes)
        self._stops, self._ended = stops, False
        self.passed.clear()
        answer = self._forward(batch)
        if not self._ended and self.depth < last:
            raise UnknownArchitecture(
                f"a forward from depth {before} ran {self.depth - before} of {last - before} blocks, expected each up "
                "to the depth where it stops: the model skips blocks, or runs them in a thread of its own"
            )
        return answer

    def enter(self, depth: int, state: Tensor | None = None) -> None:
        """Start the next segment after block `depth` (0 for the whole forward), from h[depth] of its samples."""
        self.depth, self._state = depth, state

    def keep(self, rows: Int64[Tensor, " n"]) -> None:
        """Continue with some of the samples, by their places in the last segment."""
        self._state = self.state[rows]
