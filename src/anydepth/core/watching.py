"""Watches one forward of an untouched model: which modules ran, in what order, and which of them are its blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import wraps
from itertools import cycle, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from anydepth.core.blocks import OVERRIDE, STACKS, BlockList, named, part_of, shared_block, weights_of
from anydepth.core.model_io import Batch, call_model, model_output, output_parts
from anydepth.core.patching import forward_as
from anydepth.errors import UnknownArchitecture

# How objections to a list start whose members may be stages.
_LISTS, _SHAPES = "its members are lists", "states differ in shape"


@dataclass(eq=False, kw_only=True)
class Call:
    """A module's run in a forward.

    Attributes:
        start: its place in the order of all starts and ends; `end` likewise, and -1 while it runs.
        given: tensors among its arguments, the first of them first.
        versions: how often each of these was written to when it started.
        output: what it answered.
        answers: the tensors in that when it ended: the forward may put others into a mapping afterwards.
        written: how often each of them was written to by then.
    """

    module: nn.Module
    start: int
    given: tuple[Tensor, ...]
    versions: tuple[int, ...]
    end: int = -1
    output: Any = None
    answers: tuple[Tensor, ...] = ()
    written: tuple[int, ...] = ()

    @property
    def output_changed(self) -> bool:
        """Whether what it answered was written to afterwards."""
        return _versions(self.answers) != self.written

    @property
    def wrote_to_input(self) -> bool:
        """Whether its first argument was written to, by the module itself or after it."""
        return _versions(self.given[:1]) != self.versions[:1]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Blocks that run one after another with states of one shape.

    Attributes:
        name: dotted name of the list, or of the part of it.
        blocks: that take and give states of this shape.
        opening: the block before them that gives the first of these states, from one of another shape; None where
            something else does. The first stage has none: what comes before its states is no block.
    """

    name: str
    blocks: BlockList
    opening: nn.Module | None = None


@dataclass(kw_only=True)
class PlainForward:
    """What was seen of a forward: its calls, by their start, and its answer."""

    model: nn.Module
    calls: list[Call] = field(default_factory=list)
    answer_name: str = ""
    answer: Tensor = field(default_factory=lambda: torch.empty(0))

    def calls_of(self, blocks: BlockList) -> list[Call]:
        """The calls of a list's members, in order; those inside another one's are left out."""
        members, calls = {id(module) for module in blocks.modules}, list[Call]()
        for call in self.calls:
            if id(call.module) in members and (not calls or call.start > calls[-1].end):
                calls.append(call)
        return calls

    def order(self, blocks: BlockList) -> tuple[int, ...]:
        """The place in the list of every call's module: a depth is a call, and several may be of one module."""
        places: dict[int, list[int]] = {}
        for place, module in enumerate(blocks.modules):
            places.setdefault(id(module), []).append(place)
        turns = {key: cycle(own) for key, own in places.items()}  # a module may stand in several places
        return tuple(next(turns[id(call.module)]) for call in self.calls_of(blocks))

    def objection(self, blocks: BlockList) -> str:
        """Why a list's members are not the blocks, in words; empty if they may be."""
        calls = self.calls_of(blocks)
        ran, members = len({id(call.module) for call in calls}), len(set(map(id, blocks.modules)))
        if not ran and all(isinstance(member, nn.ModuleList | nn.ModuleDict) for member in blocks.modules):
            return f"{_LISTS}, whose parts the forward calls itself: no module takes a state to the next"
        if ran < members:
            return f"{ran} of {members} ran"
        if not all(call.given and call.answers for call in calls):
            return "a member takes or gives no tensor"
        shapes = {_shape(state) for call in calls for state in (call.given[0], call.answers[0])}
        if len(shapes) > 1:
            return f"{_SHAPES} between depths ({', '.join(sorted(map(str, shapes)))})"
        return ""

    def blocks(self, lists: Sequence[BlockList], stack: str | None) -> BlockList:
        """The blocks: of the lists that ran with states of one shape, the last before the answer.

        Args:
            lists: all there are in the model, by rank: one is taken only where none of a lower rank fits.
            stack: a key of `STACKS`, of a model with several.

        Raises:
            UnknownArchitecture: none fits, or several that do not feed each other; the message says what was seen.
        """
        model = type(self.model).__name__
        candidates = [candidate for candidate in lists if stack is None or candidate.is_called(stack)]
        if stack is not None and not candidates:
            raise UnknownArchitecture(
                f"{model} has no {stack}: {named(lists)}; name one of {', '.join(STACKS)}, or the list itself (blocks=)"
            )
        fitting, outer = self._fitting(candidates, stack)
        if not fitting or outer is not None:
            objections = [f"{candidate}: {self.objection(candidate)}" for candidate in candidates[:4]]
            raise UnknownArchitecture(
                f"{model} has no list of blocks that run with states of one shape: "
                + ("; ".join(objections) or "no list of modules")
            )
        if len(fitting) > 1 and self.answer_name.startswith("logits_per_"):
            raise UnknownArchitecture(
                f"{model} has several stacks that do not feed each other: {named(fitting)}; {OVERRIDE}, or by "
                "stack='image', stack='text'"
            )
        # a few blocks that only read the others out (XCiT's) are none
        most = max(len(candidate.modules) for candidate in fitting)
        fitting = [candidate for candidate in fitting if 2 * len(candidate.modules) >= most]
        return max(fitting, key=lambda candidate: self.calls_of(candidate)[-1].end)

    def staged(self, lists: Sequence[BlockList], stack: str | None) -> BlockList | None:
        """The list that runs in stages of differing shape, if no list runs with states of one; its weights are most."""
        return self._fitting([c for c in lists if stack is None or c.is_called(stack)], stack)[1]

    def _fitting(self, candidates: Sequence[BlockList], stack: str | None) -> tuple[list[BlockList], BlockList | None]:
        """The lists of the lowest rank that run with states of one shape; and the one in stages, if that is the model.

        A list inside one of several stages is not the model.
        """
        objections = {id(candidate): self.objection(candidate) for candidate in candidates}
        fitting = [candidate for candidate in candidates if not objections[id(candidate)]] or self._shared(stack)
        fitting = [candidate for candidate in fitting if candidate.rank == fitting[0].rank]
        varied = [candidate for candidate in candidates if objections[id(candidate)].startswith((_LISTS, _SHAPES))]
        stages = [candidate for candidate in varied if objections[id(candidate)].startswith(_SHAPES)]
        inside = any(fitting and fitting[0].path.startswith(f"{stage.path}.") for stage in stages)
        if not fitting or inside or (stages and stages[0].rank <= 1 and stages[0].rank < fitting[0].rank):
            varied = [candidate for candidate in varied if candidate.rank <= max(2, varied[0].rank)]
            return fitting, max(varied, key=lambda candidate: weights_of(*candidate.modules), default=None)
        return fitting, None

    def stages(self, lists: Sequence[BlockList], *, of_one_shape: bool = False) -> tuple[Stage, ...]:
        """The parts of these lists, in the order they ran, in each of which states have one shape.

        Empty where the members of a list did not run themselves, or, unless they may, all states have one shape.

        Raises:
            UnknownArchitecture: they ran otherwise than one after another; or a block alone has states of a shape.
        """
        if not all(map(self.calls_of, lists)):
            return ()
        stages, shapes, end = list[Stage](), set[Any](), -1
        for blocks in sorted(lists, key=lambda blocks: self.calls_of(blocks)[0].start):
            calls = self.calls_of(blocks)
            if calls[0].start < end or self.order(blocks) != tuple(range(len(blocks.modules))):
                raise UnknownArchitecture(
                    f"{type(self.model).__name__} runs in stages, and the blocks of {blocks} do not run in turn, once "
                    "each, after those of the stage before"
                )
            if not all(call.given and call.answers for call in calls):
                raise UnknownArchitecture(
                    f"{type(self.model).__name__} runs in stages, and a block of {blocks} takes or gives no tensor"
                )
            end = calls[-1].end
            stages += self._parts(blocks, calls, is_first=not stages)
            shapes.update(_shape(call.answers[0]) for call in calls)
        return tuple(stages) if of_one_shape or len(shapes) > 1 else ()

    def _parts(self, blocks: BlockList, calls: Sequence[Call], *, is_first: bool) -> Iterator[Stage]:
        """The parts of a list in which states have one shape; a block that changes the shape opens one."""
        given, answers = ([_shape(state) for state in states] for states in zip(*map(_states, calls), strict=True))
        keeps = [before == after for before, after in zip(given, answers, strict=True)]
        starts = [p for p in range(len(calls)) if p == 0 or not keeps[p] or given[p] != answers[p - 1]]
        for start, stop in pairwise([*starts, len(calls)]):
            inner = start if keeps[start] else start + 1
            if blocks.holder == "list":
                raise UnknownArchitecture(
                    f"{type(self.model).__name__}: {blocks} is a plain list whose states differ in shape: hold its "
                    "blocks in a ModuleList"
                )
            if inner == stop or (inner > start and calls[inner].given[0] is not calls[start].answers[0]):
                raise UnknownArchitecture(
                    f"{type(self.model).__name__}: {part_of(blocks, start, inner)} changes the shape of states from "
                    f"{given[start]} to {answers[start]}, and no block that keeps it is given that state: nothing "
                    "shows which of its axes are samples and features"
                )
            opening = blocks.modules[start] if inner > start and not (is_first and start == 0) else None
            yield Stage(name=part_of(blocks, start, stop).path, blocks=part_of(blocks, inner, stop), opening=opening)

    def _shared(self, stack: str | None) -> list[BlockList]:
        """A module that is in no list and ran several times, each time on what it had answered before."""
        for path, owner in self.model.named_modules() if stack is None else ():
            for name, child in owner.named_children():
                calls = [call for call in self.calls if call.module is child and call.given and call.answers]
                chained = all(then.answers[0] is now.given[0] for then, now in pairwise(calls))
                if len(calls) > 1 and chained and next(child.children(), None) is not None:
                    return [shared_block(".".join(filter(None, (path, name))), owner, name, child)]
        return []


def watch(model: nn.Module, batch: Batch, lists: Sequence[BlockList]) -> PlainForward:
    """Run the model's own forward, nothing about it changed, and record the calls of its modules.

    Args:
        model: in the mode it is in.
        batch: by `Batch`.
        lists: those whose members may be blocks: what lies inside a block is not recorded. Rounds of a loop are run as
            such.
    """
    forward = PlainForward(model=model)
    clock = iter(range(2**62))
    blocks = [member for candidate in lists if candidate.is_closed for member in candidate.modules]
    inside = {id(part) for block in blocks for part in block.modules() if part is not block}
    with ExitStack() as undo:
        for candidate in lists:
            if candidate.loop is not None:
                undo.enter_context(forward_as(candidate.owner, candidate.loop.through(candidate.modules)))
        # blocks in a plain list are no modules of the model
        modules = {*model.modules(), *(module for candidate in lists for module in candidate.modules)}
        for module in modules:
            if id(module) not in inside:
                undo.enter_context(forward_as(module, _watched(module, forward.calls, clock)))
        forward.answer_name, forward.answer = model_output(call_model(model, batch))
    return forward


def _watched(module: nn.Module, calls: list[Call], clock: Iterator[int]) -> Callable[..., Any]:
    module_forward = module.forward

    @wraps(module_forward)
    def forward(*args: Any, **kwargs: Any) -> Any:
        given = _tensors((*args, *kwargs.values()))
        call = Call(module=module, start=next(clock), given=given, versions=_versions(given))
        calls.append(call)
        call.output = module_forward(*args, **kwargs)
        call.answers = _tensors(output_parts(call.output))
        call.written, call.end = _versions(call.answers), next(clock)
        return call.output

    return forward


def _tensors(values: Sequence[Any]) -> tuple[Tensor, ...]:
    """Tensors among values, and in the tuples and lists among them."""
    flat = (item for value in values for item in (value if isinstance(value, tuple | list) else (value,)))
    return tuple(item for item in flat if isinstance(item, Tensor))


def _versions(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    return tuple(tensor._version for tensor in tensors if not tensor.is_inference())


def _states(call: Call) -> tuple[Tensor, Tensor]:
    return call.given[0], call.answers[0]


def _shape(state: Tensor) -> tuple[int, ...] | str:
    return "nested" if state.is_nested else tuple(state.shape)
