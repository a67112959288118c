"""Learns from the first batch what a model's blocks are and how they pass states on, and verifies it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from anydepth.core.blocks import BOTH, OVERRIDE, BlockList, block_lists, lists_inside, rounds_of
from anydepth.core.forwards import Forwards, forwards_of
from anydepth.core.layout import features_of_grids, learn_layout
from anydepth.core.model_io import (
    FEW_POSITIONS,
    Batch,
    answer_fields,
    distance,
    first_positions,
    first_samples,
    model_output,
    predicts_next_token,
    sample_count,
    samples_of,
)
from anydepth.core.patching import eager, evaluating, forward_as
from anydepth.core.prefix_cache import Prefix
from anydepth.core.recording import ModelTraits
from anydepth.core.replay import BlockCall
from anydepth.core.verification import Verification, check, refusing, tolerance_of, without_stubs
from anydepth.core.watching import PlainForward, Stage, watch
from anydepth.errors import UnknownArchitecture

_Map: TypeAlias = Callable[[Tensor], Tensor]


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
        seen = plain
        stages: tuple[Stage, ...] = ()
        if (outer := selection.staged_in(plain)) is not None:
            inner = lists_inside(outer)
            within = plain if inner == [outer] else _watched(model, inner, few)[1]
            stages = within.stages(inner)
            if not stages:
                within, stages = _in_rounds(plain, outer, few)
            seen = within if stages else plain
        with refusing(partial(without_stubs, model)):
            return _learnt(few, seen, stages or selection.stages_in(plain), plain.answer, cuttable=cuttable)


def _in_rounds(plain: PlainForward, outer: BlockList, few: Batch) -> tuple[PlainForward, tuple[Stage, ...]]:
    """The forward with the members of a list of lists as blocks, which are rounds of a loop; no stage if they are not.

    They are none where the parts of a member are not called in turn, or more happens in the loop than to the state.
    """
    rounds = rounds_of(plain.model, outer)
    if rounds is None:
        return plain, ()
    try:
        with eager(plain.model.modules()):
            within = watch(plain.model, few, [rounds])
    except Exception:  # of the model: its forward does not run with one member at a time
        return plain, ()
    same = distance(within.answer, plain.answer) <= tolerance_of(plain.answer)
    fits = same and not within.objection(rounds)
    return (within, (Stage(name=rounds.path, blocks=rounds),)) if fits else (plain, ())


def _watched(model: nn.Module, lists: Sequence[BlockList], batch: Batch) -> tuple[Batch, PlainForward, bool]:
    """A small part of a batch, the untouched model's forward on it, and whether it runs on parts.

    The part is two samples; of a causal language model, whose positions stand for themselves, a few positions of them.
    """
    samples = first_samples(batch, 2)
    few = first_positions(samples, FEW_POSITIONS) if predicts_next_token(model) else samples
    parts = [few, *([samples] if few is not samples else []), *([batch] if sample_count(batch) > 2 else [])]
    with eager(model.modules()):
        for part in parts[:-1]:
            try:
                return part, watch(model, part, lists), True
            except Exception:  # of the model: it may run on more of the batch
                continue
        # what belongs to samples is not in front, or there are no more than these
        return parts[-1], watch(model, parts[-1], lists), parts[-1] is not batch


def _learnt(
    few: Batch, plain: PlainForward, stages: Sequence[Stage], answer: Tensor, *, cuttable: bool
) -> tuple[tuple[ModelTraits, ...], Verification]:
    model, seen = plain.model, list[ModelTraits]()
    for stage in stages:
        entry = seen[-1].last + (stage.opening is not None) if seen else 0
        is_last = stage is stages[-1] and _is_last(plain, stage.blocks)
        seen.append(ModelTraits.of(plain, stage, entry=entry, is_last=is_last))
    given = [(stage.blocks.modules, plain.calls_of(stage.blocks)[0].given[0]) for stage in stages]
    features = features_of_grids(given)
    # one that runs earlier, too, may have a say in the states
    runs_once = sum(call.module is seen[-1].classifier for call in plain.calls) == 1
    plain.calls, given = [], []  # their tensors are not needed any more
    traits, parts = list[ModelTraits](), list[_Part]()
    for each in seen:
        laid_out, part = _laid_out(Forwards(model, each, Prefix()), few, cuttable=cuttable, features=features)
        cuttable = laid_out.cuttable
        traits.append(laid_out)
        parts.append(part)
    forwards = forwards_of(model, traits)
    records, output = forwards.record_stages(few)
    replayed = 0.0
    for place, (part, record) in enumerate(zip(parts, records, strict=True)):
        between, difference = _replayed(Forwards(model, traits[place], Prefix()), part, record.states)
        traits[place], replayed = replace(traits[place], between=between), max(replayed, difference)
    own_answer, state = model_output(output)[1], records[-1].states[-1]
    forwards = forwards_of(model, traits)
    whole = forwards.readout_output([state], few, len(records[-1].order))
    is_own = distance(model_output(whole)[1], own_answer) <= tolerance_of(state)
    if is_own and not _largest(*_beside(whole, output)) <= tolerance_of(state):
        traits[-1] = replace(traits[-1], ends_early=True)
        forwards = forwards_of(model, traits)
    if traits[-1].layout.joined and len(own_answer) != (count := sample_count(few)):
        raise UnknownArchitecture(
            f"{type(model).__name__} has several rows of states for each sample, and answers with {len(own_answer)} "
            f"rows for {count} samples, expected one answer for each sample: make each row a sample of its own"
        )
    answers = (own_answer, answer, model_output(whole)[1])
    verification = _compare(forwards, few, records[-1].states, answers, replayed)
    check(type(model).__name__, ", ".join(stage.name for stage in stages), verification)
    last = traits[-1]
    if own_answer.ndim == 3 and own_answer.shape[1:2] != state.shape[1:2]:
        last = replace(last, is_last=False)  # each answer is not for one of the states
    by_row, is_last = _answers_by_row(forwards, state, own_answer, few) if runs_once else (False, False)
    last = replace(
        last,
        answers_by_row=by_row,
        classifier_is_last=is_last,
        classifier_is_all=is_last and is_linear_head(forwards, state, own_answer, few),
        cuttable=cuttable,
        shortens=predicts_next_token(model) and first_positions(few, FEW_POSITIONS) is few,
    )
    return (*traits[:-1], last), verification


@dataclass(frozen=True, kw_only=True)
class _Part:
    """The calls of a stage's blocks in a forward of fewer or more samples: to see each run by itself.

    `first` is what its first block was given, in the model's own axes.
    """

    batch: Batch
    first: Tensor
    calls: list[BlockCall]


def _laid_out(forwards: Forwards, few: Batch, *, cuttable: bool, features: int | None) -> tuple[ModelTraits, _Part]:
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
    if other is None:
        return traits, _Part(batch=few, first=state, calls=calls)
    return traits, _Part(batch=fewer_or_more, first=other, calls=other_calls)


def _is_last(plain: PlainForward, blocks: BlockList) -> bool:
    """Whether no other list of blocks starts after this one has ended."""
    end = plain.calls_of(blocks)[-1].end
    others = [other for other in block_lists(plain.model) if other.rank <= 1 and other.path != blocks.path]
    return not any((calls := plain.calls_of(other)) and calls[0].start > end for other in others)


def _replayed(forwards: Forwards, part: _Part, states: Sequence[Tensor]) -> tuple[bool, float]:
    """Whether the model makes something of the states between the blocks, and the largest difference of a replay.

    Each block runs on the state before it: by itself, or as the model's own forward has it if that is otherwise. All
    samples are replayed, or the last alone.
    """
    layout = forwards.traits.layout
    first = layout.standard(part.first, sample_count(part.batch))
    rows = torch.arange(len(states[0])) if len(first) == len(states[0]) else torch.tensor([len(states[0]) - 1])
    rows = rows.expand(len(first)).to(states[0].device)
    own = [state[rows] for state in states]
    alone = [call.standard(layout)(state) for call, state in zip(part.calls, own[:-1], strict=True)]
    difference = _largest([first, *alone], own)
    if difference <= tolerance_of(own[0]):
        return False, difference
    leading = Forwards(forwards.model, replace(forwards.traits, between=True), Prefix())
    led = [leading.step(part.batch, own[:depth], depth) for depth in range(1, len(own))]
    return True, _largest(led, own[1:])


def _largest(values: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    return max((distance(*pair) for pair in zip(values, expected, strict=True)), default=0.0)


def _beside(whole: Any, output: Any) -> tuple[list[Tensor], list[Tensor]]:
    """What a readout says of the rows of the answer beside it, and what the forward says."""
    answer = model_output(output)[1]
    expected = {name: value for name, value in answer_fields(output).items() if value is not answer}
    given = answer_fields(whole)
    return [given[name] for name in expected], list(expected.values())


def _compare(
    forwards: Forwards,
    batch: Batch,
    states: Sequence[Tensor],
    answers: tuple[Tensor, Tensor, Tensor],
    replayed: float,
) -> Verification:
    """The law's differences; `answers` are the recorded forward's, the untouched one's, and the readout of h[L]."""
    answer, plain, readout = answers
    k = max(1, (len(states) - 1) // 2)
    return Verification(
        plain=distance(answer, plain),
        prefix=max(distance(forwards.first_state(batch, kept=True), states[0]) for _ in range(2)),
        readout=distance(readout, answer),
        cut=distance(*_ended_early(forwards, batch, states[k], k, answer)),
        replay=replayed,
        depth=forwards.traits.entry + k,
        tolerance=tolerance_of(states[0]),
    )


def _reaches(forwards: Forwards, state: Tensor, batch: Batch) -> bool:
    """Whether the answer is computed from a state in the place of the last one, whatever its value."""
    with torch.enable_grad():
        leaf = state.detach().clone().requires_grad_()
        answer = forwards.readout(leaf, batch)
        (gradient,) = torch.autograd.grad(answer.sum(), leaf, allow_unused=True) if answer.requires_grad else (None,)
    return gradient is not None


def _ended_early(forwards: Forwards, batch: Batch, state: Tensor, depth: int, answer: Tensor) -> tuple[Tensor, Tensor]:
    """The readout of a state, and the answer of the model cut after its depth.

    Raises:
        UnknownArchitecture: the answer does not depend on the state at all, or the forward cannot end there.
    """
    ending = refusing(partial(_without_end, forwards, depth)) if forwards.traits.ends_early else nullcontext()
    with ending:
        early = forwards.readout(state, batch, depth=depth)
        if torch.equal(early, answer) and not _reaches(forwards, state, batch):
            raise UnknownArchitecture(
                f"{type(forwards.model).__name__}: the answer does not depend on the states of "
                f"{forwards.traits.blocks.path!r}; {OVERRIDE}, or by stack='image', stack='text'"
            )
        return early, forwards.run(batch, forwards.cut_calls(depth))


def _without_end(forwards: Forwards, depth: int, reason: str) -> UnknownArchitecture:
    return UnknownArchitecture(
        f"{type(forwards.model).__name__} reads each depth out by what is of that depth alone, and its forward does "
        f"not end after block {depth} ({reason}): only depth L has a readout"
    )


def _answers_by_row(forwards: Forwards, state: Tensor, answer: Tensor, batch: Batch) -> tuple[bool, bool]:
    """Whether the classifier may be given some positions alone, and whether what it then gives is the answer there."""
    classifier = forwards.traits.classifier
    if classifier is None or answer.ndim != 3 or forwards.traits.ends_early:
        return False, False
    every_second = torch.ones(answer.shape[:2], device=answer.device)
    every_second[:, 1::2] = 0  # a classifier that mixes positions gives something else there
    rows, head = every_second.nonzero(as_tuple=True), classifier.forward

    def agrees(forward: _Map, rest: _Map) -> bool:
        try:
            with forward_as(classifier, forward):
                changed = forwards.readout(state, batch)
            return distance(rest(changed), answer[rows]) <= tolerance_of(answer)
        except Exception:  # of the model: what comes after its classifier needs all that this gives
            return False

    by_row = agrees(lambda given: head(given[rows][None]), lambda answers: answers[0])
    return by_row, agrees(lambda given: given, lambda given: classifier(given[rows]))


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
