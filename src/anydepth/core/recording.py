"""Records a forward: the hidden states, and the traits of the model that readouts and cuts need."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from anydepth.core.model_io import input_state, output_state
from anydepth.core.patching import forward_as
from anydepth.errors import UnknownArchitecture


@dataclass(frozen=True)
class BlockOutput:
    """The form of a block's output: the hidden state alone, or first in a tuple before `rest`."""

    rest: tuple[Any, ...] | None

    @classmethod
    def of(cls, output: Any) -> BlockOutput:
        """The form of an output."""
        if not isinstance(output, tuple | list):
            return cls(None)
        # Tensors beside the state (attention weights) belong to one batch only. Where a later block needs them (T5's
        # position bias), `Stack.verify` fails.
        return cls(tuple(None if isinstance(value, Tensor) else value for value in output[1:]))

    def __call__(self, state: Tensor) -> Any:
        """A hidden state in this form."""
        return state if self.rest is None else (state, *self.rest)


@dataclass(frozen=True, kw_only=True)
class ModelTraits:
    """Properties of a model, found in the forward on the first batch."""

    shapes: list[BlockOutput]
    before: list[nn.Module]
    """Modules that run once and finish before the first block starts: their outputs can be cached for readouts."""
    final_norms: list[nn.Module]
    """Norms whose input is the last block's output."""
    in_place: bool
    """Whether some block overwrites its input, so that states must be copied."""
    answer: str
    """The name of the answer in the model's output; empty for a bare tensor."""
    classifier: nn.Module | None
    """The last module with parameters of its own that runs after the blocks; None if there is none."""
    classifier_is_all: bool = False
    """Whether it is a linear map for each position, and its output the model's answer."""


@dataclass(kw_only=True)
class RecordedForward:
    """The record of a forward in which all blocks ran."""

    model: nn.Module
    path: str
    blocks: nn.ModuleList | nn.Sequential
    states: list[Tensor] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    order: list[int] = field(default_factory=list)
    versions: list[int | None] = field(default_factory=list)
    outside: list[tuple[nn.Module, str, Any]] = field(default_factory=list)
    answer: Tensor = field(default_factory=lambda: torch.empty(0))
    answer_name: str = ""

    def calls(self, *, clone: bool) -> list[Any]:
        """Functions to run in place of the blocks: each runs its block and records its (with `clone`, copied) state."""
        return [self._recording(index, block, clone) for index, block in enumerate(self.blocks)]

    def _recording(self, index: int, block: nn.Module, clone: bool) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not self.order:
                self._keep(input_state(args, kwargs), clone)
            output = block(*args, **kwargs)
            self.order.append(index + 1)
            self.outputs.append(output)
            self._keep(output_state(output), clone)
            return output

        return call

    def _keep(self, state: Tensor, clone: bool) -> None:
        self.states.append(state.clone() if clone else state)
        self.versions.append(None if state.is_inference() else self.states[-1]._version)

    @contextmanager
    def calls_outside(self) -> Iterator[None]:
        """Context manager: record when modules outside the blocks start and finish."""
        within = {id(inner) for block in self.blocks for inner in block.modules()}
        with ExitStack() as undo:
            for module in self.model.modules():
                if id(module) not in within and module is not self.blocks:
                    undo.enter_context(forward_as(module, self._recording_outside(module)))
            yield

    def _recording_outside(self, module: nn.Module) -> Callable[..., Any]:
        module_forward = module.forward

        @wraps(module_forward)
        def forward(*args: Any, **kwargs: Any) -> Any:
            first = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
            self.outside.append((module, "start", (len(self.order), bool(self.states), first)))
            output = module_forward(*args, **kwargs)
            self.outside.append((module, "end", (len(self.order), bool(self.states), None)))
            return output

        return forward

    def finish(self, name: str, answer: Tensor) -> RecordedForward:
        """Add the model's answer, and check that the blocks ran once each, in order, with states of one shape.

        Raises:
            UnknownArchitecture: they did not.
        """
        self.answer_name, self.answer = name, answer
        depth, model = len(self.blocks), type(self.model).__name__
        if self.order != list(range(1, depth + 1)):
            ran, why = f"the order {self.order}", "blocks that several depths share are not supported"
            if len(self.order) < depth:
                ran = f"{len(self.order)} of {depth} blocks"
                why = "a model compiled before it came here may skip them: pass the uncompiled model"
            raise UnknownArchitecture(f"{model}: {ran} of {self.path!r} ran, expected each once in order; {why}")
        shapes = {tuple(state.shape) for state in self.states}
        if len(shapes) > 1:
            raise UnknownArchitecture(
                f"{model}: states differ in shape between depths ({', '.join(map(str, sorted(shapes)))}); "
                "models in stages of differing width (as Swin) are not supported"
            )
        return self

    def traits(self) -> ModelTraits:
        """The properties of the model, from a forward inside `calls_outside`."""
        in_place = any(
            version is not None and state._version != version
            for state, version in zip(self.states, self.versions, strict=True)
        )
        return ModelTraits(
            shapes=[BlockOutput.of(output) for output in self.outputs],
            before=[] if in_place else self._before(),  # the first block overwrites their output
            final_norms=self._final_norms(),
            in_place=in_place,
            answer=self.answer_name,
            classifier=self._classifier(),
        )

    def _before(self) -> list[nn.Module]:
        started = [module for module, event, (_, begun, _) in self.outside if event == "start"]
        ended = [module for module, event, (_, begun, _) in self.outside if event == "end" and not begun]
        once = [module for module in ended if started.count(module) == 1]
        inner = {id(part) for module in once for part in module.modules() if part is not module}
        return [module for module in once if id(module) not in inner]

    def _classifier(self) -> nn.Module | None:
        candidates = [
            module
            for module, event, (ran, _, _) in self.outside
            if event == "start" and ran == len(self.blocks) and any(True for _ in module.parameters(recurse=False))
        ]
        if not candidates:
            return None
        last = candidates[-1]
        # an adapter on the classifier is part of it: PEFT keeps the module it adapts as `base_layer` beside its own
        adapted = (
            module for module in self.model.modules() if isinstance(getattr(module, "base_layer", None), nn.Module)
        )
        return next((module for module in adapted if last in module.modules()), last)

    def _final_norms(self) -> list[nn.Module]:
        last = self.states[-1].untyped_storage().data_ptr()
        return [
            module
            for module, event, (ran, _, argument) in self.outside
            if event == "start"
            and ran == len(self.blocks)
            and re.search("norm", type(module).__name__, re.IGNORECASE)
            and argument is not None
            and argument.untyped_storage().data_ptr() == last
        ]
