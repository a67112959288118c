"""Forwards of a model with stubs in the place of its blocks: what every reading of its states is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from anydepth.core.model_io import Batch, call_model, input_state, model_output
from anydepth.core.patching import disabled, eager, evaluating, forward_as, interfering_flags, replaced
from anydepth.core.prefix_cache import Prefix
from anydepth.core.recording import BlockOutput, ModelTraits, RecordedForward, carried
from anydepth.core.replay import BlockCall
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

    def run(self, batch: Batch, calls: Sequence[Callable[..., Any]]) -> Tensor:
        """The model's answer with call l in place of block l."""
        traits = self.traits
        with self.as_written(), disabled(self._flags), replaced(traits.blocks, traits.order, calls):
            return model_output(call_model(self.model, batch))[1]

    def record(self, batch: Batch) -> tuple[list[Tensor], Tensor]:
        """The states at all depths and the answer of a forward in which all blocks run."""
        records, answer = self.record_stages(batch)
        return [state for record in records for state in record.depths], answer

    def record_stages(self, batch: Batch) -> tuple[list[RecordedForward], Tensor]:
        """The states of each stage, and the answer of a forward; what runs before the last stage is kept."""
        records = [RecordedForward(model=self.model, traits=stage.traits) for stage in self.stages]
        with ExitStack() as inside:
            for stage, record in zip(self.stages[:-1], records, strict=False):
                calls = record.calls(stage.modules)
                inside.enter_context(replaced(stage.traits.blocks, stage.traits.order, calls))
            inside.enter_context(self.prefix.recorded(batch, self.traits.before))
            answer = self.run(batch, records[-1].calls(self.modules))
        for record in records:
            record.require_complete()
        return records, answer

    def readout(self, state: Tensor, batch: Batch, *, final_norm: bool = True) -> Tensor:
        """The answer to a hidden state in the place of the last one."""
        with ExitStack() as undo:
            undo.enter_context(self.prefix.replayed(batch))
            for norm in () if final_norm else self.traits.final_norms:
                undo.enter_context(forward_as(norm, lambda state, *args, **kwargs: state))
            return self.run(batch, [partial(_answer, shape, state) for shape in self.traits.shapes])

    def cut_calls(self, depth: int) -> list[Callable[..., Any]]:
        """The first `depth` of its blocks, and functions that hand on what they are given after them."""
        return [
            block if number <= depth else (lambda *args, _as=shape, **kwargs: _as(input_state(args, kwargs)))
            for number, (block, shape) in enumerate(zip(self.modules, self.traits.shapes, strict=True), start=1)
        ]

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
            state.append(self.traits.layout.standard(input_state(args, kwargs)))
            raise _FirstBlockReached

        with evaluating(self.model), torch.inference_mode(False), torch.no_grad(), ExitStack() as inside:
            inside.enter_context(suppress(_FirstBlockReached))
            inside.enter_context(self.prefix.replayed(batch) if kept else nullcontext())
            self.run(batch, [first] * len(self.modules))
        return state[0]

    def segments(self, forward: Callable[[Any], Any] | None, inside: ExitStack) -> Segments:
        """A forward in segments; stubs are in the place of the blocks until `inside` is closed."""
        answer = forward or (lambda batch: model_output(call_model(self.model, batch))[1])
        segments = Segments(self.traits.shapes, answer, self.traits.entry)
        inside.enter_context(disabled(self._flags))
        inside.enter_context(self.as_written())
        inside.enter_context(segments.in_place_of(self.traits.blocks, self.traits.order))
        return segments


def forwards_of(model: nn.Module, stages: Sequence[ModelTraits]) -> Forwards:
    """The forwards of a model's last stage, which know those of the stages before it."""
    earlier = [Forwards(model, traits, Prefix()) for traits in stages[:-1]]
    return Forwards(model, stages[-1], Prefix(), earlier)


class _FirstBlockReached(BaseException):
    """Ends a forward at its first block; no error, so that no model takes it for one."""


def _answer(shape: BlockOutput, state: Tensor, /, *args: Any, **kwargs: Any) -> Any:
    """What a stub answers with a given hidden state."""
    return shape.of_state(state, args, kwargs)
