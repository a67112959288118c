"""Axes of hidden states: which is the sample and which the features, learnt from the model, not assumed.

Inside a model states may be (T, B, D), as torch's `nn.TransformerEncoder` has them by default, (B, H, W, D) or
(B, D, H, W), or (B·K, T, D): the K choices of a question, or frames of a video, one after the other. Everything else
here sees (B, T, D), or (B, D) of a model without positions; the K rows of a sample are further positions, (B, K·T, D).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from anydepth.core.model_io import distance
from anydepth.core.verification import tolerance_of
from anydepth.errors import UnknownArchitecture


@dataclass(frozen=True, kw_only=True)
class StateLayout:
    """Where a model's states have their samples and features.

    Example:
        >>> import torch
        >>> layout = StateLayout(samples=1, features=2)
        >>> own = torch.arange(12).reshape(3, 2, 2)  # three positions, two samples
        >>> layout.standard(own, 2)[0].tolist()
        [[0, 1], [4, 5], [8, 9]]
        >>> torch.equal(layout.own(layout.standard(own, 2), like=own), own)
        True
        >>> tuple(StateLayout(joined=True).standard(torch.zeros(6, 5, 4), 2).shape)  # three rows of each sample
        (2, 15, 4)
    """

    samples: int = 0
    features: int = -1
    joined: bool = False
    """Whether the axis of samples holds several rows of each, one after the other: they are further positions."""

    def standard(self, state: Tensor, count: int) -> Tensor:
        """A state of the model as (B, T, D), all its axes but samples and features as positions; (B, D) without.

        Args:
            state: in the model's own axes.
            count: B, of which the model itself may make several rows each.

        Raises:
            UnknownArchitecture: the rows cannot be shared out evenly among the samples.
        """
        rows = self._rows(state)
        if not self.joined:
            return rows
        if rows.shape[0] % count:
            raise UnknownArchitecture(
                f"the states have {rows.shape[0]} rows for {count} samples, expected as many for each sample of a batch"
            )
        return rows.reshape(count, -1, rows.shape[-1])

    def _rows(self, state: Tensor) -> Tensor:
        if state.ndim < 3 or (self._is_standard(state) and state.ndim == 3):
            return state if self.samples == 0 else state.movedim(self.samples, 0)
        moved = state.permute(self._order(state))
        return moved.flatten(1, -2) if moved.ndim > 3 else moved

    def own(self, state: Tensor, *, like: Tensor) -> Tensor:
        """A standard state in the model's own axes.

        Args:
            state: (B, T, D) or (B, D).
            like: a state of the model with the same positions, of any number of samples.
        """
        if self.joined:
            positions = math.prod(like.shape[axis] for axis in self._order(like)[1:-1])
            state = state.reshape(-1, positions, state.shape[-1]) if like.ndim > 2 else state.flatten(0, 1)
        if like.ndim < 3 or (self._is_standard(like) and like.ndim == 3):
            return state if self.samples == 0 else state.movedim(0, self.samples)
        order = self._order(like)
        if like.ndim > 3:
            state = state.reshape(len(state), *(like.shape[axis] for axis in order[1:-1]), state.shape[-1])
        return state.permute([order.index(axis) for axis in range(like.ndim)])

    def _is_standard(self, state: Tensor) -> bool:
        return self.samples == 0 and self.features % state.ndim == state.ndim - 1

    def _order(self, state: Tensor) -> list[int]:
        ends = (self.samples, self.features % state.ndim)
        return [self.samples, *(axis for axis in range(state.ndim) if axis not in ends), ends[1]]


def learn_layout(
    model: str,
    blocks: Sequence[nn.Module],
    state: Tensor,
    other: Tensor | None,
    counts: tuple[int, int],
    elsewhere: int | None = None,
) -> StateLayout:
    """The axes of a model's states.

    Args:
        model: its name, for the message.
        blocks: the shapes of their weights tell which axis has the features.
        state: the input of the first block for some samples.
        other: the same for another number of these samples; None where a batch cannot be cut.
        counts: how many samples the two have.
        elsewhere: the axis of the features in the model's other stages, for a grid as long as it has features.

    Raises:
        UnknownArchitecture: no axis grows with the samples, by one row or several of each; the rows of a sample are
            not one after the other; or no axis is clearly that of features.
    """
    samples = _sample_axis(state, other, counts)
    if samples is None or state.ndim < 2:
        seen = f"{tuple(state.shape)} for {counts[0]}"
        seen += "" if other is None else f", and {tuple(other.shape)} for {counts[1]}"
        raise UnknownArchitecture(
            f"{model}: the states before block 1 are {seen} samples: expected an axis with as many entries for each "
            "sample; models that join all samples in one axis otherwise are not supported"
        )
    features = elsewhere if _is_tied(state, samples) else _features(blocks, state, samples)
    if features is None:
        raise UnknownArchitecture(
            f"{model}: the states before block 1 are {tuple(state.shape)}: nothing tells their features from a row of "
            "positions; give inputs of another size"
        )
    layout = StateLayout(samples=samples, features=features)
    if other is None or state.shape[samples] == counts[0]:
        return layout
    layout = replace(layout, joined=True)
    # the last sample is the same in both
    own, alone = layout.standard(state, counts[0])[-1], layout.standard(other, counts[1])[-1]
    if not distance(alone, own) <= tolerance_of(own):
        raise UnknownArchitecture(
            f"{model}: the states before block 1 have {state.shape[samples] // counts[0]} rows for each sample, "
            "expected those of a sample one after the other"
        )
    return layout


def _sample_axis(state: Tensor, other: Tensor | None, counts: tuple[int, int]) -> int | None:
    """The only axis that differs between two numbers of samples, if it has as many entries for each of them."""
    if other is None:
        return next((axis for axis, size in enumerate(state.shape[:-1]) if size == counts[0]), None)
    if other.ndim != state.ndim:
        return None
    changed = [axis for axis, sizes in enumerate(zip(state.shape, other.shape, strict=True)) if len(set(sizes)) > 1]
    if len(changed) != 1:
        return None
    rows, others = (divmod(each.shape[changed[0]], count) for each, count in zip((state, other), counts, strict=True))
    return changed[0] if rows == others and rows[1] == 0 else None


def features_of_grids(stages: Sequence[tuple[Sequence[nn.Module], Tensor]]) -> int | None:
    """The axis of the features in the grids among several stages' states, each with its blocks; None if none tells."""
    axes = {_features(blocks, state, 0) for blocks, state in stages if state.ndim > 3 and not _is_tied(state, 0)}
    return axes.pop() if len(axes) == 1 else None


def _is_tied(state: Tensor, samples: int) -> bool:
    """Whether a grid has as many features as one of the axes that could be theirs is long."""
    first = next(axis for axis in range(state.ndim) if axis != samples)
    return state.ndim > 3 and state.shape[first] == state.shape[-1]


def _features(blocks: Sequence[nn.Module], state: Tensor, samples: int) -> int:
    """The axis of the features: the last, unless only the one after the samples is as long as some weight."""
    if state.ndim < 3 or samples == state.ndim - 1:
        return -1 if samples != state.ndim - 1 else state.ndim - 2
    sizes = {size for parameter in blocks[0].parameters() for size in parameter.shape[:2] if size > 1}  # no kernels
    first = next(axis for axis in range(state.ndim) if axis != samples)
    return first if state.shape[first] in sizes and state.shape[-1] not in sizes and first != state.ndim - 1 else -1
