"""Learns from the first batch what a model's blocks are and how they pass states on, and verifies it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from anydepth.core.blocks import BOTH, BlockList, block_lists, lists_inside
from anydepth.core.forwards import Forwards, forwards_of
from anydepth.core.layout import features_of_grids, learn_layout
from anydepth.core.model_io import Batch, distance, first_samples, sample_count, samples_of
from anydepth.core.patching import eager, evaluating, forward_as
from anydepth.core.prefix_cache import Prefix
from anydepth.core.recording import ModelTraits, RecordedForward
from anydepth.core.replay import Replay
from anydepth.core.verification import Verification, check, refusing, tolerance_of
from anydepth.core.watching import PlainForward, Stage, watch
from anydepth.errors import UnknownArchitecture


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which of a model's lists are to be its blocks.

    Attributes:
        lists: that may be.
        stated: the one that is named, or that the config leaves; None where a forward must show it, or many are named.
        is_named: whether the user named it, or them: then no other is taken.
        stack: a key of `anydepth.core.blocks.STACKS`, or `BOTH`.
    """

    lists: Sequence[BlockList]
    stated: BlockList | None
    is_named: bool
    stack: str | None

    def stages_in(self, plain: PlainForward) -> tuple[Stage, ...]:
        """The blocks, by what was seen: those named, those that the config states, or the last before the answer.

        Raises:
            UnknownArchitecture: none of them runs with states of one shape.
        """
        if self.stack == BOTH:
            sides = [plain.blocks(self.lists, side) for side in ("decoder", "encoder")]
            return plain.stages(sides, of_one_shape=True)
        if self.is_named and self.stated is None:
            if idle := [blocks for blocks in self.lists if not plain.calls_of(blocks)]:
                raise UnknownArchitecture(f"{type(plain.model).__name__}: {idle[0]}: {plain.objection(idle[0])}")
            return plain.stages(self.lists, of_one_shape=True)
        if self.is_named and self.stated and (objection := plain.objection(self.stated)):
            raise UnknownArchitecture(f"{type(plain.model).__name__}: {self.stated}: {objection}")
        blocks = self._stated_in(plain) or plain.blocks(self.lists, self.stack)
        return (Stage(name=blocks.path, blocks=blocks),)

    def staged_in(self, plain: PlainForward) -> BlockList | None:
        """The list whose members run in stages of differing shape; None if the blocks are of one shape."""
        if self.stack == BOTH or self._stated_in(plain) is not None or (self.is_named and self.stated is None):
            return None
        return plain.staged(self.lists, self.stack)

    def _stated_in(self, plain: PlainForward) -> BlockList | None:
        return self.stated if self.stated is not None and not plain.objection(self.stated) else None


def learn(model: nn.Module, selection: Selection, batch: Batch) -> tuple[tuple[ModelTraits, ...], Verification]:
    """The traits of a model's stages, verified on two samples of a batch; see `anydepth.Stack.verify`."""
    # tensors of inference mode have no version that counts writes
    with evaluating(model), torch.inference_mode(False), torch.no_grad():
        few, plain, cuttable = _watched(model, selection.lists, batch)
        stages: tuple[Stage, ...] = ()
        if (outer := selection.staged_in(plain)) is not None:
            inner = lists_inside(outer)
            within = plain if inner == [outer] else _watched(model, inner, few)[1]
            stages = within.stages(inner)
            plain = within if stages else plain
        with refusing(model):
            return _learnt(few, plain, stages or selection.stages_in(plain), cuttable=cuttable)


def _watched(model: nn.Module, lists: Sequence[BlockList], batch: Batch) -> tuple[Batch, PlainForward, bool]:
    """Two samples of a batch, the untouched model's forward on them, and whether it runs on so few."""
    few = first_samples(batch, 2)
    with eager(model.modules()):
        try:
            return few, watch(model, few, lists), True
        except Exception:
            if sample_count(batch) <= 2:
                raise
        return batch, watch(model, batch, lists), False  # what belongs to samples is not in front


def _learnt(
    few: Batch, plain: PlainForward, stages: Sequence[Stage], *, cuttable: bool
) -> tuple[tuple[ModelTraits, ...], Verification]:
    model, answer, seen = plain.model, plain.answer, list[ModelTraits]()
    for stage in stages:
        entry = seen[-1].last + (stage.opening is not None) if seen else 0
        is_last = stage is stages[-1] and _is_last(plain, stage.blocks)
        seen.append(ModelTraits.of(plain, stage, entry=entry, is_last=is_last))
    given = [(stage.blocks.modules, plain.calls_of(stage.blocks)[0].given[0]) for stage in stages]
    features = features_of_grids(given)
    plain.calls, given = [], []  # their tensors are not needed any more
    traits, replays = list[ModelTraits](), list[Replay]()
    for each in seen:
        laid_out, replay = _laid_out(Forwards(model, each, Prefix()), few, cuttable=cuttable, features=features)
        cuttable = laid_out.cuttable
        traits.append(laid_out)
        replays.append(replay)
    forwards = forwards_of(model, traits)
    records, own_answer = forwards.record_stages(few)
    verification = _compare(forwards, few, records, own_answer, answer, replays)
    check(type(model).__name__, ", ".join(stage.name for stage in stages), verification)
    last, state = traits[-1], records[-1].states[-1]
    if own_answer.ndim == 3 and own_answer.shape[1:2] != state.shape[1:2]:
        last = replace(last, is_last=False)  # each answer is not for one of the states
    is_all = own_answer.ndim == 3 and is_linear_head(forwards, state, own_answer, few)
    last = replace(last, classifier_is_all=is_all, cuttable=cuttable)
    return (*traits[:-1], last), verification


def _laid_out(forwards: Forwards, few: Batch, *, cuttable: bool, features: int | None) -> tuple[ModelTraits, Replay]:
    """The traits of a stage with the layout of its states, and the replay of its blocks on fewer or more samples."""
    traits, count = forwards.traits, sample_count(few)
    fewer_or_more = samples_of(few, torch.tensor([1] if count > 1 else [0, 0]))
    state, calls = forwards.calls(few)
    other, other_calls, other_count = None, calls, 0
    if cuttable:
        try:
            other, other_calls = forwards.calls(fewer_or_more)
            other_count = sample_count(fewer_or_more)
        except Exception:  # of the model: it takes no part of a batch
            cuttable = False
    name = type(forwards.model).__name__
    layout = learn_layout(name, traits.blocks.modules, state, other, (count, other_count), features)
    traits = replace(traits.laid_out(layout), cuttable=cuttable)
    if traits.carries and other is not None:
        rests = zip(traits.shapes, calls, other_calls, strict=True)
        counts = (count, other_count)
        shapes = [shape.with_samples(this.rest or (), that.rest or (), counts) for shape, this, that in rests]
        traits = replace(traits, shapes=shapes)
    return traits, Replay(state if other is None else other, other_calls, layout)


def _is_last(plain: PlainForward, blocks: BlockList) -> bool:
    """Whether no other list of blocks starts after this one has ended."""
    end = plain.calls_of(blocks)[-1].end
    others = [other for other in block_lists(plain.model) if other.rank <= 1 and other.path != blocks.path]
    return not any((calls := plain.calls_of(other)) and calls[0].start > end for other in others)


def _compare(
    forwards: Forwards,
    batch: Batch,
    records: Sequence[RecordedForward],
    answer: Tensor,
    plain: Tensor,
    replays: Sequence[Replay],
) -> Verification:
    states = records[-1].states
    k = max(1, (len(states) - 1) // 2)
    return Verification(
        plain=distance(answer, plain),
        prefix=max(distance(forwards.first_state(batch, kept=True), states[0]) for _ in range(2)),
        readout=distance(forwards.readout(states[-1], batch), answer),
        cut=distance(forwards.readout(states[k], batch), forwards.run(batch, forwards.cut_calls(k))),
        replay=max(_replayed(replay, record.states) for replay, record in zip(replays, records, strict=True)),
        depth=forwards.traits.entry + k,
        tolerance=tolerance_of(states[0]),
    )


def _replayed(replay: Replay, states: Sequence[Tensor]) -> float:
    """The largest difference of blocks replayed one by one from their states: on all samples, or the last alone."""
    count, replayed = len(states[0]), len(replay.state)
    rows = torch.arange(count) if replayed == count else torch.tensor([count - 1]).expand(replayed)
    rows = rows.to(states[0].device)
    steps = [replay.state, *(replay.step(state[rows], depth) for depth, state in enumerate(states[:-1], start=1))]
    return max(distance(step, state[rows]) for step, state in zip(steps, states, strict=True))


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
