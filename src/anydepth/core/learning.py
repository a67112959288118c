"""Learns from the first batch what a model's blocks are and how they pass states on, and verifies it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from anydepth.core.blocks import BlockList, block_lists
from anydepth.core.forwards import Forwards
from anydepth.core.layout import learn_layout
from anydepth.core.model_io import Batch, distance, first_samples, sample_count, samples_of
from anydepth.core.patching import eager, evaluating, forward_as
from anydepth.core.prefix_cache import Prefix
from anydepth.core.recording import ModelTraits, RecordedForward
from anydepth.core.replay import Replay
from anydepth.core.verification import Verification, check, refusing, tolerance_of
from anydepth.core.watching import PlainForward, watch
from anydepth.errors import UnknownArchitecture


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
    replay = Replay(state if other is None else other, other_calls, layout)
    rows = torch.arange(count) if other is None else torch.tensor([count - 1]).expand(other_count)
    verification = _compare(forwards, few, record, answer, replay, rows)
    check(type(plain.model).__name__, blocks.path, verification)
    if record.answer.ndim == 3 and record.answer.shape[1:2] != record.states[-1].shape[1:2]:
        traits = replace(traits, is_last=False)  # each answer is not for one of the states
    is_all = record.answer.ndim == 3 and is_linear_head(forwards, record.states[-1], record.answer, few)
    return replace(traits, classifier_is_all=is_all), verification


def _is_last(plain: PlainForward, blocks: BlockList) -> bool:
    """Whether no other list of blocks starts after this one has ended."""
    end = plain.calls_of(blocks)[-1].end
    others = [other for other in block_lists(plain.model) if other.rank <= 1 and other.path != blocks.path]
    return not any((calls := plain.calls_of(other)) and calls[0].start > end for other in others)


def _compare(
    forwards: Forwards, batch: Batch, record: RecordedForward, plain: Tensor, replay: Replay, rows: Tensor
) -> Verification:
    states, answer = record.states, record.answer
    k, rows = max(1, (len(states) - 1) // 2), rows.to(states[0].device)
    steps = [replay.state]
    steps += [replay.step(state[rows], depth) for depth, state in enumerate(states[:-1], start=1)]
    return Verification(
        plain=distance(answer, plain),
        prefix=max(distance(forwards.first_state(batch, kept=True), states[0]) for _ in range(2)),
        readout=distance(forwards.readout(states[-1], batch), answer),
        cut=distance(forwards.readout(states[k], batch), forwards.run(batch, forwards.cut_calls(k))),
        replay=max(distance(step, state[rows]) for step, state in zip(steps, states, strict=True)),
        depth=k,
        tolerance=tolerance_of(states[0]),
    )


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
