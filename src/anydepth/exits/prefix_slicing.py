"""Outputs of the modules before the first block, cut down to some samples, so that they need not run again for them.

An output may be (B, T, D), or (1, T, D) for all: that an axis is as long as the batch may be chance. So the modules
run once more with every sample twice; the axes that became twice as long are the batch's, or hold several entries of
each of its samples, one after the other.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils import _pytree as pytree

from anydepth.core.model_io import Batch, distance, sample_count, samples_of
from anydepth.core.prefix_cache import Answers
from anydepth.core.stack import Stack
from anydepth.core.verification import tolerance_of

Axes = list[int | None]
"""Of each leaf of an output: the axis of the batch, or None."""


class PrefixSlicer:
    """Cuts the outputs of what a model runs before its first block down to some samples."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        # The same model may make a mask or none, by what is in the batch: one entry for each kind of outputs seen.
        self._known: dict[tuple[Any, ...], list[Axes | None]] = {}

    def cut(self, outputs: Answers, batch: Batch, rows: Int64[Tensor, " n"]) -> Answers:
        """The outputs on a batch for some of its rows, without those that cannot be cut: their modules run again."""
        count = sample_count(batch)
        return [
            (module, _select_rows(output, axes, rows, count))
            for (module, output), axes in zip(outputs, self._axes(outputs, batch), strict=True)
            if axes is not None
        ]

    def _axes(self, outputs: Answers, batch: Batch) -> list[Axes | None]:
        count, joined = sample_count(batch), self._stack.learn(batch).layout.joined
        kind = tuple(_kind(leaf, count, joined) for leaf in pytree.tree_leaves([output for _, output in outputs]))
        if kind not in self._known:
            each_twice = samples_of(batch, torch.arange(count).repeat(2))
            with self._stack.recorded_prefix(each_twice) as twice:
                self._stack.replay(each_twice)
            self._known[kind] = [_batch_axes(a, b, count) for (_, a), (_, b) in zip(outputs, twice, strict=True)]
        return self._known[kind]


def _kind(leaf: Any, count: int, joined: bool) -> Any:
    """What must be alike for the axes to be: a mask may be one for all in one batch, one for each in the next."""
    if not isinstance(leaf, Tensor):
        return type(leaf)
    return tuple(size % count == 0 and size // count if joined else size == count for size in leaf.shape)


def _batch_axes(once: Any, twice: Any, count: int) -> Axes | None:
    """The batch's axis in each leaf of an output; None if the output depends on the batch in any other way."""
    try:
        return [
            _batch_axis(*pair, count) for pair in zip(pytree.tree_leaves(once), pytree.tree_leaves(twice), strict=True)
        ]
    except ValueError:
        return None


def _batch_axis(once: Any, twice: Any, count: int) -> int | None:
    if not isinstance(once, Tensor):
        if not isinstance(once, bool | int | float | str | None) or once != twice:
            raise ValueError("a size of the batch, or an opaque object")
        return None
    differing = [axis for axis, (a, b) in enumerate(zip(once.shape, twice.shape, strict=True)) if a != b]
    if len(differing) > 1 or any(twice.shape[axis] != 2 * once.shape[axis] for axis in differing):
        raise ValueError("more than one axis, or one that is not the batch's alone")
    if not differing:
        return None
    axis, size = differing[0], once.shape[differing[0]]
    if size != count and (size % count or distance(twice.narrow(axis, 0, size), once) > tolerance_of(once)):
        raise ValueError("entries of a sample that are not one after the other")
    return axis


def _select_rows(output: Any, axes: Axes, rows: Int64[Tensor, " n"], count: int) -> Any:
    leaves, shape = pytree.tree_flatten(output)
    cut = [
        leaf if axis is None else _selected(leaf, axis, rows, count) for leaf, axis in zip(leaves, axes, strict=True)
    ]
    return pytree.tree_unflatten(cut, shape)


def _selected(leaf: Tensor, axis: int, rows: Int64[Tensor, " n"], count: int) -> Tensor:
    """Some samples of `count`, each of which may have several entries, one after the other."""
    if leaf.shape[axis] == count:
        return leaf.index_select(axis, rows)
    size = leaf.shape[axis] // count
    entries = rows[:, None] * size + torch.arange(size, device=rows.device)
    return leaf.index_select(axis, entries.flatten())
