"""A forward in segments, between which samples may exit: each runs some of the blocks and reads out their output.

A segment from depth j to k is the model's own forward. Stubs return h[j] in place of the first j blocks, the blocks up
to k run on the model's own arguments, stubs return h[k] in place of the others: the output is the readout of h[k]. The
next segment runs on the batch of the remaining samples, so that the model itself makes their masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from anydepth.core.blocks import BlockList
from anydepth.core.model_io import input_state, output_state, sample_count
from anydepth.core.patching import Turns, replaced
from anydepth.core.recording import BlockOutput, carried
from anydepth.errors import UnknownArchitecture

Stops = Callable[[int, Tensor], bool]
"""Whether a segment ends at this depth, with this hidden state. At L it ends in any case."""


class Segments:
    """A forward that runs in segments.

    Args:
        shapes: the form of each block's output.
        forward: the model's, with the stubs in it.
        entry: the depth of the block before these: those of earlier stages run, or not, as the forward has it.
        copied: whether the forward may write to a state that it is given.

    Attributes:
        depth: up to which the blocks have run.
        passed: number → (block, args, kwargs) of the blocks that did not run in the last segment, if `notes` is True.
        notes: whether to fill `passed`.
        frozen: (B,) bool, rows whose hidden state stays as it is through all further blocks; None for no row.
    """

    def __init__(
        self, shapes: Sequence[BlockOutput], forward: Callable[[Any], Any], entry: int = 0, *, copied: bool = False
    ) -> None:
        self._shapes, self._forward, self._entry, self._copied = shapes, forward, entry, copied
        self._turns: Sequence[Turns] = ()
        self._rest: dict[int, tuple[Any, ...] | None] = {}  # what blocks answered beside the state, by their depths
        self.depth = entry
        self.passed: dict[int, tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = {}
        self.notes = False
        self.frozen: Tensor | None = None
        self._state: Tensor | None = None
        self._samples = 0
        self._ended = True
        self._stops: Stops = lambda depth, state: True

    @property
    def state(self) -> Tensor:
        """The hidden state where the last segment ended."""
        assert self._state is not None
        return self._state

    @contextmanager
    def in_place_of(self, blocks: BlockList, order: Sequence[int]) -> Iterator[None]:
        """Context manager: the forward runs in segments."""
        modules = (blocks.modules[place] for place in order)
        pairs = zip(modules, self._shapes, strict=True)
        calls = [self._stub(number, block, shape) for number, (block, shape) in enumerate(pairs, start=self._entry + 1)]
        with replaced(blocks, order, calls) as turns:
            self._turns = turns
            try:
                yield
            finally:
                self._turns = ()  # they hold this object: a cycle keeps tensors until the next garbage collection

    def _stub(self, number: int, block: nn.Module, shape: BlockOutput) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if number <= self.depth or self._ended:
                if self.notes and number > self.depth:
                    self.passed[number] = (block, args, kwargs)
                state = self.state.clone() if self._copied else self.state
                return shape.of_state(state, args, kwargs, self._rest.get(number))
            output = block(*args, **kwargs)
            state = shape.layout.standard(output_state(output), self._samples)
            if shape.samples_in_rest:
                self._rest[number] = carried(output)
            if self.frozen is not None:
                # its input may be more than the state before it: models add something between blocks
                given = shape.layout.standard(input_state(args, kwargs), self._samples)
                before = given if self._state is None else self._state
                state = torch.where(self.frozen.view(-1, *[1] * (before.ndim - 1)), before, state)
                output = shape.of_state(state, args, kwargs, self._rest.get(number))
            self.depth, self._state = number, state.clone() if self._copied else state
            self._ended = self._stops(number, state)
            return output

        return call

    def run(self, batch: Any, stops: Stops) -> Any:
        """Run the next segment on the remaining samples; returns the readout of the hidden state where `stops` ends it.

        Raises:
            UnknownArchitecture: the forward ended before: blocks did not run.
        """
        before, last = self.depth, self._entry + len(self._shapes)
        self._stops, self._ended, self._samples = stops, False, sample_count(batch)
        self.passed.clear()
        for turns in self._turns:
            turns.restart()
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
        self._rest.clear()

    def keep(self, rows: Int64[Tensor, " n"]) -> None:
        """Continue with some of the samples, by their places in the last segment."""
        count, self._state = len(self.state), self.state[rows]
        first = self._entry + 1
        self._rest = {
            number: self._shapes[number - first].rest_of(rest, rows, count) for number, rest in self._rest.items()
        }
