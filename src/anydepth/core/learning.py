"""Learns from the first batch what a model's blocks are and how they pass states on, and verifies it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from anydepth.core.blocks import BlockList, block_lists
from anydepth.core.forwards import Forwards
from anydepth.core.layout import StateLayout, learn_layout
from anydepth.core.model_io import (
    Batch,
    answer_fields,
    distance,
    first_samples,
    model_output,
    sample_count,
    samples_of,
)
from anydepth.core.patching import eager, evaluating, forward_as
from anydepth.core.prefix_cache import Prefix
from anydepth.core.recording import ModelTraits, RecordedForward
from anydepth.core.replay import BlockCall
from anydepth.core.verification import Verification, check, refusing, tolerance_of
from anydepth.core.watching import PlainForward, watch
from anydepth.errors import UnknownArchitecture, one_line


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which of a model's lists are to be its blocks.

    Attributes:
        lists: that may be.
        stated: the one that is named, or that the config leaves; None where a forward must show it.
        is_named: whether the user named it: then no other is taken.
        stack: a key of `anydepth.core.blocks.STACKS`.
    """

    lists: Sequence[BlockList]
    stated: BlockList | None
    is_named: bool
    stack: str | None

    def blocks_in(self, plain: PlainForward) -> BlockList:
        """The blocks, by what was seen: those named, those that the config states, or the last before the answer.

        Raises:
            UnknownArchitecture: none of them runs with states of one shape.
        """
        if self.stated is not None:
            objection = plain.objection(self.stated)
            if not objection:
                return self.stated
            if self.is_named:
                raise UnknownArchitecture(f"{type(plain.model).__name__}: {self.stated}: {objection}")
        return plain.blocks(self.lists, self.stack)


def learn(model: nn.Module, selection: Selection, batch: Batch) -> tuple[ModelTraits, Verification]:
    """The traits of a model, verified on two samples of a batch; see `anydepth.Stack.verify`."""
    # tensors of inference mode have no version that counts writes
    with evaluating(model), torch.inference_mode(False), torch.no_grad():
        few, plain, cuttable = _watched(model, selection, batch)
        with refusing(model):
            return _learnt(few, plain, selection, cuttable=cuttable)


def _watched(model: nn.Module, selection: Selection, batch: Batch) -> tuple[Batch, PlainForward, bool]:
    """Two samples of a batch, the untouched model's forward on them, and whether it runs on so few."""
    few = first_samples(batch, 2)
    with eager(model.modules()):
        try:
            return few, watch(model, few, selection.lists), True
        except Exception:
            if sample_count(batch) <= 2:
                raise
        return batch, watch(model, batch, selection.lists), False  # what belongs to samples is not in front


def _learnt(
    few: Batch, plain: PlainForward, selection: Selection, *, cuttable: bool
) -> tuple[ModelTraits, Verification]:
    blocks = selection.blocks_in(plain)
    traits = ModelTraits.of(plain, blocks, is_last=_is_last(plain, blocks))
    answer, plain.calls = plain.answer, []  # their tensors are not needed any more
    count = sample_count(few)
    fewer_or_more = samples_of(few, torch.tensor([1] if count > 1 else [0, 0]))
    forwards = Forwards(plain.model, traits, Prefix())
    state, calls = forwards.calls(few)
    other, other_calls, other_count = None, calls, 0
    if cuttable:
        try:
            other, other_calls = forwards.calls(fewer_or_more)
            other_count = sample_count(fewer_or_more)
        except Exception:  # of the model: it takes no part of a batch
            cuttable = False
    layout = learn_layout(type(plain.model).__name__, blocks.modules, state, other, (count, other_count))
    traits = replace(traits.laid_out(layout), cuttable=cuttable)
    if traits.carries and other is not None:
        rests = zip(traits.shapes, calls, other_calls, strict=True)
        counts = (count, other_count)
        shapes = [shape.with_samples(this.rest or (), that.rest or (), counts) for shape, this, that in rests]
        traits = replace(traits, shapes=shapes)
    forwards = Forwards(plain.model, traits, Prefix())
    record = forwards.record(few)
    part, rows = (few, torch.arange(count)) if other is None else (fewer_or_more, torch.tensor([count - 1]))
    rows = rows.expand(count if other is None else other_count).to(record.states[0].device)
    states = [state[rows] for state in record.states]
    replayed = _replayed(layout.standard(state if other is None else other), other_calls, states, layout)
    if not replayed <= tolerance_of(states[0]):
        traits = replace(traits, between=True)
        forwards = Forwards(plain.model, traits, Prefix())
        steps = [forwards.step(part, states[:depth], depth) for depth in range(1, len(states))]
        replayed = _largest(steps, states[1:])
    whole = forwards.readout_output(record.states[-1:], few, len(traits.order))
    is_own = distance(model_output(whole)[1], record.answer) <= tolerance_of(states[0])
    if is_own and not _largest(*_beside(whole, record)) <= tolerance_of(states[0]):
        traits = replace(traits, ends_early=True)
    forwards = Forwards(plain.model, traits, Prefix())
    verification = _compare(forwards, few, record, answer, model_output(whole)[1], replayed)
    check(type(plain.model).__name__, blocks.path, verification)
    if record.answer.ndim == 3 and record.answer.shape[1:2] != record.states[-1].shape[1:2]:
        traits = replace(traits, is_last=False)  # each answer is not for one of the states
    is_all = record.answer.ndim == 3 and is_linear_head(forwards, record.states[-1], record.answer, few)
    return replace(traits, classifier_is_all=is_all and not traits.ends_early), verification


def _is_last(plain: PlainForward, blocks: BlockList) -> bool:
    """Whether no other list of blocks starts after this one has ended."""
    end = plain.calls_of(blocks)[-1].end
    others = [other for other in block_lists(plain.model) if other.rank <= 1 and other.path != blocks.path]
    return not any((calls := plain.calls_of(other)) and calls[0].start > end for other in others)


def _replayed(first: Tensor, calls: list[BlockCall], states: list[Tensor], layout: StateLayout) -> float:
    """The largest difference of each block, run by itself on the state before it, from the state after it."""
    steps = [call.standard(layout)(state) for call, state in zip(calls, states[:-1], strict=True)]
    return _largest([first, *steps], states)


def _largest(values: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    return max((distance(*pair) for pair in zip(values, expected, strict=True)), default=0.0)


def _beside(whole: Any, record: RecordedForward) -> tuple[list[Tensor], list[Tensor]]:
    """What a readout says of the rows of the answer beside it, and what the forward says."""
    expected = {name: value for name, value in answer_fields(record.output).items() if value is not record.answer}
    given = answer_fields(whole)
    return [given[name] for name in expected], list(expected.values())


def _compare(
    forwards: Forwards, batch: Batch, record: RecordedForward, plain: Tensor, readout: Tensor, replayed: float
) -> Verification:
    states, answer = record.states, record.answer
    k = max(1, (len(states) - 1) // 2)
    return Verification(
        plain=distance(answer, plain),
        prefix=max(distance(forwards.first_state(batch, kept=True), states[0]) for _ in range(2)),
        readout=distance(readout, answer),
        cut=distance(*_ended_early(forwards, batch, states[k], k)),
        replay=replayed,
        depth=k,
        tolerance=tolerance_of(states[0]),
    )


def _ended_early(forwards: Forwards, batch: Batch, state: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """The readout of a state, and the answer of the model cut after its depth."""
    try:
        return forwards.readout(state, batch, depth=depth), forwards.run(batch, forwards.cut_calls(depth))
    except Exception as error:
        if not forwards.traits.ends_early:
            raise
        raise UnknownArchitecture(
            f"{type(forwards.model).__name__} reads each depth out by what is of that depth alone, and its forward "
            f"does not end after block {depth} ({type(error).__name__}: {one_line(error)}): only depth L has a readout"
        ) from error


def is_linear_head(forwards: Forwards, state: Tensor, answer: Tensor, batch: Batch) -> bool:
    """Whether the readout of a hidden state (`answer`) is a linear map of the classifier's input."""
    linear = forwards.traits.classifier
    if not isinstance(linear, nn.Linear):
        return False
    try:
        with forward_as(linear, lambda features: features):
            features = forwards.readout(state, batch)
        error = distance(functional.linear(features, linear.weight, linear.bias), answer)
    except RuntimeError:  # shapes do not fit: the answer is made of more than the classifier's output
        return False
    return error <= tolerance_of(answer)
