"""The blocks of a forward one by one: each with the arguments that the model's own forward gives it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from anydepth.core.layout import StateLayout
from anydepth.core.model_io import call_with, input_state, output_state


@dataclass(frozen=True, kw_only=True)
class BlockCall:
    """A block, and the arguments that the model's own forward passes to it."""

    block: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    in_place: bool
    """Whether the block may overwrite the state it is given."""
    layout: StateLayout
    rest: tuple[Any, ...] | None = None
    """What it answered beside the state, where later blocks are given that."""

    def __call__(self, state: Tensor) -> Tensor:
        """The block's output for a hidden state."""
        own = self.layout.own(state.clone() if self.in_place else state, like=input_state(self.args, self.kwargs))
        return self.layout.standard(output_state(call_with(self.block, own, self.args, self.kwargs)))


@dataclass
class Replay:
    """The recorded inputs of all blocks: each can be run by itself on the model's own arguments."""

    state: Tensor
    """h[0]."""
    calls: list[BlockCall]

    @classmethod
    def of(cls, state: Tensor, calls: list[BlockCall], layout: StateLayout) -> Replay:
        """A replay of calls that were recorded before the model's layout was known."""
        return cls(layout.standard(state), [replace(call, layout=layout) for call in calls])

    def step(self, state: Tensor, depth: int) -> Tensor:
        """Run block `depth` (1..L) on h[depth - 1]; returns h[depth]."""
        return self.calls[depth - 1](state)
