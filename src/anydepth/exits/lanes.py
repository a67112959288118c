"""Which axis of what the blocks are given is the batch's, and everything cut down to the samples still on their way.

A mask may be (B, 1, T, T) or (1, 1, T, T), rotary tables (1, T, D) or (B, T, D): that an axis is as long as the batch
may be chance. So the same forward is recorded once more with every sample twice; the axes that became twice as long are
the batch's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils import _pytree as pytree

from anydepth.calling import Batch, sample_count, samples_of
from anydepth.errors import UnknownArchitecture
from anydepth.stack import BlockCall, Replay, Stack

Axes = list[int | None]
"""Of each leaf of a call's arguments: the axis of the batch, or None."""


class Lanes:
    """What a model's blocks are given, cut down to some samples.

    Args:
        stack: the model.
    """

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        # The same model may be given masks or none, by what is in the batch: one entry for each kind seen.
        self._known: dict[tuple[Any, ...], list[Axes]] = {}

    def axes(self, replay: Replay, batch: Batch) -> list[Axes]:
        """The batch's axis in each argument of each block.

        Args:
            replay: recorded on the batch.
            batch: whose samples may leave.

        Raises:
            UnknownArchitecture: an argument depends on the batch in another way than by one axis.
        """
        leaves = [_leaves(call) for call in replay.calls]
        count = sample_count(batch)
        kind = tuple(tuple(_kind(leaf, count) for leaf in own) for own in leaves)
        if kind not in self._known:
            each_twice = samples_of(batch, torch.arange(count).repeat(2))
            twice = [_leaves(call) for call in self._stack.replay(each_twice).calls]
            self._known[kind] = [
                self._compared(depth, own, other)
                for depth, (own, other) in enumerate(zip(leaves, twice, strict=True), 1)
            ]
        return self._known[kind]

    def _compared(self, depth: int, once: list[Any], twice: list[Any]) -> Axes:
        try:
            return [_batch_axis(one, other) for one, other in zip(once, twice, strict=True)]
        except ValueError as problem:
            raise UnknownArchitecture(
                f"{type(self._stack.model).__name__}: block {depth} is given something that depends on the batch in "
                f"another way than by one axis ({problem}); its samples cannot leave one by one"
            ) from None


class Selected:
    """The arguments of blocks for some samples of the batch they were recorded on; what blocks share is cut once."""

    def __init__(self, replay: Replay, axes: list[Axes], rows: Int64[Tensor, " n"] | None) -> None:
        self._replay, self._axes, self._rows = replay, axes, rows
        self._cut: dict[int, Tensor] = {}

    def step(self, state: Tensor, depth: int) -> Tensor:
        """Run block `depth` on the state of these samples."""
        call = self._replay.calls[depth - 1]
        return self._of(call, self._axes[depth - 1])(state) if self._rows is not None else call(state)

    def _of(self, call: BlockCall, axes: Axes) -> BlockCall:
        leaves, shape = pytree.tree_flatten((call.args, call.kwargs))
        cut = [
            # the state among them gives way to the one the block is called with
            leaf if axis is None or leaf is self._replay.state else self._rows_of(leaf, axis)
            for leaf, axis in zip(leaves, axes, strict=True)
        ]
        args, kwargs = pytree.tree_unflatten(cut, shape)
        return replace(call, args=args, kwargs=kwargs)

    def _rows_of(self, leaf: Tensor, axis: int) -> Tensor:
        if id(leaf) not in self._cut:
            assert self._rows is not None
            self._cut[id(leaf)] = leaf.index_select(axis, self._rows)
        return self._cut[id(leaf)]


def _leaves(call: BlockCall) -> list[Any]:
    return pytree.tree_flatten((call.args, call.kwargs))[0]


def _kind(leaf: Any, count: int) -> Any:
    """What must be alike for the axes to be: a mask may be one for all in one batch, one for each in the next."""
    return tuple(size == count for size in leaf.shape) if isinstance(leaf, Tensor) else type(leaf)


def _batch_axis(once: Any, twice: Any) -> int | None:
    if not isinstance(once, Tensor):
        # sizes of the batch, as numbers, cannot be cut down; anything else is the same for all samples
        if isinstance(once, int) and once != twice:
            raise ValueError(f"a number that went from {once} to {twice}")
        return None
    differing = [axis for axis, (a, b) in enumerate(zip(once.shape, twice.shape, strict=True)) if a != b]
    if len(differing) > 1 or any(twice.shape[axis] != 2 * once.shape[axis] for axis in differing):
        raise ValueError(f"a tensor that went from {tuple(once.shape)} to {tuple(twice.shape)}")
    return differing[0] if differing else None
