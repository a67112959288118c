"""A forward in legs, between which samples may leave: each runs some of the blocks and reads out what they gave.

A leg from depth j to k is the model's own forward. Stubs hand h[j] past the first j blocks, the blocks up to k run on
what the model gives them, stubs hand h[k] past the others: what comes out is the readout of h[k]. The next leg is given
the batch of those who are left, so the model itself makes their masks, and a leg costs one readout, whoever left.
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
"""Whether a leg ends at this depth, with this state. At L it ends in any case."""


class Segments:
    """One forward in legs.

    Args:
        shapes: how each block hands on its state.
        forward: the model's, with the stubs in it.

    Attributes:
        depth: up to which the blocks have run.
        passed: the blocks that did not run in the last leg, by their number, and what they were given, as (block, args,
            kwargs); kept where `notes` is on.
        notes: whether to keep them.
        frozen: rows whose state is handed past all further blocks as it is, (B,) bool; None where all go on.
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
        """The state where the last leg ended."""
        assert self._state is not None
        return self._state

    # Not kept: stubs know of this, and what knows of itself holds its tensors until the next garbage collection.
    def stubs(self, blocks: Iterable[nn.Module]) -> list[Callable[..., Any]]:
        """What is to stand in the places of the blocks."""
        return [self._stub(*one) for one in zip(range(1, len(self._shapes) + 1), blocks, self._shapes, strict=True)]

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
        """Run the next leg; returns what the forward answers: the readout of the state where it ends.

        Args:
            batch: the samples that are left.
            stops: where the leg ends.

        Raises:
            UnknownArchitecture: it ended before any of that: blocks did not run.
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
        """Have the next leg begin behind a block, with a state of one's own.

        Args:
            depth: 0 for the whole forward.
            state: h[depth] of the samples that the next leg is given.
        """
        self.depth, self._state = depth, state

    def keep(self, rows: Int64[Tensor, " n"]) -> None:
        """Go on with some of the samples, by their places among those of the last leg."""
        self._state = self.state[rows]
