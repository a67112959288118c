"""A forward in legs, between which samples may leave: each runs some of the blocks and reads out what they gave.

A leg from depth j to k is the model's own forward. Stubs hand h[j] past the first j blocks, the blocks up to k run on
what the model gives them, stubs hand h[k] past the others: what comes out is the readout of h[k]. The next leg is given
the batch of those who are left, so the model itself makes their masks, and a leg costs one readout, whoever left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from jaxtyping import Int64
from torch import Tensor, nn

from anydepth.calling import Batch, state_of
from anydepth.watching import Shape

Stops = Callable[[int, Tensor], bool]
"""Whether a leg ends at this depth, with this state. At L it ends in any case."""


class Legs:
    """One forward in legs.

    Args:
        shapes: how each block hands on its state.
        forward: the model's, with the stubs in it.

    Attributes:
        depth: up to which the blocks have run.
    """

    def __init__(self, shapes: list[Shape], forward: Callable[[Batch], Tensor]) -> None:
        self._shapes, self._forward = shapes, forward
        self.depth = 0
        self._state: Tensor | None = None
        self._ended = True
        self._stops: Stops = lambda depth, state: True

    # Not kept: stubs know of this, and what knows of itself holds its tensors until the next garbage collection.
    def stubs(self, blocks: Iterable[nn.Module]) -> list[Callable[..., Any]]:
        """What is to stand in the places of the blocks."""
        return [self._stub(*one) for one in zip(range(1, len(self._shapes) + 1), blocks, self._shapes, strict=True)]

    def _stub(self, number: int, block: nn.Module, shape: Shape) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if number <= self.depth or self._ended:
                assert self._state is not None
                return shape(self._state)
            output = block(*args, **kwargs)
            self.depth, self._state = number, state_of(output)
            self._ended = self._stops(self.depth, self._state)
            return output

        return call

    def run(self, batch: Batch, stops: Stops) -> Tensor:
        """Run the next leg; returns the readout of the state where it ends.

        Args:
            batch: the samples that are left.
            stops: where the leg ends.
        """
        self._stops, self._ended = stops, False
        return self._forward(batch)

    def keep(self, rows: Int64[Tensor, " n"]) -> None:
        """Go on with some of the samples, by their places among those of the last leg."""
        assert self._state is not None
        self._state = self._state[rows]
