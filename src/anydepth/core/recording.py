"""Records a forward: the hidden states, and the traits of the model that readouts and cuts need."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from anydepth.core.blocks import BlockList
from anydepth.core.layout import StateLayout
from anydepth.core.model_io import adapted_layers, fields_of, input_state, output_parts, output_state
from anydepth.core.patching import is_compiled
from anydepth.core.watching import Call, PlainForward, Stage
from anydepth.errors import UnknownArchitecture


@dataclass(frozen=True, kw_only=True)
class BlockOutput:
    """The form of a block's output: the hidden state alone, or first in a tuple or a mapping, before `rest`."""

    rest: tuple[Any, ...] | None
    layout: StateLayout
    samples_in_rest: tuple[int, ...] = ()
    """Of each tensor beside the state, how many entries of its first axis belong to a sample; 0 for none."""
    names: tuple[str, ...] = ()
    """Of the entries of a mapping, a named tuple or a dataclass."""
    make: Callable[..., Any] = dict
    """Makes the output of its entries by name."""

    @classmethod
    def of(cls, output: Any, layout: StateLayout) -> BlockOutput:
        """The form of an output."""
        named = fields_of(output)
        if not named and not isinstance(output, tuple | list):
            return cls(rest=None, layout=layout)
        # Tensors beside the state (attention weights) belong to one batch only; see `carried`.
        rest = tuple(None if isinstance(value, Tensor) else value for value in output_parts(output)[1:])
        return cls(rest=rest, layout=layout, names=tuple(named), make=type(output) if named else dict)

    def __call__(self, state: Tensor, rest: tuple[Any, ...] | None = None) -> Any:
        """A state in the model's own axes in this form, with what a block of this batch answered beside it."""
        if self.rest is None:
            return state
        parts = (state, *(self.rest if rest is None else rest))
        return self.make(**dict(zip(self.names, parts, strict=True))) if self.names else parts

    def of_state(self, state: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], rest: Any = None) -> Any:
        """A state (B, T, D) in this form, for a block that was called with these arguments."""
        return self(self.layout.own(state, like=input_state(args, kwargs)), rest)

    def rest_of(self, rest: tuple[Any, ...] | None, rows: Tensor, count: int) -> tuple[Any, ...] | None:
        """What a block answered beside the state for `count` samples, for some of these."""
        if rest is None or not self.samples_in_rest:
            return None
        return tuple(
            value.unflatten(0, (count, size))[rows].flatten(0, 1) if size else value
            for value, size in zip(rest, self.samples_in_rest, strict=True)
        )

    def with_samples(self, rest: tuple[Any, ...], other: tuple[Any, ...], counts: tuple[int, int]) -> BlockOutput:
        """This form, with how what is beside the state grows with the samples, seen for two numbers of them."""
        sizes = []
        for value, counterpart in zip(rest, other, strict=True):
            tensors = isinstance(value, Tensor) and isinstance(counterpart, Tensor) and value.ndim > 0
            lengths = (len(value), len(counterpart)) if tensors else (0, 0)
            grows = lengths[0] != lengths[1] and lengths[0] * counts[1] == lengths[1] * counts[0]
            sizes.append(lengths[0] // counts[0] if grows else 0)
        return replace(self, samples_in_rest=tuple(sizes))


def carried(output: Any) -> tuple[Any, ...]:
    """What a block answers beside the state: where later blocks are given it, they cannot run without."""
    return output_parts(output)[1:]


@dataclass(frozen=True, kw_only=True)
class ModelTraits:
    """Properties of a model, or of one of its stages, seen in its own forward on the first batch."""

    stage: Stage
    entry: int
    """The depth of the block before its own: 0, but for stages after the first."""
    order: tuple[int, ...]
    """The place in the list of the block at each depth: a depth is a call, and several may be of one module."""
    shapes: list[BlockOutput]
    layout: StateLayout
    before: list[nn.Module]
    """Modules that run once and finish before the first block starts, and whose outputs nobody writes to."""
    final_norms: list[nn.Module]
    """Norms whose input is the last block's output."""
    in_place: bool
    """Whether something overwrites a state, so that states must be copied."""
    carries: bool
    """Whether blocks are given what an earlier one answered beside the state (T5's position bias)."""
    answer: str
    """The name of the answer in the model's output; empty for a bare tensor."""
    classifier: nn.Module | None
    """The last module with parameters of its own that runs after the blocks; None if there is none."""
    compiled: tuple[nn.Module, ...]
    """Modules outside the blocks that are compiled."""
    is_last: bool = True
    """Whether no other list of blocks runs after these, and answers for every position are one for each state."""
    cuttable: bool = True
    """Whether the model runs on some samples of a batch: all that belongs to them has them in front."""
    between: bool = False
    """Whether the model makes something of the states between its blocks, so that none of these runs by itself."""
    heads: tuple[str, ...] = ()
    """Names of the lists that have a head for each depth."""
    ends_early: bool = False
    """Whether a depth is read out by ending the model there: it has heads of each depth, or an answer that is made of
    several states (boxes that each block refines)."""
    shortens: bool = False
    """Whether a few positions of a batch show what the model is."""
    answers_by_row: bool = False
    """Whether the classifier may be given some positions alone: the answer is then that of these."""
    classifier_is_last: bool = False
    """Whether the model's answer at a position is what the classifier gives for it, and nothing comes after."""
    classifier_is_all: bool = False
    """Whether, besides, it is a linear map."""

    @property
    def blocks(self) -> BlockList:
        """The blocks, all of whose states have one shape."""
        return self.stage.blocks

    @property
    def first(self) -> int:
        """The first depth whose state is of this stage: what its first block is given, if that is a block's output."""
        return self.entry if self.entry == 0 or self.stage.opening is not None else self.entry + 1

    @property
    def last(self) -> int:
        """The depth of its last block."""
        return self.entry + len(self.order)

    @classmethod
    def of(cls, forward: PlainForward, stage: Stage, *, entry: int, is_last: bool) -> ModelTraits:
        """The traits of a stage of a model; the layout of its states is still to be learnt."""
        layout, blocks = StateLayout(), stage.blocks
        calls = forward.calls_of(blocks)
        first, last = calls[0], calls[-1]
        within = {id(part) for block in blocks.modules for part in block.modules()} | {id(blocks.owner)}
        outside = [call for call in forward.calls if id(call.module) not in within]
        after = [call for call in outside if call.start > last.end]
        beside = [tensor for call in calls for tensor in call.answers[1:]]
        heads = _heads_by_depth(forward, blocks, calls)
        in_place = any(call.wrote_to_input or call.output_changed for call in calls)
        return cls(
            stage=stage,
            entry=entry,
            order=forward.order(blocks),
            shapes=[BlockOutput.of(call.output, layout) for call in calls],
            layout=layout,
            before=_before([call for call in outside if call.start < first.start], outside, first),
            final_norms=_final_norms(after, last),
            in_place=in_place,
            carries=any(given is tensor for tensor in beside for call in calls for given in call.given[1:]),
            answer=forward.answer_name,
            classifier=_classifier(forward, after),
            heads=heads,
            ends_early=bool(heads),
            compiled=tuple(m for m in forward.model.modules() if id(m) not in within and is_compiled(m)),
            is_last=is_last,
        )

    def laid_out(self, layout: StateLayout) -> ModelTraits:
        """These traits, of a model whose states have this layout."""
        return replace(self, layout=layout, shapes=[replace(shape, layout=layout) for shape in self.shapes])


def _before(started: list[Call], outside: list[Call], first: Call) -> list[nn.Module]:
    """Modules whose only call ended before block 1, the outermost ones, if what they answered is still the same."""
    times = Counter(id(call.module) for call in outside)
    once = [call for call in started if call.end < first.start and times[id(call.module)] == 1]
    unwritten = [call for call in once if not call.output_changed and not _writes_to(first, call)]
    inner = {id(part) for call in unwritten for part in call.module.modules() if part is not call.module}
    return [call.module for call in unwritten if id(call.module) not in inner]


def _writes_to(block: Call, call: Call) -> bool:
    """Whether a block overwrites its input, and that is what the module answered."""
    return block.wrote_to_input and any(answer is block.given[0] for answer in call.answers)


def _final_norms(after: list[Call], last: Call) -> list[nn.Module]:
    return [
        call.module
        for call in after
        if re.search("norm", type(call.module).__name__, re.IGNORECASE)
        and call.given
        and _same_memory(call.given[0], last.answers[0])
    ]


def _same_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are one, or views of one; of those that only wrap others (shards), whether they are one."""
    if a is b:
        return True
    try:
        address = a.untyped_storage().data_ptr()
        return bool(address) and address == b.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # nested tensors and wrappers have no storage
        return False


def _classifier(forward: PlainForward, after: list[Call]) -> nn.Module | None:
    """The last module with parameters, or the last whose output is the answer: a head for boxes may come after it."""
    candidates = [call for call in after if any(True for _ in call.module.parameters(recurse=False))]
    answering = [call for call in candidates if any(_same_memory(output, forward.answer) for output in call.answers)]
    if not candidates:
        return None
    last = (answering or candidates)[-1].module
    # an adapter on the classifier is part of it
    return next((module for module in adapted_layers(forward.model) if last in module.modules()), last)


def _heads_by_depth(forward: PlainForward, blocks: BlockList, calls: list[Call]) -> tuple[str, ...]:
    """The names of the lists beside the blocks that have a module for each depth, the l-th of which is given h[l]."""
    inputs: dict[int, list[Tensor]] = {}
    for call in forward.calls:
        if call.given and call.start > calls[0].end:
            inputs.setdefault(id(call.module), []).append(call.given[0])
    return tuple(
        name
        for name, heads in forward.model.named_modules()
        if isinstance(heads, nn.ModuleList)
        and len(heads) >= len(calls) > 1
        and heads is not blocks.owner
        and all(
            any(torch.equal(state, call.answers[0]) for state in inputs.get(id(head), ()))
            for head, call in zip(heads, calls, strict=False)
        )
    )


@dataclass(kw_only=True)
class RecordedForward:
    """The record of a stage's states in a forward in which all blocks ran."""

    model: nn.Module
    traits: ModelTraits
    samples: int
    """How many the batch has."""
    states: list[Tensor] = field(default_factory=list)
    """What its first block was given, and what each gave: (B, T, D) or (B, D). Of one stage, h[0..L]."""
    order: list[int] = field(default_factory=list)

    @property
    def depths(self) -> list[Tensor]:
        """The states that are depths: what the first block was given only where that is h[0], or a block's output."""
        return self.states[self.traits.first - self.traits.entry :]

    def calls(self, modules: Sequence[nn.Module]) -> list[Callable[..., Any]]:
        """Functions to run in place of the blocks: each runs its block and records its state."""
        return [self._recording(number, block) for number, block in enumerate(modules, start=1)]

    def _recording(self, number: int, block: nn.Module) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not self.order:
                self._keep(input_state(args, kwargs))
            output = block(*args, **kwargs)
            self.order.append(number)
            self._keep(output_state(output))
            return output

        return call

    def _keep(self, state: Tensor) -> None:
        state = state.clone() if self.traits.in_place else state
        self.states.append(self.traits.layout.standard(state, self.samples))

    def require_complete(self) -> None:
        """Check that the blocks ran in order, with states of one shape, and no further rows of a sample.

        Raises:
            UnknownArchitecture: they did not.
        """
        model, depth = type(self.model).__name__, len(self.traits.order)
        if self.order != list(range(1, depth + 1)):
            ran = f"{len(self.order)} of {depth} blocks" if len(self.order) < depth else f"the order {self.order}"
            raise UnknownArchitecture(
                f"{model}: {ran} of {self.traits.blocks.path!r} ran, expected each in order, as on the first batch; a "
                "model compiled before it came here may skip them: pass the uncompiled model"
            )
        rows = len(self.states[-1])
        if self.traits.cuttable and rows > self.samples and rows % self.samples == 0:
            raise UnknownArchitecture(
                f"{model}: states of {self.traits.blocks.path!r} have {rows} rows for {self.samples} samples, and had "
                "one for each on the first batch"
            )
        shapes = {tuple(state.shape) for state in self.states}
        if len(shapes) > 1:
            raise UnknownArchitecture(
                f"{model}: states of {self.traits.blocks.path!r} differ in shape between depths "
                f"({', '.join(map(str, sorted(shapes)))}), and had one shape on the first batch"
            )
