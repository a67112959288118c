"""The blocks of a forward one by one: each with the arguments that the model's own forward gives it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    rest: tuple[Any, ...] | None = None
    """What it answered beside the state, where later blocks are given that."""

    def __call__(self, state: Tensor) -> Tensor:
        """The block's output for a hidden state, both in the model's own axes."""
        return output_state(call_with(self.block, state.clone() if self.in_place else state, self.args, self.kwargs))

    def standard(self, layout: StateLayout) -> Callable[[Tensor], Tensor]:
        """The same for states (B, T, D)."""
        like = input_state(self.args, self.kwargs)
        # not len(): an export takes that for the same number always
        return lambda state: layout.standard(self(layout.own(state, like=like)), state.shape[0])


class Replay:
    """All blocks of a forward, each to be run by itself on the model's own arguments.

    Args:
        state: the input of the first block, h[0] of one stage.
        steps: of each block, in order: the state after it, for the state before it.
        entry: the depth of the block before these; 0 but for a last stage of several.

    Attributes:
        state: what the first of these blocks is given: h[0].
    """

    def __init__(self, state: Tensor, steps: Sequence[Callable[[Tensor], Tensor]], entry: int = 0) -> None:
        self.state, self._steps, self._entry = state, steps, entry

    def step(self, state: Tensor, depth: int) -> Tensor:
        """Run block `depth` (1..L) on h[depth - 1]; returns h[depth]."""
        return self._steps[depth - 1 - self._entry](state)
