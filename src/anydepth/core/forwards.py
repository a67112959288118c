"""Forwards of a model with stubs in the place of its blocks: what every reading of its states is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from anydepth.core.masks import Masks
from anydepth.core.model_io import (
    Batch,
    call_model,
    call_with,
    input_state,
    model_output,
    output_state,
    sample_count,
)
from anydepth.core.patching import disabled, eager, evaluating, forward_as, interfering_flags, replaced, shortened
from anydepth.core.prefix_cache import Prefix
from anydepth.core.recording import BlockOutput, ModelTraits, RecordedForward, carried
from anydepth.core.replay import BlockCall, Replay
from anydepth.core.segments import Segments


class Forwards:
    """The forwards of a model whose traits are known.

    Args:
        model: in the mode it is in.
        traits: which modules are its blocks, and how they pass states on.
        prefix: keeps what runs before the first block.
        earlier: the forwards of the stages before this one, whose blocks it runs as they are.
    """

    def __init__(self, model: nn.Module, traits: ModelTraits, prefix: Prefix, earlier: Sequence[Forwards] = ()) -> None:
        self.model, self.traits, self.prefix = model, traits, prefix
        self.stages = (*earlier, self)
        self._flags = interfering_flags(model)
        self.modules = tuple(traits.blocks.modules[place] for place in traits.order)

    def as_written(self) -> AbstractContextManager[None]:
        """Context manager: what is compiled around the blocks runs as written. Blocks that are compiled stay so."""
        return eager((self.model, *self.traits.compiled))

    @contextmanager
    def placed(self, calls: Sequence[Callable[..., Any]]) -> Iterator[None]:
        """Context manager: run call l in place of block l; with fewer calls, the list of blocks is as short."""
        blocks, order = self.traits.blocks, self.traits.order
        if len(calls) == len(order):
            with replaced(blocks, order, calls):
                yield
            return
        with shortened(blocks, len(calls)), replaced(blocks.first(len(calls)), order[: len(calls)], calls):
            yield

    def output(self, batch: Batch, calls: Sequence[Callable[..., Any]], labels: Any = None) -> Any:
        """The model's whole output with call l in place of block l, and its own loss if it is given labels."""
        with self.as_written(), disabled(self._flags), self.placed(calls):
            return call_model(self.model, batch, labels)

    def run(self, batch: Batch, calls: Sequence[Callable[..., Any]]) -> Tensor:
        """The model's answer with call l in place of block l."""
        return model_output(self.output(batch, calls))[1]

    def record(self, batch: Batch, labels: Any = None) -> tuple[list[Tensor], Tensor]:
        """The states at all depths and the answer of a forward in which all blocks run."""
        records, output = self.record_stages(batch, labels)
        return [state for record in records for state in record.depths], model_output(output)[1]

    def record_stages(self, batch: Batch, labels: Any = None) -> tuple[list[RecordedForward], Any]:
        """The states of each stage, and all that a forward answers; what runs before the last stage is kept."""
        samples = sample_count(batch)
        records = [RecordedForward(model=self.model, traits=stage.traits, samples=samples) for stage in self.stages]
        with ExitStack() as inside:
            for stage, record in zip(self.stages[:-1], records, strict=False):
                calls = record.calls(stage.modules)
                inside.enter_context(replaced(stage.traits.blocks, stage.traits.order, calls))
            inside.enter_context(self.prefix.recorded(batch, self.traits.before))
            output = self.output(batch, records[-1].calls(self.modules), labels)
        for record in records:
            record.require_complete()
        return records, output

    def readout(self, state: Tensor, batch: Batch, *, depth: int | None = None, final_norm: bool = True) -> Tensor:
        """The answer to a hidden state in the place of the last one, or of that at `depth` where the model ends there.

        The answer is that of `readout_output`, since it is of this state alone, wherever what is beside it is not.
        """
        with ExitStack() as undo:
            for norm in () if final_norm else self.traits.final_norms:
                undo.enter_context(forward_as(norm, lambda state, *args, **kwargs: state))
            return model_output(self.readout_output([state], batch, self.end(depth)))[1]

    def readout_output(self, states: Sequence[Tensor], batch: Batch, end: int, labels: Any = None) -> Any:
        """The whole output with the states of the first blocks in their places, and the last of them up to block `end`.

        Args:
            states: of blocks 1, 2, ..., as many as are known; the last is the one to be read out.
            batch: that they belong to.
            end: the block after which the model ends.
            labels: for the model's own loss.
        """
        every = [*states, *[states[-1]] * (end - len(states))]
        copied = self.writes_between
        calls = [partial(_answer, *pair, copied) for pair in zip(self.traits.shapes, every, strict=False)]
        with self.prefix.replayed(batch):
            return self.output(batch, calls, labels)

    @property
    def writes_between(self) -> bool:
        """Whether the forward may write to a state that a block answers."""
        return self.traits.in_place and self.traits.between

    def _kept(self, state: Tensor) -> Tensor:
        return state.clone() if self.writes_between else state

    def end(self, depth: int | None) -> int:
        """The block after which the model ends where it reads out a depth: the last, or its own if heads are of it."""
        last = len(self.traits.order)
        return last if depth is None or not self.traits.ends_early else max(1, min(depth, last))

    def cut_calls(self, depth: int) -> list[Callable[..., Any]]:
        """The first `depth` of its blocks, and functions that answer with the state of the last of them after it."""
        state: list[Tensor] = []

        def last(*args: Any, **kwargs: Any) -> Any:
            output = self.modules[depth - 1](*args, **kwargs)
            state[:] = [self._kept(output_state(output))]
            return output

        def later(shape: BlockOutput, /, *args: Any, **kwargs: Any) -> Any:
            # not what it is given: a model may change a state before it gives it to the next block
            state[:] = state or [self._kept(input_state(args, kwargs))]
            return shape(self._kept(state[0]))

        after = [partial(later, shape) for shape in self.traits.shapes[depth : self.end(depth)]]
        return [*self.modules[: depth - 1], last, *after] if depth else [*after]

    def replay(self, batch: Batch) -> Replay:
        """The blocks of a forward one by one, each with the arguments that the model gives it."""
        layout, entry = self.traits.layout, self.traits.entry
        start, calls = self.calls(batch)
        state = layout.standard(start, sample_count(batch))
        if not self.traits.between:
            return Replay(state, [call.standard(layout) for call in calls], entry)
        steps = range(1, len(self.modules) + 1)
        return Replay(state, [partial(self._step, batch, depth) for depth in steps], entry)

    def step(self, batch: Batch, states: Sequence[Tensor], depth: int) -> Tensor:
        """The state after block `depth` on what the model's own forward makes of the states before it.

        Args:
            batch: that the states belong to.
            states: what the first block was given, and what each before `depth` gave.
            depth: a block of these, from 1 on.
        """
        results: list[Tensor] = []

        def last(*args: Any, **kwargs: Any) -> Any:
            block, layout = self.modules[depth - 1], self.traits.layout
            own = layout.own(states[0], like=input_state(args, kwargs)).clone() if depth == 1 else None
            output = block(*args, **kwargs) if own is None else call_with(block, own, args, kwargs)
            results.append(layout.standard(output_state(output), len(states[0])))
            raise _BlockReached

        before = zip(self.traits.shapes, states[1:], strict=False)
        calls = [partial(_answer, *pair, self.writes_between) for pair in before]
        with suppress(_BlockReached), self.prefix.kept(batch, self.traits.before):
            self.output(batch, [*calls, *[last] * (len(self.modules) - len(calls))])
        return results[0]

    def _step(self, batch: Batch, depth: int, state: Tensor) -> Tensor:
        return self.step(batch, [state] * depth, depth)

    def calls(self, batch: Batch) -> tuple[Tensor, list[BlockCall]]:
        """The input of the first block, in the model's own axes, and how the forward calls every block.

        No block runs, except where later ones are given what earlier ones answer beside the state.
        """
        traits = self.traits
        start: list[Tensor] = []
        calls: list[BlockCall] = []

        def recorder(block: nn.Module, shape: BlockOutput) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                start.append(input_state(args, kwargs))
                output = block(*args, **kwargs) if traits.carries else shape(start[-1])
                rest = carried(output) if traits.carries else None
                calls.append(BlockCall(block=block, args=args, kwargs=kwargs, in_place=traits.in_place, rest=rest))
                return output

            return call

        with self.prefix.kept(batch, traits.before):
            self.run(batch, [recorder(*pair) for pair in zip(self.modules, traits.shapes, strict=True)])
        return start[0], calls

    def first_state(self, batch: Batch, *, kept: bool = False) -> Tensor:
        """h[0] of a batch, computed anew, or with what was `kept` of the modules before; no block runs."""
        state: list[Tensor] = []

        def first(*args: Any, **kwargs: Any) -> Any:
            state.append(self.traits.layout.standard(input_state(args, kwargs), sample_count(batch)))
            raise _BlockReached

        with evaluating(self.model), torch.inference_mode(False), torch.no_grad(), ExitStack() as inside:
            inside.enter_context(suppress(_BlockReached))
            inside.enter_context(self.prefix.replayed(batch) if kept else nullcontext())
            self.run(batch, [first] * len(self.modules))
        return state[0]

    def masks(self) -> Masks:
        """What there is to learn of the masks of this stage's states."""
        pad = getattr(getattr(self.model, "config", None), "pad_token_id", None)
        virtual, joined = hasattr(self.model, "peft_config"), self.traits.layout.joined
        return Masks(self.first_state, virtual=virtual, joined=joined, pad=pad)

    def segments(self, forward: Callable[[Any], Any] | None, inside: ExitStack) -> Segments:
        """A forward in segments; stubs are in the place of the blocks until `inside` is closed."""
        answer = forward or (lambda batch: model_output(call_model(self.model, batch))[1])
        segments = Segments(self.traits.shapes, answer, self.traits.entry, copied=self.writes_between)
        inside.enter_context(disabled(self._flags))
        inside.enter_context(self.as_written())
        inside.enter_context(segments.in_place_of(self.traits.blocks, self.traits.order))
        return segments


def forwards_of(model: nn.Module, stages: Sequence[ModelTraits]) -> Forwards:
    """The forwards of a model's last stage, which know those of the stages before it."""
    earlier = [Forwards(model, traits, Prefix()) for traits in stages[:-1]]
    return Forwards(model, stages[-1], Prefix(), earlier)


class _BlockReached(BaseException):
    """Ends a forward at a block; no error, so that no model takes it for one."""


def _answer(shape: BlockOutput, state: Tensor, copied: bool, /, *args: Any, **kwargs: Any) -> Any:
    """What a stub answers with a given hidden state, `copied` where the forward may write to it."""
    return shape.of_state(state.clone() if copied else state, args, kwargs)
